// Package v1alpha1 has Rowan's custom resources: what is wanted of the pools, volumes and snapshots of every node, and what has become of it.
//
// Contract, for all kinds:
//   - spec says what is wanted and is written by rowan-driver --controller and rowan-controller (PoolSet and the policies: by people). status says what is, and is
//     written by the agent of the node that spec.nodeName names (PoolSet and the policies: by rowan-controller), on transitions only.
//   - Conditions, not phases. A condition's reason is one of this package's Reason constants or, where an operation went wrong, an ErrorReason, which
//     stands for an error of package volume; its message is that error's text.
//   - Blocks are freed only when spec.desiredState is Absent. A deletionTimestamp alone frees nothing: the finalizer keeps the object, and the condition
//     DeletionNotConfirmed says how to go on.
//   - A LocalVolume, LocalSnapshot or LocalSnapshotGroup is named by a hash of the name that CSI gave (volume.VolumeIDOf and its like): creating the
//     object is the lock, and asking twice means the same object. The engine knows the volume or snapshot by the object's name.
//   - All kinds of nodes are cluster scoped: a volume belongs to a node, not to a namespace. Sizes are resource.Quantity, whole bytes.
//   - SnapshotPolicy and ClusterSnapshotPolicy are written by people, their status by rowan-controller, where a decision changes. Their spec is
//     package retention's Policy: the planner's own type.
//   - A VolumeRollback is a command of people to one claim, in its namespace. Its status is written by rowan-controller.
//
// Every list and string has a maximum, so that no object outgrows etcd.
//
// +kubebuilder:object:generate=true
// +groupName=rowan.storage
package v1alpha1

//go:generate go tool controller-gen object crd:crdVersions=v1 paths=. output:crd:dir=crds
//go:generate go tool controller-gen object paths=../../retention
