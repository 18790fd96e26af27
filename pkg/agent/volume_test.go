package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

const minute = time.Minute

func at(p *v1alpha1.Pool) v1alpha1.Location {
	return v1alpha1.Location{NodeName: nodeName, Pool: p.Name, PoolUUID: p.Status.UUID}
}

// newVolume is a LocalVolume of that CSI name.
func newVolume(p *v1alpha1.Pool, name string, size int64) *v1alpha1.LocalVolume {
	v := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.VolumeIDOf(name).String(), Finalizers: []string{v1alpha1.Finalizer}}}
	v.Spec = v1alpha1.LocalVolumeSpec{
		Location: at(p), CSIName: name, Size: *resource.NewQuantity(size, resource.BinarySI), Requested: *resource.NewQuantity(size, resource.BinarySI),
		FSType: volume.FSExt4, Mode: "row", Provisioning: "thin", DesiredState: v1alpha1.Present,
	}
	return v
}

// newSnapshot is a LocalSnapshot of that CSI name, of the volume of that CSI name.
func newSnapshot(p *v1alpha1.Pool, name, of string) *v1alpha1.LocalSnapshot {
	s := &v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: volume.SnapshotIDOf(name).String(), Finalizers: []string{v1alpha1.Finalizer}}}
	s.Spec = v1alpha1.LocalSnapshotSpec{Location: at(p), CSIName: name, Volume: volume.VolumeIDOf(of).String(), DesiredState: v1alpha1.Present}
	return s
}

func TestVolumeLife(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	v.Spec.Requested = resource.MustParse("10M")
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Created, metav1.ConditionTrue, "")
	w.condition(v, v1alpha1.Attached, metav1.ConditionFalse, "")
	if v.Status.Size.Value() != 10*mi || v.Status.CreationTime == nil {
		t.Errorf("%+v", v.Status)
	}
	before := w.snapshotOfAll()
	w.startAgent()
	w.settled()
	if now := w.snapshotOfAll(); now["*v1alpha1.LocalVolume/"+v.Name] != before["*v1alpha1.LocalVolume/"+v.Name] {
		t.Error("status was written though nothing changed")
	}

	get(w, v).Spec.Size, v.Spec.Requested, v.Spec.Mode, v.Spec.Tidy = resource.MustParse("20Mi"), resource.MustParse("20M"), "cow", true
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Resized, metav1.ConditionTrue, "")
	if c := w.condition(v, v1alpha1.Modified, metav1.ConditionTrue, ""); c.ObservedGeneration != 2 {
		t.Errorf("%+v", c)
	}
	info, err := w.rpc.Volume(t.Context(), p.Name, v.Name)
	if err != nil || info.Size != 20*mi || info.Mode != engine.CopyOnWrite || !info.Tidy || v.Status.Size.Value() != 20*mi || v.Status.ObservedGeneration != 2 {
		t.Errorf("%+v, %v, %+v", info, err, v.Status)
	}

	must(t, w.client.Delete(t.Context(), get(w, v)))
	w.settled()
	w.condition(v, v1alpha1.DeletionNotConfirmed, metav1.ConditionTrue, "")
	if _, err := w.rpc.Volume(t.Context(), p.Name, v.Name); err != nil {
		t.Fatalf("freed with one key: %v", err)
	}
	v.Spec.DesiredState = v1alpha1.Absent
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	if _, err := w.rpc.Volume(t.Context(), p.Name, v.Name); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("it is there still: %v", err)
	}
}

