package retention_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// TestInvariant1Newest: the newest ready snapshot of a source is never pruned by a rule.
func TestInvariant1Newest(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, p retention.Plan) {
		newest := map[string]*retention.Decision{}
		for i := range p.Decisions {
			d := &p.Decisions[i]
			s := d.Snapshot
			if d.Action == retention.Ignore || !s.Ready || s.CreatedAt.IsZero() || w.ahead(s) {
				continue
			}
			if n := newest[s.Source]; n == nil || s.CreatedAt.After(n.Snapshot.CreatedAt) {
				newest[s.Source] = d
			}
		}
		for key, d := range newest {
			if goes(d) && !w.followsAfter(key) {
				r.Fatalf("the newest of %s, %s, goes: %s %s", key, d.Snapshot.Key, d.Reason, d.Text())
			}
		}
	})
}

// TestInvariant2OwnOnly: others' snapshots are never touched, change nothing, and are counted.
func TestInvariant2OwnOnly(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, p retention.Plan) {
		own := w.in
		own.Snapshots = nil
		for _, s := range w.in.Snapshots {
			if s.Policy == policyUID {
				own.Snapshots = append(own.Snapshots, s)
			}
		}
		want, got := fates(w.rules.Plan(own)), fates(p)
		for _, s := range w.in.Snapshots {
			if s.Policy != policyUID && got[s.Key] {
				r.Fatalf("%s is another's, and goes", s.Key)
			}
			if s.Policy == policyUID && got[s.Key] != want[s.Key] {
				r.Fatalf("%s: its fate depends on another's snapshot", s.Key)
			}
		}
		if p.Unmanaged != len(w.in.Snapshots)-len(own.Snapshots) {
			r.Fatalf("%d unmanaged", p.Unmanaged)
		}
	})
}

// TestInvariant3HeldTakesNoSlot: a held or used snapshot never goes, and without it the others' fates are the same.
func TestInvariant3HeldTakesNoSlot(t *testing.T) {
	l := everything
	l.unready, l.skew, l.pressure = false, false, false
	held := func(s retention.Snapshot) bool { return s.Hold != "" || len(s.InUse) > 0 }
	eachStep(t, l, func(r *rapid.T, w *world, p retention.Plan) {
		without := w.in
		without.Snapshots = slices.DeleteFunc(slices.Clone(w.in.Snapshots), held)
		want, got := fates(w.rules.Plan(without)), fates(p)
		for _, s := range w.in.Snapshots {
			if held(s) && got[s.Key] {
				r.Fatalf("%s is held, and goes", s.Key)
			}
			if !held(s) && got[s.Key] != want[s.Key] {
				r.Fatalf("%s: its fate depends on a held one", s.Key)
			}
		}
	})
	eachStep(t, everything, func(r *rapid.T, _ *world, p retention.Plan) {
		for i := range p.Decisions {
			if d := &p.Decisions[i]; held(*d.Snapshot) && goes(d) {
				r.Fatalf("%s is held, and goes", d.Snapshot.Key)
			}
		}
	})
}

// TestInvariant4NotReady: what is not ready satisfies no rule; what failed is counted apart.
func TestInvariant4NotReady(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, p retention.Plan) {
		for i := range p.Decisions {
			d := &p.Decisions[i]
			s := d.Snapshot
			if s.Ready && !s.CreatedAt.IsZero() {
				continue
			}
			if d.Reason == retention.Rule || d.Reason == retention.MinKeep || len(d.Marks) > 0 {
				r.Fatalf("%s is not ready, and a rule counts it: %s", s.Key, d.Text())
			}
			long := w.in.Now.Sub(s.RequestedAt) >= time.Hour
			if goes(d) && (s.Error == "" || s.Making || !long) {
				r.Fatalf("%s goes, and had not failed for good", s.Key)
			}
		}
		without := w.in
		without.Snapshots = slices.DeleteFunc(slices.Clone(w.in.Snapshots), func(s retention.Snapshot) bool { return !s.Ready || s.CreatedAt.IsZero() })
		for key, went := range fates(w.rules.Plan(without)) {
			if !went && fates(p)[key] && !pressed(p, key) {
				r.Fatalf("%s goes because of one that is not ready", key)
			}
		}
	})
}

func pressed(p retention.Plan, key string) bool {
	return slices.ContainsFunc(p.Decisions, func(d retention.Decision) bool { return d.Snapshot.Key == key && d.Reason == retention.PressureFull })
}

