package retention

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// PressureSettle is how long after a snapshot is gone a pool's figure may still not tell of it: blocks are freed in the background.
	PressureSettle = time.Minute
	// PressureRetry is how long a source whose snapshot freed nothing is left alone.
	PressureRetry = time.Hour
)

// Pool is a figure of a pool.
type Pool struct {
	Name        string    `json:"name"`
	UsedPercent float64   `json:"usedPercent"`
	UsedBytes   int64     `json:"usedBytes,omitempty"`
	At          time.Time `json:"at,omitzero"` // when it was read
}

// Pressure is what a plan has to know of the plans before it, of one pool. The caller keeps it; losing it makes the next plan begin anew.
type Pressure struct {
	Pool   string
	Active bool // from abovePercent down to untilPercent
	// Victim is the snapshot that was pruned last, of Source; GoneAt is when it was first seen to be gone.
	Victim, Source string
	GoneAt         time.Time
	// Busy is when snapshots there were last seen to go for other reasons: a figure from before does not tell of them.
	Busy        time.Time
	UsedBytes   int64   // before
	UsedPercent float64 // before
	// Fruitless are sources whose snapshot freed nothing, and when that was seen.
	Fruitless map[string]time.Time
}

func (ru *Rules) pressure(in *Input, p *Plan, known map[string]Source, room int) {
	r := ru.scopes[0].r
	if r == nil || r.PoolPressure == nil || ru.policy.Suspend && !ru.policy.PruneWhileSuspended {
		return
	}
	before := map[string]Pressure{}
	for _, st := range in.Pressure {
		before[st.Pool] = st
	}
	pools := slices.Clone(in.Pools)
	slices.SortFunc(pools, func(a, b Pool) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	for _, pool := range pools {
		st := before[pool.Name]
		st.Pool, st.Fruitless = pool.Name, maps.Clone(st.Fruitless)
		pp := &poolPass{in: in, p: p, known: known, limits: r.PoolPressure, pool: pool, st: &st}
		if pp.run(room) {
			room--
		}
		if ru.policy.DryRun {
			st = before[pool.Name] // nothing is carried out, so nothing can be waited for
			st.Pool = pool.Name
		}
		p.Pressure = append(p.Pressure, st)
	}
}

// poolPass is the pressure of one pool in one plan.
type poolPass struct {
	in     *Input
	p      *Plan
	known  map[string]Source
	limits *PoolPressure
	pool   Pool
	st     *Pressure
}

// run decides about at most one snapshot of the pool, and says whether it did.
func (pp *poolPass) run(room int) bool {
	st := pp.st
	switch {
	case pp.pool.UsedPercent > float64(pp.limits.AbovePercent):
		st.Active = true
	case pp.pool.UsedPercent <= float64(pp.limits.UntilPercent):
		*st = Pressure{Pool: st.Pool}
	}
	if !st.Active {
		return false
	}
	if st.Victim != "" {
		switch again := pp.find(st.Victim); {
		case again == nil:
			if !pp.settled() {
				return false
			}
		case pp.candidate(again):
			return pp.prune(again, room) // decided before, and not yet done
		case again.Reason == Deleting:
			pp.notice("waiting for snapshot %s to be gone", st.Victim)
			return false
		default: // somebody holds or uses it now
			st.Victim, st.Source, st.GoneAt = "", "", time.Time{}
		}
	}
	if n := pp.others(); n > 0 {
		st.Busy = pp.in.Now
		pp.notice("%d snapshots that lie there are being pruned already: more go when they are gone", n)
		return false
	}
	if !st.Busy.IsZero() && !pp.pool.At.After(st.Busy) {
		pp.notice("snapshots there were pruned; waiting for the pool's figure")
		return false
	}
	best, found := pp.choose()
	if best == nil {
		why := "no snapshot there may be pruned: all are held, in use, too young, or the last minKeep of their source"
		if found {
			why = "pruning more would free nothing: what uses the space is not the policy's snapshots"
		}
		pp.notice("%s; make the pool larger, or delete volumes or unmanaged snapshots", why)
		return false
	}
	return pp.prune(best, room)
}

// settled looks at what the last prune brought, and says whether the figure tells that already.
func (pp *poolPass) settled() bool {
	st := pp.st
	if st.GoneAt.IsZero() {
		st.GoneAt = pp.in.Now
	}
	freed := pp.pool.UsedPercent < st.UsedPercent
	if st.UsedBytes > 0 && pp.pool.UsedBytes > 0 {
		freed = pp.pool.UsedBytes < st.UsedBytes
	}
	fresh := pp.pool.At.After(st.GoneAt)
	if !fresh || !freed && pp.pool.At.Before(st.GoneAt.Add(PressureSettle)) {
		pp.notice("snapshot %s was pruned; waiting for the pool's figure", st.Victim)
		return false
	}
	if !freed {
		if st.Fruitless == nil {
			st.Fruitless = map[string]time.Time{}
		}
		st.Fruitless[st.Source] = pp.in.Now
	}
	st.Victim, st.Source, st.GoneAt = "", "", time.Time{}
	return true
}

// find is the decision about a snapshot that is still there and still a candidate.
func (pp *poolPass) find(key string) *Decision {
	for i := range pp.p.Decisions {
		if d := &pp.p.Decisions[i]; d.Snapshot.Key == key && d.Reason != Unmanaged {
			return d
		}
	}
	return nil
}

// others counts the pool's snapshots that go without pressure.
func (pp *poolPass) others() int {
	n := 0
	for i := range pp.p.Decisions {
		d := &pp.p.Decisions[i]
		stuck := d.Snapshot.RetryAt.After(pp.in.Now) // its deletion fails; nobody waits for that
		if !stuck && pp.known[d.Snapshot.Source].Pool == pp.pool.Name && (d.Action == Prune || d.Action == Wait || d.Reason == Deleting) {
			n++
		}
	}
	return n
}

// candidate says whether pressure may prune it: a rule keeps it, and nothing stronger.
func (pp *poolPass) candidate(d *Decision) bool {
	switch {
	case d.Action != Keep || d.floor || !d.Snapshot.ready() || d.Snapshot.RetryAt.After(pp.in.Now):
		return false
	case pp.known[d.Snapshot.Source].Pool != pp.pool.Name:
		return false
	case pp.in.Now.Sub(d.Snapshot.CreatedAt) < time.Duration(pp.limits.MinAge):
		return false
	}
	return d.Reason == Rule || d.Reason == NoRule || d.Reason == Awaiting || d.Reason == SourceKept
}

// choose finds the oldest candidate of the source whose candidates would free most. found says that there were candidates, all of them freeing
// nothing.
func (pp *poolPass) choose() (best *Decision, found bool) {
	type sum struct {
		frees   int64
		unknown bool
		oldest  *Decision
	}
	sums := map[string]*sum{}
	for i := range pp.p.Decisions {
		d := &pp.p.Decisions[i]
		if !pp.candidate(d) {
			continue
		}
		s := sums[d.Snapshot.Source]
		if s == nil {
			s = &sum{}
			sums[d.Snapshot.Source] = s
		}
		s.frees += or(d.Snapshot.Frees, 0)
		s.unknown = s.unknown || d.Snapshot.Frees == nil
		s.oldest = d // newest first
	}
	most := int64(-1)
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		s := sums[key]
		at, tried := pp.st.Fruitless[key]
		if tried && pp.in.Now.Sub(at) < PressureRetry || s.frees == 0 && !s.unknown {
			found = true
			continue
		}
		if s.frees > most {
			most, best = s.frees, s.oldest
		}
	}
	return best, found
}

func (pp *poolPass) prune(d *Decision, room int) bool {
	if room <= 0 {
		return false
	}
	st := pp.st
	if st.Victim == "" {
		st.Victim, st.Source = d.Snapshot.Key, d.Snapshot.Source
		st.UsedBytes, st.UsedPercent = pp.pool.UsedBytes, pp.pool.UsedPercent
	}
	d.Action, d.Reason = Prune, PressureFull
	d.Detail = fmt.Sprintf("pool %s is %.1f %% full, above %d %% (until %d %%)", pp.pool.Name, pp.pool.UsedPercent, pp.limits.AbovePercent,
		pp.limits.UntilPercent)
	return true
}

func (pp *poolPass) notice(format string, args ...any) {
	text := fmt.Sprintf("pool %s is %.1f %% full: ", pp.pool.Name, pp.pool.UsedPercent) + fmt.Sprintf(format, args...)
	pp.p.Notices = append(pp.p.Notices, Notice{Type: NoticePoolPressure, Message: text})
}
