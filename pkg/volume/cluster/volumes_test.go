package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// short is a context that ends while an agent is silent.
func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// awhile is a context that lasts until an agent has refused.
func awhile(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not so in time", what)
		}
	}
}

func (f *fixture) volume(id volume.VolumeID) *v1alpha1.LocalVolume {
	f.t.Helper()
	var v v1alpha1.LocalVolume
	if err := f.api.Get(f.t.Context(), client.ObjectKey{Name: id.String()}, &v); err != nil {
		f.t.Fatal(err)
	}
	return &v
}

func (f *fixture) must(name string) volume.Volume {
	f.t.Helper()
	v, err := f.Create(f.t.Context(), volume.CreateRequest{Name: name, FSType: volume.FSExt4})
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

// says checks an error and its text.
func says(t *testing.T, what string, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

func TestFinalErrorLeavesNothing(t *testing.T) {
	f := newFixture(t, nil)
	for _, want := range []error{volume.ErrNoSpace, volume.ErrInvalid, volume.ErrSourceNotFound, volume.ErrExists, volume.ErrLost} {
		f.agent.set(func(a *agent) { a.fail["create"] = fmt.Errorf("the engine: %w: grow the pool", want) })
		_, err := f.Create(t.Context(), volume.CreateRequest{Name: "v"})
		says(t, "create", err, want, "the engine:", "grow the pool")
		if left := f.api.names(t); len(left) != 0 {
			t.Errorf("%v left %v", want, left)
		}
	}
	f.agent.set(func(a *agent) { a.fail = map[string]error{} })
	f.must("v")
}

func TestRetryableErrorLeavesTheObject(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	r := volume.CreateRequest{Name: "v"}
	for _, cause := range []error{volume.ErrFailed, volume.ErrNotFound, errors.New("surprise")} {
		f.agent.set(func(a *agent) { a.fail["create"] = fmt.Errorf("the engine: %w", cause) })
		_, err := c.Create(awhile(t), r)
		says(t, "create", err, volume.ErrUnavailable, "worker-a", "the engine: "+cause.Error())
		if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrFailed) {
			t.Errorf("%v: the caller would forget the volume", err)
		}
	}
	before := f.volume(r.ID())
	f.agent.set(func(a *agent) { a.fail = map[string]error{} })
	if _, err := c.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if now := f.volume(r.ID()); now.UID != before.UID || f.agent.did("create") != 1 {
		t.Errorf("object %s became %s, made %d times", before.UID, now.UID, f.agent.did("create"))
	}
}

func TestSilentNode(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	f.agent.set(func(a *agent) { a.silent = true })
	r := volume.CreateRequest{Name: "v"}
	for range 2 {
		_, err := c.Create(short(t), r)
		says(t, "create", err, context.DeadlineExceeded, "worker-a", r.ID().String())
	}
	if _, err := c.Get(t.Context(), r.ID()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a volume that is not made: %v", err)
	}
	if _, err := c.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: r.ID()}); !errors.Is(err, volume.ErrPending) {
		t.Errorf("a snapshot of it: %v", err)
	}
	other := r
	other.FSType = volume.FSXFS
	if _, err := c.Create(t.Context(), other); !errors.Is(err, volume.ErrExists) {
		t.Errorf("other parameters: %v", err)
	}
	f.agent.set(func(a *agent) { a.silent = false })
	if _, err := c.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.agent.set(func(a *agent) { a.silent = true })
	says(t, "delete", c.Delete(short(t), r.ID()), context.DeadlineExceeded, "worker-a")
	if _, err := c.Get(t.Context(), r.ID()); err != nil {
		t.Errorf("a volume that is being deleted: %v", err)
	}
	if _, err := c.Create(t.Context(), r); err != nil {
		t.Errorf("it is still answered: %v", err)
	}
	_, err := c.Create(t.Context(), volume.CreateRequest{Name: "copy", Source: volume.Source{Volume: r.ID()}})
	says(t, "a copy of it", err, volume.ErrSourceNotFound, "being removed")
	_, err = c.Expand(t.Context(), r.ID(), volume.Range{Required: 2 * volumetest.Gi})
	says(t, "growth of it", err, volume.ErrPending, "being removed")
	f.agent.set(func(a *agent) { a.silent = false })
	if err := c.Delete(t.Context(), r.ID()); err != nil {
		t.Fatal(err)
	}
	if left := f.api.names(t); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestTwoControllers: two processes are asked for the same, at once and over again.
