package retention

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

const (
	// SkewLimit is how far ahead of now a snapshot may be dated before the clocks are distrusted.
	SkewLimit = 5 * time.Minute
	// FailedAfter is how long a snapshot with an error must have had to become ready.
	FailedAfter = time.Hour
)

// Snapshot is what the planner knows of one: a VolumeSnapshot, or a VolumeGroupSnapshot with its members as one.
type Snapshot struct {
	// Key is unique among the snapshots: namespace/name.
	Key string `json:"name"`
	// Source is the key of what it is of.
	Source string `json:"source"`
	// Policy is the UID of the policy it is labelled with, "" for none; PolicyName that policy's kind, namespace and name, compared by adopt: ByName.
	Policy     string `json:"policy,omitempty"`
	PolicyName string `json:"policyName,omitempty"`
	// Schedules are the names of those it was taken for.
	Schedules []string `json:"schedules,omitempty"`
	// CreatedAt is the moment of its content, as the storage said; zero: not known yet.
	CreatedAt time.Time `json:"createdAt,omitzero"`
	// RequestedAt is when its object was made. Zero: CreatedAt.
	RequestedAt time.Time `json:"requestedAt,omitzero"`
	// DueAt is the latest nominal time that it was taken for. It tells which of those requested within a second, all that Kubernetes keeps, is the later.
	DueAt time.Time `json:"dueAt,omitzero"`
	// Ready says that it can be restored.
	Ready bool `json:"ready"`
	// Error is what the storage last said went wrong.
	Error string `json:"error,omitempty"`
	// Making says that the storage may be making it at this moment (its being-created annotation is there).
	Making bool `json:"making,omitempty"`
	// Hold is why a person wants it kept, "" if nobody does.
	Hold string `json:"hold,omitempty"`
	// InUse names what uses it: an unbound PVC, a rollback, a VM's snapshot, the group that owns it.
	InUse []string `json:"inUse,omitempty"`
	// Deleting says that its deletion was asked for.
	Deleting bool `json:"deleting,omitempty"`
	// Frees is how many bytes deleting it would give back; nil where nobody knows.
	Frees *int64 `json:"frees,omitempty"`
	// RetryAt is when its deletion, which failed, may be tried again. It takes no part of a pass before.
	RetryAt time.Time `json:"retryAt,omitzero"`
}

func (s *Snapshot) requested() time.Time {
	if s.RequestedAt.IsZero() {
		return s.CreatedAt
	}
	return s.RequestedAt
}

// ready says that it satisfies rules.
func (s *Snapshot) ready() bool { return s.Ready && !s.CreatedAt.IsZero() }

// InMaking says that a snapshot may still become ready by itself: it has neither failed nor is it on its way out.
func (s *Snapshot) InMaking(now time.Time) bool { return !s.ready() && !s.Deleting && !s.failed(now) }

func (s *Snapshot) ahead(now time.Time) bool {
	limit := now.Add(SkewLimit)
	return s.CreatedAt.After(limit) || s.RequestedAt.After(limit)
}

func (s *Snapshot) failed(now time.Time) bool {
	return !s.ready() && s.Error != "" && !s.Making && !s.requested().IsZero() && now.Sub(s.requested()) >= FailedAfter
}

