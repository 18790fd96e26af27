package framework

import (
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The names that the chart gives its classes.
const (
	ClassROW      = "rowan-row"
	ClassCOW      = "rowan-cow"
	ClassSnapshot = "rowan"
)

// Claim is a PVC as users write it. Zero fields take what users take.
type Claim struct {
	Name     string
	Class    string // ClassROW
	Size     string // 1Gi
	Block    bool
	Mode     corev1.PersistentVolumeAccessMode // ReadWriteOnce
	Snapshot string                            // the VolumeSnapshot to restore
	Source   string                            // the PVC to clone
	Labels   map[string]string
}

// Object is the claim as an object.
func (q Claim) Object(namespace string) *corev1.PersistentVolumeClaim {
	pvc := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: q.Name, Namespace: namespace, Labels: q.Labels},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{or(q.Mode, corev1.ReadWriteOnce)},
			StorageClassName: ptr.To(or(q.Class, ClassROW)),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse(or(q.Size, "1Gi")),
			}},
		},
	}
	if q.Block {
		pvc.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
	}
	if q.Snapshot != "" {
		pvc.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: q.Snapshot}
	}
	if q.Source != "" {
		pvc.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: q.Source}
	}
	return pvc
}

// Claim makes a PVC.
func (f *Flow) Claim(q Claim) *corev1.PersistentVolumeClaim {
	f.Helper()
	pvc := q.Object(f.Namespace)
	must(f, f.Create(f.Context(), pvc))
	f.step()
	return pvc
}

// Bound waits until a claim is bound, and gives its volume.
func (f *Flow) Bound(pvc *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	f.Helper()
	Until(f, f.Cluster, pvc, Wait, func(pvc *corev1.PersistentVolumeClaim) error {
		if pvc.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("phase %s", pvc.Status.Phase)
		}
		return nil
	})
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: pvc.Spec.VolumeName}}
	must(f, f.Get(f.Context(), Key(pv), pv))
	return pv
}

// Snapshot takes a VolumeSnapshot of a claim and waits until it is ready. It tells how long that took.
func (f *Flow) Snapshot(name, claim string) (*snapshotv1.VolumeSnapshot, time.Duration) {
	f.Helper()
	s := f.AskSnapshot(name, claim)
	begun := time.Now()
	f.step()
	f.SnapshotReady(s)
	return s, time.Since(begun)
}

// AskSnapshot makes a VolumeSnapshot of a claim and does not wait.
func (f *Flow) AskSnapshot(name, claim string) *snapshotv1.VolumeSnapshot {
	f.Helper()
	s := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}
	must(f, f.Create(f.Context(), s))
	return s
}

// SnapshotReady waits until a VolumeSnapshot is ready to use.
func (f *Flow) SnapshotReady(s *snapshotv1.VolumeSnapshot) {
	f.Helper()
	Until(f, f.Cluster, s, Wait, func(s *snapshotv1.VolumeSnapshot) error {
		switch {
		case s.Status == nil:
			return fmt.Errorf("no status")
		case s.Status.ReadyToUse != nil && *s.Status.ReadyToUse:
			return nil
		case s.Status.Error != nil && s.Status.Error.Message != nil:
			return fmt.Errorf("not ready: %s", *s.Status.Error.Message)
		}
		return fmt.Errorf("not ready")
	})
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// StatefulSet makes a set of pods that each have a claim, at DataDir and "data".
func (f *Flow) StatefulSet(name string, replicas int32) *appsv1.StatefulSet {
	f.Helper()
	labels := map[string]string{"app": name}
	pod := Pod{Claims: []string{"data"}, Labels: labels}.Object(f)
	pod.Spec.Volumes = nil // each pod's claim is the set's
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{*Claim{Name: "data"}.Object("")},
		},
	}
	must(f, f.Create(f.Context(), s))
	return s
}

// Scale changes how many pods a set has.
func (f *Flow) Scale(name string, replicas int32) {
	f.Helper()
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace}}
	must(f, f.Get(f.Context(), Key(s), s))
	before := s.DeepCopy()
	s.Spec.Replicas = &replicas
	must(f, f.Patch(f.Context(), s, client.MergeFrom(before)))
}

// RemoveSnapshot deletes a VolumeSnapshot and waits until it is gone.
func (f *Flow) RemoveSnapshot(name string) {
	f.Helper()
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace}}
	must(f, f.Get(f.Context(), Key(s), s))
	f.Remove(s)
}

// Empty waits until there is no object of a kind in the whole cluster.
func (f *Flow) Empty(what string, list client.ObjectList) {
	f.Helper()
	must(f, f.List(f.Context(), list))
	objects, err := meta.ExtractList(list)
	must(f, err)
	for _, o := range objects {
		Gone(f, f.Cluster, o.(client.Object))
	}
	must(f, f.List(f.Context(), list))
	if n := meta.LenList(list); n > 0 {
		f.Errorf("%d objects of kind %s are left", n, what)
	}
}
