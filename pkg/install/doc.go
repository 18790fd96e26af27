// Package install is what the chart's hooks do around an installation, where Helm itself cannot.
//
//   - Apply makes the PoolSets of the chart's values (and the classes of snapshots, where their definitions come with the chart): Helm looks up every kind
//     of a release before it makes the first object, so that a release cannot hold objects of kinds that it defines itself.
//   - CheckUninstall refuses while the cluster has volumes or snapshots of ours: without the node plugin their pods could be neither started nor ended.
//
// Contract: both may be repeated at any time. Apply is server-side apply with a field manager of its own: what other people set stays theirs, and where
// both set the same field differently Apply refuses and names the field. It deletes nothing. CheckUninstall only reads.
package install
