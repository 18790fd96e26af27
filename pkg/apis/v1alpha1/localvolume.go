package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VolumeSource is what a volume begins as a copy of: at most one of the two.
// +kubebuilder:validation:XValidation:rule="has(self.snapshot) != has(self.volume)",message="a source is either a snapshot or a volume: give exactly one of them"
type VolumeSource struct {
	// Snapshot is the name of a LocalSnapshot.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Snapshot string `json:"snapshot,omitempty"`
	// Volume is the name of a LocalVolume.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Volume string `json:"volume,omitempty"`
}

// Rollback asks for a volume to be put back to one of its snapshots, in two steps: it is held (not attached, and not to be attached), and, once heldSince is
// written, put back. Taking it out of spec gives it up, and lets the volume go, where it was not done yet.
// +kubebuilder:validation:XValidation:rule="self.token != oldSelf.token || self.snapshot == oldSelf.snapshot",message="a rollback keeps its snapshot: ask for another one with another token"
// +kubebuilder:validation:XValidation:rule="self.token != oldSelf.token || !has(oldSelf.heldSince) || (has(self.heldSince) && self.heldSince == oldSelf.heldSince)",message="a rollback that was told to go on cannot be told otherwise: take it out, and ask for another one"
type Rollback struct {
	// Token is the UID of the VolumeRollback. What was done for a token is never done again for it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	Token string `json:"token"`
	// Namespace of the VolumeRollback.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the VolumeRollback.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Snapshot is the name of the LocalSnapshot to go back to.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Snapshot string `json:"snapshot"`
	// HeldSince tells the agent to go on: with the volume as it is since that time (status.rollback.heldSince), and with no other.
	// +optional
	HeldSince *metav1.MicroTime `json:"heldSince,omitempty"`
}

// RollbackStatus is how far the last rollback has come.
type RollbackStatus struct {
	// Token of spec.rollback.
	// +kubebuilder:validation:MaxLength=64
	Token string `json:"token"`
	// HeldSince is since when the volume is held; absent: it is not, or not any more.
	// +optional
	HeldSince *metav1.MicroTime `json:"heldSince,omitempty"`
	// DoneAt is when it was put back, by the node's clock.
	// +optional
	DoneAt *metav1.MicroTime `json:"doneAt,omitempty"`
}

// LocalVolumeSpec is one volume as it is wanted.
// +kubebuilder:validation:XValidation:rule="quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",message="a volume cannot shrink"
// +kubebuilder:validation:XValidation:rule="has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)",message="a volume's source cannot be changed"
type LocalVolumeSpec struct {
	Location `json:",inline"`
	// CSIName is the name that the volume was asked for under.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a volume keeps its name"
	CSIName string `json:"csiName"`
	// Size of the device.
	Size resource.Quantity `json:"size"`
	// Requested is the smallest request that rounds to the size: what the source was asked for, or last grown to.
	Requested resource.Quantity `json:"requested"`
	// FSType is the file system that it is for; absent: raw block.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a volume's file system cannot be changed"
	FSType string `json:"fsType,omitempty"`
	// Mode says who moves when a block that a snapshot shows is written: row (the new data) or cow (the old).
	// +optional
	// +kubebuilder:default=row
	// +kubebuilder:validation:Enum=row;cow
	Mode string `json:"mode,omitempty"`
	// Provisioning says when the volume takes its space: thin (as it is written) or thick (at once).
	// +optional
	// +kubebuilder:default=thin
	// +kubebuilder:validation:Enum=thin;thick
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a volume's provisioning cannot be changed"
	Provisioning string `json:"provisioning,omitempty"`
	// Tidy moves the volume's scattered blocks back into sequence in the background.
	// +optional
	Tidy bool `json:"tidy,omitempty"`
	// PoolSet is what the storage class asked for; absent: the default.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	PoolSet string `json:"poolSet,omitempty"`
	// Source that it begins as a copy of. Absent: blank.
	// +optional
	Source *VolumeSource `json:"source,omitempty"`
	// Rollback that is under way. Written by rowan-controller for a VolumeRollback.
	// +optional
	Rollback *Rollback `json:"rollback,omitempty"`
	// +optional
	// +kubebuilder:default=Present
	// +kubebuilder:validation:XValidation:rule="oldSelf != 'Absent' || self == 'Absent'",message="what is to be removed cannot be wanted again: make a new object"
	DesiredState DesiredState `json:"desiredState,omitempty"`
}

// LocalVolumeStatus is the volume as it is.
type LocalVolumeStatus struct {
	Status `json:",inline"`
	// Size of the device, once it is made.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// CreationTime by the node's clock.
	// +optional
	CreationTime *metav1.Time `json:"creationTime,omitempty"`
	// Rollback is how far the last one has come.
	// +optional
	Rollback *RollbackStatus `json:"rollback,omitempty"`
}

// LocalVolume is one volume on one node.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lvol,categories=rowan
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.spec.size`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Created",type=string,JSONPath=`.status.conditions[?(@.type=="Created")].status`
// +kubebuilder:printcolumn:name="Attached",type=string,JSONPath=`.status.conditions[?(@.type=="Attached")].status`
// +kubebuilder:printcolumn:name="Lost",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Lost")].status`
// +kubebuilder:printcolumn:name="Name",type=string,priority=1,JSONPath=`.spec.csiName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LocalVolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LocalVolumeSpec `json:"spec"`
	// +optional
	Status LocalVolumeStatus `json:"status,omitempty"`
}

// LocalVolumeList is a list.
// +kubebuilder:object:root=true
type LocalVolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LocalVolume `json:"items"`
}
