package framework

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Provisioner is the driver's name.
const Provisioner = rowanv1alpha1.DriverName

// StorageClass makes a class of the flow's own. It is removed when the test ends.
func (f *Flow) StorageClass(name string, parameters map[string]string) *storagev1.StorageClass {
	f.Helper()
	c := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: f.Class(name)}, Provisioner: Provisioner, Parameters: parameters,
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer), AllowVolumeExpansion: ptr.To(true),
	}
	must(f, f.Create(f.Context(), c))
	f.OnEnd(c)
	return c
}

// Class is the name of a class of the flow's own.
func (f *Flow) Class(name string) string { return f.Namespace + "-" + name }
