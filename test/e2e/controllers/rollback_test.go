package controllers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// snapshots installs the definitions of snapshots, and a class.
func (w *world) snapshots() {
	w.t.Helper()
	for _, name := range []string{"volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"} {
		b, err := os.ReadFile(w.path("snapshot.storage.k8s.io_" + name + ".yaml"))
		w.must(err)
		w.apply(string(b))
	}
	class := &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: "rowan", Annotations: map[string]string{"snapshot.storage.kubernetes.io/is-default-class": "true"}},
		Driver:     v1alpha1.DriverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
	}
	w.until("a class can be made", func() (bool, error) {
		err := w.Create(w.t.Context(), class)
		return err == nil || apierrors.IsAlreadyExists(err), err
	})
}

// bound is a claim with a volume of that name on a node.
func (w *world) bound(name string) *v1alpha1.LocalVolume {
	w.t.Helper()
	c := w.claim(name, nil)
	v := volume("vol-"+name, "node", "fast", "uuid")
	w.create(v, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef:    &corev1.ObjectReference{Namespace: "default", Name: name, UID: c.UID},
		Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName,
			VolumeHandle: v.Name}}}})
	w.change(c, false, func() { c.Spec.VolumeName = "pv-" + name })
	return v
}

// cut plays the snapshot controller and the driver: the snapshot of a claim's volume is there and ready.
func (w *world) cut(s *snapshotv1.VolumeSnapshot, handle, vol string) {
	w.t.Helper()
	now := metav1.Now()
	ready, class := true, "rowan"
	l := &v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: handle}, Spec: v1alpha1.LocalSnapshotSpec{
		Location: v1alpha1.Location{NodeName: "node", Pool: "fast", PoolUUID: "uuid"}, CSIName: handle, Volume: vol, NotAfter: metav1.NowMicro()}}
	w.create(l)
	w.change(l, true, func() {
		l.Status.Cut = &v1alpha1.Cut{CreationTime: metav1.NowMicro(), Size: resource.MustParse("1Gi"), Requested: resource.MustParse("1Gi")}
		meta.SetStatusCondition(&l.Status.Conditions, metav1.Condition{Type: v1alpha1.Created, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDone})
	})
	c := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content-" + s.Name}, Spec: snapshotv1.VolumeSnapshotContentSpec{
		Driver: v1alpha1.DriverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, VolumeSnapshotClassName: &class,
		Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &vol},
		VolumeSnapshotRef: corev1.ObjectReference{Namespace: s.Namespace, Name: s.Name, UID: s.UID}}}
	w.create(c)
	w.change(c, true, func() {
		c.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, ReadyToUse: &ready}
	})
	w.change(s, true, func() {
		s.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &c.Name, ReadyToUse: &ready, CreationTime: &now}
	})
}

func (w *world) snapshot(name, claim string) *snapshotv1.VolumeSnapshot {
	w.t.Helper()
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}}}
	w.create(s)
	return s
}

// engine plays a node's agent for one volume, as package agent does it, and counts.
type engine struct {
	w    *world
	mu   sync.Mutex
	did  []string
	held string
}

// turn looks once at the volume and at what is to be cut.
func (e *engine) turn(vol string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := &v1alpha1.LocalVolume{}
	e.w.must(e.w.get(v, vol))
	want, st := v.Spec.Rollback, v.Status.Rollback
	if e.held != "" && (want == nil || want.Token != e.held) {
		e.held = ""
	}
	if want != nil && (st == nil || st.Token != want.Token || st.DoneAt == nil && want.HeldSince != nil) {
		now := metav1.NowMicro()
		e.w.change(v, true, func() {
			status, reason := metav1.ConditionFalse, v1alpha1.ReasonHeld
			if e.held = want.Token; want.HeldSince == nil {
				v.Status.Rollback = &v1alpha1.RollbackStatus{Token: want.Token, HeldSince: &now}
			} else if !want.HeldSince.Equal(st.HeldSince) {
				e.w.t.Errorf("told to go on with a hold of %s, it is of %s", want.HeldSince, st.HeldSince)
			} else {
				v.Status.Rollback = &v1alpha1.RollbackStatus{Token: want.Token, DoneAt: &now}
				e.held, status, reason = "", metav1.ConditionTrue, v1alpha1.ReasonDone
				e.did = append(e.did, "rollback")
			}
			meta.SetStatusCondition(&v.Status.Conditions, metav1.Condition{Type: v1alpha1.RolledBack, Status: status, Reason: reason,
				ObservedGeneration: v.Generation})
		})
	}
	var list snapshotv1.VolumeSnapshotList
	e.w.must(e.w.List(e.w.t.Context(), &list))
	for i := range list.Items {
		if s := &list.Items[i]; s.Status == nil && s.Labels[v1alpha1.LabelRollback] != "" && "vol-"+*s.Spec.Source.PersistentVolumeClaimName == vol {
			if e.held == "" {
				e.w.t.Error("the safety snapshot is of a volume that is not held")
			}
			e.w.cut(s, "snap-"+s.Name, vol)
			e.did = append(e.did, "safety")
		}
	}
}

