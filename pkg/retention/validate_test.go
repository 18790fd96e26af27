package retention_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

const wholePolicy = `{"suspend": true, "pruneWhileSuspended": false, "timeZone": "UTC",
 "selector": {"matchLabels": {"app": "db"}, "storageClassNames": ["fast"]},
 "schedules": [{"name": "hourly", "cron": "0 * * * *", "timeZone": "Europe/Berlin", "jitter": "5m", "startingDeadlineSeconds": 3600, "catchUp": "One",
   "concurrency": "Forbid", "retention": {"hourly": 24}}],
 "template": {"labels": {"a": "b"}, "volumeSnapshotClassName": "x", "group": {"byLabel": "app"}, "consistency": "Crash"},
 "retention": {"keepLast": 3, "hourly": 24, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 0, "within": "24h", "maxAge": "8760h", "maxCount": 200,
   "minKeep": 1, "failedHistoryLimit": 3, "poolPressure": {"abovePercent": 85, "untilPercent": 80, "minAge": "24h"},
   "afterSourceDeleted": {"keepLast": 1, "maxAge": "720h"}},
 "maxConcurrent": 20, "adopt": "None", "deletionPolicy": "Orphan", "dryRun": false}`

func TestWholePolicy(t *testing.T) {
	p, err := retention.DecodePolicy([]byte(wholePolicy))
	if err != nil {
		t.Fatal(err)
	}
	if errs := p.Validate(); errs != nil {
		t.Error(errs)
	}
	if p.Retention.Within != retention.Duration(24*time.Hour) || p.Schedules[0].Jitter.String() != "5m" {
		t.Errorf("%+v", p)
	}
}

