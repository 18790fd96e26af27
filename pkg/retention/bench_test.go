package retention_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// BenchmarkPass is the planner's share of a controller's pass: 1,000 PVCs with 50 snapshots each, and five schedules.
func BenchmarkPass(b *testing.B) {
	p := retention.Policy{TimeZone: "Europe/Berlin", Retention: &retention.Retention{KeepLast: 3, Hourly: 24, Daily: 7, Weekly: 4, Monthly: 12,
		Yearly: 2, Within: retention.Duration(time.Hour), MaxAge: retention.Duration(8760 * time.Hour), MaxCount: 200}}
	history := map[string]retention.History{}
	for i, cron := range []string{"0 * * * *", "*/15 * * * *", "30 2 * * *", "0 3 * * sun", "0 4 1 * *"} {
		name := fmt.Sprint("s", i)
		p.Schedules = append(p.Schedules, retention.Schedule{Name: name, Cron: cron, Jitter: retention.Duration(5 * time.Minute)})
		history[name] = retention.History{Done: monday.Add(-time.Minute)}
	}
	rules := mustRules(b, p)
	in := retention.Input{Now: monday, PolicyUID: policyUID}
	for s := range 1000 {
		for i := range 50 {
			in.Snapshots = append(in.Snapshots, retention.Snapshot{Key: fmt.Sprintf("shop/s%d-%d", s, i), Source: fmt.Sprint("uid-", s), Policy: policyUID,
				Ready: true, CreatedAt: monday.Add(-time.Duration(i*i) * time.Hour), Schedules: []string{"s0"}})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if plan := rules.Plan(in); len(plan.Decisions) != 50000 {
			b.Fatal(len(plan.Decisions))
		}
		for s := range 1000 {
			source := fmt.Sprint("uid-", s)
			rules.Run(policyUID, source, history, monday)
			rules.Next(source, monday)
		}
	}
}
