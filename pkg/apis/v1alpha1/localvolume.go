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
