package cluster_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// agent plays a node's agent over a node in memory. Its knobs: silent does nothing, fail makes an operation ("create", "delete", "cut", "grow") fail.
type agent struct {
	*memory.Service
	t    *testing.T
	api  *apiServer
	node string
	work chan client.Object

	mu     sync.Mutex
	silent bool // guarded by mu, as all below
	fail   map[string]error
	done   []string // operations that were carried out
}

// newAgent starts it; it ends with the test.
func newAgent(t *testing.T, api *apiServer, cache *fakeCache, node, identity, pool string) *agent {
	t.Helper()
	a := &agent{
		Service: memory.New(memory.Config{Node: volume.NodeID(identity), Pool: pool, Size: 1 << 50, Admission: volume.Admission{Overcommit: 1000}}),
		t:       t, api: api, node: node, work: make(chan client.Object, 10000), fail: map[string]error{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	changed := func(obj client.Object) { a.work <- obj }
	for _, obj := range []client.Object{&v1alpha1.LocalVolume{}, &v1alpha1.LocalSnapshot{}, &v1alpha1.LocalSnapshotGroup{}} {
		if err := cache.Watch(ctx, obj, changed); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case obj := <-a.work:
				if err := a.reconcile(ctx, obj); err != nil && ctx.Err() == nil {
					t.Errorf("agent of %s: %v", node, err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return a
}

// set changes the knobs, and has everything looked at again.
func (a *agent) set(change func(a *agent)) {
	a.t.Helper()
	a.mu.Lock()
	change(a)
	a.mu.Unlock()
	var volumes v1alpha1.LocalVolumeList
	var snaps v1alpha1.LocalSnapshotList
	var groups v1alpha1.LocalSnapshotGroupList
	if err := errors.Join(a.api.List(a.t.Context(), &volumes), a.api.List(a.t.Context(), &snaps), a.api.List(a.t.Context(), &groups)); err != nil {
		a.t.Fatal(err)
	}
	for i := range groups.Items {
		a.work <- &groups.Items[i]
	}
	for i := range volumes.Items {
		a.work <- &volumes.Items[i]
	}
	for i := range snaps.Items {
		a.work <- &snaps.Items[i]
	}
}

// did counts an operation.
func (a *agent) did(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, d := range a.done {
		if d == what {
			n++
		}
	}
	return n
}

// try is an operation that the knobs may fail.
func (a *agent) try(what string, do func() error) error {
	a.mu.Lock()
	err := a.fail[what]
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if err = do(); err == nil {
		a.mu.Lock()
		a.done = append(a.done, what)
		a.mu.Unlock()
	}
	return err
}

func (a *agent) reconcile(ctx context.Context, changed client.Object) error {
	a.mu.Lock()
	silent := a.silent
	a.mu.Unlock()
	if silent {
		return nil
	}
	switch changed.(type) {
	case *v1alpha1.LocalVolume:
		var v v1alpha1.LocalVolume
		if err := a.api.Get(ctx, client.ObjectKeyFromObject(changed), &v); err != nil {
			return client.IgnoreNotFound(err)
		}
		if v.Spec.NodeName != a.node {
			return nil
		}
		before := v.DeepCopy()
		a.volume(ctx, &v)
		return a.report(ctx, &v, before)
	case *v1alpha1.LocalSnapshot:
		var s v1alpha1.LocalSnapshot
		if err := a.api.Get(ctx, client.ObjectKeyFromObject(changed), &s); err != nil {
			return client.IgnoreNotFound(err)
		}
		if s.Spec.NodeName != a.node {
			return nil
		}
		before := s.DeepCopy()
		a.snapshot(ctx, &s)
		return a.report(ctx, &s, before)
	case *v1alpha1.LocalSnapshotGroup:
		var g v1alpha1.LocalSnapshotGroup
		if err := a.api.Get(ctx, client.ObjectKeyFromObject(changed), &g); err != nil {
			return client.IgnoreNotFound(err)
		}
		if g.Spec.NodeName != a.node {
			return nil
		}
		before := g.DeepCopy()
		a.group(ctx, &g)
		return a.report(ctx, &g, before)
	}
	return nil
}

// report writes a status that changed.
func (a *agent) report(ctx context.Context, obj, before client.Object) error {
	patch := client.MergeFrom(before)
	data, err := patch.Data(obj)
	if err != nil || string(data) == "{}" {
		return err
	}
	return client.IgnoreNotFound(a.api.Status().Patch(ctx, obj, patch))
}

func (a *agent) volume(ctx context.Context, v *v1alpha1.LocalVolume) {
	id, _ := volume.ParseVolumeID(v.Name)
	conditions, generation := &v.Status.Conditions, v.Generation
	switch {
	case meta.IsStatusConditionTrue(*conditions, v1alpha1.Deleted):
	case v.Spec.DesiredState == v1alpha1.Absent:
		if v.DeletionTimestamp.IsZero() {
			return
		}
		err := a.try("delete", func() error { return ignoreGone(a.Delete(ctx, id)) })
		state(conditions, v1alpha1.Deleted, generation, err)
	case !v.DeletionTimestamp.IsZero():
		meta.SetStatusCondition(conditions, metav1.Condition{
			Type: v1alpha1.DeletionNotConfirmed, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonPending, ObservedGeneration: generation,
		})
	case !meta.IsStatusConditionTrue(*conditions, v1alpha1.Created):
		if c := meta.FindStatusCondition(*conditions, v1alpha1.Created); c != nil && c.ObservedGeneration == generation && reason.Final(c.Reason) {
			return
		}
		err := a.try("create", func() error {
			r := volume.CreateRequest{Name: v.Spec.CSIName, Capacity: volume.Range{Required: v.Spec.Size.Value()}, FSType: v.Spec.FSType}
			if src := v.Spec.Source; src != nil {
				r.Source.Snapshot, _ = volume.ParseSnapshotID(src.Snapshot)
				r.Source.Volume, _ = volume.ParseVolumeID(src.Volume)
			}
			_, err := a.Create(ctx, r)
			return err
		})
		if err == nil {
			v.Status.Size, v.Status.CreationTime = &v.Spec.Size, &metav1.Time{Time: time.Now()}
		}
		state(conditions, v1alpha1.Created, generation, err)
	case v.Spec.Size.Cmp(*v.Status.Size) > 0:
		err := a.try("grow", func() error {
			_, err := a.Expand(ctx, id, volume.Range{Required: v.Spec.Size.Value()})
			return err
		})
		if err == nil {
			v.Status.Size = &v.Spec.Size
		}
		state(conditions, v1alpha1.Resized, generation, err)
	case generation > 1:
		state(conditions, v1alpha1.Modified, generation, a.try("modify", func() error { return nil }))
	}
}

func (a *agent) snapshot(ctx context.Context, s *v1alpha1.LocalSnapshot) {
	id, _ := volume.ParseSnapshotID(s.Name)
	conditions, generation := &s.Status.Conditions, s.Generation
	switch {
	case meta.IsStatusConditionTrue(*conditions, v1alpha1.Deleted):
	case s.Spec.DesiredState == v1alpha1.Absent:
		if s.DeletionTimestamp.IsZero() {
			return
		}
		err := a.try("delete", func() error { return ignoreGone(a.DeleteSnapshot(ctx, id)) })
		if errors.Is(err, volume.ErrGrouped) { // an engine deletes it; the one in memory leaves it to the group
			err = nil
		}
		state(conditions, v1alpha1.Deleted, generation, err)
	case s.Spec.Group != "":
		cut, err := a.GetSnapshot(ctx, id)
		if err == nil {
			a.tellCut(ctx, s, cut)
		}
		state(conditions, v1alpha1.Created, generation, err)
	case meta.IsStatusConditionTrue(*conditions, v1alpha1.Created):
	case !time.Now().Before(s.Spec.NotAfter.Time):
		meta.SetStatusCondition(conditions, metav1.Condition{
			Type: v1alpha1.Created, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonExpired, Message: "too late", ObservedGeneration: generation,
		})
	default:
		var cut volume.Snapshot
		err := a.try("cut", func() (err error) {
			source, _ := volume.ParseVolumeID(s.Spec.Volume)
			cut, err = a.CreateSnapshot(ctx, volume.SnapshotRequest{Name: s.Spec.CSIName, Source: source})
			return err
		})
		if err == nil {
			a.tellCut(ctx, s, cut)
		}
		state(conditions, v1alpha1.Created, generation, err)
	}
}

func (a *agent) tellCut(ctx context.Context, s *v1alpha1.LocalSnapshot, cut volume.Snapshot) {
	if s.Status.Cut == nil {
		s.Status.Cut = &v1alpha1.Cut{
			CreationTime: metav1.NewMicroTime(cut.CreatedAt), Size: bytes(cut.Sizing.Size), Requested: bytes(a.requested(ctx, s, cut)), FSType: cut.FSType,
		}
	}
}

func (a *agent) group(ctx context.Context, g *v1alpha1.LocalSnapshotGroup) {
	id, _ := volume.ParseGroupID(g.Name)
	conditions, generation := &g.Status.Conditions, g.Generation
	switch {
	case meta.IsStatusConditionTrue(*conditions, v1alpha1.Deleted):
	case g.Spec.DesiredState == v1alpha1.Absent:
		err := a.try("delete group", func() error { return ignoreGone(a.DeleteGroup(ctx, id, nil)) })
		state(conditions, v1alpha1.Deleted, generation, err)
	case meta.IsStatusConditionTrue(*conditions, v1alpha1.Created):
	case !time.Now().Before(g.Spec.NotAfter.Time):
		meta.SetStatusCondition(conditions, metav1.Condition{
			Type: v1alpha1.Created, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonExpired, Message: "too late", ObservedGeneration: generation,
		})
	default:
		var cut volume.Group
		err := a.try("cut group", func() (err error) {
			r := volume.GroupRequest{Name: g.Spec.CSIName}
			for _, m := range g.Spec.Members {
				source, _ := volume.ParseVolumeID(m.Volume)
				r.Sources = append(r.Sources, source)
			}
			cut, err = a.CreateGroup(ctx, r)
			return err
		})
		if err == nil {
			at := metav1.NewMicroTime(cut.CreatedAt)
			g.Status.CreationTime = &at
		}
		state(conditions, v1alpha1.Created, generation, err)
	}
}

// requested is what the cut volume was asked for: a real node has it with the volume.
func (a *agent) requested(ctx context.Context, s *v1alpha1.LocalSnapshot, cut volume.Snapshot) int64 {
	var v v1alpha1.LocalVolume
	if err := a.api.Get(ctx, client.ObjectKey{Name: s.Spec.Volume}, &v); err != nil || v.Spec.Size.Value() != cut.Sizing.Size {
		return cut.Sizing.Size
	}
	return v.Spec.Requested.Value()
}

// Attach shows the condition first, as the node service does.
func (a *agent) Attach(ctx context.Context, id volume.VolumeID, readOnly bool) (string, error) {
	if err := a.attached(ctx, id, metav1.ConditionTrue); err != nil {
		return "", err
	}
	return a.Service.Attach(ctx, id, readOnly)
}

// Detach shows the condition last.
func (a *agent) Detach(ctx context.Context, id volume.VolumeID) error {
	if err := a.Service.Detach(ctx, id); err != nil {
		return err
	}
	return a.attached(ctx, id, metav1.ConditionFalse)
}

func (a *agent) attached(ctx context.Context, id volume.VolumeID, status metav1.ConditionStatus) error {
	var v v1alpha1.LocalVolume
	if err := a.api.Get(ctx, client.ObjectKey{Name: id.String()}, &v); err != nil {
		return client.IgnoreNotFound(err)
	}
	before := v.DeepCopy()
	meta.SetStatusCondition(&v.Status.Conditions, metav1.Condition{
		Type: v1alpha1.Attached, Status: status, Reason: v1alpha1.ReasonDone, ObservedGeneration: v.Generation,
	})
	return a.report(ctx, &v, before)
}

// state sets a condition to True, or to False with the error's reason.
func state(conditions *[]metav1.Condition, kind string, generation int64, err error) {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDone, ObservedGeneration: generation}
	if err != nil {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason.Of(err), err.Error()
	}
	meta.SetStatusCondition(conditions, c)
}

func ignoreGone(err error) error {
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	return err
}

func bytes(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

// names are those of all volumes, snapshots and groups that are there.
func (a *apiServer) names(t *testing.T) (all []string) {
	t.Helper()
	var volumes v1alpha1.LocalVolumeList
	var snaps v1alpha1.LocalSnapshotList
	var groups v1alpha1.LocalSnapshotGroupList
	if err := errors.Join(a.List(t.Context(), &volumes), a.List(t.Context(), &snaps), a.List(t.Context(), &groups)); err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.Items {
		all = append(all, g.Name)
	}
	for _, v := range volumes.Items {
		all = append(all, v.Name)
	}
	for _, s := range snaps.Items {
		all = append(all, s.Name)
	}
	slices.Sort(all)
	return all
}
