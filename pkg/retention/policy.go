package retention

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Policy is the spec of a SnapshotPolicy: the type that the custom resource has, that rowanctl reads and that the planner is made of, so that no two
// of them can mean different things. The markers are the schema's; [Policy.Validate] knows the same bounds, and what a schema cannot say. Pointers are
// what may be left out where zero means something else.
// +kubebuilder:object:generate=true
type Policy struct {
	// Suspend stops taking snapshots, and pruning too unless pruneWhileSuspended.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// PruneWhileSuspended goes on pruning while suspend is set.
	// +optional
	PruneWhileSuspended bool `json:"pruneWhileSuspended,omitempty"`
	// TimeZone is that of schedules without their own, and of the calendar in which retention counts: a name such as Europe/Berlin.
	// +optional
	// +kubebuilder:default=UTC
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self != 'Local'",message="Local is whatever machine the controller runs on: name a zone, such as Europe/Berlin"
	TimeZone string `json:"timeZone,omitempty"`
	// Selector chooses the PVCs.
	Selector Selector `json:"selector"`
	// Schedules say when snapshots are taken. What is due at one instant is one snapshot, for all of them.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Schedules []Schedule `json:"schedules,omitempty"`
	// Template is what the snapshots are made like.
	// +optional
	Template Template `json:"template,omitzero"`
	// Retention is for all snapshots but those taken for schedules with their own. Without it those are not pruned.
	// +optional
	Retention *Retention `json:"retention,omitempty"`
	// MaxConcurrent is how many snapshots of the policy may be in the making at once.
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	MaxConcurrent *int `json:"maxConcurrent,omitempty"`
	// Adopt says whether the policy takes over the snapshots of a policy of the same name that was deleted.
	// +optional
	// +kubebuilder:default=None
	Adopt Adopt `json:"adopt,omitempty"`
	// DeletionPolicy says what becomes of the snapshots when the policy is deleted.
	// +optional
	// +kubebuilder:default=Orphan
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
	// DryRun: the plan is made and shown in status, and neither are snapshots taken nor pruned.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
}

// ClusterPolicy is the spec of a ClusterSnapshotPolicy: a policy, and in which namespaces. Of those the planner knows nothing.
// +kubebuilder:object:generate=true
type ClusterPolicy struct {
	Policy `json:",inline"`
	// NamespaceSelector chooses the namespaces. Absent: all.
	// +optional
	NamespaceSelector *NamespaceSelector `json:"namespaceSelector,omitempty"`
}

// NamespaceSelector chooses namespaces: those that all of its fields allow.
// +kubebuilder:object:generate=true
type NamespaceSelector struct {
	// MatchLabels are labels that a namespace must have.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317 && size(self[k]) <= 63)",message="a label's name has at most 317 characters, its value at most 63"
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// Names are namespaces, one of which it must be.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +listType=set
	Names []string `json:"names,omitempty"`
	// ExcludeNames are namespaces, none of which it must be.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +listType=set
	ExcludeNames []string `json:"excludeNames,omitempty"`
}

// Selector chooses sources: those with all of the labels, and of one of the storage classes. The planner gets them chosen; it only checks the form.
// +kubebuilder:object:generate=true
// +kubebuilder:validation:XValidation:rule="size(self.?matchLabels.orValue({})) > 0 || size(self.?storageClassNames.orValue([])) > 0 || self.?matchAll.orValue(false)",message="an empty selector chooses nothing: to mean every PVC, set matchAll: true"
// +kubebuilder:validation:XValidation:rule="!self.?matchAll.orValue(false) || (size(self.?matchLabels.orValue({})) == 0 && size(self.?storageClassNames.orValue([])) == 0)",message="matchAll means every PVC: leave matchLabels and storageClassNames out, or matchAll"
type Selector struct {
	// MatchLabels are labels that a PVC must have.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317 && size(self[k]) <= 63)",message="a label's name has at most 317 characters, its value at most 63"
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// StorageClassNames are classes, one of which a PVC must have.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	StorageClassNames []string `json:"storageClassNames,omitempty"`
	// MatchAll chooses every PVC.
	// +optional
	MatchAll bool `json:"matchAll,omitempty"`
}

