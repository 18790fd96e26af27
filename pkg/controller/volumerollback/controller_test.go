package volumerollback

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
	"github.com/rowan-csi/rowan/pkg/retention"
)

func TestRollsBack(t *testing.T) {
	s := start(t)
	s.Create(rollback("r"))
	r := s.run("r")
	s.condition(r, v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "claim db is as it was in VolumeSnapshot monday")
	if s.rolled != 1 || !slices.Equal(s.cuts, []string{"safety", "rollback"}) || len(r.Finalizers) != 0 || !r.Finished() {
		t.Errorf("%d times, %v, %+v", s.rolled, s.cuts, r.Finalizers)
	}
	safety := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: r.Status.SafetySnapshotName}}
	if !s.exists(safety) || safety.Labels[v1alpha1.LabelRollback] != "uid-r" ||
		safety.Annotations[v1alpha1.AnnotationDeleteAfter] != s.Clock.Now().Add(168*time.Hour).Format(time.RFC3339) {
		t.Errorf("%+v", safety.ObjectMeta)
	}
	s.free()
	events := strings.Join(s.TakeEvents(), "\n")
	for _, want := range []string{"VolumeRollback/r RolledBack: ", "PersistentVolumeClaim/db RolledBack: VolumeRollback r: "} {
		if strings.Count(events, want) != 1 {
			t.Errorf("%q is not once in\n%s", want, events)
		}
	}

	// Looked at again, nothing is done.
	s.run("r")
	if s.rolled != 1 {
		t.Error("rolled back again")
	}
	// Undone.
	undo := rollback("undo")
	undo.Spec.VolumeSnapshotName = r.Status.SafetySnapshotName
	s.Create(undo)
	s.condition(s.run("undo"), v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
	s.free()
}

func TestWithoutSafety(t *testing.T) {
	s := start(t, class("keep", v1alpha1.DriverName, true, snapshotv1.VolumeSnapshotContentRetain)) // of no matter
	r := rollback("r")
	r.Spec.SafetySnapshot.Enabled = ptr(false)
	s.Create(r)
	r = s.run("r")
	s.condition(r, v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "there is no safety snapshot")
	if !slices.Equal(s.cuts, []string{"rollback"}) || r.Status.SafetySnapshotName != "" {
		t.Errorf("%v, %+v", s.cuts, r.Status)
	}
}

func TestInUse(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: "a", Volumes: []corev1.Volume{{
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "db"}}}}}}
	}
	attach := func(s *suite, status metav1.ConditionStatus) {
		v := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-db"}}
		s.SetStatus(v, func() { s.SetCondition(v, &v.Status.Status, v1alpha1.Attached, status, v1alpha1.ReasonAttached, "") })
	}
	t.Run("refused", func(t *testing.T) {
		s := start(t, pod("p-0"), pod("p-1"))
		s.attached = true
		attach(s, metav1.ConditionTrue)
		s.Create(rollback("r"))
		r := s.run("r")
		s.condition(r, v1alpha1.Failed, metav1.ConditionTrue, v1alpha1.ReasonWaitingForUsers, "in use on node a by pod p-0, p-1: stop what uses it")
		s.free()
	})
	t.Run("refused though nobody had said so yet", func(t *testing.T) {
		s := start(t)
		s.attached = true
		s.Create(rollback("r"))
		s.condition(s.run("r"), v1alpha1.Failed, metav1.ConditionTrue, v1alpha1.ReasonWaitingForUsers, "in use")
		s.free()
		s.attached = false
		s.run("r")
		if s.rolled != 0 {
			t.Error("what was refused was done later")
		}
	})
	t.Run("waits", func(t *testing.T) {
		s := start(t, pod("p-0"))
		s.attached = true
		attach(s, metav1.ConditionTrue)
		r := rollback("r")
		r.Spec.WhenInUse = v1alpha1.Wait
		s.Create(r)
		s.condition(s.run("r"), v1alpha1.Complete, metav1.ConditionFalse, v1alpha1.ReasonWaitingForUsers, "as soon as it is not")
		if events := s.TakeEvents(); len(events) != 2 {
			t.Errorf("%q", events)
		}
		s.attached = false
		attach(s, metav1.ConditionFalse)
		s.condition(s.run("r"), v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
		s.free()
	})
}

