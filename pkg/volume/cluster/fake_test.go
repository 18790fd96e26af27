package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume/cluster"
)

const namespace = "rowan-system"

// apiServer is controller-runtime's fake with what it lacks of an API server: UIDs, generations and preconditions. Its knob: before may fail a write.
type apiServer struct {
	client.WithWatch

	mu     sync.Mutex
	uids   int                                        // guarded by mu, as all below
	writes int                                        // of the clients, status aside
	before func(verb string, obj client.Object) error // "create", "patch" or "delete"
	after  func(verb string, obj client.Object) error // its error comes although the write was done
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	a := &apiServer{}
	raw := fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&v1alpha1.Pool{}, &v1alpha1.LocalVolume{}, &v1alpha1.LocalSnapshot{}, &v1alpha1.LocalSnapshotGroup{}).Build()
	a.WithWatch = interceptor.NewClient(raw, interceptor.Funcs{Create: a.create, Patch: a.patch, Delete: a.delete})
	return a
}

func (a *apiServer) set(before, after func(verb string, obj client.Object) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before, a.after = before, after
}

// write does one write alone, with the knobs around it.
func (a *apiServer) write(verb string, obj client.Object, do func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writes++
	if a.before != nil {
		if err := a.before(verb, obj); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if a.after != nil {
		return a.after(verb, obj)
	}
	return nil
}

func (a *apiServer) create(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
	return a.write("create", obj, func() error {
		a.uids++
		obj.SetUID(types.UID(fmt.Sprintf("uid-%d", a.uids)))
		obj.SetGeneration(1)
		obj.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
		return c.Create(ctx, obj, opts...)
	})
}

func (a *apiServer) patch(ctx context.Context, c client.WithWatch, obj client.Object, p client.Patch, opts ...client.PatchOption) error {
	return a.write("patch", obj, func() error {
		data, err := p.Data(obj)
		if err != nil {
			return err
		}
		var change map[string]any
		if err := json.Unmarshal(data, &change); err != nil {
			return err
		}
		now, ok := obj.DeepCopyObject().(client.Object)
		if !ok {
			return fmt.Errorf("%T", obj)
		}
		if err := c.Get(ctx, client.ObjectKeyFromObject(obj), now); err != nil {
			return err
		}
		meta, _ := change["metadata"].(map[string]any)
		if uid, ok := meta["uid"]; ok && uid != string(now.GetUID()) {
			return apierrors.NewConflict(schema.GroupResource{}, obj.GetName(), fmt.Errorf("uid %s, not %v", now.GetUID(), uid))
		}
		if _, ok := change["spec"]; ok {
			if meta == nil {
				meta = map[string]any{}
				change["metadata"] = meta
			}
			meta["generation"] = now.GetGeneration() + 1
		}
		if data, err = json.Marshal(change); err != nil {
			return err
		}
		return c.Patch(ctx, obj, client.RawPatch(p.Type(), data), opts...)
	})
}

func (a *apiServer) delete(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
	return a.write("delete", obj, func() error { return c.Delete(ctx, obj, opts...) })
}

// fakeCache reads the API server, whose watches it hands on. Its knob: hide keeps objects from being seen.
type fakeCache struct {
	*apiServer
	mu   sync.Mutex
	hide func(client.Object) bool // guarded by mu
	poke []func()                 // guarded by mu: tell every watcher of everything
}

var _ cluster.Cache = (*fakeCache)(nil)

func (c *fakeCache) Synced() bool { return true }

func (c *fakeCache) hidden(obj client.Object) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hide != nil && c.hide(obj)
}

// setHide changes what is hidden, and tells of everything again.
func (c *fakeCache) setHide(hide func(client.Object) bool) {
	c.mu.Lock()
	c.hide = hide
	poke := c.poke
	c.mu.Unlock()
	for _, f := range poke {
		f()
	}
}

func (c *fakeCache) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	if err := c.apiServer.Get(ctx, key, obj, opts...); err != nil {
		return err
	}
	if c.hidden(obj) {
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	}
	return nil
}

func (c *fakeCache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if err := c.apiServer.List(ctx, list); err != nil {
		return err
	}
	if l, ok := list.(*v1alpha1.LocalVolumeList); ok {
		var seen []v1alpha1.LocalVolume
		for _, v := range l.Items {
			if !c.hidden(&v) {
				seen = append(seen, v)
			}
		}
		l.Items = seen
	}
	return nil
}

func listOf(obj client.Object) client.ObjectList {
	switch obj.(type) {
	case *v1alpha1.LocalVolume:
		return &v1alpha1.LocalVolumeList{}
	case *v1alpha1.LocalSnapshot:
		return &v1alpha1.LocalSnapshotList{}
	case *v1alpha1.LocalSnapshotGroup:
		return &v1alpha1.LocalSnapshotGroupList{}
	case *v1alpha1.Pool:
		return &v1alpha1.PoolList{}
	}
	return &coordinationv1.LeaseList{}
}

// Watch implements cluster.Cache. The fake's watches begin before they return, and lose nothing.
func (c *fakeCache) Watch(ctx context.Context, obj client.Object, changed func(client.Object)) error {
	w, err := c.apiServer.Watch(ctx, listOf(obj))
	if err != nil {
		return err
	}
	all := func() {
		list := listOf(obj)
		if err := c.apiServer.List(ctx, list); err != nil {
			return
		}
		switch l := list.(type) {
		case *v1alpha1.LocalVolumeList:
			for i := range l.Items {
				changed(&l.Items[i])
			}
		case *v1alpha1.LocalSnapshotList:
			for i := range l.Items {
				changed(&l.Items[i])
			}
		case *v1alpha1.LocalSnapshotGroupList:
			for i := range l.Items {
				changed(&l.Items[i])
			}
		case *coordinationv1.LeaseList:
			for i := range l.Items {
				changed(&l.Items[i])
			}
		}
	}
	all()
	c.mu.Lock()
	c.poke = append(c.poke, all)
	c.mu.Unlock()
	go func() {
		<-ctx.Done()
		w.Stop()
	}()
	go func() {
		for e := range w.ResultChan() {
			if o, ok := e.Object.(client.Object); ok {
				changed(o)
			}
		}
	}()
	return nil
}