// newestFirst orders by the storage's time; what is of one moment by name, so that the order of the list does not matter.
func newestFirst(a, b *Snapshot) int {
	if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

// latestFirst orders by when they were asked for.
func latestFirst(a, b *Snapshot) int {
	return cmp.Or(b.requested().Compare(a.requested()), b.DueAt.Compare(a.DueAt), strings.Compare(a.Key, b.Key))
}

// Input is what a plan is made of.
type Input struct {
	// Now is the time.
	Now time.Time
	// PolicyUID and PolicyName are the policy's, as in its snapshots' labels.
	PolicyUID, PolicyName string
	Snapshots             []Snapshot
	// Sources tell more of the snapshots' sources; one that is not listed is taken to be there, in no known pool.
	Sources []Source
	// Pools are the figures of pools; Pressure is what the last plan said of them.
	Pools    []Pool
	Pressure []Pressure
}

// Action is what is to be done with a snapshot.
type Action string

// The actions.
const (
	Keep   Action = "Keep"
	Prune  Action = "Prune"  // delete it now
	Wait   Action = "Wait"   // it is to be pruned, in a later pass
	Ignore Action = "Ignore" // not the policy's, or on its way out already
)

// Reason is why.
type Reason string

// The reasons to leave a snapshot alone.
const (
	Unmanaged Reason = "Unmanaged"
	Deleting  Reason = "Deleting"
)

// The reasons to keep a snapshot.
const (
	Held        Reason = "Held"
	InUse       Reason = "InUse"
	ClockSkew   Reason = "ClockSkew"
	Suspended   Reason = "Suspended"
	NoRetention Reason = "NoRetention" // absent, empty or wrong
	NotReady    Reason = "NotReady"
	FailedKept  Reason = "FailedKept" // within failedHistoryLimit, or the last word on its source
	MinKeep     Reason = "MinKeep"    // the floor alone keeps it
	Rule        Reason = "Rule"       // its marks say which
	NoRule      Reason = "NoRule"     // there are only ceilings, and it is below them
	Awaiting    Reason = "Awaiting"   // create before prune
	SourceKept  Reason = "SourceKept" // afterSourceDeleted
)

// The reasons to prune a snapshot.
const (
	Unneeded     Reason = "Unneeded" // no rule keeps it
	TooOld       Reason = "TooOld"   // maxAge
	TooMany      Reason = "TooMany"  // maxCount
	FailedOld    Reason = "FailedOld"
	SourceGone   Reason = "SourceGone"
	PressureFull Reason = "PoolPressure"
)

// Decision is what becomes of a snapshot, and why.
type Decision struct {
	Snapshot *Snapshot
	Action   Action
	Reason   Reason
	// Scope is the schedule whose retention decided; "" is the policy's.
	Scope string
	// Marks are what each keep rule said of it.
	Marks []Mark
	// Detail completes the reason: who holds it, what is awaited, which limit.
	Detail string
	// Waits says why a Wait is not pruned in this pass.
	Waits string
	floor bool
}

// Notice is what a condition is to say.
type Notice struct {
	Type    NoticeType
	Source  string // its key; "" for the policy
	Message string
}

// NoticeType is the type of the condition.
type NoticeType string

// The notices.
const (
	NoticeClockSkew    NoticeType = "ClockSkew"
	NoticePruneBraked  NoticeType = "PruneBraked"
	NoticeNoRetention  NoticeType = "NoRetention"
	NoticePoolPressure NoticeType = "PoolPressure"
	NoticeSourceGone   NoticeType = "SourceGone" // the last snapshot of a source is pruned: also an Event
)

// Plan is what a pass does.
type Plan struct {
	// Decisions has one for each snapshot: by source, newest first.
	Decisions []Decision
	Notices   []Notice
	// Managed and Unmanaged count the snapshots; Limit is how many a pass may prune.
	Managed, Unmanaged, Limit int
	// Pressure is to be given to the next plan.
	Pressure []Pressure
}

// Prunes are the decisions to prune now, in the order in which to do it.
func (p *Plan) Prunes() []*Decision {
	var list []*Decision
	for i := range p.Decisions {
		if p.Decisions[i].Action == Prune {
			list = append(list, &p.Decisions[i])
		}
	}
	slices.SortStableFunc(list, func(a, b *Decision) int { return newestFirst(b.Snapshot, a.Snapshot) })
	return list
}

// Count is a row of Counts.
type Count struct {
	Action Action
	Reason Reason
	N      int
}

// Counts says how many snapshots have each action and reason, ordered by both.
func (p *Plan) Counts() []Count {
	type key struct {
		a Action
		r Reason
	}
	n := map[key]int{}
	for i := range p.Decisions {
		n[key{p.Decisions[i].Action, p.Decisions[i].Reason}]++
	}
	list := make([]Count, 0, len(n))
	for k, v := range n {
		list = append(list, Count{k.a, k.r, v})
	}
	slices.SortFunc(list, func(a, b Count) int { return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Reason, b.Reason)) })
	return list
}
