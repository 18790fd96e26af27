package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Allocation says how a pool of several members is filled.
// +kubebuilder:validation:Enum=Striped;Filled
type Allocation string

const (
	// Striped spreads a volume's blocks over all members.
	Striped Allocation = "Striped"
	// Filled fills one member after the other.
	Filled Allocation = "Filled"
)

// Member is one member of a pool: exactly one of directory and device.
// +kubebuilder:validation:XValidation:rule="has(self.directory) != has(self.device)",message="a member is either a directory or a device: give exactly one of them"
type Member struct {
	// +optional
	Directory *DirectoryMember `json:"directory,omitempty"`
	// +optional
	Device *DeviceMember `json:"device,omitempty"`
}

// DirectoryMember is a folder on XFS or ext4 of the node.
type DirectoryMember struct {
	// Path on the node; made if it is missing.
	// +kubebuilder:validation:Pattern=`^/[^\0]+$`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"`
	// Size that the pool may take of the file system, at least 1Gi. Absent: percentOfFree of what is free when the pool is made.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// PercentOfFree is the size, if size is absent, in hundredths of what is free when the pool is made; but never so much that the file system would be
	// fuller than maxFilesystemPercent.
	// +optional
	// +kubebuilder:default=40
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	PercentOfFree int32 `json:"percentOfFree,omitempty"`
	// MaxFilesystemPercent is how full the file system may become by the pool, as it is when the pool is made.
	// +optional
	// +kubebuilder:default=75
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxFilesystemPercent int32 `json:"maxFilesystemPercent,omitempty"`
	// StopGrowthPercent is how full the file system may be, whoever filled it, for the pool to take more of it. Above, the pool takes no new volumes and
	// the condition GrowthStopped says so.
	// +optional
	// +kubebuilder:default=80
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	StopGrowthPercent int32 `json:"stopGrowthPercent,omitempty"`
}

// DeviceMember is a block device of the node, blank: the engine makes XFS on it.
type DeviceMember struct {
	// Path of the device, best below /dev/disk/by-id.
	// +kubebuilder:validation:Pattern=`^/dev/[^\0]+$`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"`
	// Wipe allows taking a device that holds a file system or partition table. All on it is lost.
	// +optional
	Wipe bool `json:"wipe,omitempty"`
}

// PoolTemplate is what the pools of a PoolSet have in common.
type PoolTemplate struct {
	// Members of each pool. The first holds the metadata. Members may be added at the end; removing one is done with rowanctl pool member remove.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Members []Member `json:"members"`
	// +optional
	// +kubebuilder:default=Striped
	Allocation Allocation `json:"allocation,omitempty"`
	// OvercommitPercent is how much the volumes of a pool may promise together, in hundredths of its size.
	// +optional
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	OvercommitPercent int32 `json:"overcommitPercent,omitempty"`
}

// PoolSetSpec says on which nodes there is to be a pool, and which.
type PoolSetSpec struct {
	// NodeSelector chooses the nodes. Empty: every node that runs Rowan's node plugin.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Template of the pools. A change reaches pools where it can: members added, overcommit.
	Template PoolTemplate `json:"template"`
}

// PoolSetStatus counts.
type PoolSetStatus struct {
	Status `json:",inline"`
	// Nodes that are chosen.
	// +optional
	Nodes int32 `json:"nodes"`
	// Ready pools of them.
	// +optional
	Ready int32 `json:"ready"`
}

// PoolSet makes one Pool on every node that it chooses. A pool that is there stays, whatever becomes of its PoolSet.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=rps,categories=rowan
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 40",message="a PoolSet's name has at most 40 characters: its pools' names are made from it"
type PoolSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PoolSetSpec `json:"spec"`
	// +optional
	Status PoolSetStatus `json:"status,omitempty"`
}

// PoolSetList is a list.
// +kubebuilder:object:root=true
type PoolSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PoolSet `json:"items"`
}

// PoolSpec is one node's pool as it is wanted.
type PoolSpec struct {
	// NodeName is the Kubernetes node that has the members. rowan-controller changes it when they show up on another node.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// NodeUID is the UID of that Node object when its agent last lived: a node that was deleted and made again under its name is another one until then.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	NodeUID string `json:"nodeUID,omitempty"`
	// PoolSet that the pool was made for.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a pool stays with its PoolSet: poolSet cannot be changed"
	PoolSet      string `json:"poolSet"`
	PoolTemplate `json:",inline"`
	// DesiredState Absent gives the pool up: only while it has no volumes and snapshots.
	// +optional
	// +kubebuilder:default=Present
	// +kubebuilder:validation:XValidation:rule="oldSelf != 'Absent' || self == 'Absent'",message="what is to be removed cannot be wanted again: make a new object"
	DesiredState DesiredState `json:"desiredState,omitempty"`
}

// PoolMemberStatus is a member as it is.
type PoolMemberStatus struct {
	// +kubebuilder:validation:MaxLength=64
	UUID string `json:"uuid"`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"`
	// State as rowanctl pool show says it.
	// +kubebuilder:validation:MaxLength=32
	State string            `json:"state"`
	Size  resource.Quantity `json:"size"`
}

// Orphan is a volume or snapshot of the engine that no object stands for.
type Orphan struct {
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// Kind of object that stood for it: LocalVolume or LocalSnapshot.
	// +kubebuilder:validation:MaxLength=32
	Kind string `json:"kind"`
	// UID of that object.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	UID  string            `json:"uid,omitempty"`
	Size resource.Quantity `json:"size"`
}

// PoolStatus is the pool as it is.
type PoolStatus struct {
	Status `json:",inline"`
	// UUID is the identity that is written on the members.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	UUID string `json:"uuid,omitempty"`
	// Identity is the node identity that is written on the first member: the topology value of the pool's volumes, wherever the members are.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Identity string `json:"identity,omitempty"`
	// Size of the pool. How much of it is used is told by metrics and by rowanctl pool show.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Members as they are.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=uuid
	Members []PoolMemberStatus `json:"members,omitempty"`
	// Orphans are the first 100.
	// +optional
	// +kubebuilder:validation:MaxItems=100
	// +listType=atomic
	Orphans []Orphan `json:"orphans,omitempty"`
	// OrphanSize is what all orphan volumes promise together.
	// +optional
	OrphanSize *resource.Quantity `json:"orphanSize,omitempty"`
}

// Pool is one node's pool.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=rp,categories=rowan
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="PoolSet",type=string,JSONPath=`.spec.poolSet`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Scarce",type=string,JSONPath=`.status.conditions[?(@.type=="SpaceScarce")].status`
// +kubebuilder:printcolumn:name="Why",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="a Pool's name has at most 63 characters: it is the pool's name in its engine"
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PoolSpec `json:"spec"`
	// +optional
	Status PoolStatus `json:"status,omitempty"`
}

// PoolList is a list.
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pool `json:"items"`
}
