package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

func (f *fixture) snapshotObject(id volume.SnapshotID) *v1alpha1.LocalSnapshot {
	f.t.Helper()
	var s v1alpha1.LocalSnapshot
	if err := f.api.Get(f.t.Context(), client.ObjectKey{Name: id.String()}, &s); err != nil {
		f.t.Fatal(err)
	}
	return &s
}

// TestCommandsExpire: what nobody waits for any more is not cut, and a retry moves the time on.
func TestCommandsExpire(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	v := f.must("v")
	f.agent.set(func(a *agent) { a.silent = true })
	r := volume.SnapshotRequest{Name: "s", Source: v.ID}
	ctx := short(t)
	deadline, _ := ctx.Deadline()
	_, err := c.CreateSnapshot(ctx, r)
	says(t, "cut", err, context.DeadlineExceeded, "worker-a", r.ID().String())
	first := f.snapshotObject(r.ID())
	if until := first.Spec.NotAfter.Time; until.After(deadline) || until.Before(deadline.Add(-2*time.Second)) {
		t.Errorf("may be cut until %v, the call ends at %v", until, deadline)
	}
	eventually(t, "past", func() bool { return time.Now().After(first.Spec.NotAfter.Time) })
	f.agent.set(func(a *agent) { a.silent = false })
	eventually(t, "expired", func() bool { return len(f.snapshotObject(r.ID()).Status.Conditions) > 0 })
	if f.agent.did("cut") != 0 {
		t.Error("cut after the caller stopped waiting")
	}
	if _, err := c.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: volume.VolumeIDOf("x")}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("the same name for another source: %v", err)
	}
	snap, err := c.CreateSnapshot(t.Context(), r)
	if err != nil || snap.CreatedAt.Before(first.Spec.NotAfter.Time) {
		t.Fatalf("retry: %+v, %v", snap, err)
	}
	if now := f.snapshotObject(r.ID()); now.UID != first.UID || !now.Spec.NotAfter.After(first.Spec.NotAfter.Time) {
		t.Errorf("another object, or not moved on: %+v", now)
	}
	for range 2 { // the first cut's time, its source gone or not
		if again, err := c.CreateSnapshot(t.Context(), r); err != nil || again != snap {
			t.Errorf("again: %+v, %v, want %+v", again, err, snap)
		}
		if err := c.Delete(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	if f.agent.did("cut") != 1 {
		t.Errorf("%d cuts", f.agent.did("cut"))
	}
}

// TestExpiredWhileWaiting: the node's clock is ahead; the caller is told to ask again.
func TestExpiredWhileWaiting(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	f.agent.set(func(a *agent) { a.silent = true })
	failed := make(chan error)
	r := volume.SnapshotRequest{Name: "s", Source: v.ID}
	go func() {
		_, err := f.CreateSnapshot(t.Context(), r)
		failed <- err
	}()
	eventually(t, "asked for", func() bool { return len(f.api.names(t)) == 2 })
	o := f.snapshotObject(r.ID())
	f.status(o, func() {
		o.Status.Conditions = []metav1.Condition{{
			Type: v1alpha1.Created, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonExpired, Message: "too late", ObservedGeneration: o.Generation,
		}}
	})
	says(t, "cut", <-failed, volume.ErrUnavailable, "too late")
}

func TestCutErrors(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	r := volume.SnapshotRequest{Name: "s", Source: v.ID}
	f.agent.set(func(a *agent) { a.fail["cut"] = fmt.Errorf("gates: %w", volume.ErrPending) })
	_, err := f.CreateSnapshot(awhile(t), r)
	says(t, "retryable", err, volume.ErrUnavailable, "gates:")
	f.agent.set(func(a *agent) { a.fail["cut"] = fmt.Errorf("pool: %w", volume.ErrNoSpace) })
	_, err = f.CreateSnapshot(t.Context(), r)
	says(t, "final", err, volume.ErrNoSpace, "pool:")
	if left := f.api.names(t); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	f.agent.set(func(a *agent) { a.fail = map[string]error{} })
	snap, err := f.CreateSnapshot(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}

	pool := &v1alpha1.Pool{}
	pool.Name = volumetest.Pool
	f.status(pool, func() { state(&pool.Status.Conditions, v1alpha1.SpaceScarce, 1, nil) })
	_, err = f.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "more", Source: v.ID})
	says(t, "nearly full", err, volume.ErrNoSpace, volumetest.Pool+" is nearly full and takes no new volumes and snapshots")
	f.status(pool, func() { state(&pool.Status.Conditions, v1alpha1.Ready, 1, errors.New("disk broken")) })
	_, err = f.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "more", Source: v.ID})
	says(t, "out of service", err, volume.ErrFailed, "disk broken", "worker-a")

	o := f.volume(v.ID)
	f.status(o, func() { state(&o.Status.Conditions, v1alpha1.Lost, 1, nil) })
	_, err = f.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "more", Source: v.ID})
	says(t, "lost", err, volume.ErrLost, "worker-a")
	so := f.snapshotObject(snap.ID)
	f.status(so, func() { state(&so.Status.Conditions, v1alpha1.Lost, 1, nil) })
	_, err = f.Create(t.Context(), volume.CreateRequest{Name: "c", Source: volume.Source{Snapshot: snap.ID}})
	says(t, "a copy of what is lost", err, volume.ErrLost, "worker-a")
}

