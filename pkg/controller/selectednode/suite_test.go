package selectednode

import (
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

type suite struct {
	*kittest.World
	c    *Controller
	pods *pods
	t    *testing.T
}

func start(t *testing.T, objects ...client.Object) *suite {
	t.Helper()
	for _, node := range []string{"a", "b"} {
		objects = append(objects, kittest.Node(node, "uid-"+node, nil)...)
	}
	waits, now := storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	for _, class := range []storagev1.StorageClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "rowan"}, Provisioner: v1alpha1.DriverName, VolumeBindingMode: &waits},
		{ObjectMeta: metav1.ObjectMeta{Name: "rowan-now"}, Provisioner: v1alpha1.DriverName, VolumeBindingMode: &now},
		{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Provisioner: "other", VolumeBindingMode: &waits},
	} {
		objects = append(objects, &class)
	}
	w := kittest.New(t, func(s *runtime.Scheme, b *fake.ClientBuilder) error {
		b.WithIndex(&corev1.PersistentVolumeClaim{}, fieldSource, sourceIndex).WithIndex(&corev1.Pod{}, fieldClaim, claimIndex)
		return snapshotv1.AddToScheme(s)
	}, objects...)
	c := New(w.Kit)
	c.snapshots.Store(true)
	return &suite{w, c, &pods{Controller: c, told: map[client.ObjectKey]string{}}, t}
}

func ptr[T any](v T) *T { return &v }

func claim(name, class string, source *corev1.TypedObjectReference) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, DataSourceRef: source}}
}

func ofSnapshot(name string) *corev1.TypedObjectReference {
	return &corev1.TypedObjectReference{APIGroup: ptr(snapshotv1.GroupName), Kind: claims.KindSnapshot, Name: name}
}

func ofClaim(name string) *corev1.TypedObjectReference {
	return &corev1.TypedObjectReference{Kind: claims.KindClaim, Name: name}
}

// volume is a claim that is bound to a volume on a node.
func volume(name, node string) []client.Object {
	c := claim(name, "rowan", nil)
	c.Spec.VolumeName = "pv-" + name
	return []client.Object{c,
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName,
				VolumeHandle: "vol-" + name}}}},
		&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-" + name},
			Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: node}}},
	}
}

// snapshot is cut, and its source is gone.
func snapshot(name, node, driver string) []client.Object {
	return []client.Object{
		&snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec:   snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr("gone")}},
			Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr("content-" + name)}},
		&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content-" + name},
			Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: driver, Source: snapshotv1.VolumeSnapshotContentSource{VolumeHandle: ptr("vol-gone")},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: "ns", Name: name}},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: ptr("snap-" + name)}},
		&v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "snap-" + name},
			Spec: v1alpha1.LocalSnapshotSpec{Location: v1alpha1.Location{NodeName: node}}},
	}
}

func (s *suite) settle(name string) (selected string, again time.Duration) {
	s.t.Helper()
	result := s.Settle(s.c, "ns", name)
	got := claim(name, "", nil)
	s.Get(got, name)
	return got.Annotations[claims.SelectedNode], result.RequeueAfter
}

func TestPlaces(t *testing.T) {
	uncut := func(name, source string) client.Object {
		return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &source}}}
	}
	given := func(name, content string) client.Object { // of a content that somebody made: Velero's data mover
		return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content}}}
	}
	givenContent := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "given"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: v1alpha1.DriverName,
			Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr("snap-cut")}}}
	old := claim("new", "rowan", nil)
	old.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ptr(snapshotv1.GroupName), Kind: claims.KindSnapshot, Name: "cut"}
	elsewhere := ofSnapshot("cut")
	elsewhere.Namespace = ptr("ns")
	elsewhereClaim := claim("new", "rowan", elsewhere)
	bound, deleted, decided := claim("new", "rowan", ofSnapshot("cut")), claim("new", "rowan", ofSnapshot("cut")),
		claim("new", "rowan", ofSnapshot("cut"))
	bound.Spec.VolumeName = "pv"
	deleted.DeletionTimestamp, deleted.Finalizers = &metav1.Time{Time: time.Now()}, []string{"keep"}
	decided.Annotations = map[string]string{claims.SelectedNode: "b"}
	lost := snapshot("lost", "a", v1alpha1.DriverName)[:2] // its LocalSnapshot is not in the cache yet
	lost[1].(*snapshotv1.VolumeSnapshotContent).Spec.Source.VolumeHandle = ptr("vol-live")

	for _, c := range []struct {
		name    string
		claim   *corev1.PersistentVolumeClaim
		objects []client.Object
		want    string
		again   bool
	}{
		{name: "a snapshot", claim: claim("new", "rowan", ofSnapshot("cut")), want: "a"},
		{name: "a snapshot by the old field", claim: old, want: "a"},
		{name: "a snapshot in a named namespace", claim: elsewhereClaim, want: "a"},
		{name: "a snapshot of a made content", claim: claim("new", "rowan", ofSnapshot("given")),
			objects: []client.Object{given("given", "given"), givenContent}, want: "a"},
		{name: "a snapshot that is not cut yet", claim: claim("new", "rowan", ofSnapshot("uncut")), objects: []client.Object{uncut("uncut", "live")},
			want: "b"},
		{name: "a snapshot whose object is late", claim: claim("new", "rowan", ofSnapshot("lost")), objects: lost, want: "b"},
		{name: "a claim", claim: claim("new", "rowan", ofClaim("live")), want: "b"},
		{name: "no source", claim: claim("new", "rowan", nil)},
		{name: "a populator", claim: claim("new", "rowan", &corev1.TypedObjectReference{APIGroup: ptr("cdi.kubevirt.io"), Kind: "VolumeCloneSource",
			Name: "x"})},
		{name: "not waiting", claim: claim("new", "rowan-now", ofSnapshot("cut"))},
		{name: "another's class", claim: claim("new", "other", ofSnapshot("cut"))},
		{name: "no such class yet", claim: claim("new", "later", ofSnapshot("cut")), again: true},
		{name: "another driver's snapshot", claim: claim("new", "rowan", ofSnapshot("theirs")), objects: snapshot("theirs", "a", "other"), again: true},
		{name: "no such snapshot yet", claim: claim("new", "rowan", ofSnapshot("later")), again: true},
		{name: "an unbound claim", claim: claim("new", "rowan", ofClaim("unbound")), objects: []client.Object{claim("unbound", "rowan", nil)}, again: true},
		{name: "bound already", claim: bound},
		{name: "being deleted", claim: deleted},
		{name: "decided already", claim: decided, want: "b"},
		{name: "a node that is gone", claim: claim("new", "rowan", ofSnapshot("far")), objects: snapshot("far", "gone", v1alpha1.DriverName), again: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects := append(snapshot("cut", "a", v1alpha1.DriverName), volume("live", "b")...)
			s := start(t, append(append(objects, c.claim), c.objects...)...)
			selected, again := s.settle("new")
			if selected != c.want || (again > 0) != c.again {
				t.Errorf("node %q, again after %s", selected, again)
			}
			events := s.TakeEvents()
			switch {
			case c.want != "" && c.name != "decided already":
				if len(events) != 1 || !strings.HasPrefix(events[0], "PersistentVolumeClaim/new SourceNode: ") ||
					!strings.Contains(events[0], "is on node "+c.want+":") {
					t.Errorf("%q", events)
				}
			case c.name == "a node that is gone":
				if len(events) == 0 || !strings.Contains(events[0], "SourceNodeGone: VolumeSnapshot far is on node gone, which is gone") {
					t.Errorf("%q", events)
				}
			case len(events) > 0:
				t.Errorf("%q", events)
			}
		})
	}
}

