package v1alpha1

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/retention"
)

const snapshotPolicy = `
metadata: {name: standard}
spec:
  suspend: false
  pruneWhileSuspended: false
  timeZone: UTC
  selector: {matchLabels: {backup: standard}, storageClassNames: [fast]}
  schedules:
  - {name: hourly, cron: "0 * * * *", timeZone: Europe/Berlin, jitter: 5m, startingDeadlineSeconds: 3600, catchUp: One, concurrency: Forbid, retention: {hourly: 24}}
  template: {labels: {team: shop}, volumeSnapshotClassName: x, group: {byLabel: app}, consistency: Crash}
  retention: {keepLast: 3, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 0, within: 24h, maxAge: 8760h, maxCount: 200, minKeep: 1, failedHistoryLimit: 3,
              poolPressure: {abovePercent: 85, untilPercent: 80, minAge: 24h}, afterSourceDeleted: {keepLast: 1, maxAge: 720h}}
  maxConcurrent: 20
  adopt: None
  deletionPolicy: Orphan
  dryRun: false
`

const clusterPolicy = `
metadata: {name: everything}
spec:
  selector: {matchAll: true}
  namespaceSelector: {matchLabels: {tier: prod}, names: [a, b], excludeNames: [kube-system]}
  schedules: [{name: daily, cron: "@daily"}]
  retention: {keepLast: 1}
`

