package agent

import (
	"errors"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// runOne looks at one volume or snapshot.
type runOne struct {
	w        *world
	name     string
	snapshot bool
}

func (r runOne) run() error {
	req := reconcile.Request{NamespacedName: types.NamespacedName{Name: r.name}}
	var err error
	if r.snapshot {
		_, err = snapshots{r.w.agent}.Reconcile(r.w.t.Context(), req)
	} else {
		_, err = volumes{r.w.agent}.Reconcile(r.w.t.Context(), req)
	}
	return err
}

func TestSnapshotLife(t *testing.T) {
	w, p := poolWorld(t)
	v, s := newVolume(p, "v", 10*mi), newSnapshot(p, "s", "v")
	w.apply(v)
	w.settled()
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(-time.Second))
	w.apply(s)
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonExpired)
	get(w, s).Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	w.apply(s)
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
	info, err := w.rpc.Snapshot(t.Context(), p.Name, s.Name)
	if c := s.Status.Cut; err != nil || c == nil || c.Size.Value() != 10*mi || c.FSType != volume.FSExt4 || !c.CreationTime.Equal(&metav1.MicroTime{
		Time: info.CreatedAt.Truncate(time.Microsecond),
	}) {
		t.Fatalf("%+v, %v", s.Status.Cut, err)
	}
	// Restored, and its source deleted.
	r := newVolume(p, "r", 20*mi)
	r.Spec.Source = &v1alpha1.VolumeSource{Snapshot: s.Name}
	w.apply(r)
	get(w, v).Spec.DesiredState = v1alpha1.Absent
	w.apply(v)
	w.settled()
	w.condition(r, v1alpha1.Created, metav1.ConditionTrue, "")
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	get(w, s).Spec.DesiredState = v1alpha1.Absent
	w.apply(s)
	w.settled()
	w.condition(s, v1alpha1.Deleted, metav1.ConditionTrue, "")
	orphaned := newSnapshot(p, "of nothing", "v")
	orphaned.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	w.apply(orphaned)
	w.settled()
	w.condition(orphaned, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonSourceNotFound)
}

// A cut that came after its time, by a slow engine or an agent that was killed, is undone: status never named it.
func TestSnapshotTooLate(t *testing.T) {
	w, p := poolWorld(t)
	v, s := newVolume(p, "v", 10*mi), newSnapshot(p, "s", "v")
	w.apply(v)
	w.settled()
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(-minute))
	w.apply(s)
	_, err := w.rpc.CreateSnapshot(t.Context(), p.Name, engine.SnapshotSpec{
		Name: s.Name, Volume: v.Name, Labels: map[string]string{"owner": string(s.UID), "requested": "10485760"},
	})
	must(t, err)
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonExpired)
	if _, err := w.rpc.Snapshot(t.Context(), p.Name, s.Name); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("it is there still: %v", err)
	}
}

func TestGroup(t *testing.T) {
	w, p := poolWorld(t)
	g := &v1alpha1.LocalSnapshotGroup{ObjectMeta: metav1.ObjectMeta{Name: "group-1", Finalizers: []string{v1alpha1.Finalizer}}}
	g.Spec = v1alpha1.LocalSnapshotGroupSpec{
		Location: at(p), CSIName: "g", NotAfter: metav1.NewMicroTime(w.clock.Now().Add(minute)), DesiredState: v1alpha1.Present,
	}
	var members []*v1alpha1.LocalSnapshot
	for i := range 3 {
		name := fmt.Sprint("v", i)
		w.apply(newVolume(p, name, 10*mi))
		s := newSnapshot(p, "s"+name, name)
		s.Spec.Group = g.Name
		members = append(members, s)
		g.Spec.Members = append(g.Spec.Members, v1alpha1.GroupMember{Volume: s.Spec.Volume, Snapshot: s.Name, CSIName: s.Spec.CSIName})
	}
	w.settled()
	w.apply(g)
	w.settled()
	w.condition(g, v1alpha1.Created, metav1.ConditionTrue, "")
	for _, s := range members {
		w.apply(s)
	}
	w.settled()
	for _, s := range members {
		w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
		if !s.Status.Cut.CreationTime.Equal(g.Status.CreationTime) {
			t.Errorf("%v and %v are not one cut", s.Status.Cut.CreationTime, g.Status.CreationTime)
		}
	}
	w.condition(p, v1alpha1.OrphansFound, metav1.ConditionFalse, "")
	get(w, members[0]).Spec.DesiredState = v1alpha1.Absent
	w.apply(members[0])
	w.settled()
	w.condition(g, v1alpha1.Created, metav1.ConditionTrue, "")
	get(w, g).Spec.DesiredState = v1alpha1.Absent
	w.apply(g)
	w.settled()
	w.condition(g, v1alpha1.Deleted, metav1.ConditionTrue, "")
	if ss, err := w.rpc.Snapshots(t.Context(), p.Name, ""); err != nil || len(ss) != 0 {
		t.Errorf("%+v, %v", ss, err)
	}
}

