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
