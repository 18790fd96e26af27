// Package volumetest is the conformance suite of volume.Service: what every implementation does the same, run by the tests of each.
package volumetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// Gi and Mi are bytes.
const (
	Mi = int64(1) << 20
	Gi = int64(1) << 30
)

// Run tests a service. newService makes an empty one with a single pool of PoolSize, named Pool, under volume.DefaultAdmission, on node Node, not
// decorated. Where pools are chosen by another name than their own, that name is Pool, too.
func Run(t *testing.T, newService func(t *testing.T) volume.Service) {
	RunHalves(t, func(t *testing.T) (volume.Controller, volume.Node) {
		s := newService(t)
		return s, s
	})
}

// service is what is tested. Get is the controller's; what only the node knows is asked of node.
type service struct {
	volume.Service
	node volume.Node
}

// RunHalves is Run for a service whose halves are two.
func RunHalves(t *testing.T, newHalves func(t *testing.T) (volume.Controller, volume.Node)) {
	for name, test := range map[string]func(*testing.T, service){
		"create":    create,
		"refusals":  refusals,
		"copies":    copies,
		"source":    sourceErrors,
		"expand":    expand,
		"modify":    modify,
		"delete":    remove,
		"snapshots": snapshots,
		"groups":    groups,
		"list":      list,
		"capacity":  capacity,
		"attach":    attach,
		"format":    format,
		"canceled":  canceled,
	} {
		t.Run(name, func(t *testing.T) {
			c, n := newHalves(t)
			test(t, service{Service: volume.Join(c, n), node: n})
		})
	}
}

// What newService promises.
const (
	Node     = volume.NodeID("node-a")
	Pool     = "pool-a"
	PoolSize = 100 * Gi
)

func create(t *testing.T, s service) {
	before := time.Now().Add(-time.Minute)
	v := must(t, s, volume.CreateRequest{Name: "a", Capacity: volume.Range{Required: 1_000_000_000}, FSType: volume.FSExt4})
	if got := v.CreatedAt; got.Before(before) {
		t.Errorf("created at %v", got)
	}
	v.CreatedAt = time.Time{}
	want := volume.Volume{
		ID: volume.VolumeIDOf("a"), Name: "a", Sizing: volume.Sizing{Size: 954 * Mi, Requested: 1_000_000_000}, FSType: volume.FSExt4,
		Parameters: volume.Parameters{Mode: volume.ModeROW, Provisioning: volume.ProvisionThin}, Node: Node, Pool: Pool,
	}
	if v != want {
		t.Errorf("created\n%+v, want\n%+v", v, want)
	}
	got, err := s.Get(t.Context(), v.ID)
	got.CreatedAt = time.Time{}
	if err != nil || got != want {
		t.Errorf("get: %v\n%+v, want\n%+v", err, got, want)
	}
	if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "a"}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if _, err := s.Get(t.Context(), volume.VolumeIDOf("b")); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("get of nothing: %v", err)
	}
	named := must(t, s, volume.CreateRequest{Name: "with pool", Parameters: volume.Parameters{Pool: Pool}})
	if named.Parameters.Pool != Pool || named.Pool != Pool || named.Sizing.Size != volume.DefaultSize {
		t.Errorf("with a pool: %+v", named)
	}
}

func refusals(t *testing.T, s service) {
	for _, c := range []struct {
		name string
		r    volume.CreateRequest
		want error
	}{
		{"limit below rounding", volume.CreateRequest{Capacity: volume.Range{Required: Mi + 1, Limit: 2*Mi - 1}}, volume.ErrOutOfRange},
		{"xfs limit", volume.CreateRequest{Capacity: volume.Range{Required: 10 * Mi, Limit: 10 * Mi}, FSType: volume.FSXFS}, volume.ErrOutOfRange},
		{"unknown pool", volume.CreateRequest{Parameters: volume.Parameters{Pool: "nowhere"}}, volume.ErrInvalid},
		{"other node", volume.CreateRequest{Placement: volume.Placement{Constrained: true, Requisite: []volume.NodeID{"node-b"}}}, volume.ErrPlacement},
		{"too large for the pool", volume.CreateRequest{Capacity: volume.Range{Required: 2*PoolSize + 1}}, volume.ErrNoSpace},
	} {
		c.r.Name = c.name
		if v, err := s.Create(t.Context(), c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v, want %v", c.name, v, err, c.want)
		}
	}
	if all, _, err := s.List(t.Context(), volume.Page[volume.VolumeID]{}); err != nil || len(all) != 0 {
		t.Errorf("refused requests left %v, %v", all, err)
	}
	must(t, s, volume.CreateRequest{Name: "here", Placement: volume.Placement{Constrained: true, Requisite: []volume.NodeID{"node-b", Node}}})
	must(t, s, volume.CreateRequest{Name: "half", Capacity: volume.Range{Required: PoolSize}})
	other := volume.CreateRequest{Name: "other half", Capacity: volume.Range{Required: PoolSize}}
	if _, err := s.Create(t.Context(), other); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("over the overcommit: %v", err)
	}
}

