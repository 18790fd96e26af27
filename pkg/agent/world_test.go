package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/host/hosttest"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

const (
	nodeName = "node-1"
	mi       = 1 << 20
)

// world is a node with its engine, real but for the devices, and a cluster of objects.
type world struct {
	t        *testing.T
	dir      string // the node's disk
	rings    string
	state    string
	attacher *hosttest.Attacher
	host     *host.Host
	server   *rpc.Server
	served   chan error
	socket   string
	rpc      *rpc.Client
	engine   *faulty
	client   client.WithWatch
	clock    *testclock.FakeClock
	events   *recorder
	agent    *Agent
	faults   *faults
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), attacher: &hosttest.Attacher{}, events: &recorder{}, faults: &faults{}, clock: testclock.NewFakeClock(time.Now())}
	rings, err := os.MkdirTemp("/dev/shm", "rowan-agent-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(rings)) })
	w.rings, w.state, w.socket = rings, filepath.Join(w.dir, "state"), filepath.Join(w.dir, "engine.sock")
	w.rpc, err = rpc.Dial(w.socket)
	must(t, err)
	w.engine = &faulty{Client: w.rpc, f: w.faults}
	w.startEngine()
	t.Cleanup(func() {
		w.check()
		w.stopEngine()
		must(t, w.rpc.Close())
	})
	scheme, err := Scheme()
	must(t, err)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, UID: "node-uid"}}
	w.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects, node)...).
		WithStatusSubresource(&v1alpha1.Pool{}, &v1alpha1.LocalVolume{}, &v1alpha1.LocalSnapshot{}, &v1alpha1.LocalSnapshotGroup{}).
		WithInterceptorFuncs(w.faults.interceptors()).Build()
	w.startAgent()
	return w
}

func (w *world) startAgent() {
	w.t.Helper()
	var err error
	w.agent, err = New(w.client, w.client, w.engine, w.events, Config{
		Node: nodeName, Namespace: "rowan", IdentityFile: filepath.Join(w.dir, "identity"), Interval: 15 * time.Second, Clock: w.clock,
	})
	must(w.t, err)
}

func (w *world) startEngine() {
	w.t.Helper()
	var err error
	w.host, err = host.New(w.t.Context(), host.Config{
		Engine: host.Real{}, Attacher: w.attacher, StateDir: w.state, Options: engine.Options{RingDir: w.rings, MountDir: filepath.Join(w.dir, "mnt")},
	})
	must(w.t, err)
	must(w.t, w.host.Start(w.t.Context()))
	l, err := rpc.Listen(w.socket)
	must(w.t, err)
	server, served := rpc.NewServer(w.host, "v1"), make(chan error, 1)
	w.server, w.served = server, served
	go func() { served <- server.Serve(l) }()
	within(w.t, "the engine answers and its pools are open", func() bool {
		ps, err := w.rpc.Pools(w.t.Context())
		for _, p := range ps {
			if p.State == host.StateOpening {
				return false
			}
		}
		return err == nil
	})
}

func (w *world) stopEngine() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w.server.Stop(ctx)
	must(w.t, <-w.served)
	must(w.t, w.host.Stop(ctx))
}

// check has every open pool checked.
func (w *world) check() {
	w.t.Helper()
	ctx := context.Background()
	ps, err := w.rpc.Pools(ctx)
	must(w.t, err)
	for _, p := range ps {
		if p.State == host.StateUnavailable {
			continue
		}
		r, err := w.rpc.Check(ctx, p.Name)
		must(w.t, err)
		if len(r.Problems) > 0 {
			w.t.Errorf("pool %s: %s", p.Name, strings.Join(r.Problems, "; "))
		}
	}
}

// reconcilers are those of all kinds, with the kinds' lists.
func (w *world) reconcilers() map[client.ObjectList]reconcile.Reconciler {
	return map[client.ObjectList]reconcile.Reconciler{
		&v1alpha1.PoolList{}: pools{w.agent}, &v1alpha1.LocalVolumeList{}: volumes{w.agent},
		&v1alpha1.LocalSnapshotList{}: snapshots{w.agent}, &v1alpha1.LocalSnapshotGroupList{}: groups{w.agent},
	}
}

