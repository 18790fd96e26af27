package retention_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// pressed is a pool whose snapshots a policy would keep all but for the pressure.
type pressedPool struct {
	t     *testing.T
	rules *retention.Rules
	in    retention.Input
}

func newPressed(t *testing.T, r retention.Retention) *pressedPool {
	r.KeepLast = 100
	r.PoolPressure = &retention.PoolPressure{AbovePercent: 85, UntilPercent: 80, MinAge: retention.Duration(24 * time.Hour)}
	p := &pressedPool{t: t, rules: mustRules(t, retention.Policy{Retention: &r})}
	p.in = retention.Input{Now: monday, PolicyUID: policyUID, Pools: []retention.Pool{{Name: "fast"}}}
	return p
}

// source adds one with a snapshot a day, the newest a day old; each would free so much.
func (p *pressedPool) source(key string, n int, frees int64) {
	p.in.Sources = append(p.in.Sources, retention.Source{Key: key, Pool: "fast"})
	for i := range n {
		at := monday.AddDate(0, 0, -i)
		p.in.Snapshots = append(p.in.Snapshots, retention.Snapshot{Key: fmt.Sprintf("%s-%d", key, i), Source: key, Policy: policyUID, Ready: true,
			CreatedAt: at, RequestedAt: at, Frees: &frees})
	}
}

// pass lets time pass, reads the pool anew and carries a plan out; it says what went, and what was noticed.
func (p *pressedPool) pass(percent float64) string {
	p.in.Now = p.in.Now.Add(2 * time.Minute)
	p.in.Pools[0].UsedPercent, p.in.Pools[0].At = percent, p.in.Now.Add(-time.Second)
	plan := p.rules.Plan(p.in)
	p.in.Pressure = plan.Pressure
	var log []string
	for _, d := range plan.Prunes() {
		log = append(log, d.Snapshot.Key)
		p.in.Snapshots = slices.DeleteFunc(slices.Clone(p.in.Snapshots), func(s retention.Snapshot) bool { return s.Key == d.Snapshot.Key })
	}
	for _, n := range plan.Notices {
		_, text, _ := strings.Cut(n.Message, "full: ")
		text, _, _ = strings.Cut(text, ":")
		text, _, _ = strings.Cut(text, ";")
		log = append(log, "("+text+")")
	}
	return strings.Join(log, " ")
}

func (p *pressedPool) expect(percent float64, want string) {
	p.t.Helper()
	if got := p.pass(percent); got != want {
		p.t.Errorf("at %v %%: %q, want %q", percent, got, want)
	}
}

// TestPressure: one at a time, the oldest of the source with most to free, from above the upper to the lower mark.
func TestPressure(t *testing.T) {
	p := newPressed(t, retention.Retention{})
	p.source("small", 4, 1<<20)
	p.source("large", 4, 1<<30)
	p.expect(85, "")
	p.expect(85.1, "large-3")
	p.expect(84, "(snapshot large-3 was pruned)") // when it was gone nobody knows: the first figure after it was seen to be gone counts
	p.expect(84, "large-2")
	p.expect(82, "(snapshot large-2 was pruned)")
	p.expect(81, "large-1")
	p.expect(80, "")
	p.expect(84, "") // below the upper mark again
}

// TestPressureStops: never below minKeep, and what frees nothing is no progress.
func TestPressureStops(t *testing.T) {
	p := newPressed(t, retention.Retention{MinKeep: ptr(2)})
	p.source("a", 3, 1<<30)
	p.source("b", 3, 1<<20)
	p.source("none", 9, 0)
	p.expect(90, "a-2")
	p.expect(90, "(snapshot a-2 was pruned)")
	p.expect(90, "b-2") // a-2 freed nothing; nor is there more of a
	p.expect(89, "(snapshot b-2 was pruned)")
	p.expect(89, "(pruning more would free nothing)")
}

// TestPressureFruitless: a source whose snapshot freed nothing is left alone for a while.
func TestPressureFruitless(t *testing.T) {
	p := newPressed(t, retention.Retention{})
	p.source("a", 5, 1<<30)
	p.expect(90, "a-4")
	p.expect(90, "(snapshot a-4 was pruned)")
	p.expect(91, "(pruning more would free nothing)")
	p.in.Now = p.in.Now.Add(retention.PressureRetry)
	p.expect(91, "a-3")
}

