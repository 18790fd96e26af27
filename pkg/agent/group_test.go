package agent

import (
	"errors"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// newGroup is a group's object and its snapshots', as the controller makes them.
func (w *world) newGroup(p *v1alpha1.Pool, name string, volumes ...string) (*v1alpha1.LocalSnapshotGroup, []*v1alpha1.LocalSnapshot) {
	g := &v1alpha1.LocalSnapshotGroup{ObjectMeta: metav1.ObjectMeta{Name: volume.GroupIDOf(name).String(), Finalizers: []string{v1alpha1.Finalizer}}}
	g.Spec = v1alpha1.LocalSnapshotGroupSpec{
		Location: at(p), CSIName: name, NotAfter: metav1.NewMicroTime(w.clock.Now().Add(minute)), DesiredState: v1alpha1.Present,
	}
	var members []*v1alpha1.LocalSnapshot
	for _, v := range volumes {
		s := newSnapshot(p, name+"-"+v, v)
		s.Spec.Group = g.Name
		members = append(members, s)
		g.Spec.Members = append(g.Spec.Members, v1alpha1.GroupMember{Volume: s.Spec.Volume, Snapshot: s.Name, CSIName: s.Spec.CSIName})
	}
	return g, members
}

// TestGroupKills ends the agent at every call it makes for a group, before and after the call did its work: the next agent finishes, with one cut.
func TestGroupKills(t *testing.T) {
	w, p := poolWorld(t)
	for _, name := range []string{"v0", "v1"} {
		w.apply(newVolume(p, name, 10*mi))
	}
	w.settled()
	atEveryCall(t, 5, func(n int, after bool) string { return w.groupKilledAt(p, n, after) })
}

// groupKilledAt takes a group through its life, with a kill at the n-th call of each step.
func (w *world) groupKilledAt(p *v1alpha1.Pool, n int, after bool) (hits string) {
	w.t.Helper()
	g, members := w.newGroup(p, fmt.Sprintf("g-%d-%t", n, after), "v0", "v1")
	attempt := func() (err error) {
		requests := map[reconcile.Reconciler][]string{groups{w.agent}: {g.Name}}
		for _, s := range members {
			requests[snapshots{w.agent}] = append(requests[snapshots{w.agent}], s.Name)
		}
		for r, names := range requests {
			for _, name := range names {
				_, rerr := r.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
				err = errors.Join(err, rerr)
			}
		}
		return err
	}
	step := func(what string, change func()) {
		w.t.Helper()
		hits += w.ended(n, after, what, change, attempt)
	}
	step("cut", func() { w.apply(g) })
	w.condition(g, v1alpha1.Created, metav1.ConditionTrue, "")
	if all, err := w.rpc.Snapshots(w.t.Context(), p.Name, ""); err != nil || len(all) != len(members) {
		w.t.Fatalf("%d snapshots, %v, want one cut of %d", len(all), err, len(members))
	}
	step("tell", func() {
		for _, s := range members {
			w.apply(s)
		}
	})
	for _, s := range members {
		w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
		if !s.Status.Cut.CreationTime.Equal(g.Status.CreationTime) {
			w.t.Errorf("%v and %v are not one cut", s.Status.Cut.CreationTime, g.Status.CreationTime)
		}
	}
	step("delete", func() {
		get(w, g).Spec.DesiredState = v1alpha1.Absent
		w.apply(g)
		for _, s := range members {
			get(w, s).Spec.DesiredState = v1alpha1.Absent
			w.apply(s)
		}
	})
	objects := []client.Object{g}
	for _, s := range members {
		objects = append(objects, s)
	}
	for _, o := range objects {
		w.condition(o, v1alpha1.Deleted, metav1.ConditionTrue, "")
		w.released(o)
	}
	if all, err := w.rpc.Snapshots(w.t.Context(), p.Name, ""); err != nil || len(all) != 0 {
		w.t.Fatalf("left: %+v, %v", all, err)
	}
	w.condition(p, v1alpha1.OrphansFound, metav1.ConditionFalse, "")
	return hits
}
