package retention_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// keptOf plans for one source and says which snapshots stay.
func keptOf(t *testing.T, p retention.Policy, now time.Time, list []retention.Snapshot) []string {
	t.Helper()
	p.Selector.MatchAll = true
	rules, errs := retention.New(p)
	if errs != nil {
		t.Fatal(errs)
	}
	for i := range list {
		list[i].Source, list[i].Policy, list[i].Ready = "uid", policyUID, true
	}
	plan := rules.Plan(retention.Input{Now: now, PolicyUID: policyUID, Snapshots: list})
	var kept []string
	for i := range plan.Decisions {
		if d := &plan.Decisions[i]; !goes(d) {
			kept = append(kept, d.Snapshot.Key)
		}
	}
	slices.Sort(kept)
	return kept
}

// TestResticExamples has the examples of restic's documentation ("Removing snapshots according to a policy"), each by what it says is kept.
//
// Where we differ on purpose: restic keeps the oldest snapshot besides while a calendar rule has fewer periods than it may keep; we do not, as it
// would stay until the rule is full, for months. restic's --keep-last 0 and empty policies remove nothing; ours neither. Its hours are told apart by
// the wall clock alone; ours by the offset from UTC too, so that a repeated hour is two.
func TestResticExamples(t *testing.T) {
	now := time.Date(2019, 11, 20, 0, 0, 0, 0, time.UTC)
	at := func(text string) time.Time {
		v, err := time.Parse(time.DateTime, text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}

	// "restic forget --keep-last 1 --prune": keep 4bba301e, remove 8c02b94b.
	got := keptOf(t, retention.Policy{Retention: &retention.Retention{KeepLast: 1}}, now, []retention.Snapshot{
		{Key: "4bba301e", CreatedAt: at("2017-02-21 10:49:18")}, {Key: "8c02b94b", CreatedAt: at("2017-02-21 10:48:33")},
	})
	if !slices.Equal(got, []string{"4bba301e"}) {
		t.Errorf("keep-last 1: %v", got)
	}

	// "you have only made one backup every Sunday for 12 weeks … --keep-daily 4 will keep the last four snapshots, for the last four Sundays".
	var sundays []retention.Snapshot
	for i, id := range []string{"0a1f9759", "46cfe4d5", "f6b1f037", "eb430a5d", "8cf1cb9a", "5d33b116", "b9553125", "e1a7b58b", "8f8018c0", "59403279",
		"dfee9fb4", "e1ae2f40"} {
		sundays = append(sundays, retention.Snapshot{Key: id, CreatedAt: at("2019-09-01 11:00:00").AddDate(0, 0, 7*i)})
	}
	got = keptOf(t, retention.Policy{Retention: &retention.Retention{Daily: 4}}, now, sundays)
	if want := []string{"59403279", "8f8018c0", "dfee9fb4", "e1ae2f40"}; !slices.Equal(got, want) {
		t.Errorf("keep-daily 4: %v, want %v", got, want)
	}
}

// TestResticHundredYears: "suppose you make one backup every day for 100 years. Then --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-yearly
// 75 would keep the most recent 7 daily snapshots and 4 last-day-of-the-week ones (since the 7 dailies already include 1 weekly). Additionally, 12 or
// 11 last-day-of-the-month snapshots … And finally 75 or 74 last-day-of-the-year snapshots". Whatever the day on which the hundred years end.
func TestResticHundredYears(t *testing.T) {
	for _, end := range []time.Time{
		time.Date(2019, 11, 20, 12, 0, 0, 0, time.UTC), time.Date(2020, 1, 1, 12, 0, 0, 0, time.UTC), time.Date(2019, 12, 31, 12, 0, 0, 0, time.UTC),
		time.Date(2020, 3, 1, 12, 0, 0, 0, time.UTC), time.Date(2019, 11, 24, 12, 0, 0, 0, time.UTC),
	} {
		var list []retention.Snapshot
		for d := end.AddDate(-100, 0, 0); !d.After(end); d = d.AddDate(0, 0, 1) {
			list = append(list, retention.Snapshot{Key: d.Format(time.DateOnly), CreatedAt: d})
		}
		// By the documentation's words: walk back from the last day, and count.
		want, weeks, months, years := map[string]bool{}, 0, 0, 0
		for i := range list {
			d := list[len(list)-1-i].CreatedAt
			next := d.AddDate(0, 0, 1)
			last := i == 0
			keep := i < 7
			if last || d.Weekday() == time.Sunday {
				weeks++
				keep = keep || weeks <= 5
			}
			if last || next.Month() != d.Month() {
				months++
				keep = keep || months <= 12
			}
			if last || next.Year() != d.Year() {
				years++
				keep = keep || years <= 75
			}
			if keep {
				want[d.Format(time.DateOnly)] = true
			}
		}
		got := keptOf(t, retention.Policy{Retention: &retention.Retention{Daily: 7, Weekly: 5, Monthly: 12, Yearly: 75}}, end, list)
		if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Errorf("until %s: kept %d, want %d:\n%v\n%v", end, len(got), len(want), got, slices.Sorted(maps.Keys(want)))
		}
	}
}