// Schedule says when snapshots are taken.
// +kubebuilder:object:generate=true
// +kubebuilder:validation:XValidation:rule="!has(self.retention) || !has(self.retention.poolPressure)",message="poolPressure is for the policy's retention only: the pool is one for all schedules"
// +kubebuilder:validation:XValidation:rule="!has(self.retention) || !has(self.retention.afterSourceDeleted)",message="afterSourceDeleted is for the policy's retention only: the source is one for all schedules"
type Schedule struct {
	// Name of the schedule: lower-case letters, digits and hyphens.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Cron is five fields as in cron(5) (minute, hour, day of the month, month, day of the week), or @hourly, @daily, @weekly, @monthly, @yearly.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="!self.contains('TZ=')",message="a zone is named in timeZone, not in cron"
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('@every')",message="@every has no calendar: use a step, such as */15 * * * *"
	Cron string `json:"cron"`
	// TimeZone of the schedule. Absent: the policy's.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self != 'Local'",message="Local is whatever machine the controller runs on: name a zone, such as Europe/Berlin"
	TimeZone string `json:"timeZone,omitempty"`
	// Jitter delays each PVC's snapshots by a fixed share of it, so that they are not all taken at once.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="jitter is 24h at most"
	Jitter Duration `json:"jitter,omitempty"`
	// StartingDeadlineSeconds is how late a snapshot may be begun; later, its time is missed. Absent: any time before the next one.
	// +optional
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=2592000
	StartingDeadlineSeconds *int `json:"startingDeadlineSeconds,omitempty"`
	// CatchUp says what becomes of times at which nobody could take a snapshot: of those missed, the last is made up for (One), or none is.
	// +optional
	// +kubebuilder:default=One
	CatchUp CatchUp `json:"catchUp,omitempty"`
	// Concurrency says whether a snapshot may be begun while the schedule's last one of that PVC is in the making.
	// +optional
	// +kubebuilder:default=Forbid
	Concurrency Concurrency `json:"concurrency,omitempty"`
	// Retention of the snapshots taken for this schedule, instead of the policy's.
	// +optional
	Retention *Retention `json:"retention,omitempty"`
}

// Template is what snapshots are made like.
// +kubebuilder:object:generate=true
type Template struct {
	// Labels of the snapshots, besides Rowan's own.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317 && size(self[k]) <= 63)",message="a label's name has at most 317 characters, its value at most 63"
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('rowan.storage/'))",message="labels of rowan.storage are Rowan's own"
	Labels map[string]string `json:"labels,omitempty"`
	// VolumeSnapshotClassName is the class of the snapshots: a VolumeSnapshotClass, with group a VolumeGroupSnapshotClass. Absent: the driver's default.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	VolumeSnapshotClassName string `json:"volumeSnapshotClassName,omitempty"`
	// Group cuts PVCs together.
	// +optional
	Group *Group `json:"group,omitempty"`
	// Consistency is what a snapshot is of: what a crash at that moment would leave (Crash), or a file system that was frozen (FilesystemFreeze).
	// +optional
	// +kubebuilder:default=Crash
	Consistency Consistency `json:"consistency,omitempty"`
}

// Group makes the sources with one value of a label one source.
// +kubebuilder:object:generate=true
type Group struct {
	// ByLabel is the name of the label: all PVCs of a namespace with one value of it are cut together, and kept and pruned as one.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	ByLabel string `json:"byLabel"`
}

// Retention says which snapshots stay. A count of zero is no rule.
// +kubebuilder:object:generate=true
// +kubebuilder:validation:XValidation:rule="self.?keepLast.orValue(0) + self.?hourly.orValue(0) + self.?daily.orValue(0) + self.?weekly.orValue(0) + self.?monthly.orValue(0) + self.?yearly.orValue(0) + self.?maxCount.orValue(0) > 0 || duration(self.?within.orValue('0s')) > duration('0s') || duration(self.?maxAge.orValue('0s')) > duration('0s') || has(self.poolPressure) || has(self.afterSourceDeleted) || has(self.failedHistoryLimit)",message="an empty retention prunes nothing: give at least one rule, or leave retention out"
// +kubebuilder:validation:XValidation:rule="self.?maxCount.orValue(0) == 0 || self.?minKeep.orValue(1) <= self.maxCount",message="minKeep must not be above maxCount"
// +kubebuilder:validation:XValidation:rule="duration(self.?maxAge.orValue('0s')) == duration('0s') || duration(self.?within.orValue('0s')) <= duration(self.maxAge)",message="within must not be above maxAge, which would prune what it keeps"
type Retention struct {
	// KeepLast keeps the newest so many.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	KeepLast int `json:"keepLast,omitempty"`
	// Hourly keeps the newest of each of the last so many hours that have snapshots.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Hourly int `json:"hourly,omitempty"`
	// Daily keeps the newest of each of the last so many days that have snapshots.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Daily int `json:"daily,omitempty"`
	// Weekly keeps the newest of each of the last so many weeks that have snapshots. Weeks begin on Monday.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Weekly int `json:"weekly,omitempty"`
	// Monthly keeps the newest of each of the last so many months that have snapshots.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Monthly int `json:"monthly,omitempty"`
	// Yearly keeps the newest of each of the last so many years that have snapshots.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Yearly int `json:"yearly,omitempty"`
	// Within keeps all that are older than the source's newest ready snapshot by less than this: 24h keeps 24 of every hour.
	// +optional
	Within Duration `json:"within,omitempty"`

	// MaxAge is a ceiling: what is older goes although a rule keeps it.
	// +optional
	MaxAge Duration `json:"maxAge,omitempty"`
	// MaxCount is a ceiling: the oldest above it go although a rule keeps them.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	MaxCount int `json:"maxCount,omitempty"`
	// MinKeep is how many of the newest ready snapshots of a source nothing prunes. Absent: 1.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	MinKeep *int `json:"minKeep,omitempty"`
	// FailedHistoryLimit is how many failed snapshots of a source stay. Absent: 3.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	FailedHistoryLimit *int `json:"failedHistoryLimit,omitempty"`
	// PoolPressure prunes more while the source's pool is too full: of Rowan's own pools.
	// +optional
	PoolPressure *PoolPressure `json:"poolPressure,omitempty"`
	// AfterSourceDeleted is what becomes of the snapshots of a PVC that is gone. Absent: they follow the other rules.
	// +optional
	AfterSourceDeleted *AfterSource `json:"afterSourceDeleted,omitempty"`
}

