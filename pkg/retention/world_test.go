package retention_test

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// check runs a property so often, or as often as -rapid.checks says (make policy-test: 100,000 times).
func check(t *testing.T, n int, property func(*rapid.T)) {
	t.Helper()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "rapid.checks" })
	if f := flag.Lookup("rapid.checks"); !set {
		before := f.Value.String()
		if err := f.Value.Set(strconv.Itoa(n)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(before) }()
	}
	rapid.Check(t, property)
}

// histories is how many histories a plain go test runs of each invariant.
const histories = 1500

const policyUID = "policy-1"

// likes says what a world is to have.
type likes struct {
	skew, gone, awaiting, unready, retry, pressure, suspend, foreign bool
	// policy changes the policy that was drawn.
	policy func(*rapid.T, *retention.Policy)
}

var everything = likes{skew: true, gone: true, awaiting: true, unready: true, retry: true, pressure: true, suspend: true, foreign: true}

// world is a policy, its snapshots and a clock.
type world struct {
	r      *rapid.T
	likes  likes
	policy retention.Policy
	rules  *retention.Rules
	in     retention.Input
	next   int
}

func one(r *rapid.T, of int, name string) bool { return rapid.IntRange(1, of).Draw(r, name) == of }

func drawRetention(r *rapid.T, own bool) *retention.Retention {
	ret := &retention.Retention{}
	count := func(of int, name string) int {
		if !one(r, of, "has "+name) {
			return 0
		}
		return rapid.IntRange(1, 6).Draw(r, name)
	}
	ret.KeepLast, ret.Hourly, ret.Daily = count(2, "keepLast"), count(2, "hourly"), count(2, "daily")
	ret.Weekly, ret.Monthly, ret.Yearly = count(3, "weekly"), count(3, "monthly"), count(4, "yearly")
	ret.Within = retention.Duration(count(4, "within")) * retention.Duration(5*time.Hour)
	if n := count(4, "minKeep"); n > 0 {
		ret.MinKeep = &n
	}
	if n := count(3, "failedHistoryLimit"); n > 0 {
		n--
		ret.FailedHistoryLimit = &n
	}
	if n := count(4, "maxCount"); n > 0 {
		ret.MaxCount = 6 + n
	}
	if n := count(4, "maxAge"); n > 0 {
		ret.MaxAge = ret.Within + retention.Duration(n)*retention.Duration(60*time.Hour)
	}
	if !own && one(r, 2, "has afterSourceDeleted") {
		ret.AfterSourceDeleted = &retention.AfterSource{KeepLast: rapid.IntRange(0, 3).Draw(r, "after.keepLast"),
			MaxAge: retention.Duration(rapid.IntRange(1, 5).Draw(r, "after.maxAge")) * retention.Duration(24*time.Hour)}
	}
	if ret.MaxAge == 0 && ret.MaxCount == 0 && ret.KeepLast == 0 { // never none at all
		ret.KeepLast = 1
	}
	return ret
}

func drawPolicy(r *rapid.T, l likes) retention.Policy {
	p := retention.Policy{TimeZone: rapid.SampledFrom(zones).Draw(r, "zone"), Selector: retention.Selector{MatchAll: true}}
	p.Retention = drawRetention(r, false)
	if l.pressure && one(r, 2, "has poolPressure") {
		p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 85, UntilPercent: 80, MinAge: retention.Duration(time.Hour)}
	}
	crons := []string{"0 * * * *", "30 2 * * *", "0 0 * * *", "*/10 * * * *", "0 3 * * sun"}
	for i := range rapid.IntRange(0, 3).Draw(r, "schedules") {
		s := retention.Schedule{Name: fmt.Sprintf("s%d", i), Cron: rapid.SampledFrom(crons).Draw(r, "cron")}
		if one(r, 3, "own retention") {
			s.Retention = drawRetention(r, true)
		}
		if one(r, 3, "own zone") {
			s.TimeZone = rapid.SampledFrom(zones).Draw(r, "own zone")
		}
		s.Jitter = retention.Duration(rapid.IntRange(0, 2).Draw(r, "jitter")) * retention.Duration(5*time.Minute)
		p.Schedules = append(p.Schedules, s)
	}
	if l.suspend && one(r, 8, "suspend") {
		p.Suspend, p.PruneWhileSuspended = true, rapid.Bool().Draw(r, "pruneWhileSuspended")
	}
	if l.policy != nil {
		l.policy(r, &p)
	}
	return p
}

