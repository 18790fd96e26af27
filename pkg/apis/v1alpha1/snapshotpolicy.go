package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/retention"
)

const (
	// PolicyFinalizer keeps a SnapshotPolicy or ClusterSnapshotPolicy whose deletionPolicy is Delete until its snapshots are gone.
	PolicyFinalizer = "rowan.storage/snapshot-policy"
	// PolicyAnnotation of a PVC takes it from all policies (its value is none), or names those that it is given to instead of those that would choose it:
	// NAME of its namespace's SnapshotPolicy or cluster/NAME of a ClusterSnapshotPolicy, several separated by commas.
	PolicyAnnotation = "rowan.storage/snapshot-policy"
	// ConsistencyAnnotation of a VolumeSnapshot says of what it is to be: a retention.Consistency. The driver reads it.
	ConsistencyAnnotation = "rowan.storage/consistency"
)

// The types of conditions of a SnapshotPolicy and a ClusterSnapshotPolicy, besides Ready (the policy is in force). All but Ready are there only while
// they are True.
const (
	// SourcesFailing: the last snapshot of some PVCs could not be taken or failed.
	SourcesFailing = "SourcesFailing"
	// GroupRefused: some groups cannot be cut at once.
	GroupRefused = "GroupRefused"
	// NoRetention: a retention is absent, empty or wrong, so that nothing is pruned by it.
	NoRetention = "NoRetention"
	// ClockSkew: a snapshot is dated ahead of now; nothing of its PVC is pruned.
	ClockSkew = "ClockSkew"
	// PruneBraked: more is to be pruned than one pass may.
	PruneBraked = "PruneBraked"
	// PoolPressure: a pool is too full, and this is what is done or awaited.
	PoolPressure = "PoolPressure"
	// Deleting: the policy is deleted, and its snapshots go before it.
	Deleting = "Deleting"
)

// The reasons of those conditions, besides the retention's own, which are the same words.
const (
	ReasonInForce      = "InForce"
	ReasonSuspended    = "Suspended"
	ReasonDryRun       = "DryRun"
	ReasonNotInstalled = "NotInstalled" // a definition that the policy needs is not there
	ReasonWrongClass   = "WrongClass"   // template.volumeSnapshotClassName is not there, or may not be used
	ReasonFailed       = "Failed"
	ReasonRefused      = "Refused"
	ReasonWaiting      = "Waiting"
)

// ScheduleStatus is what is known of a schedule.
type ScheduleStatus struct {
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Cron and zone that since is of.
	// +kubebuilder:validation:MaxLength=200
	When string `json:"when"`
	// Since is when the schedule became what it is: no time before that counts as missed.
	Since metav1.Time `json:"since"`
	// LastRunTime is the last time that a snapshot was begun for.
	// +optional
	LastRunTime *metav1.Time `json:"lastRunTime,omitempty"`
	// NextRunTime is the next time, without jitter. Absent: there is none, or the schedule is wrong.
	// +optional
	NextRunTime *metav1.Time `json:"nextRunTime,omitempty"`
}

// SourceProblem is a PVC or group whose snapshots cannot be taken.
type SourceProblem struct {
	// Name of the PVC or group, with its namespace.
	// +kubebuilder:validation:MaxLength=400
	Name string `json:"name"`
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message"`
}

// SourcesStatus counts the PVCs, or groups of them.
type SourcesStatus struct {
	// Selected are those that snapshots are taken of.
	// +optional
	Selected int32 `json:"selected"`
	// OptedOut are PVCs that the selector chooses and their annotation takes away.
	// +optional
	OptedOut int32 `json:"optedOut,omitempty"`
	// Gone are those that are deleted and have snapshots still.
	// +optional
	Gone int32 `json:"gone,omitempty"`
	// Failing are those whose newest snapshot could not be taken or failed.
	// +optional
	Failing int32 `json:"failing,omitempty"`
	// Problems of the first 20 of them.
	// +optional
	// +kubebuilder:validation:MaxItems=20
	// +listType=atomic
	Problems []SourceProblem `json:"problems,omitempty"`
}

// GoneSource is a source that was found to be gone: afterSourceDeleted counts from then.
type GoneSource struct {
	// Key of the source: the PVC's UID, or the group's namespace and label value.
	// +kubebuilder:validation:MaxLength=400
	Key string `json:"key"`
	// Since it is known to be gone.
	Since metav1.Time `json:"since"`
}