// copies tests the rule that a source's own request restores it.
func copies(t *testing.T, s service) {
	for i, c := range []struct {
		required int64
		fs       string
		size     int64
	}{
		{1_000_000_000, volume.FSExt4, 954 * Mi},
		{1_500_000_000, volume.FSXFS, 1431 * Mi},
		{10 * Mi, volume.FSXFS, 300 * Mi},
		{10 * Mi, "", 10 * Mi},
		{0, volume.FSExt4, Gi},
	} {
		name := fmt.Sprint("copy-", i)
		v := must(t, s, volume.CreateRequest{Name: name, Capacity: volume.Range{Required: c.required}, FSType: c.fs})
		snap := mustCut(t, s, volume.SnapshotRequest{Name: name, Source: v.ID})
		if snap.Sizing != v.Sizing || snap.Sizing.Size != c.size {
			t.Errorf("%d on %q: snapshot %+v of %+v, want size %d", c.required, c.fs, snap.Sizing, v.Sizing, c.size)
		}
		for j, src := range []volume.Source{{Snapshot: snap.ID}, {Volume: v.ID}} {
			r := volume.CreateRequest{Name: fmt.Sprint(name, "-", j), Capacity: volume.Range{Required: snap.Sizing.Requested}, FSType: c.fs, Source: src}
			got := must(t, s, r)
			if got.Sizing != v.Sizing || !got.HasParent || got.MayFormat() || got.Source != src || got.Format != volume.FormatNone {
				t.Errorf("%d on %q from %s: %+v, want the sizing %+v", c.required, c.fs, src, got, v.Sizing)
			}
			r.Name += "-larger"
			r.Capacity.Required = c.size + 5*Gi
			if got = must(t, s, r); got.Sizing.Size != c.size+5*Gi || got.Sizing.Requested != c.size+5*Gi {
				t.Errorf("larger copy of %s: %+v", src, got.Sizing)
			}
			r.Name += "-limited"
			r.Capacity = volume.Range{Required: Mi, Limit: c.size - 1}
			if _, err := s.Create(t.Context(), r); !errors.Is(err, volume.ErrOutOfRange) {
				t.Errorf("copy of %s smaller than its source: %v", src, err)
			}
		}
	}
}

