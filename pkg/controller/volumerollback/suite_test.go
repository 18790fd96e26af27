package volumerollback

import (
	"fmt"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

// suite is a cluster with claim db, whose volume vol-db has the snapshot monday. It plays the node and the snapshot controller.
type suite struct {
	*kittest.World
	t        *testing.T
	c        *Controller
	attached bool
	rolled   int      // how often the node rolled the volume back
	cuts     []string // of the node: "safety" and "rollback" in their order
	held     string   // the token that the engine knows
	since    time.Time
}

func ptr[T any](v T) *T { return &v }

func class(name, driver string, isDefault bool, policy snapshotv1.DeletionPolicy) *snapshotv1.VolumeSnapshotClass {
	return &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{isDefaultClass: fmt.Sprint(isDefault)}},
		Driver: driver, DeletionPolicy: policy}
}

// claim is bound to the volume vol-NAME.
func claim(name, driver string) []client.Object {
	return []client.Object{
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
			ClaimRef:               &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "vol-" + name}}}},
		&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-" + name},
			Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "a", PoolUUID: "u"}, DesiredState: v1alpha1.Present}},
	}
}

// snapshot of that claim's volume, ready.
func snapshot(name, of, driver string) []client.Object {
	return []client.Object{
		&snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
			Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr("content-" + name), ReadyToUse: ptr(true)}},
		&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content-" + name},
			Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: driver,
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr("snap-" + name)}},
		&v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "snap-" + name},
			Spec: v1alpha1.LocalSnapshotSpec{Location: v1alpha1.Location{NodeName: "a", PoolUUID: "u"}, Volume: "vol-" + of},
			Status: v1alpha1.LocalSnapshotStatus{Cut: &v1alpha1.Cut{CreationTime: metav1.NewMicroTime(time.Unix(1e9, 0))},
				Status: v1alpha1.Status{Conditions: []metav1.Condition{{Type: v1alpha1.Created, Status: metav1.ConditionTrue}}}}},
	}
}

func start(t *testing.T, objects ...client.Object) *suite {
	t.Helper()
	objects = append(objects, claim("db", v1alpha1.DriverName)...)
	objects = append(objects, snapshot("monday", "db", v1alpha1.DriverName)...)
	w := kittest.New(t, func(s *runtime.Scheme, b *fake.ClientBuilder) error {
		b.WithIndex(&v1alpha1.VolumeRollback{}, fieldVolume, volumeIndex).WithIndex(&v1alpha1.LocalVolume{}, fieldRollback, rollbackIndex)
		b.WithStatusSubresource(&v1alpha1.VolumeRollback{})
		return snapshotv1.AddToScheme(s)
	}, objects...)
	s := &suite{World: w, t: t, c: New(w.Kit)}
	s.c.snapshots.Store(true)
	var classes snapshotv1.VolumeSnapshotClassList
	s.must(w.Client.List(t.Context(), &classes))
	if len(classes.Items) == 0 {
		s.Create(class("rowan", v1alpha1.DriverName, true, snapshotv1.VolumeSnapshotContentDelete))
	}
	return s
}

func (s *suite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) exists(o client.Object) bool {
	s.t.Helper()
	err := s.Client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)
	s.must(client.IgnoreNotFound(err))
	return err == nil
}

func rollback(name string) *v1alpha1.VolumeRollback {
	return &v1alpha1.VolumeRollback{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Spec: v1alpha1.VolumeRollbackSpec{PersistentVolumeClaimName: "db", VolumeSnapshotName: "monday", WhenInUse: v1alpha1.Refuse,
			SafetySnapshot: v1alpha1.SafetySnapshot{TTL: "168h"}}}
}