// TestInvariant5Fixpoint: when a plan is carried out nothing is left to do, pass by pass or at once, whatever the order of the list.
func TestInvariant5Fixpoint(t *testing.T) {
	l := everything
	l.retry = false
	eachStep(t, l, func(r *rapid.T, w *world, p retention.Plan) {
		shuffled := w.in
		shuffled.Snapshots = rapid.Permutation(w.in.Snapshots).Draw(r, "order")
		shuffled.Sources = rapid.Permutation(w.in.Sources).Draw(r, "sources' order")
		again := w.rules.Plan(shuffled)
		for i := range p.Decisions {
			a, b := &p.Decisions[i], &again.Decisions[i]
			if a.Snapshot.Key != b.Snapshot.Key || a.Action != b.Action || a.Reason != b.Reason || a.Text() != b.Text() {
				r.Fatalf("the list's order matters: %s %s %s, %s %s %s", a.Snapshot.Key, a.Action, a.Text(), b.Snapshot.Key, b.Action, b.Text())
			}
		}
		end := w.in
		end.Snapshots = slices.DeleteFunc(slices.Clone(w.in.Snapshots), func(s retention.Snapshot) bool { return fates(p)[s.Key] })
		end.Pressure = p.Pressure
		final := w.rules.Plan(end)
		if n := len(final.Prunes()); n != 0 {
			r.Fatalf("%d more go after the plan was carried out: %s", n, final.Prunes()[0].Text())
		}
		now, passes := w.in, p
		for len(passes.Prunes()) > 0 {
			for _, d := range passes.Prunes() {
				now.Snapshots = slices.DeleteFunc(slices.Clone(now.Snapshots), func(s retention.Snapshot) bool { return s.Key == d.Snapshot.Key })
			}
			now.Pressure = passes.Pressure
			passes = w.rules.Plan(now)
		}
		if w.policy.Retention.PoolPressure == nil && len(now.Snapshots) != len(end.Snapshots) {
			r.Fatalf("pass by pass %d stay, at once %d", len(now.Snapshots), len(end.Snapshots))
		}
	})
}

// TestInvariant6MoreRulesKeepMore: before ceilings and pressure, a keep rule more (or a larger one) never makes a snapshot go.
func TestInvariant6MoreRulesKeepMore(t *testing.T) {
	l := everything
	l.pressure = false
	l.policy = func(_ *rapid.T, p *retention.Policy) {
		for _, r := range retentions(p) {
			r.MaxAge, r.MaxCount = 0, 0
			r.KeepLast = max(r.KeepLast, 1) // with no keep rule at all, all is kept; the first one is what makes the others go
		}
	}
	eachStep(t, l, func(r *rapid.T, w *world, p retention.Plan) {
		more := w.policy
		ret := *more.Retention
		more.Retention = &ret
		n := rapid.IntRange(1, 4).Draw(r, "more")
		switch rapid.IntRange(0, 6).Draw(r, "of") {
		case 0:
			ret.KeepLast += n
		case 1:
			ret.Hourly += n
		case 2:
			ret.Daily += n
		case 3:
			ret.Weekly += n
		case 4:
			ret.Monthly += n
		case 5:
			ret.Yearly += n
		case 6:
			ret.Within += retention.Duration(n) * retention.Duration(time.Hour)
		}
		rules, errs := retention.New(more)
		if errs != nil {
			r.Fatal(errs)
		}
		before := fates(p)
		for key, went := range fates(rules.Plan(w.in)) {
			if went && !before[key] {
				r.Fatalf("%s goes because there is one rule more", key)
			}
		}
	})
}

func retentions(p *retention.Policy) []*retention.Retention {
	list := []*retention.Retention{p.Retention}
	for i := range p.Schedules {
		if p.Schedules[i].Retention != nil {
			list = append(list, p.Schedules[i].Retention)
		}
	}
	return list
}

// TestInvariant7BrokenRetention: an absent, empty or wrong retention prunes nothing, and says so.
func TestInvariant7BrokenRetention(t *testing.T) {
	l := everything
	l.policy = func(_ *rapid.T, p *retention.Policy) { p.Schedules = nil }
	eachStep(t, l, func(r *rapid.T, w *world, _ retention.Plan) {
		broken := w.policy
		ret := *broken.Retention
		broken.Retention = &ret
		switch rapid.IntRange(0, 6).Draw(r, "broken") {
		case 0:
			broken.Retention = nil
		case 1:
			ret = retention.Retention{}
		case 2:
			ret.Daily = -1
		case 3:
			ret.MaxCount, ret.MinKeep = 1, ptr(2)
		case 4:
			broken.TimeZone = "Europe/Atlantis"
		case 5:
			ret.Within = retention.Duration(-time.Hour)
		case 6:
			ret.PoolPressure = &retention.PoolPressure{AbovePercent: 80, UntilPercent: 90}
		}
		rules, errs := retention.New(broken)
		if errs == nil && broken.Retention != nil {
			r.Fatal("no error")
		}
		plan := rules.Plan(w.in)
		for i := range plan.Decisions {
			if goes(&plan.Decisions[i]) {
				r.Fatalf("%s goes: %s", plan.Decisions[i].Snapshot.Key, plan.Decisions[i].Text())
			}
		}
		if !noticed(plan, retention.NoticeNoRetention) {
			r.Fatal("nobody is told")
		}
	})
}

