package retention

import (
	"slices"
	"testing"
	"time"
)

// Kubernetes keeps the second in which an object was made. Of two that failed within one, the one for the later time is the newer, whatever they are called.
func TestLatestWithinASecond(t *testing.T) {
	asked := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		older := &Snapshot{Key: names[0], RequestedAt: asked, DueAt: asked.Add(-time.Hour)}
		newer := &Snapshot{Key: names[1], RequestedAt: asked, DueAt: asked}
		list := []*Snapshot{older, newer}
		if slices.SortFunc(list, latestFirst); list[0] != newer {
			t.Errorf("%s, of an hour before, counts as later than %s", older.Key, newer.Key)
		}
	}
}

// What is awaited does not change when a plan is carried out in several passes: the snapshot that was asked for last may be among what goes, the newest is
// not. Here one whose cut took ten minutes is the newest; the one in the making was asked for with it, and before those that go.
func TestAwaitedWhileAPlanIsCarriedOut(t *testing.T) {
	rules, errs := New(Policy{Selector: Selector{MatchAll: true}, Retention: &Retention{KeepLast: 1}})
	if errs != nil {
		t.Fatal(errs)
	}
	asked := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	in := Input{Now: asked.Add(20 * time.Minute), PolicyUID: "policy", Sources: []Source{{Key: "source"}}}
	add := func(key string, ready bool, requested, created time.Time) {
		in.Snapshots = append(in.Snapshots, Snapshot{Key: key, Source: "source", Policy: "policy", Ready: ready, RequestedAt: requested, CreatedAt: created})
	}
	add("slow", true, asked, asked.Add(10*time.Minute))
	add("older", true, asked.Add(-time.Hour), asked.Add(-time.Hour))
	add("making", false, asked, asked)
	add("later", true, asked.Add(5*time.Minute), asked.Add(5*time.Minute))
	for _, also := range []string{"with", "without"} {
		for _, d := range rules.Plan(in).Decisions {
			if d.Snapshot.Key == "older" && (d.Action != Keep || d.Reason != Awaiting) {
				t.Errorf("%s the one that was asked for last: %s, %s", also, d.Action, d.Text())
			}
		}
		in.Snapshots = in.Snapshots[:len(in.Snapshots)-1] // it was pruned
	}
}