// A claim is rolled back by two replicas that work at once, while others are stopped and started; the rights are the chart's.
func TestRollback(t *testing.T) {
	w := start(t)
	w.snapshots()
	w.run(false)
	stop := w.run(false)
	for i := range 5 {
		claim := fmt.Sprintf("db-%d", i)
		v := w.bound(claim)
		e := &engine{w: w}
		good := w.snapshot("good-"+claim, claim)
		r := &v1alpha1.VolumeRollback{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: claim},
			Spec: v1alpha1.VolumeRollbackSpec{PersistentVolumeClaimName: claim, VolumeSnapshotName: good.Name}}
		w.create(r)
		w.until("it waits for its snapshot", func() (bool, error) {
			err := w.get(r, claim)
			c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.Complete)
			return c != nil && c.Reason == v1alpha1.ReasonNotReady, err
		})
		w.cut(good, "snap-"+good.Name, v.Name)
		w.until(claim+" is rolled back", func() (bool, error) {
			e.turn(v.Name)
			if i > 0 { // another replica in the middle of it
				stop()
				stop = w.run(false)
			}
			err := w.get(r, claim)
			return meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.Complete) && len(r.Finalizers) == 0, err
		})
		w.must(w.get(v, v.Name))
		if v.Spec.Rollback != nil || !slices.Equal(e.did, []string{"safety", "rollback"}) {
			t.Errorf("%v, %+v", e.did, v.Spec.Rollback)
		}
	}
	var events eventsv1.EventList
	w.until("events say so on the claim and on the rollback", func() (bool, error) {
		err := w.List(t.Context(), &events)
		seen := map[string]bool{}
		for _, e := range events.Items {
			if e.Reason == "RolledBack" {
				seen[e.Regarding.Kind] = true
			}
		}
		return seen["PersistentVolumeClaim"] && seen["VolumeRollback"], err
	})

	// What cannot be changed is refused by the API server; what is deleted in the middle lets the volume go.
	r := &v1alpha1.VolumeRollback{}
	r.Namespace = "default"
	w.must(w.get(r, "db-0"))
	before := r.DeepCopy()
	r.Spec.VolumeSnapshotName = "another"
	if err := w.Patch(t.Context(), r, client.MergeFrom(before)); err == nil || !strings.Contains(err.Error(), "make another one") {
		t.Errorf("changed: %v", err)
	}
	v := w.bound("given-up")
	good := w.snapshot("good-given-up", "given-up")
	w.cut(good, "snap-given-up", v.Name)
	r = &v1alpha1.VolumeRollback{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "given-up"},
		Spec: v1alpha1.VolumeRollbackSpec{PersistentVolumeClaimName: "given-up", VolumeSnapshotName: good.Name}}
	w.create(r)
	w.until("the node is asked", func() (bool, error) { err := w.get(v, v.Name); return v.Spec.Rollback != nil, err })
	w.must(w.Delete(t.Context(), r))
	w.until("it is gone", func() (bool, error) { return apierrors.IsNotFound(w.get(r, r.Name)), nil })
	w.must(w.get(v, v.Name))
	if v.Spec.Rollback != nil {
		t.Error("the volume is not let go")
	}

	// Safety snapshots go after their time, but for one that is held.
	var list snapshotv1.VolumeSnapshotList
	safety := client.HasLabels{v1alpha1.LabelRollback}
	w.must(w.List(t.Context(), &list, safety))
	if len(list.Items) != 5 {
		t.Fatalf("%d safety snapshots", len(list.Items))
	}
	kept := &list.Items[0]
	w.change(kept, false, func() { kept.Annotations["rowan.storage/hold"] = "the auditor" })
	w.clock.SetTime(w.clock.Now().Add(169 * time.Hour))
	for i := range list.Items[1:] { // their next look is within the hour: something of them changes
		s := &list.Items[1+i]
		w.change(s, false, func() { s.Annotations["look"] = "now" })
	}
	w.until("they are gone", func() (bool, error) {
		err := w.List(t.Context(), &list, safety)
		return len(list.Items) == 1 && list.Items[0].Name == kept.Name, err
	})
}