// settle looks at every object until nothing changes any more, as the manager's queues do, and answers the errors of the last round.
func (w *world) settle() error {
	w.t.Helper()
	for range 20 {
		before, errs := w.snapshotOfAll(), error(nil)
		for list, r := range w.reconcilers() {
			must(w.t, w.client.List(w.t.Context(), list))
			must(w.t, meta.EachListItem(list, func(o runtime.Object) error {
				_, err := r.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: o.(client.Object).GetName()}})
				errs = errors.Join(errs, err)
				return nil
			}))
		}
		if reflect.DeepEqual(before, w.snapshotOfAll()) {
			return errs
		}
	}
	w.t.Fatal("it does not settle")
	return nil
}

// snapshotOfAll is the resource versions of all objects.
func (w *world) snapshotOfAll() map[string]string {
	all := map[string]string{}
	for list := range w.reconcilers() {
		must(w.t, w.client.List(w.t.Context(), list))
		must(w.t, meta.EachListItem(list, func(o runtime.Object) error {
			obj := o.(client.Object)
			all[fmt.Sprintf("%T/%s", o, obj.GetName())] = obj.GetResourceVersion()
			return nil
		}))
	}
	return all
}

// settled is settle where nothing may be wrong.
func (w *world) settled() {
	w.t.Helper()
	must(w.t, w.settle())
}

// apply makes an object, or changes its spec as a controller does.
func (w *world) apply(o client.Object) {
	w.t.Helper()
	old := o.DeepCopyObject().(client.Object)
	if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), old); err != nil {
		must(w.t, client.IgnoreNotFound(err))
		if o.GetUID() == "" {
			o.SetUID(types.UID("uid-of-" + o.GetName()))
		}
		o.SetGeneration(1)
		must(w.t, w.client.Create(w.t.Context(), o))
		return
	}
	o.SetGeneration(old.GetGeneration() + 1)
	o.SetResourceVersion(old.GetResourceVersion())
	must(w.t, w.client.Update(w.t.Context(), o))
}

// get reads an object again.
func get[T client.Object](w *world, o T) T {
	w.t.Helper()
	must(w.t, w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), o))
	return o
}

// condition fails the test where a condition is not as wanted; reason "" is any.
func (w *world) condition(o client.Object, kind string, status metav1.ConditionStatus, reason string) *metav1.Condition {
	w.t.Helper()
	must(w.t, w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), o))
	s, _, _ := common(o)
	c := meta.FindStatusCondition(s.Conditions, kind)
	if c == nil || c.Status != status || reason != "" && c.Reason != reason {
		w.t.Fatalf("%s: condition %s is %+v, want %s %s", o.GetName(), kind, c, status, reason)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within waits for a condition.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// recorder keeps events.
type recorder struct {
	mu  sync.Mutex
	all []string
}

func (r *recorder) Eventf(about, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fmt.Sprintf("%s %s %s: %s", about.(client.Object).GetName(), kind, reason, fmt.Sprintf(note, args...)))
}

func (r *recorder) AnnotatedEventf(about, related runtime.Object, _ map[string]string, kind, reason, action, note string, args ...any) {
	r.Eventf(about, related, kind, reason, action, note, args...)
}

func (r *recorder) has(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.all {
		if strings.Contains(e, part) {
			return true
		}
	}
	return false
}

// faults fails one call, before or after it did its work: as a process would see it that is killed there and starts again.
type faults struct {
	mu    sync.Mutex
	on    bool
	calls int
	at    int // the call to fail
	after bool
	hit   string // the call that failed
}

var errKilled = errors.New("killed here")

// arm fails the n-th call from now on.
func (f *faults) arm(n int, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on, f.calls, f.at, f.after, f.hit = true, 0, n, after, ""
}

func (f *faults) disarm() (hit string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = false
	return f.hit
}

// around does a call, or fails it.
func (f *faults) around(name string, do func() error) error {
	f.mu.Lock()
	mine := f.on && f.hit == "" && f.calls == f.at
	f.calls++
	if mine {
		f.hit = name
	}
	after := f.after
	f.mu.Unlock()
	if mine && !after {
		return fmt.Errorf("%s: %w", name, errKilled)
	}
	err := do()
	if mine {
		return errors.Join(err, fmt.Errorf("%s: %w", name, errKilled))
	}
	return err
}

