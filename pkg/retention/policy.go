package retention

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Policy is the spec of a SnapshotPolicy, as its YAML has it. Pointers are what may be left out where zero means something else.
type Policy struct {
	// Suspend stops taking snapshots, and pruning too unless PruneWhileSuspended.
	Suspend             bool `json:"suspend,omitempty"`
	PruneWhileSuspended bool `json:"pruneWhileSuspended,omitempty"`
	// TimeZone is that of schedules without their own, and of the policy's buckets. Default UTC.
	TimeZone  string     `json:"timeZone,omitempty"`
	Selector  Selector   `json:"selector,omitempty"`
	Schedules []Schedule `json:"schedules,omitempty"`
	Template  Template   `json:"template,omitempty"`
	// Retention is for all snapshots but those taken for schedules with their own. Without it those are not pruned.
	Retention *Retention `json:"retention,omitempty"`
	// MaxConcurrent is how many snapshots of the policy may be in the making at once. Default 20.
	MaxConcurrent  *int           `json:"maxConcurrent,omitempty"`
	Adopt          Adopt          `json:"adopt,omitempty"`
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
	// DryRun: the plan is made and shown, and not carried out.
	DryRun bool `json:"dryRun,omitempty"`
}

// Selector chooses sources. The planner gets them chosen; it only checks the form.
type Selector struct {
	MatchLabels       map[string]string `json:"matchLabels,omitempty"`
	StorageClassNames []string          `json:"storageClassNames,omitempty"`
	MatchAll          bool              `json:"matchAll,omitempty"`
}

// Schedule says when snapshots are taken.
type Schedule struct {
	Name     string `json:"name"`
	Cron     string `json:"cron"`
	TimeZone string `json:"timeZone,omitempty"`
	// Jitter delays each source's snapshots by a fixed share of it, so that they are not all taken at once.
	Jitter Duration `json:"jitter,omitempty"`
	// StartingDeadlineSeconds is how late a snapshot may be begun; later, its time is missed. Absent: any time before the next one.
	StartingDeadlineSeconds *int        `json:"startingDeadlineSeconds,omitempty"`
	CatchUp                 CatchUp     `json:"catchUp,omitempty"`
	Concurrency             Concurrency `json:"concurrency,omitempty"`
	// Retention of the snapshots taken for this schedule, instead of the policy's.
	Retention *Retention `json:"retention,omitempty"`
}

// Template is what snapshots are made like.
type Template struct {
	Labels                  map[string]string `json:"labels,omitempty"`
	VolumeSnapshotClassName string            `json:"volumeSnapshotClassName,omitempty"`
	Group                   *Group            `json:"group,omitempty"`
	Consistency             Consistency       `json:"consistency,omitempty"`
}

// Group makes the sources with one value of a label one source.
type Group struct {
	ByLabel string `json:"byLabel"`
}

// Retention says which snapshots stay. A count of zero is no rule.
type Retention struct {
	KeepLast int `json:"keepLast,omitempty"`
	Hourly   int `json:"hourly,omitempty"`
	Daily    int `json:"daily,omitempty"`
	Weekly   int `json:"weekly,omitempty"`
	Monthly  int `json:"monthly,omitempty"`
	Yearly   int `json:"yearly,omitempty"`
	// Within keeps all that are older than the source's newest ready snapshot by less than this: 24h keeps 24 of every hour.
	Within Duration `json:"within,omitempty"`

	// MaxAge and MaxCount are ceilings: what is older, and the oldest above the count, go although a rule keeps them.
	MaxAge   Duration `json:"maxAge,omitempty"`
	MaxCount int      `json:"maxCount,omitempty"`
	// MinKeep is how many of the newest ready snapshots of a source nothing prunes. Default 1.
	MinKeep *int `json:"minKeep,omitempty"`
	// FailedHistoryLimit is how many failed snapshots of a source stay. Default 3.
	FailedHistoryLimit *int          `json:"failedHistoryLimit,omitempty"`
	PoolPressure       *PoolPressure `json:"poolPressure,omitempty"`
	AfterSourceDeleted *AfterSource  `json:"afterSourceDeleted,omitempty"`
}

// PoolPressure prunes more while the source's pool is too full.
type PoolPressure struct {
	AbovePercent int      `json:"abovePercent"`
	UntilPercent int      `json:"untilPercent"`
	MinAge       Duration `json:"minAge,omitempty"`
}

// AfterSource is what becomes of the snapshots of a source that is gone. It may prune the last one.
type AfterSource struct {
	// KeepLast is how many of the newest ready ones stay; 0: all.
	KeepLast int `json:"keepLast,omitempty"`
	// MaxAge is how long after the source was found gone all of them go; 0: never.
	MaxAge Duration `json:"maxAge,omitempty"`
}

// CatchUp says what becomes of times at which nobody could take a snapshot.
type CatchUp string

// The ways to catch up.
const (
	CatchUpOne  CatchUp = "One"  // the last one missed is made up for; the default
	CatchUpNone CatchUp = "None" // what was not begun within OnTime is given up
)

// Concurrency says whether a schedule may begin a snapshot of a source while its last one is in the making.
type Concurrency string

// The kinds of concurrency.
const (
	ConcurrencyForbid Concurrency = "Forbid" // the default
	ConcurrencyAllow  Concurrency = "Allow"
)

// Consistency is what a snapshot is of.
type Consistency string

// The kinds of consistency.
const (
	ConsistencyCrash  Consistency = "Crash" // the default
	ConsistencyFreeze Consistency = "FilesystemFreeze"
)

// Adopt says whether a policy takes over what one of the same name left.
type Adopt string

// The ways to adopt.
const (
	AdoptNone   Adopt = "None" // the default
	AdoptByName Adopt = "ByName"
)

// DeletionPolicy says what becomes of a policy's snapshots when it is deleted.
type DeletionPolicy string

// The deletion policies.
const (
	DeletionOrphan DeletionPolicy = "Orphan" // the default
	DeletionDelete DeletionPolicy = "Delete"
)

// Duration is a time.Duration that is a string such as 24h or 90m in JSON and YAML.
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
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return Policy{}, fmt.Errorf("read policy: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Policy{}, fmt.Errorf("read policy: more than one value")
	}
	return p, nil
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
