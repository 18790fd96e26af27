package consistency

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// next is a controller service that keeps what it was asked for.
type next struct {
	csi.ControllerServer
	asked map[string]string
}

func (n *next) CreateSnapshot(_ context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	n.asked = req.GetParameters()
	return &csi.CreateSnapshotResponse{}, nil
}

// away is an API server that does not answer.
type away struct{ client.Reader }

func (away) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("connection refused")
}

// nextGroup is a group controller service that does.
type nextGroup struct {
	csi.GroupControllerServer
	asked map[string]string
}

func (n *nextGroup) CreateVolumeGroupSnapshot(
	_ context.Context, req *csi.CreateVolumeGroupSnapshotRequest,
) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	n.asked = req.GetParameters()
	return &csi.CreateVolumeGroupSnapshotResponse{}, nil
}

func TestAnnotation(t *testing.T) {
	s := runtime.NewScheme()
	if err := snapshotv1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	made := func(name, value string) client.Object {
		o := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
		if value != "" {
			o.Annotations = map[string]string{v1alpha1.ConsistencyAnnotation: value}
		}
		return o
	}
	live := fake.NewClientBuilder().WithScheme(s).WithObjects(made("plain", ""), made("frozen", "FilesystemFreeze"), made("crash", "Crash"),
		made("wrong", "Application")).Build()
	annotation(t, single, live, func(live client.Reader, params map[string]string) (map[string]string, error) {
		n := &next{}
		_, err := New(n, live).CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Parameters: params})
		return n.asked, err
	})
}

func TestGroupAnnotation(t *testing.T) {
	kind := schema.GroupVersionKind{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Kind: "VolumeGroupSnapshot"}
	made := func(name, value string) client.Object {
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(kind)
		o.SetNamespace("ns")
		o.SetName(name)
		if value != "" {
			o.SetAnnotations(map[string]string{v1alpha1.ConsistencyAnnotation: value})
		}
		return o
	}
	s := runtime.NewScheme()
	s.AddKnownTypeWithName(kind, &unstructured.Unstructured{})
	live := fake.NewClientBuilder().WithScheme(s).WithObjects(made("plain", ""), made("frozen", "FilesystemFreeze"), made("crash", "Crash"),
		made("wrong", "Application")).Build()
	annotation(t, group, live, func(live client.Reader, params map[string]string) (map[string]string, error) {
		n := &nextGroup{}
		_, err := NewGroup(n, live).CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Parameters: params})
		return n.asked, err
	})
}

// annotation asks for snapshots, and looks at what is passed on.
func annotation(t *testing.T, k kind, live client.Reader, ask func(live client.Reader, params map[string]string) (map[string]string, error)) {
	t.Helper()
	named := func(name string, more map[string]string) map[string]string {
		p := map[string]string{k.name: name, k.namespace: "ns"}
		maps.Copy(p, more)
		return p
	}
	class := map[string]string{"consistency": "FilesystemFreeze"}
	for _, c := range []struct {
		what   string
		params map[string]string
		live   client.Reader
		want   string
		err    error
	}{
		{"nobody named", nil, live, "", nil},
		{"the class alone", class, live, "FilesystemFreeze", nil},
		{"no annotation", named("plain", nil), live, "", nil},
		{"no annotation, but the class", named("plain", class), live, "FilesystemFreeze", nil},
		{"an annotation", named("frozen", nil), live, "FilesystemFreeze", nil},
		{"before the class", named("crash", class), live, "Crash", nil},
		{"a wrong one", named("wrong", nil), live, "", volume.ErrInvalid},
		{"gone", named("gone", nil), live, "", volume.ErrPending},
		{"no answer", named("frozen", nil), away{}, "", volume.ErrUnavailable},
	} {
		before := maps.Clone(c.params)
		asked, err := ask(c.live, c.params)
		if !errors.Is(err, c.err) || asked["consistency"] != c.want || !maps.Equal(before, c.params) {
			t.Errorf("%s: %v, %v; want %q, %v", c.what, asked, err, c.want, c.err)
		}
	}
}