// newWorld has a history behind it: up to 25 snapshots a source, minutes to months old.
func newWorld(r *rapid.T, l likes) *world {
	w := &world{r: r, likes: l, policy: drawPolicy(r, l)}
	var errs retention.FieldErrors
	if w.rules, errs = retention.New(w.policy); errs != nil {
		r.Fatalf("drew a wrong policy: %v", errs)
	}
	w.in = retention.Input{Now: time.Unix(rapid.Int64Range(1767225600, 1830297600).Draw(r, "now"), 0).UTC(), PolicyUID: policyUID}
	for i := range rapid.IntRange(1, 3).Draw(r, "sources") {
		s := retention.Source{Key: fmt.Sprintf("uid-%d", i), Name: fmt.Sprintf("shop/db-%d", i), Pool: "fast"}
		if l.gone && one(r, 5, "gone") {
			at := w.in.Now.Add(-time.Duration(rapid.IntRange(0, 150).Draw(r, "gone since")) * time.Hour)
			s.Gone = &at
		}
		if l.awaiting && one(r, 6, "awaiting") {
			s.Awaiting = "quota exceeded"
		}
		w.in.Sources = append(w.in.Sources, s)
		at := w.in.Now
		step := rapid.SampledFrom([]time.Duration{10 * time.Minute, time.Hour, 7 * time.Hour, 26 * time.Hour, 200 * time.Hour}).Draw(r, "spacing")
		for range rapid.IntRange(0, 25).Draw(r, "snapshots") {
			at = at.Add(-step * time.Duration(rapid.IntRange(0, 3).Draw(r, "gap")))
			w.add(s.Key, at)
		}
	}
	if l.pressure {
		w.in.Pools = []retention.Pool{{Name: "fast", UsedPercent: float64(rapid.IntRange(70, 99).Draw(r, "pool")), UsedBytes: 1 << 40, At: w.in.Now}}
	}
	return w
}

func (w *world) add(source string, at time.Time) {
	r, l := w.r, w.likes
	w.next++
	s := retention.Snapshot{Key: fmt.Sprintf("shop/s%03d", w.next), Source: source, Policy: policyUID, CreatedAt: at, RequestedAt: at, Ready: true}
	for _, sc := range w.policy.Schedules {
		if rapid.Bool().Draw(r, "for "+sc.Name) {
			s.Schedules = append(s.Schedules, sc.Name)
		}
	}
	switch kind := rapid.IntRange(0, 39).Draw(r, "kind"); {
	case kind == 1 && l.foreign:
		s.Policy = "another"
	case kind == 2:
		s.Hold = "audit"
	case kind == 3:
		s.InUse = []string{"PVC shop/restore"}
	case kind == 4:
		s.Deleting = true
	case kind <= 8 && kind > 4 && l.unready:
		s.Ready = false
		if rapid.Bool().Draw(r, "no time") {
			s.CreatedAt = time.Time{}
		}
		if kind > 5 {
			s.Error = "disk on fire"
		}
		s.Making = kind == 8
	case kind == 9 && l.skew && one(r, 3, "ahead"):
		s.CreatedAt = w.in.Now.Add(time.Duration(rapid.IntRange(1, 600).Draw(r, "ahead")) * time.Minute)
	case kind == 10 && l.retry:
		s.RetryAt = w.in.Now.Add(time.Minute)
	case kind > 30 && l.pressure:
		n := int64(kind-31) << 20
		s.Frees = &n
	}
	w.in.Snapshots = append(w.in.Snapshots, s)
}