func sourceErrors(t *testing.T, s service) {
	v := must(t, s, volume.CreateRequest{Name: "v", FSType: volume.FSXFS})
	for _, c := range []struct {
		name string
		r    volume.CreateRequest
		want error
	}{
		{"no snapshot", volume.CreateRequest{Source: volume.Source{Snapshot: volume.SnapshotIDOf("x")}}, volume.ErrSourceNotFound},
		{"no volume", volume.CreateRequest{Source: volume.Source{Volume: volume.VolumeIDOf("x")}}, volume.ErrSourceNotFound},
		{"other fs", volume.CreateRequest{Source: volume.Source{Volume: v.ID}, FSType: volume.FSExt4}, volume.ErrInvalid},
		{"other node", volume.CreateRequest{Source: volume.Source{Volume: v.ID},
			Placement: volume.Placement{Constrained: true, Requisite: []volume.NodeID{"node-b"}}}, volume.ErrPlacement},
	} {
		c.r.Name = c.name
		if _, err := s.Create(t.Context(), c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	r := volume.SnapshotRequest{Name: "s", Source: volume.VolumeIDOf("x")}
	if _, err := s.CreateSnapshot(t.Context(), r); !errors.Is(err, volume.ErrSourceNotFound) {
		t.Errorf("snapshot of nothing: %v", err)
	}
}

func expand(t *testing.T, s service) {
	v := must(t, s, volume.CreateRequest{Name: "v", Capacity: volume.Range{Required: 10 * Mi}, FSType: volume.FSXFS})
	for _, c := range []struct {
		r    volume.Range
		want volume.Sizing
		err  error
	}{
		{volume.Range{Required: 200 * Mi}, volume.Sizing{Size: 300 * Mi, Requested: 10 * Mi}, nil},
		{volume.Range{Required: 2_000_000_000}, volume.Sizing{Size: 1908 * Mi, Requested: 2_000_000_000}, nil},
		{volume.Range{Required: Gi}, volume.Sizing{Size: 1908 * Mi, Requested: 2_000_000_000}, nil},
		{volume.Range{Required: Gi, Limit: Gi}, volume.Sizing{}, volume.ErrOutOfRange},
		{volume.Range{Required: 3*Gi + 1, Limit: 3*Gi + 2}, volume.Sizing{}, volume.ErrOutOfRange},
		{volume.Range{Required: 2*PoolSize + Gi}, volume.Sizing{}, volume.ErrNoSpace},
	} {
		got, err := s.Expand(t.Context(), v.ID, c.r)
		if !errors.Is(err, c.err) || err == nil && got.Sizing != c.want {
			t.Errorf("expand %+v: %+v, %v, want %+v, %v", c.r, got.Sizing, err, c.want, c.err)
		}
	}
	if got := get(t, s, v.ID); got.Sizing != (volume.Sizing{Size: 1908 * Mi, Requested: 2_000_000_000}) {
		t.Errorf("after growing: %+v", got.Sizing)
	}
	if snap := mustCut(t, s, volume.SnapshotRequest{Name: "grown", Source: v.ID}); snap.Sizing.Requested != 2_000_000_000 {
		t.Errorf("snapshot of the grown volume: %+v", snap.Sizing)
	}
	if _, err := s.Attach(t.Context(), v.ID, false); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Expand(t.Context(), v.ID, volume.Range{Required: 4 * Gi}); err != nil || !got.Attached || got.Sizing.Size != 4*Gi {
		t.Errorf("expand while attached: %+v, %v", got, err)
	}
	if _, err := s.Expand(t.Context(), volume.VolumeIDOf("x"), volume.Range{Required: Gi}); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("expand of nothing: %v", err)
	}
}

func modify(t *testing.T, s service) {
	v := must(t, s, volume.CreateRequest{Name: "v"})
	row, cow, bad, yes, no := volume.ModeROW, volume.ModeCOW, volume.Mode("cowboy"), true, false
	for _, c := range []struct {
		m    volume.Mutable
		mode volume.Mode
		tidy bool
	}{
		{volume.Mutable{}, row, false},
		{volume.Mutable{Mode: &cow}, cow, false},
		{volume.Mutable{Mode: &cow}, cow, false},
		{volume.Mutable{Tidy: &yes}, cow, true},
		{volume.Mutable{Mode: &row, Tidy: &yes}, row, true},
		{volume.Mutable{Tidy: &no}, row, false},
	} {
		want := v
		want.Parameters.Mode, want.Parameters.Tidy = c.mode, c.tidy
		if got, err := s.Modify(t.Context(), v.ID, c.m); err != nil || got != want || get(t, s, v.ID) != want {
			t.Errorf("to %s, %t: %v, %+v", c.mode, c.tidy, err, got)
		}
	}
	if _, err := s.Modify(t.Context(), v.ID, volume.Mutable{Mode: &bad}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("to %s: %v", bad, err)
	}
	if _, err := s.Modify(t.Context(), volume.VolumeIDOf("x"), volume.Mutable{Mode: &cow}); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("modify nothing: %v", err)
	}
}

func remove(t *testing.T, s service) {
	v := must(t, s, volume.CreateRequest{Name: "v"})
	snap := mustCut(t, s, volume.SnapshotRequest{Name: "s", Source: v.ID})
	if _, err := s.Attach(t.Context(), v.ID, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), v.ID); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("delete while attached: %v", err)
	}
	if err := s.Detach(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), v.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
	if got, err := s.GetSnapshot(t.Context(), snap.ID); err != nil || got != snap {
		t.Errorf("the snapshot of a deleted volume: %+v, %v", got, err)
	}
	c := must(t, s, volume.CreateRequest{Name: "copy", Source: volume.Source{Snapshot: snap.ID}})
	if err := s.DeleteSnapshot(t.Context(), snap.ID); err != nil {
		t.Errorf("delete a snapshot that has a copy: %v", err)
	}
	if err := s.DeleteSnapshot(t.Context(), snap.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("delete it again: %v", err)
	}
	if got := get(t, s, c.ID); got.Source.Snapshot != snap.ID || !got.HasParent {
		t.Errorf("the copy of a deleted snapshot: %+v", got)
	}
}