// node plays the agent: it holds, rolls back and lets go, as package agent does.
func (s *suite) node() {
	s.t.Helper()
	v := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-db"}}
	if !s.exists(v) {
		return
	}
	want := v.Spec.Rollback
	if s.held != "" && (want == nil || want.Token != s.held) {
		s.held = ""
	}
	s.SetStatus(v, func() {
		status, reason := metav1.ConditionFalse, v1alpha1.ReasonHeld
		st := v.Status.Rollback
		switch {
		case want == nil:
			if st != nil {
				st.HeldSince = nil
			}
			return
		case st != nil && st.Token == want.Token && st.DoneAt != nil:
			return
		case s.attached && s.held == "":
			v.Status.Rollback, reason = &v1alpha1.RollbackStatus{Token: want.Token}, v1alpha1.ReasonInUse
		case s.held == "":
			s.held, s.since = want.Token, s.Clock.Now()
			fallthrough
		default:
			held := metav1.NewMicroTime(s.since)
			v.Status.Rollback = &v1alpha1.RollbackStatus{Token: want.Token, HeldSince: &held}
			if want.HeldSince == nil {
				break
			}
			if !want.HeldSince.Equal(&held) {
				reason = v1alpha1.ReasonInvalid
				break
			}
			v.Status.Rollback = &v1alpha1.RollbackStatus{Token: want.Token, DoneAt: &held}
			s.held, status, reason = "", metav1.ConditionTrue, v1alpha1.ReasonDone
			s.rolled++
			s.cuts = append(s.cuts, "rollback")
		}
		s.SetCondition(v, &v.Status.Status, v1alpha1.RolledBack, status, reason, "said the node")
	})
}

// snapshotter plays the snapshot controller and the CSI driver: what is asked for is cut.
func (s *suite) snapshotter() {
	s.t.Helper()
	var list snapshotv1.VolumeSnapshotList
	s.must(s.Client.List(s.t.Context(), &list))
	for i := range list.Items {
		o := &list.Items[i]
		if o.Status != nil {
			continue
		}
		if o.Spec.Source.PersistentVolumeClaimName == nil || *o.Spec.Source.PersistentVolumeClaimName != "db" || *o.Spec.VolumeSnapshotClassName != "rowan" {
			s.t.Fatalf("%+v", o.Spec)
		}
		if s.held == "" {
			s.t.Errorf("the safety snapshot was taken of a volume that is not held")
		}
		s.cuts = append(s.cuts, "safety")
		made := snapshot(o.Name, "db", v1alpha1.DriverName)
		o.UID = types.UID("uid-" + o.Name)
		o.Status = made[0].(*snapshotv1.VolumeSnapshot).Status
		s.must(s.Client.Update(s.t.Context(), o))
		s.Create(made[1])
		s.Create(made[2])
	}
}

// look has the controller look once.
func (s *suite) look(name string) (reconcile.Result, error) {
	return s.c.Reconcile(s.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns", Name: name}})
}

// run until nothing changes any more.
func (s *suite) run(name string) *v1alpha1.VolumeRollback {
	s.t.Helper()
	for range 12 {
		if _, err := s.look(name); err != nil && !apierrors.IsConflict(err) {
			s.t.Fatal(err)
		}
		s.node()
		s.snapshotter()
	}
	r := rollback(name)
	s.exists(r)
	return r
}

func (s *suite) condition(r *v1alpha1.VolumeRollback, kind string, status metav1.ConditionStatus, reason, text string) {
	s.t.Helper()
	c := meta.FindStatusCondition(r.Status.Conditions, kind)
	if c == nil || c.Status != status || c.Reason != reason || !strings.Contains(c.Message, text) {
		s.t.Fatalf("%s is %+v, want %s %s with %q", kind, c, status, reason, text)
	}
}

// free fails the test where the volume is not let go.
func (s *suite) free() {
	s.t.Helper()
	v := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-db"}}
	s.exists(v)
	if v.Spec.Rollback != nil || s.held != "" {
		s.t.Errorf("it is held still: %+v by %q", v.Spec.Rollback, s.held)
	}
}