func ptr[T any](v T) *T { return &v }

func noticed(p retention.Plan, typ retention.NoticeType) bool {
	return slices.ContainsFunc(p.Notices, func(n retention.Notice) bool { return n.Type == typ })
}

// TestInvariant8SourcesApart: a source's fate is the same whatever the others have, and their errors take no part of its pass.
func TestInvariant8SourcesApart(t *testing.T) {
	l := everything
	l.pressure = false // a pool is shared
	eachStep(t, l, func(r *rapid.T, w *world, p retention.Plan) {
		mine := w.in.Sources[0].Key
		alone := w.in
		alone.Snapshots = slices.DeleteFunc(slices.Clone(w.in.Snapshots), func(s retention.Snapshot) bool { return s.Source != mine })
		single := w.rules.Plan(alone)
		together := fates(p)
		for key, went := range fates(single) {
			if went != together[key] {
				r.Fatalf("%s: its fate depends on another source", key)
			}
		}
		failing := w.in
		failing.Snapshots = slices.Clone(w.in.Snapshots)
		for i := range failing.Snapshots {
			if s := &failing.Snapshots[i]; s.Source != mine {
				s.RetryAt = w.in.Now.Add(time.Hour)
			}
		}
		now := map[string]bool{}
		beside := w.rules.Plan(failing)
		for _, d := range beside.Prunes() {
			now[d.Snapshot.Key] = true
		}
		for _, d := range single.Prunes() {
			if !now[d.Snapshot.Key] {
				r.Fatalf("%s has to wait because another source's deletions fail", d.Snapshot.Key)
			}
		}
	})
}

// TestInvariant9CreateBeforePrune: while a new snapshot is not ready, only age and pressure prune its source, down to minKeep.
func TestInvariant9CreateBeforePrune(t *testing.T) {
	l := everything
	l.gone = false
	eachStep(t, l, func(r *rapid.T, w *world, _ retention.Plan) {
		in := w.in
		in.Sources = slices.Clone(w.in.Sources)
		key := in.Sources[0].Key
		if rapid.Bool().Draw(r, "no object") {
			in.Sources[0].Awaiting = "webhook denied the request"
		} else {
			last := retention.Snapshot{Key: "shop/zzz", Source: key, Policy: policyUID, RequestedAt: in.Now.Add(5 * time.Minute)}
			in.Snapshots = append(slices.Clone(w.in.Snapshots), last)
		}
		plan := w.rules.Plan(in)
		total, kept := 0, 0
		for i := range plan.Decisions {
			d := &plan.Decisions[i]
			s := d.Snapshot
			if s.Source != key || d.Action == retention.Ignore {
				continue
			}
			if goes(d) && d.Reason != retention.TooOld && d.Reason != retention.PressureFull && d.Reason != retention.FailedOld {
				r.Fatalf("%s goes before the new one is ready: %s", s.Key, d.Text())
			}
			if s.Ready && s.Hold == "" && len(s.InUse) == 0 && !s.CreatedAt.IsZero() {
				total++
				if !goes(d) {
					kept++
				}
			}
		}
		floor := 1
		if m := w.policy.Retention.MinKeep; m != nil && len(w.policy.Schedules) == 0 {
			floor = *m
		}
		if kept < min(floor, total) {
			r.Fatalf("%d of %d stay, minKeep is %d", kept, total, floor)
		}
	})
}

// TestInvariant10Identity: sources are told apart by UID; a gone one's time counts from when it was found gone, and one made again starts afresh.
func TestInvariant10Identity(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, p retention.Plan) {
		in := w.in
		in.Sources = slices.Clone(w.in.Sources)
		was := &in.Sources[0]
		was.Gone = &in.Now
		young := retention.Source{Key: "uid-new", Name: was.Name, Pool: was.Pool}
		in.Sources = append(in.Sources, young)
		in.Snapshots = append(slices.Clone(w.in.Snapshots), retention.Snapshot{Key: "shop/new", Source: young.Key, Policy: policyUID, Ready: true,
			CreatedAt: in.Now, RequestedAt: in.Now})
		after := w.policy.Retention.AfterSourceDeleted
		plan := w.rules.Plan(in)
		n := 0
		for i := range plan.Decisions {
			d := &plan.Decisions[i]
			if d.Snapshot.Source == young.Key && goes(d) {
				r.Fatalf("the new PVC's only snapshot goes: %s", d.Text())
			}
			if d.Snapshot.Source != was.Key || after == nil {
				continue
			}
			if d.Reason == retention.SourceKept || d.Reason == retention.PressureFull {
				n++
			}
			if d.Reason == retention.SourceGone && (after.KeepLast == 0 || n < after.KeepLast) {
				r.Fatalf("%s goes at once, afterSourceDeleted is %+v: %s", d.Snapshot.Key, *after, d.Text())
			}
		}
		before := fates(p)
		for key, went := range fates(plan) {
			s := plan.Decisions[slices.IndexFunc(plan.Decisions, func(d retention.Decision) bool { return d.Snapshot.Key == key })].Snapshot
			if s.Source != was.Key && s.Source != young.Key && went != before[key] && w.policy.Retention.PoolPressure == nil {
				r.Fatalf("%s: its fate changed with another source's", key)
			}
		}
	})
}

