package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// sourcePlan is one source being decided about. Nothing of another source is looked at, so that no source's trouble is another's.
type sourcePlan struct {
	ru        *Rules
	in        *Input
	source    Source
	decisions []Decision
	// candidates are the indexes of those nothing above the rules decided about: the ready ones newest first, the failed ones latest first.
	ready, failed []int
	skewed        *Snapshot // the one dated ahead
	latest        *Snapshot // the last one asked for, where it is not ready
	awaiting      string
	notices       []Notice
}

// Plan decides about the snapshots. It does not change its input; decisions point into in.Snapshots.
func (ru *Rules) Plan(in Input) Plan {
	var p Plan
	bySource := map[string][]*Snapshot{}
	for i := range in.Snapshots {
		s := &in.Snapshots[i]
		bySource[s.Source] = append(bySource[s.Source], s)
	}
	known := map[string]Source{}
	for _, s := range in.Sources {
		known[s.Key] = s
	}
	var sources []Source
	for key := range bySource {
		s := known[key]
		s.Key = key
		sources = append(sources, s)
	}
	slices.SortFunc(sources, func(a, b Source) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key)) })
	for _, why := range ru.Ruled() {
		p.Notices = append(p.Notices, Notice{Type: NoticeNoRetention, Message: why})
	}
	for _, s := range sources {
		sp := &sourcePlan{ru: ru, in: &in, source: s}
		sp.decide(bySource[s.Key])
		p.Notices = append(p.Notices, sp.notices...)
		p.Decisions = append(p.Decisions, sp.decisions...)
	}
	for i := range p.Decisions {
		if p.Decisions[i].Reason == Unmanaged {
			p.Unmanaged++
		} else {
			p.Managed++
		}
	}
	ru.pass(&in, &p, known)
	return p
}

// managed says whether the policy may decide about it.
func (ru *Rules) managed(in *Input, s *Snapshot) bool {
	if in.PolicyUID != "" && s.Policy == in.PolicyUID {
		return true
	}
	return ru.policy.Adopt == AdoptByName && s.PolicyName != "" && s.PolicyName == in.PolicyName
}

func (sp *sourcePlan) decide(list []*Snapshot) {
	list = slices.Clone(list)
	slices.SortFunc(list, newestFirst)
	for _, s := range list {
		sp.decisions = append(sp.decisions, Decision{Snapshot: s})
	}
	sp.look()
	for i := range sp.decisions {
		sp.exempt(&sp.decisions[i])
	}
	for i := range sp.decisions {
		d := &sp.decisions[i]
		switch s := d.Snapshot; {
		case d.Reason != "":
		case s.ready():
			sp.ready = append(sp.ready, i)
		case s.failed(sp.in.Now):
			sp.failed = append(sp.failed, i)
		default:
			d.Action, d.Reason, d.Detail = Keep, NotReady, "it satisfies no rule until it is ready"
			if s.Error != "" {
				d.Detail = "it failed less than " + Duration(FailedAfter).String() + " ago, or is still being made: " + short(s.Error)
			}
		}
	}
	slices.SortFunc(sp.failed, func(a, b int) int { return latestFirst(sp.decisions[a].Snapshot, sp.decisions[b].Snapshot) })
	if after := sp.afterSource(); after != nil {
		sp.gone(after)
		return
	}
	sp.scopes()
}