func TestRefused(t *testing.T) {
	unready := snapshot("unready", "db", v1alpha1.DriverName)
	unready[0].(*snapshotv1.VolumeSnapshot).Status.ReadyToUse = ptr(false)
	unready[0].(*snapshotv1.VolumeSnapshot).Status.Error = &snapshotv1.VolumeSnapshotError{Message: ptr("no space")}
	stolen := snapshot("stolen", "db", v1alpha1.DriverName)
	stolen[1].(*snapshotv1.VolumeSnapshotContent).Spec.VolumeSnapshotRef.Namespace = "theirs"
	lost := snapshot("lost", "db", v1alpha1.DriverName)
	lost[2].(*v1alpha1.LocalSnapshot).Status.Conditions = []metav1.Condition{{Type: v1alpha1.Lost, Status: metav1.ConditionTrue, Message: "gone"}}
	unbound := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "unbound"}}
	remade := claim("remade", v1alpha1.DriverName)
	remade[0].SetUID("another")
	for _, c := range []struct {
		name    string
		objects []client.Object
		change  func(r *v1alpha1.VolumeRollback)
		failed  bool
		reason  string
		text    string
	}{
		{name: "no claim", change: func(r *v1alpha1.VolumeRollback) { r.Spec.PersistentVolumeClaimName = "x" }, failed: true, reason: v1alpha1.ReasonNotFound,
			text: "no PersistentVolumeClaim x"},
		{name: "an unbound claim", objects: []client.Object{unbound}, change: func(r *v1alpha1.VolumeRollback) { r.Spec.PersistentVolumeClaimName = "unbound" },
			failed: true, reason: v1alpha1.ReasonNotFound, text: "no volume yet"},
		{name: "a claim made again", objects: remade, change: func(r *v1alpha1.VolumeRollback) { r.Spec.PersistentVolumeClaimName = "remade" },
			failed: true, reason: v1alpha1.ReasonNotFound, text: "not bound to claim"},
		{name: "another driver's claim", objects: claim("theirs", "other"), change: func(r *v1alpha1.VolumeRollback) { r.Spec.PersistentVolumeClaimName = "theirs" },
			failed: true, reason: v1alpha1.ReasonNotOurs, text: "csi.rowan.storage"},
		{name: "another claim", objects: claim("other", v1alpha1.DriverName), change: func(r *v1alpha1.VolumeRollback) { r.Spec.PersistentVolumeClaimName = "other" },
			failed: true, reason: v1alpha1.ReasonNotOfVolume, text: "restore that one to a new claim"},
		{name: "no snapshot", change: func(r *v1alpha1.VolumeRollback) { r.Spec.VolumeSnapshotName = "x" }, failed: true, reason: v1alpha1.ReasonNotFound,
			text: "no VolumeSnapshot x"},
		{name: "a snapshot that is not ready", objects: unready, change: func(r *v1alpha1.VolumeRollback) { r.Spec.VolumeSnapshotName = "unready" },
			reason: v1alpha1.ReasonNotReady, text: "not ready yet: no space"},
		{name: "another namespace's content", objects: stolen, change: func(r *v1alpha1.VolumeRollback) { r.Spec.VolumeSnapshotName = "stolen" },
			failed: true, reason: v1alpha1.ReasonNotFound, text: "another snapshot's"},
		{name: "another driver's snapshot", objects: snapshot("theirs", "db", "other"), change: func(r *v1alpha1.VolumeRollback) { r.Spec.VolumeSnapshotName = "theirs" },
			failed: true, reason: v1alpha1.ReasonNotOurs, text: "driver other"},
		{name: "a lost snapshot", objects: lost, change: func(r *v1alpha1.VolumeRollback) { r.Spec.VolumeSnapshotName = "lost" },
			failed: true, reason: v1alpha1.ReasonLost, text: "gone"},
		{name: "no class", change: func(r *v1alpha1.VolumeRollback) { r.Spec.SafetySnapshot.VolumeSnapshotClassName = "x" }, failed: true,
			reason: v1alpha1.ReasonNotFound, text: "no VolumeSnapshotClass x"},
		{name: "no default class", objects: []client.Object{class("x", v1alpha1.DriverName, false, snapshotv1.VolumeSnapshotContentDelete)}, failed: true,
			reason: v1alpha1.ReasonNotFound, text: "name one"},
		{name: "two default classes", objects: []client.Object{class("x", v1alpha1.DriverName, true, snapshotv1.VolumeSnapshotContentDelete),
			class("y", v1alpha1.DriverName, true, snapshotv1.VolumeSnapshotContentDelete)}, failed: true, reason: v1alpha1.ReasonInvalid, text: "x and y"},
		{name: "a class that retains", objects: []client.Object{class("x", v1alpha1.DriverName, true, snapshotv1.VolumeSnapshotContentRetain)}, failed: true,
			reason: v1alpha1.ReasonClassRetains, text: "deletionPolicy Retain"},
		{name: "another driver's class", objects: []client.Object{class("x", "other", true, snapshotv1.VolumeSnapshotContentDelete)}, failed: true,
			change: func(r *v1alpha1.VolumeRollback) { r.Spec.SafetySnapshot.VolumeSnapshotClassName = "x" }, reason: v1alpha1.ReasonNotOurs, text: "driver other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.objects...)
			r := rollback("r")
			if c.change != nil {
				c.change(r)
			}
			s.Create(r)
			r = s.run("r")
			s.condition(r, v1alpha1.Complete, metav1.ConditionFalse, c.reason, c.text)
			if r.Finished() != c.failed || s.rolled != 0 || len(s.cuts) != 0 {
				t.Errorf("%+v, %v", r.Status, s.cuts)
			}
			s.free()
		})
	}
}

