// Package kittest is a cluster in memory to test controllers in: controller-runtime's fake client with the cache's indexes, a clock that stands
// still, events that are kept, and calls that fail when a test wants it.
//
// Limits: no defaults, validation, admission or garbage collection; a watch is not needed, for tests call Reconcile until nothing changes.
package kittest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// Namespace of the release in tests.
const Namespace = "rowan"

// World is that cluster.
type World struct {
	*kit.Kit
	Clock *clocktesting.FakePassiveClock
	t     testing.TB

	mu     sync.Mutex
	events []string
	calls  int
	fail   func(call int) error
}

// ErrInjected is what a call fails with that was told to.
var ErrInjected = errors.New("the API server is away")

// Setup adds what a controller needs beside the kinds of every controller.
type Setup func(s *runtime.Scheme, b *fake.ClientBuilder) error

// New world with these objects. Status is stored as given.
func New(t testing.TB, setup Setup, objects ...client.Object) *World {
	t.Helper()
	w := &World{t: t, Clock: clocktesting.NewFakePassiveClock(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC))}
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, storagev1.AddToScheme, coordinationv1.AddToScheme} {
		w.must(add(s))
	}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithStatusSubresource(&v1alpha1.PoolSet{})
	for _, k := range kit.Kinds {
		b.WithStatusSubresource(k.New())
	}
	w.must(kit.Indexes(func(o client.Object, field string, extract client.IndexerFunc) error {
		b.WithIndex(o, field, extract)
		return nil
	}))
	if setup != nil {
		w.must(setup(s, b))
	}
	c := b.WithInterceptorFuncs(w.interceptor()).Build()
	w.Kit = &kit.Kit{Config: kit.DefaultConfig, Client: c, Live: c, Events: w, Clock: w.Clock}
	w.Namespace = Namespace
	return w
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// interceptor lets every call to the API server, reads as well, ask whether it is to fail. Writes fail after they were done every other time: an
// answer may be lost, too.
func (w *World) interceptor() interceptor.Funcs {
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			return w.read(func() error { return c.Get(ctx, key, o, opts...) })
		},
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			return w.read(func() error { return c.List(ctx, l, opts...) })
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return w.write(func() error { return c.Create(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return w.write(func() error { return c.Delete(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return w.write(func() error { return c.Patch(ctx, o, p, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch,
			opts ...client.SubResourcePatchOption) error {
			return w.write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	}
}

func (w *World) next() (call int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if w.fail == nil {
		return w.calls, nil
	}
	return w.calls, w.fail(w.calls)
}

func (w *World) read(do func() error) error {
	if _, err := w.next(); err != nil {
		return err
	}
	return do()
}

func (w *World) write(do func() error) error {
	call, err := w.next()
	switch {
	case err == nil:
		return do()
	case call%2 == 0:
		return err
	}
	return errors.Join(err, do())
}

// Fail calls as f says; nil: none. Calls are counted from 1 again.
func (w *World) Fail(f func(call int) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls, w.fail = 0, f
}

// Calls since the last Fail.
func (w *World) Calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// Eventf keeps an event as "Kind/name Reason: note".
func (w *World) Eventf(regarding, _ runtime.Object, _, reason, _, note string, args ...any) {
	o := regarding.(client.Object)
	gvk, err := w.Client.GroupVersionKindFor(regarding)
	w.must(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%s/%s %s: %s", gvk.Kind, o.GetName(), reason, fmt.Sprintf(note, args...)))
}

// TakeEvents returns the events since it was last called.
func (w *World) TakeEvents() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// Settle reconciles a name until nothing is written any more, and returns the last answer.
func (w *World) Settle(r reconcile.Reconciler, namespace, name string) reconcile.Result {
	w.t.Helper()
	for range 20 {
		before := w.Versions()
		result, err := r.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}})
		w.must(err)
		if before == w.Versions() {
			return result
		}
	}
	w.t.Fatalf("%T does not settle on %s", r, name)
	return reconcile.Result{}
}

// Versions of all objects of nodes and sets: the same if nothing was written.
func (w *World) Versions() string {
	w.t.Helper()
	text := ""
	lists := []client.ObjectList{&v1alpha1.PoolSetList{}, &corev1.PersistentVolumeClaimList{}}
	for _, k := range kit.Kinds {
		lists = append(lists, k.List())
	}
	for _, l := range lists {
		w.must(w.Client.List(w.t.Context(), l))
		w.must(meta.EachListItem(l, func(o runtime.Object) error {
			m := o.(client.Object)
			text += fmt.Sprintf("%T %s %s\n", o, m.GetName(), m.GetResourceVersion())
			return nil
		}))
	}
	return text
}

// Get an object by its name, or fail the test.
func (w *World) Get(o client.Object, name string) bool {
	w.t.Helper()
	err := w.Client.Get(w.t.Context(), client.ObjectKey{Name: name, Namespace: o.GetNamespace()}, o)
	w.must(client.IgnoreNotFound(err))
	return err == nil
}

// Create an object, or fail the test.
func (w *World) Create(o client.Object) {
	w.t.Helper()
	w.must(w.Client.Create(w.t.Context(), o))
}

// Delete an object, or fail the test.
func (w *World) Delete(o client.Object) {
	w.t.Helper()
	w.must(w.Client.Delete(w.t.Context(), o))
}

// SetStatus plays the agent: it writes what change did to the object's status.
func (w *World) SetStatus(o client.Object, change func()) {
	w.t.Helper()
	w.Get(o, o.GetName())
	w.must(w.PatchStatus(w.t.Context(), o, change))
}

// Step moves the clock on.
func (w *World) Step(d time.Duration) { w.Clock.SetTime(w.Clock.Now().Add(d)) }

// Node that runs our node plugin: the Node and its CSINode.
func Node(name, uid string, labels map[string]string) []client.Object {
	return []client.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), Labels: labels}},
		&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: v1alpha1.DriverName, NodeID: name}}}},
	}
}

// Renew plays the agent's lease: renewed now, with these foreign pools.
func (w *World) Renew(node, foreign string) {
	w.t.Helper()
	now := metav1.NewMicroTime(w.Clock.Now())
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace}}
	there := w.Get(lease, v1alpha1.AgentLease(node))
	lease.Name = v1alpha1.AgentLease(node)
	before := lease.DeepCopy()
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &node, &now
	lease.Annotations = map[string]string{v1alpha1.ForeignPools: foreign}
	if there {
		w.must(w.Client.Patch(w.t.Context(), lease, client.MergeFrom(before)))
		return
	}
	w.Create(lease)
}
