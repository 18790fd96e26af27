package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Finalizer keeps an object until its engine has no trace of it. rowan-driver --controller and rowan-controller set and remove it; the agent never does.
	Finalizer = "rowan.storage/engine"
	// TopologyKey has a node's identity as its value (Pool.status.identity). It is a label of CSINode's topology, not of ours.
	TopologyKey = "topology.rowan.storage/node"
	// TaintNotReady may be put on new nodes (by an autoscaler's template) to keep pods off; the agent removes it once pool and driver serve.
	TaintNotReady = "rowan.storage/not-ready"
)

// DesiredState says whether the thing is to be there.
// +kubebuilder:validation:Enum=Present;Absent
type DesiredState string

const (
	// Present: to be made, and kept.
	Present DesiredState = "Present"
	// Absent: to be removed, its blocks freed. There is no way back.
	Absent DesiredState = "Absent"
)

// The types of conditions.
const (
	// Ready, of a PoolSet or Pool: it can take volumes.
	Ready = "Ready"
	// Created, of a LocalVolume, LocalSnapshot or LocalSnapshotGroup: the engine has it, durably. False with an ErrorReason: it could not be made; nothing was.
	Created = "Created"
	// Deleted: the engine has it no more, and nothing of this object will be done any more. False with an ErrorReason: it cannot be deleted yet.
	Deleted = "Deleted"
	// Resized, of a LocalVolume: its size is spec.size. False with an ErrorReason: it could not be grown.
	Resized = "Resized"
	// Modified, of a LocalVolume: its mode and tidiness are the spec's. False with an ErrorReason: they could not be changed yet.
	Modified = "Modified"
	// RolledBack, of a LocalVolume: what spec.rollback asks for was done, or, after it, what was asked for last. False with an ErrorReason: not yet, and why.
	RolledBack = "RolledBack"
	// Attached, of a LocalVolume: it has a device on its node. True before it gets one, and False only after it has none.
	Attached = "Attached"
	// Lost: status said Created once, and the engine's pool has it no more. It is never made again, blank.
	Lost = "Lost"
	// NodeLost: the Node object is gone and its agent silent, for longer than the controller waits. Unknown: not yet for so long. Deletions asked for are
	// answered, and carried out when the disks return; all else stays as it is. Written by rowan-controller, as Unselected is.
	NodeLost = "NodeLost"
	// DeletionNotConfirmed: the object was deleted, but nobody set spec.desiredState to Absent. Nothing is freed.
	DeletionNotConfirmed = "DeletionNotConfirmed"
	// SpaceScarce, of a Pool: it is above its watermark, and takes no new volumes and snapshots.
	SpaceScarce = "SpaceScarce"
	// GrowthStopped, of a Pool: the file system below it is too full for the pool to take the space that it was promised.
	GrowthStopped = "GrowthStopped"
	// MembersComplete, of a Pool: all its members are there.
	MembersComplete = "MembersComplete"
	// OrphansFound, of a Pool: it has volumes or snapshots that no object stands for. They are kept until somebody decides.
	OrphansFound = "OrphansFound"
	// Complete, of a VolumeRollback: it was carried out. False: not yet; the reason says what it waits for.
	Complete = "Complete"
	// Failed, of a VolumeRollback: it was given up, and the volume is as it was. Nothing is tried again.
	Failed = "Failed"
	// Unselected, of a Pool: its PoolSet does not choose its node any more. A pool with volumes stays; an empty one is given up.
	Unselected = "Unselected"
	// TemplateApplied, of a PoolSet: its pools are as its template says. False: they differ in what a pool that is there cannot change; the message names it.
	TemplateApplied = "TemplateApplied"
)

// The reasons of conditions where nothing went wrong.
const (
	ReasonDone    = "Done"
	ReasonPending = "Pending"
	ReasonServing = "Serving"
	ReasonExpired = "Expired" // of Created=False: spec.notAfter passed before it was carried out; nothing was, or will be
)

// The reasons of conditions that tell of a node's pools and what is in them.
const (
	ReasonLost         = "Lost"         // of Lost
	ReasonPoolGone     = "PoolGone"     // of Lost, and of Ready=False of a Pool: its members hold no pool any more, or another one than status.uuid
	ReasonForeignPool  = "ForeignPool"  // of Ready=False: the members hold a pool that another Pool object stands for
	ReasonDegraded     = "Degraded"     // of Ready=False and MembersComplete=False: members are missing
	ReasonOpening      = "Opening"      // of Ready=False: the engine is opening the pool
	ReasonNearlyFull   = "NearlyFull"   // of SpaceScarce and GrowthStopped
	ReasonFound        = "Found"        // of OrphansFound
	ReasonNotConfirmed = "NotConfirmed" // of DeletionNotConfirmed
	ReasonAttached     = "Attached"
	ReasonDetached     = "Detached"
	ReasonHeld         = "Held" // of RolledBack=False: the volume is held, and waits for the word to go on
)

// The reasons of a VolumeRollback's conditions that are no ErrorReasons.
const (
	ReasonNoSnapshots     = "SnapshotsNotInstalled" // the cluster does not know VolumeSnapshots
	ReasonNotReady        = "SnapshotNotReady"      // of the snapshot to go back to
	ReasonWaitingForUsers = "VolumeInUse"           // the volume is attached
	ReasonOther           = "OtherRollback"         // another rollback of the volume is under way
	ReasonLocking         = "Locking"               // the node is asked to hold the volume
	ReasonSafety          = "TakingSafetySnapshot"
	ReasonRollingBack     = "RollingBack"
	ReasonNotOfVolume     = "NotOfThisVolume" // the snapshot is of another volume
	ReasonNotOurs         = "NotOurs"         // claim or snapshot is another driver's
	ReasonClassRetains    = "ClassRetains"    // deleting the safety snapshot would leave its data behind
)

// ErrorReason is a condition's reason that stands for an error of package volume; package volume/reason has the table.
type ErrorReason = string

// The error reasons.
const (
	ReasonInvalid        ErrorReason = "InvalidArgument"
	ReasonOutOfRange     ErrorReason = "OutOfRange"
	ReasonSourceNotFound ErrorReason = "SourceNotFound"
	ReasonExists         ErrorReason = "AlreadyExists"
	ReasonInUse          ErrorReason = "InUse"
	ReasonPlacement      ErrorReason = "WrongNode"
	ReasonNoSpace        ErrorReason = "NoSpace"
	ReasonBusy           ErrorReason = "Busy" // something else is under way on the same object
	ReasonPoolFailed     ErrorReason = "PoolFailed"
	ReasonUnavailable    ErrorReason = "EngineUnavailable"
	ReasonNotFound       ErrorReason = "NotFound"
	ReasonInternal       ErrorReason = "InternalError" // tried again by the agent
)

// Status is what all kinds' status begins with.
type Status struct {
	// ObservedGeneration is the generation of spec that the conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Location is where an object of a node lives.
type Location struct {
	// NodeName is the Kubernetes node whose agent carries the object out. rowan-controller changes it when the pool's disks show up on another node.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// Pool is the name of the Pool object, and of the pool in its engine.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a volume or snapshot stays in its pool: pool cannot be changed"
	Pool string `json:"pool"`
	// PoolUUID is the identity of that pool. A pool of the same name and another identity has nothing of this object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a volume or snapshot stays in its pool: poolUUID cannot be changed"
	PoolUUID string `json:"poolUUID"`
}