func TestTwoControllers(t *testing.T) {
	f := newFixture(t, nil)
	a, b := volume.OpenController(f.Service), volume.OpenController(f.controller(nil))
	var wg sync.WaitGroup
	made := make([]volume.Volume, 40)
	for i := range made {
		c := []volume.Controller{a, b}[i%2]
		wg.Go(func() {
			for {
				var err error
				made[i], err = c.Create(t.Context(), volume.CreateRequest{Name: fmt.Sprint("v", i/4)})
				if err == nil {
					return
				}
				if !errors.Is(err, volume.ErrPending) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i, v := range made {
		if v.ID != volume.VolumeIDOf(fmt.Sprint("v", i/4)) || v != made[i/4*4] {
			t.Errorf("%d: %+v", i, v)
		}
	}
	if n := f.agent.did("create"); n != 10 {
		t.Errorf("%d creations, want 10", n)
	}
	for i := range made {
		c := []volume.Controller{a, b}[i%2]
		wg.Go(func() {
			for {
				err := c.Delete(t.Context(), made[i].ID)
				if err == nil {
					return
				}
				if !errors.Is(err, volume.ErrPending) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if left := f.api.names(t); len(left) != 0 || f.agent.did("delete") != 10 {
		t.Errorf("left %v, %d deletions, want 10", left, f.agent.did("delete"))
	}
}

func TestAgentAway(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	f := newFixture(t, func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	v := f.must("v")
	f.agent.set(func(a *agent) { a.silent = true })
	pending := volume.CreateRequest{Name: "pending"}
	if _, err := f.Create(short(t), pending); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	mu.Lock()
	now = now.Add(v1alpha1.AgentSilence)
	mu.Unlock()
	before := f.api.names(t)
	_, err := f.Create(t.Context(), volume.CreateRequest{Name: "w"})
	says(t, "create", err, volume.ErrNodeAway, "worker-a", "silent since")
	_, err = f.Create(t.Context(), volume.CreateRequest{Name: "c", Source: volume.Source{Volume: v.ID}})
	says(t, "copy", err, volume.ErrNodeAway, "worker-a")
	_, err = f.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: v.ID})
	says(t, "snapshot", err, volume.ErrNodeAway, "worker-a")
	_, err = f.Expand(t.Context(), v.ID, volume.Range{Required: 2 * volumetest.Gi})
	says(t, "expand", err, volume.ErrNodeAway, "worker-a")
	says(t, "delete", f.Delete(t.Context(), v.ID), volume.ErrNodeAway, "worker-a")
	if after := f.api.names(t); !slices.Equal(before, after) || f.volume(v.ID).Generation != 1 {
		t.Errorf("written although the node is away: %v, was %v", after, before)
	}
	if c, err := f.Capacity(t.Context(), volume.CapacityRequest{}); err != nil || c.Available != 0 {
		t.Errorf("capacity: %+v, %v", c, err)
	}
	_, err = f.Create(t.Context(), pending)
	says(t, "what was written already", err, volume.ErrUnavailable, "worker-a", "silent since")
}

func TestNeverSeenAgent(t *testing.T) {
	f := newFixture(t, nil)
	f.addPool("other", "worker-b", "node-b", volumetest.PoolSize)
	if err := f.api.Delete(t.Context(), f.lease("worker-b")); err != nil {
		t.Fatal(err)
	}
	_, err := f.controller(nil).Create(t.Context(), volume.CreateRequest{Name: "v", Placement: volume.Placement{
		Constrained: true, Requisite: []volume.NodeID{"node-b"},
	}})
	says(t, "create", err, volume.ErrNodeAway, "worker-b", "never reported")
}

// TestTwoKeys: the order in which a deletion is written, and what one key alone does.
func TestTwoKeys(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	if err := f.api.Delete(t.Context(), f.volume(v.ID)); err != nil { // as kubectl does
		t.Fatal(err)
	}
	eventually(t, "DeletionNotConfirmed", func() bool {
		return meta.IsStatusConditionTrue(f.volume(v.ID).Status.Conditions, v1alpha1.DeletionNotConfirmed)
	})
	if _, err := f.Get(t.Context(), v.ID); err != nil || f.agent.did("delete") != 0 {
		t.Errorf("one key: %v, %d deletions", err, f.agent.did("delete"))
	}
	if err := f.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	v = f.must("v")
	var order []string
	f.api.set(func(verb string, obj client.Object) error {
		order = append(order, fmt.Sprint(verb, " absent=", obj.(*v1alpha1.LocalVolume).Spec.DesiredState == v1alpha1.Absent,
			" finalizers=", len(obj.GetFinalizers())))
		return nil
	}, nil)
	if err := f.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	f.api.set(nil, nil)
	if want := []string{"patch absent=false finalizers=1", "delete absent=true finalizers=1",
		"patch absent=true finalizers=0"}; !slices.Equal(order, want) {
		t.Errorf("written %q, want %q", order, want)
	}
	if left := f.api.names(t); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestDeleteAttached(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	if _, err := f.agent.Attach(t.Context(), v.ID, false); err != nil {
		t.Fatal(err)
	}
	says(t, "delete", f.Delete(t.Context(), v.ID), volume.ErrInUse, "worker-a")
	if f.volume(v.ID).Spec.DesiredState == v1alpha1.Absent {
		t.Error("the first key is written: the volume would be deleted as soon as it is detached")
	}
	// The node's word counts where the condition came too late.
	f.agent.set(func(a *agent) { a.fail["delete"] = fmt.Errorf("device busy: %w", volume.ErrInUse) })
	if err := f.agent.Detach(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	says(t, "delete", f.Delete(t.Context(), v.ID), volume.ErrInUse, "device busy")
	f.agent.set(func(a *agent) { a.fail = map[string]error{} })
	eventually(t, "deleted", func() bool {
		err := f.Delete(t.Context(), v.ID)
		return err == nil || errors.Is(err, volume.ErrNotFound)
	})
}

// TestTombstone: a lost node's volume is deleted for the caller, and for the node when it returns.
func TestTombstone(t *testing.T) {
	f := newFixture(t, nil)
	v, kept := f.must("v"), f.must("kept")
	f.agent.set(func(a *agent) { a.silent = true })
	for _, id := range []volume.VolumeID{v.ID, kept.ID} {
		o := f.volume(id)
		f.status(o, func() { state(&o.Status.Conditions, v1alpha1.NodeLost, 1, nil) })
	}
	if err := f.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(t.Context(), v.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
	if _, err := f.Get(t.Context(), v.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if all, _, err := f.List(t.Context(), volume.Page[volume.VolumeID]{}); err != nil || len(all) != 1 || all[0].ID != kept.ID {
		t.Errorf("list: %v, %v", all, err)
	}
	if o := f.volume(v.ID); o.Spec.DesiredState != v1alpha1.Absent || o.DeletionTimestamp.IsZero() || len(o.Finalizers) != 1 {
		t.Errorf("no tombstone: %+v", o)
	}
	if _, err := f.Create(t.Context(), volume.CreateRequest{Name: "v", FSType: volume.FSExt4}); !errors.Is(err, volume.ErrPending) {
		t.Errorf("a new one of its name: %v", err)
	}
	f.agent.set(func(a *agent) { a.silent = false })
	eventually(t, "deleted by its node", func() bool { return f.agent.did("delete") == 1 })
	if f.volume(kept.ID).Spec.DesiredState == v1alpha1.Absent {
		t.Error("a volume that nobody asked to delete")
	}
}

// TestSecondLook: two processes admit at once what only one of them should; the younger gives way.
func TestSecondLook(t *testing.T) {
	f := newFixture(t, nil)
	slow := &fakeCache{apiServer: f.api, hide: func(obj client.Object) bool { _, ok := obj.(*v1alpha1.LocalVolume); return ok }}
	late := &fixture{t: t, api: f.api, cache: slow}
	late.Service = late.controller(nil)
	big := volume.Range{Required: 150 * volumetest.Gi}
	if _, err := f.Create(t.Context(), volume.CreateRequest{Name: "first", Capacity: big}); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := late.Create(t.Context(), volume.CreateRequest{Name: "second", Capacity: big})
		failed <- err
	}()
	eventually(t, "both admitted", func() bool { return len(f.api.names(t)) == 2 })
	slow.setHide(nil)
	says(t, "the younger", <-failed, volume.ErrNoSpace, "can promise")
	if left := f.api.names(t); !slices.Equal(left, []string{volume.VolumeIDOf("first").String()}) {
		t.Errorf("left %v", left)
	}
}

// TestStaleCache: a process is asked again for what another made, does not see it yet, and could not make it any more.
func TestStaleCache(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	copied := volume.CreateRequest{Name: "copy", FSType: volume.FSExt4, Source: volume.Source{Volume: v.ID}}
	cut := volume.SnapshotRequest{Name: "s", Source: v.ID}
	c := volume.OpenController(f.Service)
	made, err := c.Create(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.CreateSnapshot(t.Context(), cut)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	slow := &fakeCache{apiServer: f.api, hide: func(obj client.Object) bool { _, ok := obj.(*v1alpha1.Pool); return !ok }}
	late := &fixture{t: t, api: f.api, cache: slow}
	late.Service = late.controller(nil)
	c = volume.OpenController(late.Service)
	if got, err := c.Create(t.Context(), copied); err != nil || got != made {
		t.Errorf("create: %+v, %v, want %+v", got, err, made)
	}
	if got, err := c.CreateSnapshot(t.Context(), cut); err != nil || got != snap {
		t.Errorf("cut: %+v, %v, want %+v", got, err, snap)
	}
}

// TestDefinitionGone: the API server's answer while the kinds are gone says nothing about volumes.
func TestDefinitionGone(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	notServed := &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: 404, Reason: metav1.StatusReasonNotFound, Message: "the server could not find the requested resource",
		Details: &metav1.StatusDetails{Group: "rowan.storage", Kind: "localvolumes"},
	}}
	f.api.set(func(string, client.Object) error { return notServed }, nil)
	says(t, "delete", f.Delete(t.Context(), v.ID), volume.ErrUnavailable, "could not find the requested resource")
	_, err := f.Create(t.Context(), volume.CreateRequest{Name: "w"})
	says(t, "create", err, volume.ErrUnavailable)
	f.api.set(nil, nil)
	if err := f.Delete(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
}

// TestEveryWriteFailsOnce: whatever write of whatever call fails, before or after it was done, repeating the call comes to the same end.
func TestEveryWriteFailsOnce(t *testing.T) {
	everyWriteFails(t, func(f *failing) {
		c := volume.OpenController(f.Service)
		f.arm()
		r := volume.CreateRequest{Name: "v"}
		s := volume.SnapshotRequest{Name: "s", Source: r.ID()}
		f.again("create", func() error { _, err := c.Create(t.Context(), r); return err })
		f.again("expand", func() error {
			v, err := c.Expand(t.Context(), r.ID(), volume.Range{Required: 2 * volumetest.Gi})
			if err == nil && v.Sizing.Size != 2*volumetest.Gi {
				t.Errorf("grown to %d", v.Sizing.Size)
			}
			return err
		})
		f.again("cut", func() error { _, err := c.CreateSnapshot(t.Context(), s); return err })
		f.again("delete", func() error { return c.Delete(t.Context(), r.ID()) })
		f.again("delete the snapshot", func() error { return c.DeleteSnapshot(t.Context(), s.ID()) })
		if left := f.api.names(t); len(left) != 0 {
			t.Errorf("%s: left %v", f.how, left)
		}
		if f.agent.did("create") != 1 || f.agent.did("cut") != 1 || f.agent.did("delete") != 2 {
			t.Errorf("%s: the node did %v", f.how, f.agent.done)
		}
	})
}