func snapshots(t *testing.T, s service) {
	a, b := must(t, s, volume.CreateRequest{Name: "a", FSType: volume.FSExt4}), must(t, s, volume.CreateRequest{Name: "b"})
	snap := mustCut(t, s, volume.SnapshotRequest{Name: "s", Source: a.ID})
	if snap.CreatedAt.IsZero() || snap.Name != "s" || snap.Source != a.ID || snap.Node != Node || snap.Pool != Pool || snap.FSType != volume.FSExt4 {
		t.Errorf("cut %+v", snap)
	}
	for _, src := range []volume.VolumeID{a.ID, b.ID} {
		if _, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: src}); !errors.Is(err, volume.ErrExists) {
			t.Errorf("name taken: %v", err)
		}
	}
	mustCut(t, s, volume.SnapshotRequest{Name: "of b", Source: b.ID})
	mustCut(t, s, volume.SnapshotRequest{Name: "of b again", Source: b.ID})
	for _, c := range []struct {
		f    volume.SnapshotFilter
		want int
	}{
		{volume.SnapshotFilter{}, 3},
		{volume.SnapshotFilter{ID: snap.ID}, 1},
		{volume.SnapshotFilter{Source: b.ID}, 2},
		{volume.SnapshotFilter{ID: snap.ID, Source: b.ID}, 0},
		{volume.SnapshotFilter{Source: volume.VolumeIDOf("x")}, 0},
	} {
		got, more, err := s.ListSnapshots(t.Context(), c.f, volume.Page[volume.SnapshotID]{})
		if err != nil || more || len(got) != c.want {
			t.Errorf("filter %+v: %d, %t, %v, want %d", c.f, len(got), more, err, c.want)
		}
	}
	first, more, err := s.ListSnapshots(t.Context(), volume.SnapshotFilter{}, volume.Page[volume.SnapshotID]{Max: 2})
	if err != nil || !more || len(first) != 2 {
		t.Fatalf("first page: %v, %t, %v", first, more, err)
	}
	rest, more, err := s.ListSnapshots(t.Context(), volume.SnapshotFilter{}, volume.Page[volume.SnapshotID]{Max: 2, After: first[1].ID})
	if err != nil || more || len(rest) != 1 || rest[0].ID.Compare(first[1].ID) <= 0 {
		t.Errorf("second page: %v, %t, %v", rest, more, err)
	}
}