// Without the definitions of snapshots, claims of claims are placed, and nothing asks for a VolumeSnapshot.
func TestWithoutSnapshots(t *testing.T) {
	s := start(t, append(append(snapshot("cut", "a", v1alpha1.DriverName), volume("live", "b")...),
		claim("new", "rowan", ofSnapshot("cut")), claim("clone", "rowan", ofClaim("live")))...)
	s.c.snapshots.Store(false)
	if selected, again := s.settle("new"); selected != "" || again == 0 {
		t.Error(selected, again)
	}
	if selected, _ := s.settle("clone"); selected != "b" {
		t.Error(selected)
	}
	s.c.snapshots.Store(true)
	if selected, _ := s.settle("new"); selected != "a" {
		t.Error(selected)
	}
}

// The scheduler decides between our reading and our writing: its word stands, and nobody says otherwise.
func TestSchedulerFirst(t *testing.T) {
	s := start(t, append(snapshot("cut", "a", v1alpha1.DriverName), claim("new", "rowan", ofSnapshot("cut")))...)
	old := claim("new", "rowan", nil)
	s.Get(old, "new")
	now := old.DeepCopy()
	now.Annotations = map[string]string{claims.SelectedNode: "b"}
	if err := s.Client.Patch(t.Context(), now, client.MergeFrom(old)); err != nil {
		t.Fatal(err)
	}
	if result, err := s.c.place(t.Context(), old, &claims.Location{Node: "a", What: "x"}); err != nil || !result.IsZero() {
		t.Error(result, err)
	}
	if selected, _ := s.settle("new"); selected != "b" || len(s.TakeEvents()) != 0 {
		t.Error(selected)
	}
}

func TestSourcesBringTheirClaims(t *testing.T) {
	late := claim("late", "rowan", ofSnapshot("cut"))
	late.Spec.VolumeName = "pv"
	s := start(t, append(append(snapshot("cut", "a", v1alpha1.DriverName), volume("live", "b")...),
		claim("new", "rowan", ofSnapshot("cut")), claim("clone", "rowan", ofClaim("live")), late)...)
	names := func(requests []reconcile.Request) string {
		text := ""
		for _, r := range requests {
			text += r.String() + " "
		}
		return text
	}
	source := snapshot("cut", "a", v1alpha1.DriverName)
	if got := names(s.c.claimsOfSnapshot(t.Context(), source[0])); got != "ns/new " {
		t.Error(got)
	}
	if got := names(s.c.claimsOfContent(t.Context(), source[1])); got != "ns/new " {
		t.Error(got)
	}
	if got := names(s.c.claimsOfClaim(t.Context(), volume("live", "b")[0])); got != "ns/clone " {
		t.Error(got)
	}
	if got := names(s.c.claimsOfClaim(t.Context(), claim("live", "rowan", nil))); got != "" {
		t.Error(got)
	}
}

// Every call fails once, before or after it was done: the claim is placed all the same, and by one event at most.
func TestEveryCallFailsOnce(t *testing.T) {
	for n := 1; ; n++ {
		s := start(t, append(snapshot("cut", "a", v1alpha1.DriverName), claim("new", "rowan", ofSnapshot("cut")))...)
		failed := false
		s.Fail(func(call int) error {
			if call != n {
				return nil
			}
			failed = true
			return kittest.ErrInjected
		})
		for range 3 {
			_, _ = s.c.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns", Name: "new"}})
		}
		s.Fail(nil)
		selected, _ := s.settle("new")
		if events := s.TakeEvents(); selected != "a" || len(events) > 1 {
			t.Errorf("call %d failed: %q, %q", n, selected, events)
		}
		if !failed {
			if n < 7 {
				t.Errorf("only %d calls were failed", n-1)
			}
			return
		}
	}
}
