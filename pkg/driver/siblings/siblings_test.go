package siblings

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/volume"
)

type next struct {
	csi.UnimplementedControllerServer
	calls int
	last  *csi.CreateVolumeRequest
	err   error
	at    string // the topology of what it makes
}

func (n *next) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	n.calls++
	n.last = req
	if n.err != nil {
		return nil, n.err
	}
	at := []*csi.Topology{{Segments: map[string]string{v1alpha1.TopologyKey: n.at}}}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{AccessibleTopology: at}}, nil
}

func ptr[T any](v T) *T { return &v }

func claim(name string, source *corev1.TypedObjectReference) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: ptr("rowan"), DataSourceRef: source}}
}

func pod(name, node string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return p
}

// objects: a claim that is restored from a snapshot on node a-now, whose identity is a, and a new one.
func objects() []client.Object {
	return []client.Object{
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "rowan"}, Provisioner: v1alpha1.DriverName,
			VolumeBindingMode: ptr(storagev1.VolumeBindingWaitForFirstConsumer)},
		&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "pool"}, Spec: v1alpha1.PoolSpec{NodeName: "a-now"}, Status: v1alpha1.PoolStatus{Identity: "a"}},
		&snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "cut"},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr("content")}}},
		&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content"}, Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: v1alpha1.DriverName, Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: ptr("snap-1")}}},
		&v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "snap-1"},
			Spec: v1alpha1.LocalSnapshotSpec{Location: v1alpha1.Location{NodeName: "a-now", Pool: "pool"}}},
		claim("restored", &corev1.TypedObjectReference{APIGroup: ptr(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: "cut"}),
		claim("new", nil), claim("other", nil),
	}
}

func reader(t *testing.T, funcs interceptor.Funcs, more ...client.Object) client.Reader {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, storagev1.AddToScheme, snapshotv1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(s).WithObjects(append(objects(), more...)...).
		WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }).
		WithIndex(&v1alpha1.Pool{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*v1alpha1.Pool).Spec.NodeName} }).
		WithInterceptorFuncs(funcs).Build()
}

func request(claim, node string) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{Name: "pvc-1", Parameters: map[string]string{claimName: claim, claimNamespace: "ns"}}
	if node != "" {
		r.AccessibilityRequirements = &csi.TopologyRequirement{Preferred: []*csi.Topology{{Segments: map[string]string{v1alpha1.TopologyKey: node}}}}
	}
	return r
}

func TestKeepsSiblingsTogether(t *testing.T) {
	restored := request("restored", "b")
	restored.VolumeContentSource = &csi.VolumeContentSource{}
	unknown := request("", "b")
	for _, c := range []struct {
		name    string
		request *csi.CreateVolumeRequest
		objects []client.Object
		refused bool
	}{
		{"elsewhere", request("new", "b"), []client.Object{pod("p", "", "new", "restored")}, true},
		{"elsewhere, of several pods", request("new", "b"), []client.Object{pod("o", "", "other"), pod("p", "", "restored", "new")}, true},
		{"there", request("new", "a"), []client.Object{pod("p", "", "new", "restored")}, false},
		{"no source beside it", request("new", "b"), []client.Object{pod("p", "", "new", "other", "not-there")}, false},
		{"alone in its pod", request("new", "b"), []client.Object{pod("p", "", "new"), pod("q", "", "restored")}, false},
		{"a pod with a node", request("new", "b"), []client.Object{pod("p", "b", "new", "restored")}, false},
		{"no pod", request("new", "b"), nil, false},
		{"no topology", request("new", ""), []client.Object{pod("p", "", "new", "restored")}, false},
		{"a source of its own", restored, []client.Object{pod("p", "", "new", "restored")}, false},
		{"no claim is named", unknown, []client.Object{pod("p", "", "new", "restored")}, false},
		{"it is made already", request("new", "b"), []client.Object{pod("p", "", "new", "restored"),
			&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.VolumeIDOf("pvc-1").String()}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &next{}
			_, err := New(n, reader(t, interceptor.Funcs{}, c.objects...), events.NewFakeRecorder(10)).CreateVolume(t.Context(), c.request)
			if c.refused {
				const want = "node b was chosen for claim new, but pod p uses it with VolumeSnapshot cut, which claim restored is made from, which is on node a"
				if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), want) || n.calls != 0 {
					t.Errorf("%d calls, %v", n.calls, err)
				}
			} else if err != nil || n.calls != 1 {
				t.Errorf("%d calls, %v", n.calls, err)
			}
		})
	}
}

// A volume is made on the node that was drawn for its claim or on none, unless none was drawn or it is made already.
func TestOnlyTheDrawnNode(t *testing.T) {
	drawn := claim("drawn", nil)
	drawn.Annotations = map[string]string{claims.SelectedNode: "b"}
	there := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.VolumeIDOf("pvc-1").String()}}
	for _, c := range []struct {
		name, claim string
		objects     []client.Object
		nodes       int // that the volume may be on
	}{
		{"drawn", "drawn", []client.Object{drawn}, 1},
		{"not drawn", "new", nil, 2},
		{"no such claim", "gone", nil, 2},
		{"made already", "drawn", []client.Object{drawn, there}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &next{}
			r := request(c.claim, "b")
			r.AccessibilityRequirements.Requisite = []*csi.Topology{
				r.AccessibilityRequirements.Preferred[0], {Segments: map[string]string{v1alpha1.TopologyKey: "a"}},
			}
			if _, err := New(n, reader(t, interceptor.Funcs{}, c.objects...), events.NewFakeRecorder(10)).CreateVolume(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if got := len(n.last.GetAccessibilityRequirements().GetRequisite()); got != c.nodes || len(r.AccessibilityRequirements.Requisite) != 2 {
				t.Errorf("it may be on %d nodes, want %d", got, c.nodes)
			}
		})
	}
}