// Two rollbacks of one volume: one after the other, or the second refused.
func TestOneAtATime(t *testing.T) {
	s := start(t)
	s.attached = true
	first, second, third := rollback("first"), rollback("second"), rollback("third")
	first.Spec.WhenInUse, second.Spec.WhenInUse = v1alpha1.Wait, v1alpha1.Wait
	for _, r := range []*v1alpha1.VolumeRollback{first, second, third} {
		s.Create(r)
		s.run(r.Name)
	}
	s.exists(second)
	s.exists(third)
	s.condition(second, v1alpha1.Complete, metav1.ConditionFalse, v1alpha1.ReasonOther, "VolumeRollback ns/first")
	s.condition(third, v1alpha1.Failed, metav1.ConditionTrue, v1alpha1.ReasonOther, "VolumeRollback ns/first")
	s.attached = false
	s.condition(s.run("first"), v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
	s.condition(s.run("second"), v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
	if s.rolled != 2 {
		t.Errorf("%d times", s.rolled)
	}
	s.free()
}

// The hold that the safety snapshot is of was lost: what the volume holds now is not in it.
func TestHoldLost(t *testing.T) {
	s := start(t)
	s.Create(rollback("r"))
	for range 4 { // up to the safety snapshot
		_, err := s.look("r")
		s.must(err)
		s.node()
	}
	s.held = "" // by hand, on the node
	s.Step(time.Second)
	s.condition(s.run("r"), v1alpha1.Failed, metav1.ConditionTrue, v1alpha1.ReasonInvalid, "held again since")
	if s.rolled != 0 {
		t.Error("rolled back")
	}
	s.free()
}

// A safety snapshot that cannot be taken does not keep the volume from being used for ever.
func TestNoSafetySnapshot(t *testing.T) {
	s := start(t)
	s.Create(rollback("r"))
	look := func() *v1alpha1.VolumeRollback {
		for range 6 {
			if _, err := s.look("r"); err != nil && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			s.node()
		}
		r := rollback("r")
		s.exists(r)
		return r
	}
	r := look()
	snap := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: safetyName(r)}}
	s.exists(snap)
	snap.CreationTimestamp = metav1.NewTime(s.Clock.Now())
	snap.Status = &snapshotv1.VolumeSnapshotStatus{Error: &snapshotv1.VolumeSnapshotError{Message: ptr("the pool is nearly full")}}
	s.must(s.Client.Update(t.Context(), snap))
	s.condition(look(), v1alpha1.Complete, metav1.ConditionFalse, v1alpha1.ReasonSafety, "the pool is nearly full")
	s.Step(safetyPatience + time.Second)
	s.condition(look(), v1alpha1.Failed, metav1.ConditionTrue, v1alpha1.ReasonSafety, "the volume is let go")
	s.free()
	if s.rolled != 0 {
		t.Error("rolled back")
	}
}

// A rollback that is deleted at any step lets the volume go; it is done or not done.
func TestDeleted(t *testing.T) {
	for n := range 12 {
		s := start(t)
		s.Create(rollback("r"))
		for i := range n {
			if _, err := s.look("r"); err != nil && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			if i%2 == 1 {
				s.node()
				s.snapshotter()
			}
		}
		r := rollback("r")
		if s.exists(r) {
			s.Delete(r)
		}
		for range 4 {
			if _, err := s.look("r"); err != nil {
				t.Fatal(err)
			}
			s.node()
		}
		if s.exists(rollback("r")) {
			t.Errorf("after %d steps: it is there still", n)
		}
		s.free()
	}
}

// A rollback whose finalizer was removed by hand, and one made again under its name, let the volume go.
func TestVanished(t *testing.T) {
	for _, again := range []bool{false, true} {
		s := start(t)
		s.attached = true
		r := rollback("r")
		r.Spec.WhenInUse = v1alpha1.Wait
		s.Create(r)
		s.run("r")
		s.exists(r)
		r.Finalizers = nil
		s.must(s.Client.Update(t.Context(), r))
		s.Delete(r)
		if again {
			r := rollback("r")
			r.UID = "another"
			s.Create(r)
		}
		s.attached = false
		s.run("r")
		s.free()
		if want := map[bool]int{true: 1, false: 0}[again]; s.rolled != want {
			t.Errorf("made again %v: %d times", again, s.rolled)
		}
	}
}