func TestUnreadablePolicy(t *testing.T) {
	for text, want := range map[string]string{
		`{"retention": {"keepLst": 3}}`:       `unknown field "keepLst"`,
		`{"retention": {"within": "1 week"}}`: "such as 24h",
		`{"retention": {"within": 24}}`:       "a string such as 24h",
		`{"retention": {"keepLast": 1.5}}`:    "keepLast",
		`{} {}`:                               "more than one",
		`[`:                                   "unexpected",
	} {
		if _, err := retention.DecodePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestFieldErrors breaks one field at a time: the error names that field and nothing else, and what is wrong prunes and takes nothing.
func TestFieldErrors(t *testing.T) {
	type P = retention.Policy
	long := strings.Repeat("x", 400)
	for path, breakIt := range map[string]func(p *P){
		"timeZone":                      func(p *P) { p.TimeZone = "Europe/Atlantis" },
		"timeZone ":                     func(p *P) { p.TimeZone = "Local" },
		"timeZone  ":                    func(p *P) { p.TimeZone = long },
		"selector":                      func(p *P) { p.Selector.MatchAll = false },
		"selector.matchAll":             func(p *P) { p.Selector.StorageClassNames = []string{"fast"} },
		"selector.matchLabels.-":        func(p *P) { p.Selector = retention.Selector{MatchLabels: map[string]string{"-": ""}} },
		"selector.storageClassNames[0]": func(p *P) { p.Selector = retention.Selector{StorageClassNames: []string{"Fast"}} },
		"selector.storageClassNames": func(p *P) {
			p.Selector = retention.Selector{StorageClassNames: strings.Split(strings.Repeat("a,", 40)+"a", ",")}
		},
		"schedules[0].name":                    func(p *P) { p.Schedules[0].Name = "Hourly" },
		"schedules[1].name":                    func(p *P) { p.Schedules = append(p.Schedules, p.Schedules[0]) },
		"schedules[0].cron":                    func(p *P) { p.Schedules[0].Cron = "0 25 * * *" },
		"schedules[0].timeZone":                func(p *P) { p.Schedules[0].TimeZone = "Mars/Olympus" },
		"schedules[0].jitter":                  func(p *P) { p.Schedules[0].Jitter = -1 },
		"schedules[0].jitter ":                 func(p *P) { p.Schedules[0].Jitter = retention.MaxJitter + 1e9 },
		"schedules[0].startingDeadlineSeconds": func(p *P) { p.Schedules[0].StartingDeadlineSeconds = ptr(0) },
		"schedules[0].catchUp":                 func(p *P) { p.Schedules[0].CatchUp = "All" },
		"schedules[0].concurrency":             func(p *P) { p.Schedules[0].Concurrency = "Replace" },
		"schedules[0].retention":               func(p *P) { p.Schedules[0].Retention = &retention.Retention{} },
		"schedules[0].retention.poolPressure": func(p *P) {
			p.Schedules[0].Retention = &retention.Retention{PoolPressure: &retention.PoolPressure{AbovePercent: 9, UntilPercent: 8}}
		},
		"schedules[0].retention.daily":     func(p *P) { p.Schedules[0].Retention = &retention.Retention{Daily: -1} },
		"template.labels.a":                func(p *P) { p.Template.Labels = map[string]string{"a": long} },
		"template.volumeSnapshotClassName": func(p *P) { p.Template.VolumeSnapshotClassName = "A b" },
		"template.group.byLabel":           func(p *P) { p.Template.Group = &retention.Group{} },
		"template.consistency":             func(p *P) { p.Template.Consistency = "Application" },
		"maxConcurrent":                    func(p *P) { p.MaxConcurrent = ptr(0) },
		"adopt":                            func(p *P) { p.Adopt = "All" },
		"deletionPolicy":                   func(p *P) { p.DeletionPolicy = "Retain" },
		"retention":                        func(p *P) { p.Retention = &retention.Retention{MinKeep: ptr(2)} },
		"retention.keepLast":               func(p *P) { p.Retention.KeepLast = -3 },
		"retention.yearly":                 func(p *P) { p.Retention.Yearly = retention.MaxCount + 1 },
		"retention.minKeep":                func(p *P) { p.Retention.MinKeep = ptr(0) },
		"retention.maxCount":               func(p *P) { p.Retention.MaxCount, p.Retention.MinKeep = 2, ptr(3) },
		"retention.within": func(p *P) {
			p.Retention.Within, p.Retention.MaxAge = retention.Duration(2*time.Hour), retention.Duration(time.Hour)
		},
		"retention.maxAge":                      func(p *P) { p.Retention.MaxAge = retention.Duration(time.Millisecond) },
		"retention.failedHistoryLimit":          func(p *P) { p.Retention.FailedHistoryLimit = ptr(-1) },
		"retention.poolPressure.untilPercent":   func(p *P) { p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 80, UntilPercent: 80} },
		"retention.poolPressure.abovePercent":   func(p *P) { p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 101, UntilPercent: 81} },
		"retention.afterSourceDeleted":          func(p *P) { p.Retention.AfterSourceDeleted = &retention.AfterSource{} },
		"retention.afterSourceDeleted.keepLast": func(p *P) { p.Retention.AfterSourceDeleted = &retention.AfterSource{KeepLast: -1} },
		"schedules":                             func(p *P) { p.Schedules = make17(p.Schedules[0]) },
	} {
		p := retention.Policy{Selector: retention.Selector{MatchAll: true}, Retention: &retention.Retention{KeepLast: 1},
			Schedules: []retention.Schedule{{Name: "hourly", Cron: "* * * * *"}}}
		if errs := p.Validate(); errs != nil {
			t.Fatal(errs)
		}
		breakIt(&p)
		rules, errs := retention.New(p)
		if len(errs) != 1 || errs[0].Path != strings.TrimSpace(path) || !errors.Is(errs, retention.ErrInvalid) || len(errs.Error()) > 250 {
			t.Errorf("%s: %v", path, errs)
		}
		if strings.Contains(path, "schedules[0]") && !strings.Contains(path, "retention") || strings.HasPrefix(path, "timeZone") {
			if run := rules.Run("p", "s", nil, monday); run != nil {
				t.Errorf("%s: a snapshot is taken all the same: %+v", path, run)
			}
		}
		if strings.HasPrefix(path, "retention") {
			plan := rules.Plan(retention.Input{Now: monday, PolicyUID: "p", Snapshots: []retention.Snapshot{
				{Key: "a", Policy: "p", Ready: true, CreatedAt: monday.AddDate(-9, 0, 0)},
				{Key: "b", Policy: "p", Ready: true, CreatedAt: monday.AddDate(-8, 0, 0)}}})
			if n := len(plan.Prunes()); n != 0 {
				t.Errorf("%s: %d are pruned all the same", path, n)
			}
		}
	}
}

func make17(s retention.Schedule) []retention.Schedule {
	var list []retention.Schedule
	for i := range 17 {
		s.Name = fmt.Sprint("s", i)
		list = append(list, s)
	}
	return list
}