// The drawn node cannot make it: another is drawn, but not for a volume that may be made already, nor for a request that is wrong.
func TestAnotherIsDrawn(t *testing.T) {
	drawn := claim("drawn", nil)
	drawn.Annotations = map[string]string{claims.SelectedNode: "b"}
	there := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.VolumeIDOf("pvc-1").String()}}
	for _, c := range []struct {
		name      string
		err, want error
		objects   []client.Object
	}{
		{"pool out of service", volume.ErrFailed, volume.ErrNoSpace, []client.Object{drawn}},
		{"agent away", volume.ErrNodeAway, volume.ErrNoSpace, []client.Object{drawn}},
		{"made already", volume.ErrFailed, volume.ErrFailed, []client.Object{drawn, there}},
		{"wrong", volume.ErrInvalid, volume.ErrInvalid, []client.Object{drawn}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request("drawn", "b")
			r.AccessibilityRequirements.Requisite = []*csi.Topology{
				r.AccessibilityRequirements.Preferred[0], {Segments: map[string]string{v1alpha1.TopologyKey: "a"}},
			}
			_, err := New(&next{err: c.err}, reader(t, interceptor.Funcs{}, c.objects...), events.NewFakeRecorder(10)).CreateVolume(t.Context(), r)
			if !errors.Is(err, c.want) || c.want == volume.ErrNoSpace && errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// An API server that does not answer refuses nothing.
func TestUnreadableRefusesNothing(t *testing.T) {
	away := errors.New("away")
	for _, funcs := range []interceptor.Funcs{
		{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return away }},
		{Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return away
		}},
	} {
		n := &next{}
		if _, err := New(n, reader(t, funcs, pod("p", "", "new", "restored")), events.NewFakeRecorder(10)).CreateVolume(t.Context(), request("new", "b")); err != nil || n.calls != 1 {
			t.Errorf("%d calls, %v", n.calls, err)
		}
	}
}

// A copy that is made elsewhere than the scheduler said is told on its claim, with the node's name; no other is.
func TestTellsWhereACopyIs(t *testing.T) {
	drawn := claim("drawn", &corev1.TypedObjectReference{APIGroup: ptr(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: "cut"})
	drawn.Annotations = map[string]string{claims.SelectedNode: "b"}
	copied := func(claim, chosen string) *csi.CreateVolumeRequest {
		r := request(claim, chosen)
		r.VolumeContentSource = &csi.VolumeContentSource{}
		return r
	}
	refused := errors.New("refused")
	for _, c := range []struct {
		name    string
		request *csi.CreateVolumeRequest
		err     error
		told    bool
	}{
		{"elsewhere", copied("drawn", "b"), nil, true},
		{"where it was to be", copied("drawn", "a"), nil, false},
		{"nobody chose", copied("restored", "b"), nil, false},
		{"no topology", copied("drawn", ""), nil, false},
		{"no claim is named", copied("", "b"), nil, false},
		{"claim gone", copied("gone", "b"), nil, false},
		{"not made", copied("drawn", "b"), refused, false},
		{"no copy", request("drawn", "b"), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(10)
			n := &next{err: c.err, at: "a"}
			if _, err := New(n, reader(t, interceptor.Funcs{}, drawn), recorder).CreateVolume(t.Context(), c.request); !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			var told string
			select {
			case told = <-recorder.Events:
			default:
			}
			if c.told != strings.Contains(told, "VolumeSnapshot cut is on node a-now, not on node b") || !c.told && told != "" {
				t.Errorf("told %q", told)
			}
		})
	}
}

// Whether a volume is made is looked at once, however much depends on it.
func TestLooksOnce(t *testing.T) {
	drawn := claim("drawn", nil)
	drawn.Annotations = map[string]string{claims.SelectedNode: "b"}
	for _, made := range []bool{false, true} {
		looks, more := 0, []client.Object{drawn, pod("p", "", "drawn", "restored")}
		if made {
			more = append(more, &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.VolumeIDOf("pvc-1").String()}})
		}
		live := reader(t, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, ok := o.(*v1alpha1.LocalVolume); ok {
				looks++
			}
			return c.Get(ctx, key, o, opts...)
		}}, more...)
		r := request("drawn", "b")
		r.AccessibilityRequirements.Requisite = []*csi.Topology{
			r.AccessibilityRequirements.Preferred[0], {Segments: map[string]string{v1alpha1.TopologyKey: "a"}},
		}
		_, err := New(&next{}, live, events.NewFakeRecorder(10)).CreateVolume(t.Context(), r)
		if errors.Is(err, volume.ErrNoSpace) == made || looks != 1 {
			t.Errorf("made %t: %d looks, %v", made, looks, err)
		}
	}
}