// What is lost is never made again, blank, and never shown.
func TestVolumeLost(t *testing.T) {
	w, p := poolWorld(t)
	v, s := newVolume(p, "v", 10*mi), newSnapshot(p, "s", "v")
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	w.apply(v)
	w.settled()
	w.apply(s)
	w.settled()
	must(t, w.rpc.DeleteVolume(t.Context(), p.Name, v.Name))
	must(t, w.rpc.DeleteSnapshot(t.Context(), p.Name, s.Name))
	w.startAgent()
	w.settled()
	w.condition(v, v1alpha1.Lost, metav1.ConditionTrue, v1alpha1.ReasonLost)
	w.condition(s, v1alpha1.Lost, metav1.ConditionTrue, v1alpha1.ReasonLost)
	w.condition(v, v1alpha1.Created, metav1.ConditionTrue, "")
	if vs, err := w.rpc.Volumes(t.Context(), p.Name); err != nil || len(vs) != 0 {
		t.Errorf("%+v, %v", vs, err)
	}
	id, _ := volume.ParseVolumeID(v.Name)
	if _, err := w.agent.Node().Attach(t.Context(), id, false); !errors.Is(err, volume.ErrLost) {
		t.Errorf("attach: %v", err)
	}
	_, err := w.rpc.CreateVolume(t.Context(), p.Name, engine.VolumeSpec{Name: v.Name, Size: 10 * mi, Labels: map[string]string{"owner": "somebody"}})
	must(t, err)
	if _, err := w.agent.Node().Attach(t.Context(), id, false); !errors.Is(err, volume.ErrLost) {
		t.Errorf("attach another's: %v", err)
	}
	get(w, v).Spec.DesiredState = v1alpha1.Absent
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	if _, err := w.rpc.Volume(t.Context(), p.Name, v.Name); err != nil {
		t.Errorf("another's volume was deleted: %v", err)
	}
}

// staleClient answers an object as it was, as a cache may that began from an old list.
type staleClient struct {
	client.WithWatch
	old map[string]client.Object
}

func (c staleClient) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if old := c.old[key.Name]; old != nil {
		switch o := o.(type) {
		case *v1alpha1.LocalVolume:
			old.(*v1alpha1.LocalVolume).DeepCopyInto(o)
			return nil
		case *v1alpha1.LocalSnapshot:
			old.(*v1alpha1.LocalSnapshot).DeepCopyInto(o)
			return nil
		}
	}
	return c.WithWatch.Get(ctx, key, o, opts...)
}

// onlyMine is a cache with this node's pools.
type onlyMine struct{ client.WithWatch }

func (c *onlyMine) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	err := c.WithWatch.List(ctx, l, opts...)
	if l, ok := l.(*v1alpha1.PoolList); ok {
		var mine []v1alpha1.Pool
		for _, p := range l.Items {
			if p.Spec.NodeName == nodeName {
				mine = append(mine, p)
			}
		}
		l.Items = mine
	}
	return err
}

// A cache from before the volume was made, or of an object that is gone, makes nothing.
func TestStaleCache(t *testing.T) {
	w, p := poolWorld(t)
	v, s := newVolume(p, "v", 10*mi), newSnapshot(p, "s", "v")
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	w.apply(v)
	oldVolume := get(w, v).DeepCopy()
	w.settled()
	w.apply(s)
	oldSnapshot := get(w, s).DeepCopy()
	w.settled()
	must(t, w.rpc.DeleteSnapshot(t.Context(), p.Name, s.Name))
	must(t, w.rpc.DeleteVolume(t.Context(), p.Name, v.Name))
	w.agent.client = staleClient{w.client, map[string]client.Object{v.Name: oldVolume, s.Name: oldSnapshot}}
	if err := w.settle(); err != nil {
		t.Log(err)
	}
	if vs, err := w.rpc.Volumes(t.Context(), p.Name); err != nil || len(vs) != 0 {
		t.Errorf("a lost volume was made again: %+v, %v", vs, err)
	}
	w.condition(v, v1alpha1.Lost, metav1.ConditionTrue, "")
	w.condition(s, v1alpha1.Lost, metav1.ConditionTrue, "")

	for _, o := range []client.Object{v, s} {
		get(w, o).SetFinalizers(nil)
		must(t, w.client.Update(t.Context(), o))
		must(t, w.client.Delete(t.Context(), o))
	}
	w.settled()
	for _, r := range []interface{ run() error }{runOne{w, v.Name, false}, runOne{w, s.Name, true}} {
		must(t, r.run())
	}
	if vs, err := w.rpc.Volumes(t.Context(), p.Name); err != nil || len(vs) != 0 {
		t.Errorf("a volume was made whose object is gone: %+v, %v", vs, err)
	}
}