func (f *faults) interceptors() interceptor.Funcs {
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			return f.around(fmt.Sprintf("get %T", o), func() error { return c.Get(ctx, key, o, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return f.around(fmt.Sprintf("patch %T", o), func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	}
}

// faulty is the engine's client with faults.
type faulty struct {
	*rpc.Client
	f *faults
}

func faultyCall[T any](e *faulty, name string, do func() (T, error)) (v T, err error) {
	err = e.f.around("engine "+name, func() (err error) { v, err = do(); return err })
	return v, err
}

func (e *faulty) Pool(ctx context.Context, name string) (engine.PoolInfo, error) {
	return faultyCall(e, "Pool", func() (engine.PoolInfo, error) { return e.Client.Pool(ctx, name) })
}

func (e *faulty) CreatePool(ctx context.Context, s engine.PoolSpec) (engine.PoolInfo, error) {
	return faultyCall(e, "CreatePool", func() (engine.PoolInfo, error) { return e.Client.CreatePool(ctx, s) })
}

func (e *faulty) OpenPool(ctx context.Context, s host.OpenSpec) (engine.PoolInfo, error) {
	return faultyCall(e, "OpenPool", func() (engine.PoolInfo, error) { return e.Client.OpenPool(ctx, s) })
}

func (e *faulty) CreateVolume(ctx context.Context, pool string, s engine.VolumeSpec) (engine.VolumeInfo, error) {
	return faultyCall(e, "CreateVolume", func() (engine.VolumeInfo, error) { return e.Client.CreateVolume(ctx, pool, s) })
}

func (e *faulty) Volume(ctx context.Context, pool, name string) (engine.VolumeInfo, error) {
	return faultyCall(e, "Volume", func() (engine.VolumeInfo, error) { return e.Client.Volume(ctx, pool, name) })
}

func (e *faulty) SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (engine.VolumeInfo, error) {
	return faultyCall(e, "SetVolumeLabels", func() (engine.VolumeInfo, error) { return e.Client.SetVolumeLabels(ctx, pool, name, set) })
}

func (e *faulty) GrowVolume(ctx context.Context, pool, name string, size int64) (engine.VolumeInfo, error) {
	return faultyCall(e, "GrowVolume", func() (engine.VolumeInfo, error) { return e.Client.GrowVolume(ctx, pool, name, size) })
}

func (e *faulty) ChangeVolume(ctx context.Context, pool, name string, c engine.VolumeChange) (engine.VolumeInfo, error) {
	return faultyCall(e, "ChangeVolume", func() (engine.VolumeInfo, error) { return e.Client.ChangeVolume(ctx, pool, name, c) })
}

func (e *faulty) DeleteVolume(ctx context.Context, pool, name string) error {
	return e.f.around("engine DeleteVolume", func() error { return e.Client.DeleteVolume(ctx, pool, name) })
}

func (e *faulty) CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error) {
	return faultyCall(e, "CreateSnapshot", func() (engine.SnapshotInfo, error) { return e.Client.CreateSnapshot(ctx, pool, s) })
}

func (e *faulty) CreateSnapshotGroup(ctx context.Context, pool string, s engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error) {
	return faultyCall(e, "CreateSnapshotGroup", func() ([]engine.SnapshotInfo, error) { return e.Client.CreateSnapshotGroup(ctx, pool, s) })
}

func (e *faulty) HoldVolume(ctx context.Context, pool, name, holder string) (engine.VolumeInfo, error) {
	return faultyCall(e, "HoldVolume", func() (engine.VolumeInfo, error) { return e.Client.HoldVolume(ctx, pool, name, holder) })
}

func (e *faulty) ReleaseVolume(ctx context.Context, pool, name, holder string) (engine.VolumeInfo, error) {
	return faultyCall(e, "ReleaseVolume", func() (engine.VolumeInfo, error) { return e.Client.ReleaseVolume(ctx, pool, name, holder) })
}

func (e *faulty) RollbackVolume(ctx context.Context, pool, name, snapshot, holder string) (engine.VolumeInfo, error) {
	return faultyCall(e, "RollbackVolume", func() (engine.VolumeInfo, error) { return e.Client.RollbackVolume(ctx, pool, name, snapshot, holder) })
}

func (e *faulty) DeleteSnapshot(ctx context.Context, pool, name string) error {
	return e.f.around("engine DeleteSnapshot", func() error { return e.Client.DeleteSnapshot(ctx, pool, name) })
}

var _ Engine = (*faulty)(nil)