// Each rule of the schema lets the good through and refuses the bad, in the user's words.
func TestPolicyRules(t *testing.T) {
	change := func(from, to string) string {
		if !strings.Contains(snapshotPolicy, from) {
			t.Fatalf("%q is not in %s", from, snapshotPolicy)
		}
		return strings.Replace(snapshotPolicy, from, to, 1)
	}
	selector := "{matchLabels: {backup: standard}, storageClassNames: [fast]}"
	retentionText := snapshotPolicy[strings.Index(snapshotPolicy, "{keepLast"):strings.Index(snapshotPolicy, "  maxConcurrent")]
	list := func(n int, text string) string {
		items := make([]string, n)
		for i := range items {
			items[i] = strings.ReplaceAll(text, "#", fmt.Sprint(i))
		}
		return strings.Join(items, ", ")
	}
	long := strings.Repeat("x", 400)
	for _, c := range []struct{ name, text, want string }{
		{"as documented", snapshotPolicy, ""},
		{"nothing but a selector", change(snapshotPolicy[strings.Index(snapshotPolicy, "  suspend"):], "  selector: {matchAll: true}\n"), ""},
		{"no selector", change("  selector: "+selector, ""), "selector"},
		{"an empty selector", change(selector, "{}"), "set matchAll: true"},
		{"empty lists", change(selector, "{matchLabels: {}, storageClassNames: [], matchAll: false}"), "set matchAll: true"},
		{"all and some", change(selector, "{matchAll: true, storageClassNames: [fast]}"), "matchAll means every PVC"},
		{"all and some labels", change(selector, "{matchAll: true, matchLabels: {a: b}}"), "matchAll means every PVC"},
		{"many labels", change(selector, "{matchLabels: {"+list(33, "l#: x")+"}}"), "32"},
		{"a long label", change("backup: standard", "backup: "+long), "at most 63"},
		{"many classes", change("[fast]", "["+list(33, "c#")+"]"), "32"},
		{"a long class", change("[fast]", "["+long+"]"), "storageClassNames"},
		{"a class twice", change("[fast]", "[fast, fast]"), "Duplicate"},
		{"a machine's zone", change("timeZone: UTC", "timeZone: Local"), "name a zone"},
		{"a schedule in a machine's zone", change("timeZone: Europe/Berlin", "timeZone: Local"), "name a zone"},
		{"a long zone", change("timeZone: UTC", "timeZone: "+long), "timeZone"},
		{"a schedule twice", change("- {name: hourly", "- {name: hourly, cron: '@daily'}\n  - {name: hourly"), "Duplicate"},
		{"no name", change("name: hourly, ", ""), "name"},
		{"a name with capitals", change("name: hourly", "name: Hourly"), "schedules[0].name"},
		{"an empty cron", change(`"0 * * * *"`, `""`), "schedules[0].cron"},
		{"a long cron", change(`"0 * * * *"`, long), "schedules[0].cron"},
		{"a zone in cron", change(`"0 * * * *"`, `"TZ=UTC 0 * * * *"`), "named in timeZone"},
		{"every", change(`"0 * * * *"`, `"@every 5m"`), "has no calendar"},
		{"jitter of days", change("jitter: 5m", "jitter: 25h"), "24h at most"},
		{"jitter in words", change("jitter: 5m", "jitter: soon"), "jitter"},
		{"a negative jitter", change("jitter: 5m", "jitter: -5m"), "jitter"},
		{"a short deadline", change("startingDeadlineSeconds: 3600", "startingDeadlineSeconds: 9"), "startingDeadlineSeconds"},
		{"a long deadline", change("startingDeadlineSeconds: 3600", "startingDeadlineSeconds: 2592001"), "startingDeadlineSeconds"},
		{"no such catchUp", change("catchUp: One", "catchUp: All"), "catchUp"},
		{"no such concurrency", change("concurrency: Forbid", "concurrency: Replace"), "concurrency"},
		{"pressure of a schedule", change("{hourly: 24}}", "{hourly: 24, poolPressure: {abovePercent: 85, untilPercent: 80}}}"), "policy's retention only"},
		{"a schedule's lost source", change("{hourly: 24}}", "{hourly: 24, afterSourceDeleted: {keepLast: 1}}}"), "policy's retention only"},
		{"an empty retention of a schedule", change("{hourly: 24}}", "{}}"), "an empty retention prunes nothing"},
		{"our labels", change("team: shop", "rowan.storage/policy-uid: x"), "Rowan's own"},
		{"a long label of snapshots", change("team: shop", "team: "+long), "at most 63"},
		{"a long class of snapshots", change("volumeSnapshotClassName: x", "volumeSnapshotClassName: "+long), "volumeSnapshotClassName"},
		{"an empty group", change("{byLabel: app}", "{}"), "byLabel"},
		{"no such consistency", change("consistency: Crash", "consistency: Application"), "consistency"},
		{"an empty retention", change(retentionText, "{}\n"), "an empty retention prunes nothing"},
		{"a retention of zeros", change(retentionText, "{keepLast: 0, within: 0s}\n"), "an empty retention prunes nothing"},
		{"a floor alone", change(retentionText, "{minKeep: 2}\n"), "an empty retention prunes nothing"},
		{"a ceiling alone", change(retentionText, "{maxAge: 720h}\n"), ""},
		{"a negative count", change("keepLast: 3", "keepLast: -3"), "keepLast"},
		{"a large count", change("yearly: 0", "yearly: 10001"), "yearly"},
		{"no floor", change("minKeep: 1", "minKeep: 0"), "minKeep"},
		{"a ceiling below the floor", change("minKeep: 1", "minKeep: 201"), "minKeep must not be above maxCount"},
		{"a ceiling below the default floor", change(retentionText, "{maxCount: 1}\n"), ""},
		{"within above the ceiling", change("within: 24h", "within: 8761h"), "within must not be above maxAge"},
		{"an age in weeks", change("maxAge: 8760h", "maxAge: 1w"), "maxAge"},
		{"a fraction of an hour", change("maxAge: 8760h", "maxAge: 8760.5h"), "maxAge"},
		{"an age of ages", change("maxAge: 8760h", "maxAge: 878401h"), "878400h at most"},
		{"an empty age", change("maxAge: 8760h", `maxAge: ""`), "maxAge"},
		{"a negative history", change("failedHistoryLimit: 3", "failedHistoryLimit: -1"), "failedHistoryLimit"},
		{"until as above", change("untilPercent: 80", "untilPercent: 85"), "untilPercent must be below abovePercent"},
		{"over 99 percent", change("abovePercent: 85", "abovePercent: 100"), "abovePercent"},
		{"nothing after the source", change("{keepLast: 1, maxAge: 720h}", "{}"), "afterSourceDeleted is empty"},
		{"none at once", change("maxConcurrent: 20", "maxConcurrent: 0"), "maxConcurrent"},
		{"no such adoption", change("adopt: None", "adopt: All"), "adopt"},
		{"no such deletion", change("deletionPolicy: Orphan", "deletionPolicy: Retain"), "deletionPolicy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := judge(t, "snapshotpolicies", "", c.text)
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
			if got = judge(t, "clustersnapshotpolicies", "", c.text); (c.want == "") != (got == "") {
				t.Errorf("a ClusterSnapshotPolicy: %q, want %q", got, c.want)
			}
		})
	}
	seventeen := strings.Replace(clusterPolicy, `[{name: daily, cron: "@daily"}]`, "["+list(17, "{name: s#, cron: '@daily'}")+"]", 1)
	for text, want := range map[string]string{
		clusterPolicy: "",
		seventeen:     "16",
		strings.Replace(clusterPolicy, "tier: prod", "tier: "+long, 1):                           "at most 63",
		strings.Replace(clusterPolicy, "names: [a, b]", "names: ["+list(257, "n#")+"]", 1):       "256",
		strings.Replace(clusterPolicy, "excludeNames: [kube-system]", "excludeNames: [\"\"]", 1): "excludeNames",
	} {
		if got := judge(t, "clustersnapshotpolicies", "", text); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What the schema lets through, the planner accepts, and the other way round: they are two statements of the same bounds.
func TestSchemaAndPlannerAgree(t *testing.T) {
	type P = retention.Policy
	hours := func(n int) retention.Duration { return retention.Duration(time.Duration(n) * time.Hour) }
	for name, change := range map[string]func(*P){
		"as it is":       func(*P) {},
		"selector":       func(p *P) { p.Selector = retention.Selector{} },
		"both selectors": func(p *P) { p.Selector.StorageClassNames = []string{"a"} },
		"jitter":         func(p *P) { p.Schedules[0].Jitter = retention.MaxJitter },
		"jitter above":   func(p *P) { p.Schedules[0].Jitter = retention.MaxJitter + hours(1) },
		"deadline":       func(p *P) { n := retention.MaxDeadline + 1; p.Schedules[0].StartingDeadlineSeconds = &n },
		"count":          func(p *P) { p.Retention.Daily = retention.MaxCount },
		"count above":    func(p *P) { p.Retention.Daily = retention.MaxCount + 1 },
		"age":            func(p *P) { p.Retention.MaxAge = retention.MaxDuration },
		"age above":      func(p *P) { p.Retention.MaxAge = retention.MaxDuration + hours(1) },
		"maxConcurrent":  func(p *P) { n := retention.MaxConcurrent + 1; p.MaxConcurrent = &n },
		"pressure":       func(p *P) { p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 80, UntilPercent: 80} },
		"until":          func(p *P) { p.Retention.PoolPressure = &retention.PoolPressure{AbovePercent: 80, UntilPercent: 79} },
		"empty":          func(p *P) { p.Retention = &retention.Retention{} },
		"floor":          func(p *P) { n := 3; p.Retention.MinKeep, p.Retention.MaxCount = &n, 2 },
		"within":         func(p *P) { p.Retention.Within, p.Retention.MaxAge = hours(2), hours(1) },
		"while suspended": func(p *P) {
			p.PruneWhileSuspended = true // to be set once, and suspend again and again
		},
		"schedules": func(p *P) {
			for i := range retention.MaxSchedules {
				p.Schedules = append(p.Schedules, retention.Schedule{Name: fmt.Sprint("x", i), Cron: "@daily"})
			}
		},
	} {
		p := P{Selector: retention.Selector{MatchAll: true}, Retention: &retention.Retention{KeepLast: 1},
			Schedules: []retention.Schedule{{Name: "hourly", Cron: "0 * * * *"}}}
		change(&p)
		text, err := json.Marshal(SnapshotPolicy{Spec: p})
		if err != nil {
			t.Fatal(err)
		}
		said, errs := judge(t, "snapshotpolicies", "", string(text)), p.Validate()
		if (said == "") != (errs == nil) {
			t.Errorf("%s: the schema says %q, the planner %v", name, said, errs)
		}
	}
}

func TestStrictPolicies(t *testing.T) {
	for text, o := range map[string]any{snapshotPolicy: &SnapshotPolicy{}, clusterPolicy: &ClusterSnapshotPolicy{}} {
		if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
			t.Error(err)
		}
	}
	var p SnapshotPolicy
	if err := yaml.UnmarshalStrict([]byte(snapshotPolicy), &p); err != nil || p.Spec.Retention.MaxAge != retention.Duration(8760*time.Hour) {
		t.Error(err, p.Spec.Retention)
	}
}
