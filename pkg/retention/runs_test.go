package retention_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/retention"
)

func mustRules(t testing.TB, p retention.Policy) *retention.Rules {
	t.Helper()
	p.Selector.MatchAll = true
	rules, errs := retention.New(p)
	if errs != nil {
		t.Fatal(errs)
	}
	return rules
}

// clock runs a policy for one source from a time on, a tick a minute, and writes down what is begun.
type clock struct {
	rules   *retention.Rules
	now     time.Time
	history map[string]retention.History
}

func newClock(t testing.TB, start time.Time, schedules ...retention.Schedule) *clock {
	c := &clock{rules: mustRules(t, retention.Policy{Schedules: schedules}), now: start, history: map[string]retention.History{}}
	for _, s := range schedules {
		c.history[s.Name] = retention.History{Since: start}
	}
	return c
}

// tick is one look at the clock.
func (c *clock) tick() *retention.Run {
	run := c.rules.Run("policy", "uid-1", c.history, c.now)
	if run != nil {
		for name, at := range run.Schedules {
			h := c.history[name]
			h.Done = at
			c.history[name] = h
		}
	}
	return run
}

func (c *clock) until(end time.Time) []string {
	var log []string
	for ; !c.now.After(end); c.now = c.now.Add(time.Minute) {
		if run := c.tick(); run != nil {
			text := c.now.Format("02T15:04") + " " + strings.ReplaceAll(retention.RunsText(run.Schedules), c.now.Format("2006-01-"), "")
			if run.CaughtUp {
				text += " caught up"
			}
			log = append(log, text)
		}
	}
	return log
}

var monday = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOneInstantOneSnapshot(t *testing.T) {
	c := newClock(t, monday.Add(-90*time.Minute), retention.Schedule{Name: "hourly", Cron: "0 * * * *"},
		retention.Schedule{Name: "daily", Cron: "@daily"})
	same(t, c.until(monday.Add(time.Hour)), "31T23:00 hourly=31T23:00:00Z", "01T00:00 daily=01T00:00:00Z,hourly=01T00:00:00Z",
		"01T01:00 hourly=01T01:00:00Z")
}

// TestJitterSharesToo: a schedule with jitter and one without meet in one snapshot, with the name that either would give it.
func TestJitterSharesToo(t *testing.T) {
	c := newClock(t, monday.Add(-time.Minute), retention.Schedule{Name: "hourly", Cron: "0 * * * *", Jitter: retention.Duration(20 * time.Minute)},
		retention.Schedule{Name: "daily", Cron: "@daily"})
	same(t, c.until(monday.Add(59*time.Minute)), "01T00:00 daily=01T00:00:00Z,hourly=01T00:00:00Z")
	later := c.rules.Run("policy", "uid-1", map[string]retention.History{"daily": {Since: monday}}, monday.Add(30*time.Minute))
	first := c.rules.Run("policy", "uid-1", nil, monday)
	if later == nil || first == nil || later.Name != first.Name {
		t.Errorf("%+v and %+v: two names for one snapshot", first, later)
	}
}

