package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The labels and annotations of a safety snapshot, which is a VolumeSnapshot.
const (
	// LabelRollback has the UID of the VolumeRollback that a safety snapshot was taken for.
	LabelRollback = "rowan.storage/rollback-uid"
	// AnnotationRollback has that VolumeRollback's name. It may be gone.
	AnnotationRollback = "rowan.storage/rollback"
	// AnnotationDeleteAfter is when a safety snapshot is deleted, as in RFC 3339. It may be changed; without it the snapshot stays.
	AnnotationDeleteAfter = "rowan.storage/delete-after"
	// FinalizerRollback keeps a VolumeRollback until the volume's object does not name it any more.
	FinalizerRollback = "rowan.storage/rollback"
)

// WhenInUse says what to do while the volume is in use.
// +kubebuilder:validation:Enum=Refuse;Wait
type WhenInUse string

const (
	// Refuse to roll back.
	Refuse WhenInUse = "Refuse"
	// Wait until it is not in use any more.
	Wait WhenInUse = "Wait"
)

// SafetySnapshot is taken of what the rollback replaces: rolling back to it undoes the rollback.
type SafetySnapshot struct {
	// Enabled by default. Without it there is no way back.
	// +optional
	// +kubebuilder:default=true
	Enabled *bool `json:"enabled,omitempty"`
	// TTL is after which time the snapshot is deleted, unless it is held (annotation rowan.storage/hold) or in use then.
	// +optional
	// +kubebuilder:default="168h"
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="a safety snapshot lives a minute at least"
	TTL string `json:"ttl,omitempty"`
	// VolumeSnapshotClassName of the snapshot; absent: the cluster's default for the driver. A class whose deletionPolicy is Retain is refused.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	VolumeSnapshotClassName string `json:"volumeSnapshotClassName,omitempty"`
}

// VolumeRollbackSpec says which volume is to be put back to which snapshot. It is a command, and cannot be changed.
type VolumeRollbackSpec struct {
	// PersistentVolumeClaimName of the volume, in the rollback's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PersistentVolumeClaimName string `json:"persistentVolumeClaimName"`
	// VolumeSnapshotName of the snapshot to go back to, in the rollback's namespace. It must be of that very volume: of another one it is restored to a new claim.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	VolumeSnapshotName string `json:"volumeSnapshotName"`
	// WhenInUse says what to do while pods use the volume: Refuse, or Wait until they are gone.
	// +optional
	// +kubebuilder:default=Refuse
	WhenInUse WhenInUse `json:"whenInUse,omitempty"`
	// SafetySnapshot is taken first, by default.
	// +optional
	// +kubebuilder:default={}
	SafetySnapshot SafetySnapshot `json:"safetySnapshot,omitempty"`
}

// VolumeRollbackStatus says what was done.
type VolumeRollbackStatus struct {
	Status `json:",inline"`
	// Volume is the LocalVolume of the claim, once all was found to be right.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Volume string `json:"volume,omitempty"`
	// Snapshot is the LocalSnapshot that it goes back to.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Snapshot string `json:"snapshot,omitempty"`
	// SnapshotTime is when that was cut.
	// +optional
	SnapshotTime *metav1.MicroTime `json:"snapshotTime,omitempty"`
	// Size of the volume, which it keeps.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// SafetySnapshotName is the VolumeSnapshot of what was replaced.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	SafetySnapshotName string `json:"safetySnapshotName,omitempty"`
	// StartTime is when all was found to be right.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// HeldSince is since when the volume was held.
	// +optional
	HeldSince *metav1.MicroTime `json:"heldSince,omitempty"`
	// CompletionTime is when the volume was put back, by the node's clock.
	// +optional
	CompletionTime *metav1.MicroTime `json:"completionTime,omitempty"`
}

// VolumeRollback puts a claim's volume back to one of its snapshots, in place, while nothing uses it.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vrb,categories=rowan
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.spec.persistentVolumeClaimName`
// +kubebuilder:printcolumn:name="Snapshot",type=string,JSONPath=`.spec.volumeSnapshotName`
// +kubebuilder:printcolumn:name="Complete",type=string,JSONPath=`.status.conditions[?(@.type=="Complete")].status`
// +kubebuilder:printcolumn:name="Failed",type=string,JSONPath=`.status.conditions[?(@.type=="Failed")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Complete")].reason`
// +kubebuilder:printcolumn:name="Safety",type=string,JSONPath=`.status.safetySnapshotName`
// +kubebuilder:printcolumn:name="Why",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Complete")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VolumeRollback struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a VolumeRollback is a command and cannot be changed: make another one"
	Spec VolumeRollbackSpec `json:"spec"`
	// +optional
	Status VolumeRollbackStatus `json:"status,omitempty"`
}

// Finished says that it was carried out or given up: nothing is done for it any more.
func (r *VolumeRollback) Finished() bool {
	return meta.IsStatusConditionTrue(r.Status.Conditions, Complete) || meta.IsStatusConditionTrue(r.Status.Conditions, Failed)
}

// VolumeRollbackList is a list.
// +kubebuilder:object:root=true
type VolumeRollbackList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VolumeRollback `json:"items"`
}