// TestKills ends the agent at every call it makes, before and after the call did its work: the next agent finishes, and nothing is made twice.
func TestKills(t *testing.T) {
	w, p := poolWorld(t)
	atEveryCall(t, 10, func(n int, after bool) string { return w.killedAt(p, n, after) })
}

// killedAt takes a volume, its snapshot and a copy through their lives, with a kill at the n-th call of each step.
func (w *world) killedAt(p *v1alpha1.Pool, n int, after bool) (hits string) {
	w.t.Helper()
	name := fmt.Sprintf("v-%d-%t", n, after)
	v, s, c := newVolume(p, name, 10*mi), newSnapshot(p, name, name), newVolume(p, name+"-copy", 30*mi)
	c.Spec.Source = &v1alpha1.VolumeSource{Snapshot: s.Name}
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	step := func(what string, do func()) {
		hits += w.ended(n, after, what, do, w.settleOnce)
	}
	step("make", func() { w.apply(v) })
	w.condition(v, v1alpha1.Created, metav1.ConditionTrue, "")
	step("cut", func() { w.apply(s) })
	w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
	step("copy", func() { w.apply(c) })
	w.condition(c, v1alpha1.Created, metav1.ConditionTrue, "")
	step("grow", func() { get(w, v).Spec.Size = c.Spec.Size; v.Spec.Mode = "cow"; w.apply(v) })
	if w.condition(v, v1alpha1.Resized, metav1.ConditionTrue, ""); v.Status.Size.Value() != 30*mi {
		w.t.Fatalf("%+v", v.Status)
	}
	for _, o := range []client.Object{s, v, c} {
		step("delete", func() { get(w, o); absent(o); w.apply(o) })
		w.condition(o, v1alpha1.Deleted, metav1.ConditionTrue, "")
		w.released(o)
	}
	info, err := w.rpc.Pool(w.t.Context(), p.Name)
	if err != nil || info.Volumes+info.Snapshots != 0 {
		w.t.Fatalf("left: %+v, %v", info, err)
	}
	w.condition(p, v1alpha1.OrphansFound, metav1.ConditionFalse, "")
	return hits
}

func absent(o client.Object) {
	switch o := o.(type) {
	case *v1alpha1.LocalVolume:
		o.Spec.DesiredState = v1alpha1.Absent
	case *v1alpha1.LocalSnapshot:
		o.Spec.DesiredState = v1alpha1.Absent
	}
}

// settleOnce looks at every volume and snapshot once.
func (w *world) settleOnce() (errs error) {
	var vs v1alpha1.LocalVolumeList
	var ss v1alpha1.LocalSnapshotList
	must(w.t, errors.Join(w.client.List(w.t.Context(), &vs), w.client.List(w.t.Context(), &ss)))
	for _, v := range vs.Items {
		errs = errors.Join(errs, runOne{w, v.Name, false}.run())
	}
	for _, s := range ss.Items {
		errs = errors.Join(errs, runOne{w, s.Name, true}.run())
	}
	return errs
}
