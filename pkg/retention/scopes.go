package retention

import (
	"fmt"
	"strings"
	"time"
)

// verdict is what a scope says of a snapshot.
type verdict struct {
	action Action
	reason Reason
	detail string
	marks  []Mark
	floor  bool
}

// scopes lets each retention decide about the snapshots it sees, and keeps what any of them keeps.
func (sp *sourcePlan) scopes() {
	members := make([][]int, len(sp.ru.scopes))
	failed := make([][]int, len(sp.ru.scopes))
	for _, at := range sp.ready {
		for _, s := range sp.ru.scopesOf(sp.decisions[at].Snapshot.Schedules) {
			members[s] = append(members[s], at)
		}
	}
	for _, at := range sp.failed {
		for _, s := range sp.ru.scopesOf(sp.decisions[at].Snapshot.Schedules) {
			failed[s] = append(failed[s], at)
		}
	}
	for i := range sp.ru.scopes {
		s := &sp.ru.scopes[i]
		if len(members[i]) > 0 {
			verdicts := sp.judge(s, members[i])
			for j, at := range members[i] {
				sp.decisions[at].merge(s, verdicts[j])
			}
		}
		for j, at := range failed[i] {
			sp.decisions[at].merge(s, sp.judgeFailed(s, j, sp.decisions[at].Snapshot))
		}
	}
}

// merge adds a scope's verdict: to keep beats to prune.
func (d *Decision) merge(s *scope, v verdict) {
	if d.Marks == nil {
		d.Marks = v.marks
	} else {
		d.Marks = append(d.Marks, v.marks...)
	}
	d.floor = d.floor || v.floor
	// A retention that is wrong lets nothing stronger than a rule (the pool's pressure, say) at what it would have seen.
	if d.Action == "" || d.Action == Prune && v.action == Keep || v.reason == NoRetention {
		d.Action, d.Reason, d.Detail, d.Scope = v.action, v.reason, v.detail, s.name
	}
}

// judge decides about the ready snapshots of a scope, newest first.
func (sp *sourcePlan) judge(s *scope, members []int) []verdict {
	out := make([]verdict, len(members))
	if s.r == nil {
		for i := range out {
			out[i] = verdict{action: Keep, reason: NoRetention, detail: s.why}
		}
		return out
	}
	list := make([]*Snapshot, len(members))
	for i, at := range members {
		list[i] = sp.decisions[at].Snapshot
	}
	sp.keepRules(s, list, out)
	sp.ceilings(s, list, out)
	return out
}

// keepRules gives each snapshot what the floor and the keep rules say.
func (sp *sourcePlan) keepRules(s *scope, list []*Snapshot, out []verdict) {
	marks := s.marks(list)
	minKeep := or(s.r.MinKeep, DefaultMinKeep)
	for i := range list {
		v := verdict{action: Prune, reason: Unneeded, marks: marks[i], floor: i < minKeep}
		kept := false
		for j := range marks[i] {
			kept = kept || marks[i][j].Keeps
		}
		switch {
		case kept:
			v.action, v.reason = Keep, Rule
		case !s.r.keeps():
			v.action, v.reason, v.detail = Keep, NoRule, "there is no keep rule, and it is below the ceilings"
		case v.floor:
			v.action, v.reason, v.detail = Keep, MinKeep, fmt.Sprintf("it is one of the newest %d (minKeep)", minKeep)
		case sp.awaiting != "":
			v.action, v.reason, v.detail = Keep, Awaiting, sp.awaiting+", so no rule prunes its source"
		}
		out[i] = v
	}
}

// ceilings turns what is too old or too much from kept into pruned, never the floor. While a new snapshot is awaited, only age counts: a count does
// not grow meanwhile.
func (sp *sourcePlan) ceilings(s *scope, list []*Snapshot, out []verdict) {
	kept := 0
	for i := range out {
		v := &out[i]
		age := sp.in.Now.Sub(list[i].CreatedAt)
		if s.r.MaxAge > 0 && age > time.Duration(s.r.MaxAge) {
			v.ceiling(TooOld, fmt.Sprintf("it is older than maxAge %s", s.r.MaxAge))
		}
		if v.action != Keep {
			continue
		}
		kept++
		if s.r.MaxCount > 0 && kept > s.r.MaxCount && sp.awaiting == "" {
			v.ceiling(TooMany, fmt.Sprintf("maxCount %d has newer ones", s.r.MaxCount))
		}
	}
}

func (v *verdict) ceiling(reason Reason, detail string) {
	if v.floor {
		if v.action == Keep {
			v.detail = strings.TrimPrefix(v.detail+"; ", "; ") + detail + ", but minKeep keeps it"
			v.reason = MinKeep
		}
		return
	}
	v.action, v.reason, v.detail = Prune, reason, detail
}

// judgeFailed decides about a failed snapshot, the i-th of the scope, latest first. The one asked for last stays whatever the limit: that it failed
// is what keeps the rules from pruning its source.
func (sp *sourcePlan) judgeFailed(s *scope, i int, snap *Snapshot) verdict {
	switch {
	case s.r == nil:
		return verdict{action: Keep, reason: NoRetention, detail: s.why}
	case snap == sp.latest:
		return verdict{action: Keep, reason: FailedKept, detail: "no snapshot asked for later is ready: " + short(snap.Error)}
	case i < or(s.r.FailedHistoryLimit, DefaultFailed):
		return verdict{action: Keep, reason: FailedKept, detail: "failed: " + short(snap.Error)}
	}
	detail := fmt.Sprintf("it failed, and is past failedHistoryLimit %d", or(s.r.FailedHistoryLimit, DefaultFailed))
	return verdict{action: Prune, reason: FailedOld, detail: detail}
}

// Text is the decision in one line.
func (d *Decision) Text() string {
	var parts []string
	for i := range d.Marks {
		if m := &d.Marks[i]; m.Keeps == (d.Reason == Rule) && (d.Reason == Rule || d.Reason == Unneeded) {
			parts = append(parts, m.String())
		}
	}
	if d.Reason == Unneeded {
		parts = []string{"no rule keeps it: " + strings.Join(parts, ", ")}
	}
	text := strings.Join(parts, ", ")
	if d.Detail != "" {
		text = strings.TrimPrefix(text+"; ", "; ") + d.Detail
	}
	if d.Waits != "" {
		text += "; " + d.Waits
	}
	return text
}