func TestCatchUp(t *testing.T) {
	for _, c := range []struct {
		name     string
		schedule retention.Schedule
		want     string
	}{
		{"the last one", retention.Schedule{}, "01T05:20 x=01T05:00:00Z caught up"},
		{"none", retention.Schedule{CatchUp: retention.CatchUpNone}, ""},
		{"within the deadline", retention.Schedule{StartingDeadlineSeconds: ptr(1200)}, "01T05:20 x=01T05:00:00Z caught up"},
		{"after the deadline", retention.Schedule{StartingDeadlineSeconds: ptr(1199)}, ""},
	} {
		c.schedule.Name, c.schedule.Cron = "x", "0 * * * *"
		k := newClock(t, monday.Add(-time.Minute), c.schedule)
		k.until(monday.Add(90 * time.Minute))
		k.now = monday.Add(5*time.Hour + 20*time.Minute) // the controller was down
		if got := strings.Join(k.until(monday.Add(5*time.Hour+30*time.Minute)), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestCatchUpIsOne: what several schedules missed is one snapshot: two of one moment would be equal.
func TestCatchUpIsOne(t *testing.T) {
	c := newClock(t, monday.Add(-time.Minute), retention.Schedule{Name: "hourly", Cron: "0 * * * *"}, retention.Schedule{Name: "daily", Cron: "@daily"})
	c.now = monday.Add(5*time.Hour + 20*time.Minute)
	same(t, c.until(c.now.Add(time.Minute)), "01T05:20 daily=01T00:00:00Z,hourly=01T05:00:00Z caught up")
}

func TestConcurrency(t *testing.T) {
	c := newClock(t, monday.Add(-time.Minute), retention.Schedule{Name: "forbid", Cron: "0 * * * *"},
		retention.Schedule{Name: "allow", Cron: "0 * * * *", Concurrency: retention.ConcurrencyAllow})
	for name, h := range c.history {
		h.Making = true
		c.history[name] = h
	}
	same(t, c.until(monday.Add(time.Minute)), "01T00:00 allow=01T00:00:00Z")
	c.history["forbid"] = retention.History{Since: monday.Add(-time.Minute)}
	c.now = monday.Add(10 * time.Minute)
	same(t, c.until(c.now), "01T00:10 forbid=01T00:00:00Z caught up")
}

func TestSuspendedTakesNone(t *testing.T) {
	rules := mustRules(t, retention.Policy{Suspend: true, Schedules: []retention.Schedule{{Name: "x", Cron: "* * * * *"}}})
	if run := rules.Run("policy", "uid", nil, monday); run != nil {
		t.Errorf("began %+v", run)
	}
}

// TestNextIsWhenRunBegins: Next foretells the first tick at which something is begun, jitter and all.
func TestNextIsWhenRunBegins(t *testing.T) {
	check(t, 200, func(r *rapid.T) {
		s := retention.Schedule{Name: "x", Cron: rapid.SampledFrom([]string{"0 * * * *", "*/7 * * * *", "30 2 * * *"}).Draw(r, "cron"),
			TimeZone: rapid.SampledFrom(zones).Draw(r, "zone"),
			Jitter:   retention.Duration(rapid.IntRange(0, 600).Draw(r, "jitter")) * retention.Duration(time.Second)}
		rules := mustRules(t, retention.Policy{Schedules: []retention.Schedule{s}})
		source := fmt.Sprint("uid-", rapid.IntRange(0, 1000).Draw(r, "source"))
		now := monday.Add(time.Duration(rapid.IntRange(0, 365*24*3600).Draw(r, "now")) * time.Second)
		next := rules.Next(source, now)
		history := map[string]retention.History{"x": {Since: now.Add(-time.Duration(s.Jitter))}}
		// What was due before now is done.
		if run := rules.Run("p", source, history, now); run != nil {
			history["x"] = retention.History{Done: run.Nominal}
		}
		if run := rules.Run("p", source, history, next.Add(-time.Second)); run != nil {
			r.Fatalf("begun before %s: %+v", next, run)
		}
		run := rules.Run("p", source, history, next)
		if run == nil || run.CaughtUp || next.Sub(run.Nominal) > time.Duration(s.Jitter) || next.Before(run.Nominal) {
			r.Fatalf("at %s: %+v", next, run)
		}
	})
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][3]string{{"p", "s", "x"}, {"ps", "", "x"}, {"p", "sx", ""}, {"p", "s", "y"}, {"q", "s", "x"}} {
		for _, at := range []time.Time{monday, monday.Add(time.Second)} {
			name := retention.SnapshotName(parts[0], parts[1], parts[2], at)
			if seen[name] || len(name) > 63 || name != strings.ToLower(name) {
				t.Errorf("%v: %s", parts, name)
			}
			seen[name] = true
			if name != retention.SnapshotName(parts[0], parts[1], parts[2], at.In(zone(t, "Asia/Kathmandu"))) {
				t.Errorf("%s depends on the zone that the time is written in", name)
			}
		}
	}
}

func TestRunsText(t *testing.T) {
	runs := map[string]time.Time{"hourly": monday, "daily": monday.Add(-time.Hour)}
	text := retention.RunsText(runs)
	if want := "daily=2026-05-31T23:00:00Z,hourly=2026-06-01T00:00:00Z"; text != want {
		t.Errorf("%s, want %s", text, want)
	}
	back, err := retention.ParseRuns(text)
	if err != nil || !maps.EqualFunc(back, runs, time.Time.Equal) {
		t.Errorf("%v, %v", back, err)
	}
	for _, wrong := range []string{"x", "=2026-06-01T00:00:00Z", "x=noon", strings.Repeat("x=2026-06-01T00:00:00Z,", 20) + "y=2026-06-01T00:00:00Z"} {
		if _, err := retention.ParseRuns(wrong); err == nil {
			t.Errorf("%q was read", wrong)
		}
	}
}