// step moves the clock, takes what the schedules say, and prunes what a plan said, all or, as a controller that died, a part of it.
func (w *world) step(p retention.Plan) {
	crash := rapid.IntRange(0, 3).Draw(w.r, "dies") == 0
	for i, d := range p.Prunes() {
		if crash && i%2 == 1 {
			continue
		}
		w.remove(d.Snapshot.Key)
	}
	w.in.Pressure = p.Pressure
	hours := rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, 5 * time.Hour, 30 * time.Hour, 24 * 40 * time.Hour}).Draw(w.r, "time passes")
	w.in.Now = w.in.Now.Add(hours)
	if w.likes.skew && one(w.r, 20, "clock set back") {
		w.in.Now = w.in.Now.AddDate(-1, 0, 0)
	}
	for i := range w.in.Pools {
		w.in.Pools[i].At = w.in.Now
		w.in.Pools[i].UsedPercent = float64(rapid.IntRange(70, 99).Draw(w.r, "pool"))
	}
	for i := range w.in.Snapshots { // what failed long ago may become ready; deletions end
		if s := &w.in.Snapshots[i]; !s.Ready && !s.CreatedAt.IsZero() && one(w.r, 4, "becomes ready") {
			s.Ready = true
		}
	}
	w.in.Snapshots = slices.DeleteFunc(w.in.Snapshots, func(s retention.Snapshot) bool { return s.Deleting })
	for _, s := range w.in.Sources {
		if run := w.rules.Run(policyUID, s.Key, nil, w.in.Now); run != nil && s.Gone == nil {
			w.add(s.Key, w.in.Now)
		}
	}
}

func (w *world) remove(key string) {
	w.in.Snapshots = slices.DeleteFunc(slices.Clone(w.in.Snapshots), func(s retention.Snapshot) bool { return s.Key == key })
}

// eachStep draws histories and looks at some of their passes.
func eachStep(t *testing.T, l likes, look func(*rapid.T, *world, retention.Plan)) {
	t.Helper()
	check(t, histories, func(r *rapid.T) {
		w := newWorld(r, l)
		for range rapid.IntRange(1, 3).Draw(r, "passes") {
			p := w.rules.Plan(w.in)
			w.sane(p)
			look(r, w, p)
			w.step(p)
		}
	})
}

// sane is what holds of every plan: one decision for each snapshot, each with an action and a reason.
func (w *world) sane(p retention.Plan) {
	if len(p.Decisions) != len(w.in.Snapshots) || p.Managed+p.Unmanaged != len(w.in.Snapshots) {
		w.r.Fatalf("%d decisions, %d managed and %d unmanaged, for %d snapshots", len(p.Decisions), p.Managed, p.Unmanaged, len(w.in.Snapshots))
	}
	seen := map[string]bool{}
	for i := range p.Decisions {
		d := &p.Decisions[i]
		if d.Action == "" || d.Reason == "" || d.Text() == "" || seen[d.Snapshot.Key] {
			w.r.Fatalf("bad decision %+v", d)
		}
		seen[d.Snapshot.Key] = true
	}
}

// goes says whether a decision ends a snapshot, in this pass or a later one.
func goes(d *retention.Decision) bool {
	return d.Action == retention.Prune || d.Action == retention.Wait
}

// fates says of each snapshot whether it goes.
func fates(p retention.Plan) map[string]bool {
	m := map[string]bool{}
	for i := range p.Decisions {
		m[p.Decisions[i].Snapshot.Key] = goes(&p.Decisions[i])
	}
	return m
}

func (w *world) source(key string) retention.Source {
	for _, s := range w.in.Sources {
		if s.Key == key {
			return s
		}
	}
	w.r.Fatalf("no source %s", key)
	return retention.Source{}
}

// followsAfter says that afterSourceDeleted rules the source.
func (w *world) followsAfter(key string) bool {
	return w.source(key).Gone != nil && w.policy.Retention != nil && w.policy.Retention.AfterSourceDeleted != nil
}

func (w *world) ahead(s *retention.Snapshot) bool {
	limit := w.in.Now.Add(5 * time.Minute)
	return s.CreatedAt.After(limit) || s.RequestedAt.After(limit)
}