// Every call fails once, before or after it was done: it is rolled back once all the same, and safely.
func TestEveryCallFailsOnce(t *testing.T) {
	for n := 1; ; n++ {
		s := start(t)
		s.Create(rollback("r"))
		failed, calls := false, 0
		for range 14 {
			s.Fail(func(int) error {
				if calls++; calls != n {
					return nil
				}
				failed = true
				return kittest.ErrInjected
			})
			_, err := s.look("r")
			s.Fail(nil)
			if err != nil && !errors.Is(err, kittest.ErrInjected) && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			s.node()
			s.snapshotter()
		}
		r := rollback("r")
		s.exists(r)
		s.condition(r, v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, "what was replaced is VolumeSnapshot")
		if s.rolled != 1 || !slices.Equal(s.cuts, []string{"safety", "rollback"}) || len(r.Finalizers) != 0 {
			t.Errorf("call %d failed: %d times, %v, %v", n, s.rolled, s.cuts, r.Finalizers)
		}
		s.free()
		if !failed {
			if n < 20 {
				t.Errorf("only %d calls were failed", n-1)
			}
			return
		}
	}
}

// A safety snapshot goes after its time, unless somebody needs it.
func TestSafetyExpires(t *testing.T) {
	s := start(t)
	s.Create(rollback("r"))
	r := s.run("r")
	name := r.Status.SafetySnapshotName
	snap := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	look := func() time.Duration {
		t.Helper()
		result, err := (&safety{s.c}).Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(snap)})
		s.must(err)
		return result.RequeueAfter
	}
	if look() != time.Hour || !s.exists(snap) {
		t.Fatal("before its time")
	}
	annotate := func(key, value string) {
		t.Helper()
		s.exists(snap)
		snap.Annotations[key] = value
		if value == "" {
			delete(snap.Annotations, key)
		}
		s.must(s.Client.Update(t.Context(), snap))
	}
	s.Step(168 * time.Hour)
	for what, change := range map[string]func() (undo func()){
		"held": func() func() {
			annotate(retention.AnnotationHold, "the auditor")
			return func() { annotate(retention.AnnotationHold, "") }
		},
		"unreadable": func() func() {
			was := s.Clock.Now().Format(time.RFC3339)
			annotate(v1alpha1.AnnotationDeleteAfter, "tomorrow")
			return func() { annotate(v1alpha1.AnnotationDeleteAfter, was) }
		},
		"owned": func() func() {
			s.exists(snap)
			snap.OwnerReferences = []metav1.OwnerReference{{Kind: "VirtualMachineSnapshot", Name: "vm"}}
			s.must(s.Client.Update(t.Context(), snap))
			return func() { s.exists(snap); snap.OwnerReferences = nil; s.must(s.Client.Update(t.Context(), snap)) }
		},
		"a claim": func() func() {
			p := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "restore"}, Spec: corev1.PersistentVolumeClaimSpec{
				DataSource: &corev1.TypedLocalObjectReference{APIGroup: ptr(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: name}}}
			s.Create(p)
			return func() { s.Delete(p) }
		},
		"a DataSource of CDI": func() func() {
			u := &unstructured.Unstructured{Object: map[string]any{
				"spec": map[string]any{"source": map[string]any{"snapshot": map[string]any{"name": name, "namespace": "ns"}}},
			}}
			u.SetGroupVersionKind(schema.GroupVersionKind{Group: "cdi.kubevirt.io", Version: "v1beta1", Kind: "DataSource"})
			u.SetNamespace("golden")
			u.SetName("image")
			s.Create(u)
			return func() { s.Delete(u) }
		},
		"a rollback": func() func() {
			u := rollback("undo")
			u.Spec.VolumeSnapshotName = name
			s.Create(u)
			return func() { s.Delete(u) }
		},
	} {
		undo := change()
		look()
		if !s.exists(snap) {
			t.Fatalf("%s: it was deleted", what)
		}
		undo()
	}
	look()
	if s.exists(snap) {
		t.Error("it is there still")
	}
	// Snapshots of others, and those without the annotation, are not looked at.
	for _, o := range []*snapshotv1.VolumeSnapshot{{}, {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelRollback: "x"}}}} {
		if got := taken(t.Context(), o); len(got) != 0 {
			t.Error(got)
		}
	}
}
