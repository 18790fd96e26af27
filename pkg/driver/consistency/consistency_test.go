package consistency

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
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

func TestAnnotation(t *testing.T) {
	s := runtime.NewScheme()
	if err := snapshotv1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	made := func(name string, annotations map[string]string) client.Object {
		return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: annotations}}
	}
	live := fake.NewClientBuilder().WithScheme(s).WithObjects(made("plain", nil), made("frozen", map[string]string{v1alpha1.ConsistencyAnnotation: "FilesystemFreeze"}),
		made("crash", map[string]string{v1alpha1.ConsistencyAnnotation: "Crash"}), made("wrong", map[string]string{v1alpha1.ConsistencyAnnotation: "Application"})).Build()
	named := func(name string, more map[string]string) map[string]string {
		p := map[string]string{snapshotName: name, snapshotNamespace: "ns"}
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
		n := &next{}
		before := maps.Clone(c.params)
		_, err := New(n, c.live).CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Parameters: c.params})
		if !errors.Is(err, c.err) || n.asked["consistency"] != c.want || !maps.Equal(before, c.params) {
			t.Errorf("%s: %v, %v; want %q, %v", c.what, n.asked, err, c.want, c.err)
		}
	}
}