// TestInvariant11ClockSkew: with a snapshot dated ahead nothing of its source goes, and snapshots are taken all the same.
func TestInvariant11ClockSkew(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, _ retention.Plan) {
		in := w.in
		key := in.Sources[0].Key
		ahead := in.Now.Add(5*time.Minute + time.Duration(rapid.IntRange(1, 1e6).Draw(r, "ahead"))*time.Second)
		in.Snapshots = append(slices.Clone(w.in.Snapshots), retention.Snapshot{Key: "shop/ahead", Source: key, Policy: policyUID, CreatedAt: ahead,
			RequestedAt: in.Now, Ready: rapid.Bool().Draw(r, "ready")})
		plan := w.rules.Plan(in)
		for i := range plan.Decisions {
			d := &plan.Decisions[i]
			if d.Snapshot.Source == key && goes(d) {
				r.Fatalf("%s goes beside one dated ahead: %s", d.Snapshot.Key, d.Text())
			}
			if d.Snapshot.Key == "shop/ahead" && d.Reason != retention.ClockSkew {
				r.Fatalf("the one ahead: %s %s", d.Reason, d.Text())
			}
		}
		if !noticed(plan, retention.NoticeClockSkew) {
			r.Fatal("nobody is told")
		}
		history := map[string]retention.History{}
		for _, s := range w.policy.Schedules {
			history[s.Name] = retention.History{Done: ahead}
		}
		if n := len(w.policy.Schedules); n > 0 && !w.policy.Suspend && w.rules.Run(policyUID, key, history, in.Now) == nil {
			r.Fatal("no snapshot is taken after the clock was set back")
		}
	})
}

// TestInvariant13Brake: a pass prunes at most max(10, 10 %), says what waits, and the passes together do all.
func TestInvariant13Brake(t *testing.T) {
	eachStep(t, everything, func(r *rapid.T, w *world, p retention.Plan) {
		limit := max(10, p.Managed/10)
		waits := 0
		for i := range p.Decisions {
			if d := &p.Decisions[i]; d.Action == retention.Wait && !d.Snapshot.RetryAt.After(w.in.Now) {
				waits++
			}
		}
		n := len(p.Prunes())
		if n > limit || p.Limit != limit {
			r.Fatalf("%d go in one pass, the limit is %d (%d)", n, limit, p.Limit)
		}
		if waits > 0 && (n < limit || !noticed(p, retention.NoticePruneBraked)) {
			r.Fatalf("%d wait, %d go, the limit is %d; notices %v", waits, n, limit, p.Notices)
		}
		if waits == 0 && noticed(p, retention.NoticePruneBraked) {
			r.Fatal("nothing waits, and that is noticed")
		}
	})
}

// TestBrakeLarge: of a policy with many snapshots a tenth goes, in turn from each source, oldest first.
func TestBrakeLarge(t *testing.T) {
	rules, errs := retention.New(retention.Policy{Selector: retention.Selector{MatchAll: true}, Retention: &retention.Retention{KeepLast: 1}})
	if errs != nil {
		t.Fatal(errs)
	}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	in := retention.Input{Now: now, PolicyUID: policyUID}
	for _, source := range []string{"a", "b", "c"} {
		for i := range 100 {
			in.Snapshots = append(in.Snapshots, retention.Snapshot{Key: source + now.Add(-time.Duration(i)*time.Hour).Format("0102T15"), Source: source,
				Policy: policyUID, Ready: true, CreatedAt: now.Add(-time.Duration(i) * time.Hour)})
		}
	}
	p := rules.Plan(in)
	bySource := map[string]int{}
	for _, d := range p.Prunes() {
		bySource[d.Snapshot.Source]++
		if age := now.Sub(d.Snapshot.CreatedAt); age < 90*time.Hour {
			t.Errorf("%s goes before older ones", d.Snapshot.Key)
		}
	}
	if want := map[string]int{"a": 10, "b": 10, "c": 10}; !maps.Equal(bySource, want) {
		t.Errorf("pruned %v, want %v", bySource, want)
	}
}