// look finds what holds for all of the source.
func (sp *sourcePlan) look() {
	var ready, other *Snapshot
	for i := range sp.decisions {
		s := sp.decisions[i].Snapshot
		if s.Deleting || !sp.ru.managed(sp.in, s) {
			continue
		}
		if sp.skewed == nil && s.ahead(sp.in.Now) {
			sp.skewed = s
		}
		// The newest ready one is never pruned, while the one that was asked for last may be: what is awaited must not change when a plan is carried out.
		last, order := &other, latestFirst
		if s.ready() {
			last, order = &ready, newestFirst
		}
		if *last == nil || order(s, *last) < 0 {
			*last = s
		}
	}
	if sp.skewed != nil {
		at := sp.skewed.CreatedAt
		if at.Before(sp.skewed.RequestedAt) {
			at = sp.skewed.RequestedAt
		}
		sp.notices = append(sp.notices, Notice{Type: NoticeClockSkew, Source: sp.source.Key, Message: fmt.Sprintf(
			"snapshot %s is dated %s, more than %s ahead: nothing of its source is pruned; set the clocks right, or delete it", sp.skewed.Key,
			at.UTC().Format(time.RFC3339), Duration(SkewLimit))})
	}
	// One that was asked for in the same second as the newest ready one may have come after it.
	if other != nil && (ready == nil || !other.requested().Before(ready.requested())) {
		sp.latest = other
		sp.awaiting = "its new snapshot " + other.Key + " is not ready"
	}
	if sp.source.Awaiting != "" {
		sp.awaiting = "its new snapshot is not there: " + short(sp.source.Awaiting)
	}
}

// exempt decides about what no rule may touch.
func (sp *sourcePlan) exempt(d *Decision) {
	s := d.Snapshot
	set := func(a Action, r Reason, detail string) { d.Action, d.Reason, d.Detail = a, r, detail }
	switch {
	case !sp.ru.managed(sp.in, s):
		set(Ignore, Unmanaged, "it is not labelled as this policy's")
	case s.Deleting:
		set(Ignore, Deleting, "its deletion was asked for")
	case s.Hold != "":
		set(Keep, Held, short(s.Hold))
	case len(s.InUse) > 0:
		set(Keep, InUse, short(strings.Join(s.InUse, ", ")))
	case s.ahead(sp.in.Now):
		set(Keep, ClockSkew, "it is dated ahead of now")
	case sp.skewed != nil:
		set(Keep, ClockSkew, "its source has a snapshot dated ahead of now: "+sp.skewed.Key)
	case sp.ru.policy.Suspend && !sp.ru.policy.PruneWhileSuspended:
		set(Keep, Suspended, "the policy is suspended")
	}
}

// afterSource is what the policy says of sources that are gone, nil if the source is there or the policy says nothing.
func (sp *sourcePlan) afterSource() *AfterSource {
	if sp.source.Gone == nil || sp.ru.scopes[0].r == nil {
		return nil
	}
	return sp.ru.scopes[0].r.AfterSourceDeleted
}

// gone decides for a source that is gone, whatever its snapshots were taken for. It may leave none.
func (sp *sourcePlan) gone(after *AfterSource) {
	r := sp.ru.scopes[0].r
	over := after.MaxAge > 0 && sp.in.Now.Sub(*sp.source.Gone) > time.Duration(after.MaxAge)
	since := sp.source.Gone.UTC().Format(time.RFC3339)
	for i, at := range sp.ready {
		d := &sp.decisions[at]
		d.floor = i < or(r.MinKeep, DefaultMinKeep)
		switch {
		case over:
			d.Action, d.Reason = Prune, SourceGone
			d.Detail = fmt.Sprintf("its source is gone since %s, longer than afterSourceDeleted.maxAge %s", since, after.MaxAge)
		case after.KeepLast > 0 && i >= after.KeepLast:
			d.Action, d.Reason = Prune, SourceGone
			d.Detail = fmt.Sprintf("its source is gone since %s; afterSourceDeleted.keepLast %d has newer ones", since, after.KeepLast)
		default:
			d.Action, d.Reason = Keep, SourceKept
			d.Detail = fmt.Sprintf("its source is gone since %s; afterSourceDeleted keeps it", since)
		}
	}
	for i, at := range sp.failed {
		d := &sp.decisions[at]
		d.Action, d.Reason, d.Detail = Keep, FailedKept, "failedHistoryLimit"
		if over || i >= or(r.FailedHistoryLimit, DefaultFailed) {
			d.Action, d.Reason, d.Detail = Prune, FailedOld, "it failed, and its source is gone since "+since
		}
	}
	if over && len(sp.ready) > 0 {
		sp.notices = append(sp.notices, Notice{Type: NoticeSourceGone, Source: sp.source.Key, Message: fmt.Sprintf(
			"the source is gone since %s: its last snapshots are pruned, as afterSourceDeleted.maxAge %s says", since, after.MaxAge)})
	}
}