// sanoidTemplate is a template of sanoid's sample configuration as a policy: each kind of snapshot is a schedule with a retention of its own.
//
// sanoid's prune says of daily = 30: no dailies older than 30 days, and none removed unless there are more than 30. Both must hold for a snapshot to
// go, so it stays if it is one of the last 30 or younger than 30 days: keepLast 30, ORed with within 720h. A month is 31 days there.
//
// Where we differ on purpose: sanoid's age counts from now, within from the newest ready snapshot, so that nothing goes while nothing new is taken;
// a type set to 0 has all its snapshots removed at once by sanoid, a schedule left out here leaves them to the policy's retention; sanoid takes a
// snapshot for each type, here what is due at one instant is one snapshot.
func sanoidTemplate(hourly, daily, monthly int) retention.Policy {
	own := func(n int, period time.Duration) *retention.Retention {
		return &retention.Retention{KeepLast: n, Within: retention.Duration(time.Duration(n) * period)}
	}
	p := retention.Policy{Schedules: []retention.Schedule{
		{Name: "daily", Cron: "59 23 * * *", Retention: own(daily, 24*time.Hour)},
		{Name: "monthly", Cron: "0 0 1 * *", Retention: own(monthly, 31*24*time.Hour)},
	}}
	if hourly > 0 {
		p.Schedules = append(p.Schedules, retention.Schedule{Name: "hourly", Cron: "0 * * * *", Retention: own(hourly, time.Hour)})
	}
	return p
}

func TestSanoidTemplates(t *testing.T) {
	for _, c := range []struct {
		template               string
		hourly, daily, monthly int
	}{
		{"production: hourly = 36, daily = 30, monthly = 3", 36, 30, 3},
		{"backup: hourly = 30, daily = 90, monthly = 12", 30, 90, 12},
		{"default: hourly = 48, daily = 90, monthly = 6", 48, 90, 6},
	} {
		p := sanoidTemplate(c.hourly, c.daily, c.monthly)
		// A year of them, as sanoid's own test of one year takes; pruned ten seconds after the last ones.
		now := time.Date(2018, 1, 1, 0, 0, 10, 0, time.UTC)
		var list []retention.Snapshot
		var want []string
		for _, kind := range []struct {
			name   string
			n      int
			period time.Duration
		}{{"hourly", c.hourly, time.Hour}, {"daily", c.daily, 24 * time.Hour}, {"monthly", c.monthly, 31 * 24 * time.Hour}} {
			at := slices.IndexFunc(p.Schedules, func(s retention.Schedule) bool { return s.Name == kind.name })
			cron, err := retention.ParseCron(p.Schedules[at].Cron, time.UTC)
			if err != nil {
				t.Fatal(err)
			}
			var all []retention.Snapshot
			for at := cron.Next(now.AddDate(-1, 0, 0)); !at.After(now); at = cron.Next(at) {
				all = append(all, retention.Snapshot{Key: fmt.Sprintf("autosnap_%s_%s", at.Format("2006-01-02_15:04:05"), kind.name), CreatedAt: at,
					Schedules: []string{kind.name}})
			}
			for i, s := range all {
				if last := len(all)-i <= kind.n; last || !s.CreatedAt.Before(now.Add(-time.Duration(kind.n)*kind.period)) {
					want = append(want, s.Key)
				}
			}
			list = append(list, all...)
		}
		slices.Sort(want)
		got := keptOf(t, p, now, list)
		if !slices.Equal(got, want) {
			t.Errorf("%s: kept %d, want %d", c.template, len(got), len(want))
		}
	}
}
