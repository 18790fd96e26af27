package local_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

const (
	mi = volumetest.Mi
	gi = volumetest.Gi
)

func ready(name string) engine.PoolInfo {
	return engine.PoolInfo{Name: name, State: "Ready", Size: volumetest.PoolSize}
}

func newLocal(f *fakeEngine) *local.Service {
	return local.New(f, local.Config{Node: volumetest.Node, Pool: volumetest.Pool, Admission: volume.DefaultAdmission})
}

func TestConformance(t *testing.T) {
	volumetest.Run(t, func(*testing.T) volume.Service { return newLocal(newFake(ready(volumetest.Pool))) })
}

// TestUnfinishedGrowth is a death between the label and the growth: the volume stays consistent, and the retry finishes.
func TestUnfinishedGrowth(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v", Capacity: volume.Range{Required: 1_000_000_000}})
	if err != nil {
		t.Fatal(err)
	}
	f.fail["GrowVolume"] = fmt.Errorf("call: %w", rpc.ErrUnreachable)
	if _, err := s.Expand(t.Context(), v.ID, volume.Range{Required: 2_000_000_000}); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("expand: %v", err)
	}
	got, err := s.Get(t.Context(), v.ID)
	if want := (volume.Sizing{Size: 954 * mi, Requested: 954 * mi}); err != nil || got.Sizing != want {
		t.Errorf("between: %+v, %v, want %+v", got.Sizing, err, want)
	}
	delete(f.fail, "GrowVolume")
	got, err = s.Expand(t.Context(), v.ID, volume.Range{Required: 2_000_000_000})
	if want := (volume.Sizing{Size: 1908 * mi, Requested: 2_000_000_000}); err != nil || got.Sizing != want {
		t.Errorf("after the retry: %+v, %v, want %+v", got.Sizing, err, want)
	}
}

func TestPools(t *testing.T) {
	f := newFake(ready("other"), ready(volumetest.Pool))
	s := newLocal(f)
	inOther, err := s.Create(t.Context(), volume.CreateRequest{Name: "in other", Parameters: volume.Parameters{Pool: "other"}})
	if err != nil || inOther.Pool != "other" {
		t.Fatalf("%+v, %v", inOther, err)
	}
	if got, err := s.Get(t.Context(), inOther.ID); err != nil || got != inOther {
		t.Errorf("get: %+v, %v, want %+v", got, err, inOther)
	}
	c, err := s.Create(t.Context(), volume.CreateRequest{Name: "copy", Source: volume.Source{Volume: inOther.ID}})
	if err != nil || c.Pool != "other" {
		t.Errorf("a copy leaves its source's pool: %+v, %v", c, err)
	}
	r := volume.CreateRequest{Name: "c2", Source: volume.Source{Volume: inOther.ID}, Parameters: volume.Parameters{Pool: volumetest.Pool}}
	if _, err := s.Create(t.Context(), r); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a copy in another pool: %v", err)
	}
	if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "in default"}); err != nil {
		t.Error(err)
	}
	if all, _, err := s.List(t.Context(), volume.Page[volume.VolumeID]{}); err != nil || len(all) != 3 {
		t.Errorf("%d volumes, %v", len(all), err)
	}
	if err := s.Delete(t.Context(), inOther.ID); err != nil {
		t.Error(err)
	}
}

// TestPoolNotOpen is the rule that nothing is said to be gone while a pool cannot be asked.
func TestPoolNotOpen(t *testing.T) {
	f := newFake(ready(volumetest.Pool), engine.PoolInfo{Name: "broken", State: "Unavailable", Reason: "disk is away"})
	s := volume.Open(newLocal(f))
	if v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"}); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("create: %+v, %v", v, err)
	}
	if err := s.Delete(t.Context(), volume.VolumeIDOf("v")); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("delete: %v", err)
	}
	if err := s.DeleteSnapshot(t.Context(), volume.SnapshotIDOf("s")); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("delete snapshot: %v", err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("health is the engine's alone: %v", err)
	}
}

func TestPoolFailedOrMissing(t *testing.T) {
	failed := ready(volumetest.Pool)
	failed.State, failed.Reason = "Failed", "flush failed"
	for name, f := range map[string]*fakeEngine{"failed": newFake(failed), "missing": newFake(), "only another": newFake(ready("other"))} {
		s := volume.Open(newLocal(f))
		if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"}); !errors.Is(err, volume.ErrFailed) {
			t.Errorf("%s: create: %v", name, err)
		}
		if c, err := s.Capacity(t.Context(), volume.CapacityRequest{}); err != nil || c != (volume.Capacity{}) {
			t.Errorf("%s: capacity: %+v, %v", name, c, err)
		}
	}
}