func list(t *testing.T, s service) {
	var ids []volume.VolumeID
	for i := range 7 {
		ids = append(ids, must(t, s, volume.CreateRequest{Name: fmt.Sprint("v", i)}).ID)
	}
	slices.SortFunc(ids, volume.VolumeID.Compare)
	var seen []volume.VolumeID
	p := volume.Page[volume.VolumeID]{Max: 3}
	for page := 0; ; page++ {
		vols, more, err := s.List(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vols {
			seen = append(seen, v.ID)
		}
		if !more {
			break
		}
		p.After = seen[len(seen)-1]
		if page == 0 { // the last of a page may go before the next is asked for
			if err := s.Delete(t.Context(), p.After); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Equal(seen, ids) {
		t.Errorf("listed %v, want %v", seen, ids)
	}
}

func capacity(t *testing.T, s service) {
	c, err := s.Capacity(t.Context(), volume.CapacityRequest{FSType: volume.FSXFS})
	if want := (volume.Capacity{Available: 2 * PoolSize, MinVolume: 300 * Mi, MaxVolume: 2 * PoolSize}); err != nil || c != want {
		t.Errorf("empty: %+v, %v, want %+v", c, err, want)
	}
	must(t, s, volume.CreateRequest{Name: "v", Capacity: volume.Range{Required: Mi}})
	c, err = s.Capacity(t.Context(), volume.CapacityRequest{Node: Node, Parameters: volume.Parameters{Pool: Pool}})
	if want := (volume.Capacity{Available: 2*PoolSize - Gi, MinVolume: Mi, MaxVolume: 2*PoolSize - Mi}); err != nil || c != want {
		t.Errorf("after 1 MiB: %+v, %v, want %+v", c, err, want)
	}
	must(t, s, volume.CreateRequest{Name: "all", Capacity: volume.Range{Required: c.MaxVolume}})
	if c, err = s.Capacity(t.Context(), volume.CapacityRequest{}); err != nil || c.Available != 0 || c.MaxVolume != 0 {
		t.Errorf("all promised: %+v, %v", c, err)
	}
	if c, err := s.Capacity(t.Context(), volume.CapacityRequest{Node: "node-b"}); err != nil || c != (volume.Capacity{}) {
		t.Errorf("a node that is not ours: %+v, %v", c, err)
	}
	if c, err := s.Capacity(t.Context(), volume.CapacityRequest{Parameters: volume.Parameters{Pool: "nowhere"}}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a pool that does not exist: %+v, %v", c, err)
	}
}

func attach(t *testing.T, s service) {
	if s.NodeID() != Node {
		t.Errorf("node %s", s.NodeID())
	}
	v := must(t, s, volume.CreateRequest{Name: "v"})
	if _, err := s.Device(t.Context(), v.ID); !errors.Is(err, volume.ErrNotAttached) {
		t.Errorf("device before attaching: %v", err)
	}
	dev, err := s.Attach(t.Context(), v.ID, true)
	if err != nil || dev == "" {
		t.Fatalf("attach: %q, %v", dev, err)
	}
	if again, err := s.Attach(t.Context(), v.ID, true); err != nil || again != dev {
		t.Errorf("attach again: %q, %v, want %q", again, err, dev)
	}
	if _, err := s.Attach(t.Context(), v.ID, false); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("attach the other way: %v", err)
	}
	if got, err := s.Device(t.Context(), v.ID); err != nil || got != dev {
		t.Errorf("device: %q, %v, want %q", got, err, dev)
	}
	if !get(t, s, v.ID).Attached {
		t.Error("not Attached")
	}
	for range 2 {
		if err := s.Detach(t.Context(), v.ID); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	if get(t, s, v.ID).Attached {
		t.Error("still Attached")
	}
	none := volume.VolumeIDOf("x")
	if _, err := s.Attach(t.Context(), none, false); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("attach nothing: %v", err)
	}
	if err := s.Detach(t.Context(), none); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("detach nothing: %v", err)
	}
	if _, err := s.Stats(t.Context(), none); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("stats of nothing: %v", err)
	}
	if st, err := s.Stats(t.Context(), v.ID); err != nil || st.Size != volume.DefaultSize {
		t.Errorf("stats: %+v, %v", st, err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("health: %v", err)
	}
}

func format(t *testing.T, s service) {
	v := must(t, s, volume.CreateRequest{Name: "v", FSType: volume.FSExt4})
	if !v.MayFormat() {
		t.Error("a new volume may not be formatted")
	}
	for _, state := range []volume.FormatState{volume.FormatStarted, volume.FormatStarted, volume.FormatDone} {
		if err := s.MarkFormat(t.Context(), v.ID, state); err != nil {
			t.Fatal(err)
		}
		if got := get(t, s.node, v.ID); got.Format != state || got.Sizing != v.Sizing || got.FSType != v.FSType {
			t.Errorf("marked %s: %+v", state, got)
		}
	}
	c := must(t, s, volume.CreateRequest{Name: "c", Source: volume.Source{Volume: v.ID}})
	if got := get(t, s.node, c.ID); got.Format != volume.FormatNone || got.MayFormat() || c.MayFormat() {
		t.Errorf("a copy inherits the mark: %+v, %+v", got, c)
	}
	if err := s.MarkFormat(t.Context(), volume.VolumeIDOf("x"), volume.FormatDone); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("mark nothing: %v", err)
	}
}

func canceled(t *testing.T, s service) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(ctx, volume.CreateRequest{Name: "v"}); !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v", err)
	}
	if _, err := s.Get(ctx, volume.VolumeIDOf("v")); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
}

func must(t *testing.T, s volume.Controller, r volume.CreateRequest) volume.Volume {
	t.Helper()
	v, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatalf("create %+v: %v", r, err)
	}
	return v
}

func mustCut(t *testing.T, s volume.Controller, r volume.SnapshotRequest) volume.Snapshot {
	t.Helper()
	snap, err := s.CreateSnapshot(t.Context(), r)
	if err != nil {
		t.Fatalf("cut %+v: %v", r, err)
	}
	return snap
}

// getter is either half.
type getter interface {
	Get(ctx context.Context, id volume.VolumeID) (volume.Volume, error)
}

func get(t *testing.T, s getter, id volume.VolumeID) volume.Volume {
	t.Helper()
	v, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
