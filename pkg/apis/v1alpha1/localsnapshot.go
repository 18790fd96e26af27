package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LocalSnapshotSpec is one snapshot as it is wanted.
type LocalSnapshotSpec struct {
	Location `json:",inline"`
	// CSIName is the name that the snapshot was asked for under.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a snapshot keeps its name"
	CSIName string `json:"csiName"`
	// Volume is the name of the LocalVolume that it is cut from.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a snapshot keeps its source"
	Volume string `json:"volume"`
	// Group is the name of the LocalSnapshotGroup whose cut made it; absent: it has a cut of its own.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Group string `json:"group,omitempty"`
	// Consistency says what it is to be of: what a power cut at that moment would leave (Crash), or a file system that is frozen for the cut (FilesystemFreeze).
	// +optional
	// +kubebuilder:default=Crash
	// +kubebuilder:validation:Enum=Crash;FilesystemFreeze
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a snapshot keeps its consistency"
	Consistency string `json:"consistency,omitempty"`
	// NotAfter is when whoever asked stops waiting: the agent cuts before it or not at all. Each retry moves it on.
	NotAfter metav1.MicroTime `json:"notAfter"`
	// +optional
	// +kubebuilder:default=Present
	// +kubebuilder:validation:XValidation:rule="oldSelf != 'Absent' || self == 'Absent'",message="what is to be removed cannot be wanted again: make a new object"
	DesiredState DesiredState `json:"desiredState,omitempty"`
}

// Cut is what is known of a snapshot once it is cut.
type Cut struct {
	// CreationTime is the time of the cut by the node's clock.
	CreationTime metav1.MicroTime `json:"creationTime"`
	// Size of the volume when it was cut.
	Size resource.Quantity `json:"size"`
	// Requested is the smallest request that rounds to the size.
	Requested resource.Quantity `json:"requested"`
	// FSType is its source's.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	FSType string `json:"fsType,omitempty"`
	// Owned is what was written since the snapshot before it, as it was at the cut: about what deleting it frees once that is written again.
	// +optional
	Owned *resource.Quantity `json:"owned,omitempty"`
	// Frozen is what was done for consistency FilesystemFreeze: FileSystem, it was frozen; NotMounted, there was nothing to freeze: nobody had the volume.
	// +optional
	// +kubebuilder:validation:Enum=FileSystem;NotMounted
	Frozen string `json:"frozen,omitempty"`
}

// What Cut.Frozen says.
const (
	FrozenFileSystem = "FileSystem"
	FrozenNotMounted = "NotMounted"
)

// LocalSnapshotStatus is the snapshot as it is.
type LocalSnapshotStatus struct {
	Status `json:",inline"`
	// Cut is set once, with the condition Created.
	// +optional
	Cut *Cut `json:"cut,omitempty"`
}

// LocalSnapshot is one snapshot on one node. It outlives its volume.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lsnap,categories=rowan
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.pool`
// +kubebuilder:selectablefield:JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.cut.size`
// +kubebuilder:printcolumn:name="Cut",type=date,JSONPath=`.status.cut.creationTime`
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Created",type=string,JSONPath=`.status.conditions[?(@.type=="Created")].status`
// +kubebuilder:printcolumn:name="Name",type=string,priority=1,JSONPath=`.spec.csiName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LocalSnapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LocalSnapshotSpec `json:"spec"`
	// +optional
	Status LocalSnapshotStatus `json:"status,omitempty"`
}

// LocalSnapshotList is a list.
// +kubebuilder:object:root=true
type LocalSnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LocalSnapshot `json:"items"`
}

// GroupMember is one volume of a group, and the LocalSnapshot that its part of the cut becomes.
type GroupMember struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Volume string `json:"volume"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Snapshot string `json:"snapshot"`
	// CSIName of that snapshot.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	CSIName string `json:"csiName"`
}

// LocalSnapshotGroupSpec is one cut over several volumes of a pool as it is wanted.
type LocalSnapshotGroupSpec struct {
	Location `json:",inline"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a group keeps its name"
	CSIName string `json:"csiName"`
	// Members of the cut.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a group keeps its volumes"
	// +listType=map
	// +listMapKey=volume
	Members []GroupMember `json:"members"`
	// Consistency says what they are to be of: what a power cut at that moment would leave (Crash), or file systems that are all frozen for the cut
	// (FilesystemFreeze).
	// +optional
	// +kubebuilder:default=Crash
	// +kubebuilder:validation:Enum=Crash;FilesystemFreeze
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a group keeps its consistency"
	Consistency string `json:"consistency,omitempty"`
	// NotAfter is when whoever asked stops waiting: the agent cuts before it or not at all. Each retry moves it on.
	NotAfter metav1.MicroTime `json:"notAfter"`
	// +optional
	// +kubebuilder:default=Present
	// +kubebuilder:validation:XValidation:rule="oldSelf != 'Absent' || self == 'Absent'",message="what is to be removed cannot be wanted again: make a new object"
	DesiredState DesiredState `json:"desiredState,omitempty"`
}

// LocalSnapshotGroupStatus is the cut as it is.
type LocalSnapshotGroupStatus struct {
	Status `json:",inline"`
	// CreationTime is the time of the cut by the node's clock. The snapshots' own objects have the rest.
	// +optional
	CreationTime *metav1.MicroTime `json:"creationTime,omitempty"`
	// Frozen are the volumes whose file systems were frozen for the cut, where that was asked for. The others had nothing to freeze: nobody had them.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=128
	// +listType=set
	Frozen []string `json:"frozen,omitempty"`
}

// LocalSnapshotGroup is one cut over several volumes of one pool.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lsg,categories=rowan
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Cut",type=date,JSONPath=`.status.creationTime`
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Created",type=string,JSONPath=`.status.conditions[?(@.type=="Created")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LocalSnapshotGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LocalSnapshotGroupSpec `json:"spec"`
	// +optional
	Status LocalSnapshotGroupStatus `json:"status,omitempty"`
}

// LocalSnapshotGroupList is a list.
// +kubebuilder:object:root=true
type LocalSnapshotGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LocalSnapshotGroup `json:"items"`
}