func TestPressureSpares(t *testing.T) {
	p := newPressed(t, retention.Retention{})
	p.source("a", 5, 1<<30)
	for i := range p.in.Snapshots {
		s := &p.in.Snapshots[i]
		switch s.Key {
		case "a-4":
			s.Hold = "audit"
		case "a-3":
			s.InUse = []string{"PVC shop/restore"}
		case "a-2":
			s.Policy = "another"
		case "a-1":
			s.CreatedAt = monday.Add(-time.Hour)
		}
	}
	p.expect(95, "(no snapshot there may be pruned)")
}

// TestPressureWaits: what goes for other reasons goes first, and one that was held after it was chosen is let go.
func TestPressureWaits(t *testing.T) {
	p := newPressed(t, retention.Retention{MaxAge: retention.Duration(5*24*time.Hour + time.Hour)})
	p.source("a", 7, 1<<30)
	p.expect(90, "a-6 (1 snapshots that lie there are being pruned already)")
	p.expect(90, "a-5")
	before := slices.Clone(p.in.Snapshots)
	// The controller died before it pruned a-5, and somebody holds it since.
	held := retention.Snapshot{Key: "a-5", Source: "a", Policy: policyUID, Ready: true, CreatedAt: monday.AddDate(0, 0, -5), Hold: "audit"}
	p.in.Snapshots = append(before, held)
	p.expect(90, "a-4")
	p.in.Snapshots = append(before, held)
	p.expect(90, "a-4") // it was not pruned: again
	at := slices.IndexFunc(p.in.Snapshots, func(s retention.Snapshot) bool { return s.Key == "a-3" })
	p.in.Snapshots[at].Deleting = true
	p.expect(90, "(snapshot a-4 was pruned)")
	p.expect(88, "(1 snapshots that lie there are being pruned already)")
}

func TestPressureDryRunKeepsNoState(t *testing.T) {
	p := newPressed(t, retention.Retention{})
	p.source("a", 3, 1<<30)
	policy := p.rules.Policy()
	policy.DryRun = true
	p.rules = mustRules(t, policy)
	p.in.Pools[0] = retention.Pool{Name: "fast", UsedPercent: 90, At: monday}
	for range 2 {
		plan := p.rules.Plan(p.in)
		if n := plan.Prunes(); len(n) != 1 || n[0].Snapshot.Key != "a-2" || plan.Pressure[0].Victim != "" {
			t.Errorf("%v, %+v", n, plan.Pressure)
		}
		p.in.Pressure = plan.Pressure
	}
}

// TestPressureProperties: one a pass and pool, never the floor, never what a person or another policy has, never while nothing is too full.
func TestPressureProperties(t *testing.T) {
	l := everything
	l.policy = func(_ *rapid.T, p *retention.Policy) {
		p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 85, UntilPercent: 80}
	}
	eachStep(t, l, func(r *rapid.T, w *world, p retention.Plan) {
		n := 0
		for i := range p.Decisions {
			d := &p.Decisions[i]
			if d.Reason != retention.PressureFull {
				continue
			}
			n++
			s := d.Snapshot
			if s.Hold != "" || len(s.InUse) > 0 || s.Policy != policyUID || s.Deleting || !s.Ready || w.in.Pools[0].UsedPercent <= 80 {
				r.Fatalf("%s goes for pressure at %v %%", s.Key, w.in.Pools[0].UsedPercent)
			}
			older := 0
			for _, o := range w.in.Snapshots {
				free := o.Hold == "" && len(o.InUse) == 0 && !o.Deleting
				if o.Source == s.Source && o.Ready && o.Policy == policyUID && free && !o.CreatedAt.Before(s.CreatedAt) {
					older++
				}
			}
			if m := w.policy.Retention.MinKeep; len(w.policy.Schedules) == 0 && m != nil && older <= *m {
				r.Fatalf("%s is one of the newest %d", s.Key, *m)
			}
		}
		if n > 1 {
			r.Fatalf("%d go for pressure in one pass", n)
		}
	})
}