// PoolPressure prunes more while the source's pool is too full.
// +kubebuilder:object:generate=true
// +kubebuilder:validation:XValidation:rule="self.untilPercent < self.abovePercent",message="untilPercent must be below abovePercent"
type PoolPressure struct {
	// AbovePercent is how full the pool must be for it to begin.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=99
	AbovePercent int `json:"abovePercent"`
	// UntilPercent is how full the pool is when it ends.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=99
	UntilPercent int `json:"untilPercent"`
	// MinAge is how old a snapshot must be to go for it.
	// +optional
	MinAge Duration `json:"minAge,omitempty"`
}

// AfterSource is what becomes of the snapshots of a source that is gone. It may prune the last one.
// +kubebuilder:object:generate=true
// +kubebuilder:validation:XValidation:rule="self.?keepLast.orValue(0) > 0 || duration(self.?maxAge.orValue('0s')) > duration('0s')",message="afterSourceDeleted is empty: give keepLast or maxAge, or leave it out to keep to the other rules"
type AfterSource struct {
	// KeepLast is how many of the newest ready ones stay; 0: all.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	KeepLast int `json:"keepLast,omitempty"`
	// MaxAge is how long after the source was found gone all of them go; 0: never.
	// +optional
	MaxAge Duration `json:"maxAge,omitempty"`
}

// CatchUp says what becomes of times at which nobody could take a snapshot.
// +kubebuilder:validation:Enum=One;None
type CatchUp string

// The ways to catch up.
const (
	CatchUpOne  CatchUp = "One"  // the last one missed is made up for; the default
	CatchUpNone CatchUp = "None" // what was not begun within OnTime is given up
)

// Concurrency says whether a schedule may begin a snapshot of a source while its last one is in the making.
// +kubebuilder:validation:Enum=Forbid;Allow
type Concurrency string

// The kinds of concurrency.
const (
	ConcurrencyForbid Concurrency = "Forbid" // the default
	ConcurrencyAllow  Concurrency = "Allow"
)

// Consistency is what a snapshot is of.
// +kubebuilder:validation:Enum=Crash;FilesystemFreeze
type Consistency string

// The kinds of consistency.
const (
	ConsistencyCrash  Consistency = "Crash" // the default
	ConsistencyFreeze Consistency = "FilesystemFreeze"
)

// Adopt says whether a policy takes over what one of the same name left.
// +kubebuilder:validation:Enum=None;ByName
type Adopt string

// The ways to adopt.
const (
	AdoptNone   Adopt = "None" // the default
	AdoptByName Adopt = "ByName"
)

// DeletionPolicy says what becomes of a policy's snapshots when it is deleted.
// +kubebuilder:validation:Enum=Orphan;Delete
type DeletionPolicy string

// The deletion policies.
const (
	DeletionOrphan DeletionPolicy = "Orphan" // the default
	DeletionDelete DeletionPolicy = "Delete"
)

// Duration is a time.Duration that is a string such as 24h or 90m in JSON and YAML. The schema's pattern lets nothing through that cannot be read: one
// object that cannot be decoded would keep a controller from seeing any.
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:MinLength=2
// +kubebuilder:validation:MaxLength=24
// +kubebuilder:validation:Pattern=`^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`
// +kubebuilder:validation:XValidation:rule="size(self) > 0 && duration(self) <= duration('878400h')",message="a duration is hours, minutes and seconds, such as 24h or 1h30m, and 878400h at most"
type Duration time.Duration

// String writes the duration in hours, minutes and seconds, without those that are zero.
func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	text := ""
	rest := time.Duration(d)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}} {
		if n := rest / u.unit; n != 0 {
			text += fmt.Sprintf("%d%s", n, u.name)
			rest -= n * u.unit
		}
	}
	if rest != 0 {
		text += rest.String()
	}
	return text
}

// MarshalJSON writes it as String does.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what time.ParseDuration reads.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("a duration is a string such as 24h: %w", err)
	}
	n, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("a duration is hours, minutes and seconds, such as 24h or 1h30m: %w", err)
	}
	*d = Duration(n)
	return nil
}

// DecodePolicy reads a spec from JSON and refuses fields it does not know, as a misspelt rule would silently not be one.
func DecodePolicy(data []byte) (Policy, error) {
	var p Policy
	err := decodeStrict(data, &p)
	return p, err
}

// DecodeClusterPolicy is DecodePolicy of a ClusterSnapshotPolicy's spec.
func DecodeClusterPolicy(data []byte) (ClusterPolicy, error) {
	var p ClusterPolicy
	err := decodeStrict(data, &p)
	return p, err
}

func decodeStrict(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("read policy: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("read policy: more than one value")
	}
	return nil
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