func TestVolumeRefused(t *testing.T) {
	w, p := poolWorld(t)
	src := newVolume(p, "src", 10*mi)
	for _, c := range []struct {
		name, reason, text string
		change             func(v *v1alpha1.LocalVolume)
	}{
		{"source", v1alpha1.ReasonSourceNotFound, "source not found", func(v *v1alpha1.LocalVolume) { v.Spec.Source = &v1alpha1.VolumeSource{Volume: src.Name} }},
		{"no handle", v1alpha1.ReasonSourceNotFound, "no such handle", func(v *v1alpha1.LocalVolume) { v.Spec.Source = &v1alpha1.VolumeSource{Snapshot: "x"} }},
		{"name", v1alpha1.ReasonInvalid, "csiName", func(v *v1alpha1.LocalVolume) { v.Spec.CSIName = "other" }},
		{"size", v1alpha1.ReasonInvalid, "1 MiB", func(v *v1alpha1.LocalVolume) { v.Spec.Size = resource.MustParse("12345") }},
		{"thick", v1alpha1.ReasonNoSpace, "", func(v *v1alpha1.LocalVolume) {
			v.Spec.Provisioning, v.Spec.Size = "thick", resource.MustParse("10Gi")
		}},
	} {
		v := newVolume(p, c.name, 10*mi)
		c.change(v)
		w.apply(v)
		w.settled()
		if got := w.condition(v, v1alpha1.Created, metav1.ConditionFalse, c.reason); !strings.Contains(got.Message, c.text) || got.ObservedGeneration != 1 {
			t.Errorf("%s: %+v", c.name, got)
		}
		get(w, v).Spec.DesiredState = v1alpha1.Absent
		w.apply(v)
		w.settled()
		w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	}
}

// A volume that was attached when its disk went says so no more: it could never be deleted.
func TestLostIsNotAttached(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	w.apply(v)
	w.settled()
	o := get(w, v)
	before := o.DeepCopy()
	meta.SetStatusCondition(&o.Status.Conditions, metav1.Condition{Type: v1alpha1.Attached, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAttached})
	must(t, w.client.Status().Patch(t.Context(), o, client.MergeFrom(before)))
	must(t, w.rpc.DeleteVolume(t.Context(), p.Name, v.Name))
	w.startAgent()
	w.settled()
	w.condition(v, v1alpha1.Lost, metav1.ConditionTrue, v1alpha1.ReasonLost)
	w.condition(v, v1alpha1.Attached, metav1.ConditionFalse, v1alpha1.ReasonDetached)
}

func TestAttached(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	w.apply(v)
	id, _ := volume.ParseVolumeID(v.Name)
	if _, err := w.agent.Node().Attach(t.Context(), id, false); !errors.Is(err, volume.ErrUnavailable) {
		t.Errorf("before it is made: %v", err)
	}
	w.settled()
	if _, err := w.agent.Node().Attach(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-w.agent.oddVolumes:
		if e.Object.Name != v.Name {
			t.Error(e.Object.Name)
		}
	default:
		t.Error("nobody is told of the attachment")
	}
	w.settled()
	w.condition(v, v1alpha1.Attached, metav1.ConditionTrue, "")
	get(w, v).Spec.DesiredState = v1alpha1.Absent
	w.apply(v)
	if err := w.settle(); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("%v", err)
	}
	w.condition(v, v1alpha1.Deleted, metav1.ConditionFalse, v1alpha1.ReasonInUse)
	if _, err := w.agent.Node().Attach(t.Context(), id, false); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("attach what is to be deleted: %v", err)
	}
	must(t, w.agent.Node().Detach(t.Context(), id))
	w.settled()
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")

	gone := newVolume(p, "elsewhere", 10*mi)
	gone.Spec.NodeName = "node-2"
	w.apply(gone)
	id, _ = volume.ParseVolumeID(gone.Name)
	if _, err := w.agent.Node().Attach(t.Context(), id, false); !errors.Is(err, volume.ErrPlacement) {
		t.Errorf("another node's: %v", err)
	}
}