// PlannedPrune is a snapshot that is to be pruned and is not yet.
type PlannedPrune struct {
	// Snapshot and its namespace.
	// +kubebuilder:validation:MaxLength=400
	Snapshot string `json:"snapshot"`
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`
	// Message says it in words.
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message,omitempty"`
}

// DecisionCount is how many snapshots have one decision.
type DecisionCount struct {
	// Action is Keep, Prune, Wait or Ignore.
	// +kubebuilder:validation:MaxLength=32
	Action string `json:"action"`
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`
	Count  int32  `json:"count"`
}

// PlanStatus is what is to be done with the snapshots that there are.
type PlanStatus struct {
	// Next are the first 50 that are to be pruned.
	// +optional
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	Next []PlannedPrune `json:"next,omitempty"`
	// Counts of all decisions.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Counts []DecisionCount `json:"counts,omitempty"`
	// BrakedUntil is when pruning goes on after a pass that might not prune all (see the condition PruneBraked).
	// +optional
	BrakedUntil *metav1.Time `json:"brakedUntil,omitempty"`
}

// SnapshotPolicyStatus is written when a decision changes.
type SnapshotPolicyStatus struct {
	Status `json:",inline"`
	// Snapshots of the policy.
	// +optional
	Snapshots int32 `json:"snapshots"`
	// Unmanaged are other snapshots of the PVCs that are selected: the policy does not touch them.
	// +optional
	Unmanaged int32 `json:"unmanaged,omitempty"`
	// LastSuccessTime is when the newest ready snapshot was cut.
	// +optional
	LastSuccessTime *metav1.Time `json:"lastSuccessTime,omitempty"`
	// NextRunTime is the first of the schedules'.
	// +optional
	NextRunTime *metav1.Time `json:"nextRunTime,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Schedules []ScheduleStatus `json:"schedules,omitempty"`
	// +optional
	Sources SourcesStatus `json:"sources,omitzero"`
	// GoneSources are sources that are gone, for retention.afterSourceDeleted; more than 500 wait until there is room.
	// +optional
	// +kubebuilder:validation:MaxItems=500
	// +listType=map
	// +listMapKey=key
	GoneSources []GoneSource `json:"goneSources,omitempty"`
	// +optional
	Plan PlanStatus `json:"plan,omitzero"`
}

// SnapshotPolicy takes snapshots of PVCs of its namespace and prunes them.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=snappol,categories=rowan
// +kubebuilder:printcolumn:name="Suspended",type=boolean,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Last success",type=date,JSONPath=`.status.lastSuccessTime`
// +kubebuilder:printcolumn:name="Next run",type=string,JSONPath=`.status.nextRunTime`
// +kubebuilder:printcolumn:name="Snapshots",type=integer,JSONPath=`.status.snapshots`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Failing",type=integer,priority=1,JSONPath=`.status.sources.failing`
// +kubebuilder:printcolumn:name="Why",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SnapshotPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec retention.Policy `json:"spec"`
	// +optional
	Status SnapshotPolicyStatus `json:"status,omitempty"`
}

// SnapshotPolicyList is a list.
// +kubebuilder:object:root=true
type SnapshotPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SnapshotPolicy `json:"items"`
}

// ClusterSnapshotPolicy takes snapshots of PVCs of all namespaces that it chooses and prunes them.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=csnappol,categories=rowan
// +kubebuilder:printcolumn:name="Suspended",type=boolean,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Last success",type=date,JSONPath=`.status.lastSuccessTime`
// +kubebuilder:printcolumn:name="Next run",type=string,JSONPath=`.status.nextRunTime`
// +kubebuilder:printcolumn:name="Snapshots",type=integer,JSONPath=`.status.snapshots`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Failing",type=integer,priority=1,JSONPath=`.status.sources.failing`
// +kubebuilder:printcolumn:name="Why",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterSnapshotPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec retention.ClusterPolicy `json:"spec"`
	// +optional
	Status SnapshotPolicyStatus `json:"status,omitempty"`
}

// ClusterSnapshotPolicyList is a list.
// +kubebuilder:object:root=true
type ClusterSnapshotPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterSnapshotPolicy `json:"items"`
}
