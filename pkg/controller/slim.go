package controller

import (
	"unique"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// lastApplied is kubectl's copy of a whole object in its annotation.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// slim takes from every object the record of who wrote which field, and from snapshots and their contents, of which there may be tens of thousands, what
// no controller reads. Texts that many of them have in common are kept once.
func slim(o any) (any, error) {
	switch o := o.(type) {
	case *snapshotv1.VolumeSnapshot:
		slimMeta(&o.ObjectMeta)
		o.Spec.VolumeSnapshotClassName, o.Spec.Source.PersistentVolumeClaimName = onceAt(o.Spec.VolumeSnapshotClassName), onceAt(o.Spec.Source.PersistentVolumeClaimName)
		if o.Status != nil {
			o.Status.RestoreSize = nil
		}
		return o, nil
	case *snapshotv1.VolumeSnapshotContent:
		slimMeta(&o.ObjectMeta)
		ref := &o.Spec.VolumeSnapshotRef
		ref.Kind, ref.Namespace, ref.APIVersion, ref.ResourceVersion = once(ref.Kind), once(ref.Namespace), once(ref.APIVersion), ""
		o.Spec.Driver, o.Spec.DeletionPolicy = once(o.Spec.Driver), snapshotv1.DeletionPolicy(once(string(o.Spec.DeletionPolicy)))
		o.Spec.VolumeSnapshotClassName, o.Spec.Source.VolumeHandle = onceAt(o.Spec.VolumeSnapshotClassName), onceAt(o.Spec.Source.VolumeHandle)
		if o.Status != nil {
			o.Status.RestoreSize = nil
		}
		return o, nil
	}
	return cache.TransformStripManagedFields()(o)
}

func slimMeta(m *metav1.ObjectMeta) {
	m.ManagedFields = nil
	m.Namespace = once(m.Namespace)
	m.Labels, m.Annotations = onceEach(m.Labels), onceEach(m.Annotations)
	for i := range m.Finalizers {
		m.Finalizers[i] = once(m.Finalizers[i])
	}
}

func once(s string) string { return unique.Make(s).Value() }

func onceAt(s *string) *string {
	if s == nil {
		return nil
	}
	v := once(*s)
	return &v
}

func onceEach(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	small := make(map[string]string, len(m))
	for k, v := range m {
		if k != lastApplied {
			small[once(k)] = once(v)
		}
	}
	return small
}