// TestGrowth: what a growth that another call began means for the next.
func TestGrowth(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	f.agent.set(func(a *agent) { a.fail["grow"] = fmt.Errorf("device busy: %w", volume.ErrUnavailable) })
	_, err := f.Expand(awhile(t), v.ID, volume.Range{Required: 4 * volumetest.Gi})
	says(t, "retryable", err, volume.ErrUnavailable, "device busy")
	if got, err := f.Get(t.Context(), v.ID); err != nil || got.Sizing != v.Sizing {
		t.Errorf("not grown yet: %+v, %v", got.Sizing, err)
	}
	generation := f.volume(v.ID).Generation
	f.agent.set(func(a *agent) { a.fail["grow"] = fmt.Errorf("pool: %w", volume.ErrNoSpace) })
	_, err = f.Expand(t.Context(), v.ID, volume.Range{Required: 3 * volumetest.Gi})
	says(t, "no space", err, volume.ErrNoSpace, "pool:")
	if got := f.volume(v.ID).Generation; got != generation {
		t.Errorf("less than what is wanted already was written: generation %d, was %d", got, generation)
	}
	_, err = f.Expand(t.Context(), v.ID, volume.Range{Required: 3 * volumetest.Gi, Limit: 3 * volumetest.Gi})
	says(t, "beyond the limit of the call", err, volume.ErrOutOfRange, "growing to")
	f.agent.set(func(a *agent) { a.fail = map[string]error{} })
	eventually(t, "grown by the node, whoever still waits", func() bool { return f.volume(v.ID).Status.Size.Value() == 4*volumetest.Gi })
	for _, c := range []struct{ required, size int64 }{{2, 4}, {5, 5}, {3, 5}} {
		got, err := f.Expand(t.Context(), v.ID, volume.Range{Required: c.required * volumetest.Gi})
		if err != nil || got.Sizing.Size != c.size*volumetest.Gi {
			t.Errorf("to %d GiB: %+v, %v, want %d GiB", c.required, got.Sizing, err, c.size)
		}
	}
}

// TestGrowthConflict: somebody else changes the object between reading and writing.
func TestGrowthConflict(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	conflicts := 3
	f.api.set(func(verb string, _ client.Object) error {
		if conflicts--; conflicts < 0 {
			return nil
		}
		return apierrors.NewConflict(schema.GroupResource{Resource: "localvolumes"}, v.ID.String(), errors.New("changed"))
	}, nil)
	if got, err := f.Expand(t.Context(), v.ID, volume.Range{Required: 2 * volumetest.Gi}); err != nil || got.Sizing.Size != 2*volumetest.Gi {
		t.Errorf("%+v, %v", got.Sizing, err)
	}
}
