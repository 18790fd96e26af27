package listing_test

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
	"github.com/rowan-csi/rowan/pkg/retention/listing"
)

func TestOwnForm(t *testing.T) {
	list := listing.List{Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), Sources: []retention.Source{{Key: "uid", Name: "shop/db", Pool: "fast"}},
		Pools: []retention.Pool{{Name: "fast", UsedPercent: 86.5}},
		Snapshots: []retention.Snapshot{
			{Key: "shop/a", Source: "uid", Ready: true, CreatedAt: time.Date(2026, 5, 31, 0, 0, 0, 0, time.UTC), Hold: "audit"},
			{Key: "shop/b", Source: "uid", Error: "no space"},
		}}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	back, err := listing.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := json.Marshal(back)
	if string(again) != string(data) {
		t.Errorf("read %s, want %s", again, data)
	}
	bare, err := listing.Read([]byte(`[{"name": "a", "source": "s", "ready": true, "createdAt": "2026-05-31T00:00:00Z"}]`))
	if err != nil || len(bare.Snapshots) != 1 {
		t.Errorf("%+v, %v", bare, err)
	}
}

// TestKubectl reads what kubectl printed of a cluster (testdata/kubectl.json, made smaller).
func TestKubectl(t *testing.T) {
	data, err := os.ReadFile("testdata/kubectl.json")
	if err != nil {
		t.Fatal(err)
	}
	l, err := listing.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]retention.Snapshot{}
	for _, s := range l.Snapshots {
		by[s.Key] = s
	}
	for key, ok := range map[string]func(s retention.Snapshot) bool{
		"shop/rowan-1": func(s retention.Snapshot) bool {
			return s.Ready && s.Policy == "policy-uid" && s.PolicyName == "SnapshotPolicy/shop/daily" && s.Source == "pvc-uid-db" &&
				slices.Equal(s.Schedules, []string{"daily", "hourly"}) && s.CreatedAt.Equal(time.Date(2026, 6, 1, 0, 0, 1, 0, time.UTC)) && !s.Deleting
		},
		"shop/held": func(s retention.Snapshot) bool { return s.Hold == "audit" && s.Source == "pvc-uid-db" },
		"shop/used": func(s retention.Snapshot) bool { return slices.Equal(s.InUse, []string{"PVC shop/restore"}) },
		"shop/failed": func(s retention.Snapshot) bool {
			return !s.Ready && s.Error == "pool fast is full" && s.CreatedAt.IsZero() && !s.Making
		},
		"shop/making":        func(s retention.Snapshot) bool { return !s.Ready && s.Making },
		"shop/going":         func(s retention.Snapshot) bool { return s.Deleting },
		"shop/member":        func(s retention.Snapshot) bool { return slices.Equal(s.InUse, []string{"VolumeGroupSnapshot nightly"}) },
		"group shop/nightly": func(s retention.Snapshot) bool { return s.Ready && strings.HasPrefix(s.Source, "shop/group ") },
		"shop/import":        func(s retention.Snapshot) bool { return s.Source == "content snapcontent-7" },
		"shop/lost":          func(s retention.Snapshot) bool { return s.Source == "shop/gone" },
	} {
		if s, there := by[key]; !there || !ok(s) {
			t.Errorf("%s: %+v", key, s)
		}
	}
	if len(by) != 10 || len(l.Sources) != 4 {
		t.Errorf("%d snapshots, sources %+v", len(by), l.Sources)
	}
}

func TestWrongLists(t *testing.T) {
	for text, want := range map[string]string{
		``:                        "it is empty",
		`"x"`:                     "not a list",
		`{"snapshots": [{}]}`:     "snapshots[0] has no name",
		`[{"name": "a"}]`:         "snapshot a has no source",
		`[{"name": "a", "x": 1}]`: `unknown field "x"`,
		`[] []`:                   "more than one",
		`[{"name": "a", "source": "s"}, {"name": "a", "source": "s"}]`: "a is there twice",
		`[{"name": "a", "source": "s", "ready": true}]`:                "has no createdAt",
		`{"kind": "PodList"}`:                          "a PodList has no items",
		`{"kind": "List", "items": [{"kind": "Pod"}]}`: `item 0 is a "Pod"`,
		`{"kind": "List", "items": [{"kind": "VolumeSnapshot", "metadata": {"name": 3}}]}`:                       "cannot unmarshal",
		`{"kind": "VolumeSnapshot", "metadata": {"name": "a", "annotations": {"rowan.storage/schedules": "x"}}}`: "annotation rowan.storage/schedules",
	} {
		if _, err := listing.Read([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := listing.Read([]byte("[")); !errors.Is(err, listing.ErrFormat) {
		t.Errorf("%v is no ErrFormat", err)
	}
}

func FuzzRead(f *testing.F) {
	data, err := os.ReadFile("testdata/kubectl.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add(`[{"name": "a", "source": "s", "ready": true, "createdAt": "2026-05-31T00:00:00Z"}]`)
	rules, errs := retention.New(retention.Policy{Selector: retention.Selector{MatchAll: true}, Retention: &retention.Retention{Daily: 1}})
	if errs != nil {
		f.Fatal(errs)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := listing.Read([]byte(text))
		if err != nil {
			return
		}
		plan := rules.Plan(retention.Input{Now: l.Now, PolicyUID: "p", Snapshots: l.Snapshots, Sources: l.Sources, Pools: l.Pools})
		if len(plan.Decisions) != len(l.Snapshots) {
			t.Errorf("%d decisions for %d snapshots", len(plan.Decisions), len(l.Snapshots))
		}
	})
}
