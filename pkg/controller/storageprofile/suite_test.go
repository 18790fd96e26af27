package storageprofile

import (
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

func class(provisioner, fsType string) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "sc"}, Provisioner: provisioner,
		Parameters: map[string]string{"csi.storage.k8s.io/fstype": fsType}}
}

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	p := newProfile()
	if err := yaml.Unmarshal([]byte(text), &p.Object); err != nil {
		t.Fatal(err)
	}
	p.SetGroupVersionKind(profileKind)
	p.SetName("sc")
	return p
}

const filled = `
spec:
  claimPropertySets:
  - {accessModes: [ReadWriteOnce], volumeMode: Block}
  - {accessModes: [ReadWriteOnce], volumeMode: Filesystem}
  dataImportCronSourceFormat: snapshot
status: {storageClass: sc}
`

func TestFills(t *testing.T) {
	const theirs = "spec: {claimPropertySets: [{accessModes: [ReadWriteMany], volumeMode: Block}], cloneStrategy: copy}"
	for _, c := range []struct {
		name   string
		class  *storagev1.StorageClass
		before string
		want   string
		events int
	}{
		{"an empty one", class(v1alpha1.DriverName, "ext4"), "status: {storageClass: sc}", filled, 1},
		{"an empty one for XFS", class(v1alpha1.DriverName, "xfs"), "status: {storageClass: sc}",
			"metadata: {annotations: {cdi.kubevirt.io/minimumSupportedPvcSize: 300Mi}}" + filled, 1},
		{"of another driver", class("other", "xfs"), "spec: {}", "spec: {}", 0},
		{"one that somebody filled in part", class(v1alpha1.DriverName, ""), theirs,
			"spec: {claimPropertySets: [{accessModes: [ReadWriteMany], volumeMode: Block}], cloneStrategy: copy, dataImportCronSourceFormat: snapshot}", 1},
		{"one with a size", class(v1alpha1.DriverName, "xfs"), "metadata: {annotations: {cdi.kubevirt.io/minimumSupportedPvcSize: 1Gi}}" + filled,
			"metadata: {annotations: {cdi.kubevirt.io/minimumSupportedPvcSize: 1Gi}}" + filled, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world(t, c.class, parse(t, c.before))
			ctl := New(w.Kit)
			for range 2 {
				w.Settle(ctl, "", "sc")
			}
			got := newProfile()
			w.Get(got, "sc")
			want := parse(t, c.want)
			for _, part := range []string{"spec", "status"} {
				if !equality.Semantic.DeepEqual(got.Object[part], want.Object[part]) {
					t.Errorf("%s is %v, not %v", part, got.Object[part], want.Object[part])
				}
			}
			if !equality.Semantic.DeepEqual(got.GetAnnotations(), want.GetAnnotations()) {
				t.Errorf("annotations are %v", got.GetAnnotations())
			}
			if events := w.TakeEvents(); len(events) != c.events {
				t.Errorf("%q", events)
			}
		})
	}
}

func world(t *testing.T, objects ...client.Object) *kittest.World {
	return kittest.New(t, func(s *runtime.Scheme, _ *fake.ClientBuilder) error {
		s.AddKnownTypeWithName(profileKind, &unstructured.Unstructured{})
		s.AddKnownTypeWithName(profileKind.GroupVersion().WithKind("StorageProfileList"), &unstructured.UnstructuredList{})
		return nil
	}, objects...)
}

// A profile whose class, or a class whose profile, is not there is nothing to do.
func TestOneOfThemMissing(t *testing.T) {
	for _, o := range []client.Object{class(v1alpha1.DriverName, ""), parse(t, "spec: {}")} {
		w := world(t, o)
		if _, err := New(w.Kit).Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "sc"}}); err != nil {
			t.Error(err)
		}
	}
}
