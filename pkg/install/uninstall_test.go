package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

func persistentVolume(name, driver string) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if driver != "" {
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver}
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: "data-" + name}
	}
	return pv
}

func snapshotContent(name, driver string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{"driver": driver, "volumeSnapshotRef": map[string]any{"namespace": "shop", "name": "snap-" + name}},
	}}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContent"})
	u.SetName(name)
	return u
}

func TestCheckUninstall(t *testing.T) {
	var many []client.Object
	for i := range 7 {
		many = append(many, persistentVolume(fmt.Sprint("pv-", i), v1alpha1.DriverName))
	}
	for name, tc := range map[string]struct {
		objects []client.Object
		want    []string // nil: it may go
	}{
		"nothing":  {},
		"others'":  {objects: []client.Object{persistentVolume("a", "other.example.com"), persistentVolume("b", ""), snapshotContent("c", "other.example.com")}},
		"a volume": {objects: []client.Object{persistentVolume("a", v1alpha1.DriverName)}, want: []string{"1 persistent volumes (a of claim shop/data-a)"}},
		"a snapshot": {objects: []client.Object{snapshotContent("c", v1alpha1.DriverName)},
			want: []string{"1 volume snapshot contents (c of snapshot shop/snap-c)"}},
		"many": {objects: many, want: []string{"7 persistent volumes", "and 2 more", "helm rollback RELEASE REVISION", "--no-hooks"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckUninstall(t.Context(), builder(t).WithObjects(tc.objects...).Build())
			if tc.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrInUse) {
				t.Fatal(err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\nlacks %q", err, w)
				}
			}
		})
	}
}

// TestCheckUninstallErrors: what cannot be seen is not taken for nothing, but for the kind that a cluster need not have.
func TestCheckUninstallErrors(t *testing.T) {
	fails := func(what client.ObjectList, answer error) error {
		return CheckUninstall(t.Context(), builder(t).WithInterceptorFuncs(interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if fmt.Sprintf("%T", list) == fmt.Sprintf("%T", what) {
					return answer
				}
				return c.List(ctx, list, opts...)
			},
		}).Build())
	}
	away := errors.New("connection refused")
	if err := fails(&corev1.PersistentVolumeList{}, away); !errors.Is(err, away) {
		t.Error(err)
	}
	if err := fails(&unstructured.UnstructuredList{}, away); !errors.Is(err, away) {
		t.Error(err)
	}
	if err := fails(&unstructured.UnstructuredList{}, &meta.NoKindMatchError{}); err != nil {
		t.Error(err)
	}
}