func TestFullPool(t *testing.T) {
	p := ready(volumetest.Pool)
	f := newFake(p)
	s := newLocal(f)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	f.pools[0].Used, f.pools[0].Level = p.Size, engine.SpaceFull
	if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "w"}); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("create: %v", err)
	}
	if _, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: v.ID}); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := s.Expand(t.Context(), v.ID, volume.Range{Required: 2 * gi}); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("expand: %v", err)
	}
	if err := s.Delete(t.Context(), v.ID); err != nil {
		t.Errorf("delete in a full pool: %v", err)
	}
}

// TestForeign is that what was made by others under names of their own is left alone.
func TestForeign(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	f.volumes[key{volumetest.Pool, "scratch"}] = engine.VolumeInfo{Name: "scratch", Size: gi}
	f.snapshots[key{volumetest.Pool, "by hand"}] = engine.SnapshotInfo{Name: "by hand", Volume: "scratch", Size: gi}
	if all, _, err := s.List(t.Context(), volume.Page[volume.VolumeID]{}); err != nil || len(all) != 0 {
		t.Errorf("volumes: %+v, %v", all, err)
	}
	if all, _, err := s.ListSnapshots(t.Context(), volume.SnapshotFilter{}, volume.Page[volume.SnapshotID]{}); err != nil || len(all) != 0 {
		t.Errorf("snapshots: %+v, %v", all, err)
	}
}

// TestSourceGoesMeanwhile is a source that is deleted between the look at it and the creation.
func TestSourceGoesMeanwhile(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	f.before = func(call string) {
		if call == "CreateVolume" || call == "CreateSnapshot" {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.volumes, key{volumetest.Pool, v.ID.String()})
		}
	}
	restore := f.volumes[key{volumetest.Pool, v.ID.String()}]
	if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "c", Source: volume.Source{Volume: v.ID}}); !errors.Is(err, volume.ErrSourceNotFound) {
		t.Errorf("copy: %v", err)
	}
	f.volumes[key{volumetest.Pool, v.ID.String()}] = restore
	if _, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: v.ID}); !errors.Is(err, volume.ErrSourceNotFound) {
		t.Errorf("snapshot: %v", err)
	}
}

// TestTranslation is the table from the engine's errors, through a call, with the text kept.
func TestTranslation(t *testing.T) {
	for _, c := range []struct{ from, to error }{
		{engine.ErrExists, volume.ErrExists},
		{engine.ErrNoSpace, volume.ErrNoSpace},
		{engine.ErrInvalid, volume.ErrInvalid},
		{engine.ErrFailed, volume.ErrFailed},
		{engine.ErrLost, volume.ErrFailed},
		{engine.ErrCorrupt, volume.ErrFailed},
		{engine.ErrBusy, volume.ErrPending},
		{engine.ErrClosed, volume.ErrUnavailable},
		{host.ErrNotOpen, volume.ErrFailed},
		{host.ErrStopping, volume.ErrUnavailable},
		{rpc.ErrUnreachable, volume.ErrUnavailable},
		{context.DeadlineExceeded, context.DeadlineExceeded},
	} {
		f := newFake(ready(volumetest.Pool))
		cause := fmt.Errorf("volume %q: %w", "x", c.from)
		f.fail["CreateVolume"] = cause
		_, err := newLocal(f).Create(t.Context(), volume.CreateRequest{Name: "v"})
		if !errors.Is(err, c.to) || !errors.Is(err, c.from) || err.Error() != cause.Error() {
			t.Errorf("%v became %v, want it to be %v", c.from, err, c.to)
		}
	}
	f := newFake(ready(volumetest.Pool))
	f.fail["Pools"] = rpc.ErrUnreachable
	if err := newLocal(f).Health(t.Context()); !errors.Is(err, volume.ErrUnavailable) {
		t.Errorf("health: %v", err)
	}
}

// TestHalfDetached is a volume whose device is gone while the engine still closes it.
func TestHalfDetached(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	k := key{volumetest.Pool, v.ID.String()}
	f.attached[k] = host.Attachment{Pool: k[0], Volume: k[1], Stalled: "closing"}
	if _, err := s.Device(t.Context(), v.ID); !errors.Is(err, volume.ErrNotAttached) {
		t.Errorf("device: %v", err)
	}
	if got, err := s.Get(t.Context(), v.ID); err != nil || !got.Attached {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Detach(t.Context(), v.ID); err != nil {
		t.Error(err)
	}
}
