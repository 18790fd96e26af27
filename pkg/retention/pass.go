package retention

import (
	"fmt"
	"slices"
)

// passMinimum is how many snapshots a pass may always prune.
const passMinimum = 10

// passLimit is how many of a policy's snapshots one pass prunes at most. A policy edited wrongly, or a clock set wrongly, can be noticed before all
// is gone.
func passLimit(managed int) int { return max(passMinimum, managed/10) }

// pass chooses which prunes are done now: one of each source in turn, each source's oldest first, so that no source keeps another waiting for long.
func (ru *Rules) pass(in *Input, p *Plan, known map[string]Source) {
	p.Limit = passLimit(p.Managed)
	queues, order := map[string][]int{}, []string{}
	waiting := 0
	for i := range p.Decisions {
		d := &p.Decisions[i]
		if d.Action != Prune {
			continue
		}
		if d.Snapshot.RetryAt.After(in.Now) {
			d.Action, d.Waits = Wait, "its last deletion failed, and is tried again later"
			continue
		}
		key := d.Snapshot.Source
		if queues[key] == nil {
			order = append(order, key)
		}
		queues[key] = append(queues[key], i)
	}
	// Sources in the order of their keys would have the same ones go first in every pass; the oldest snapshot's goes first.
	for _, q := range queues {
		slices.SortFunc(q, func(a, b int) int { return newestFirst(p.Decisions[b].Snapshot, p.Decisions[a].Snapshot) })
	}
	slices.SortFunc(order, func(a, b string) int {
		return newestFirst(p.Decisions[queues[b][0]].Snapshot, p.Decisions[queues[a][0]].Snapshot)
	})
	room := p.Limit
	for round := 0; ; round++ {
		more := false
		for _, key := range order {
			q := queues[key]
			if round >= len(q) {
				continue
			}
			more = true
			if room > 0 {
				room--
				continue
			}
			d := &p.Decisions[q[round]]
			d.Action, d.Waits = Wait, fmt.Sprintf("a pass prunes %d at most", p.Limit)
			waiting++
		}
		if !more {
			break
		}
	}
	if waiting > 0 {
		p.Notices = append(p.Notices, Notice{Type: NoticePruneBraked, Message: fmt.Sprintf(
			"%d snapshots are to be pruned; this pass prunes %d, %d wait for the next ones", p.Limit+waiting, p.Limit, waiting)})
	}
	ru.pressure(in, p, known, room)
}
