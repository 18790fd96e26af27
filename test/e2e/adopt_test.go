package e2e

import (
	"fmt"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// patch changes an object as kubectl edit does.
func patch[T client.Object](t *testing.T, f *framework.Flow, o T, change func(T)) {
	t.Helper()
	before := o.DeepCopyObject().(client.Object)
	change(o)
	if err := f.Patch(t.Context(), o, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// A retained volume is bound again, with its content, by the same claim made again and by one of another namespace, and goes with it.
func TestRetainedVolumeIsAdopted(t *testing.T) {
	t.Parallel() // or its parts would keep all other flows waiting
	for name, elsewhere := range map[string]bool{"by its claim": false, "in another namespace": true} {
		t.Run(name, func(t *testing.T) {
			f := flow(t)
			g, q := f, framework.Claim{Name: "data"}
			pvc, p, want := written(f)
			pv := f.Bound(pvc)
			patch(t, f, pv, func(pv *corev1.PersistentVolume) {
				pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
			})
			f.Remove(p)
			f.Remove(pvc)
			framework.Until(t, f.Cluster, pv, framework.Wait, func(pv *corev1.PersistentVolume) error {
				if pv.Status.Phase != corev1.VolumeReleased {
					return fmt.Errorf("phase %s", pv.Status.Phase)
				}
				return nil
			})
			if elsewhere {
				g, q.Name = f.Cluster.Flow(t), "adopted"
			}
			adopted := q.Object(g.Namespace)
			patch(t, f, pv, func(pv *corev1.PersistentVolume) {
				// Kept for this claim: with no claim named, any other one that waits for its first pod may be given the volume.
				pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: adopted.Namespace, Name: adopted.Name}
			})
			adopted.Spec.VolumeName = pv.Name
			if err := g.Create(t.Context(), adopted); err != nil {
				t.Fatal(err)
			}
			r := g.Pod(framework.Pod{Name: "reader", Claims: []string{q.Name}})
			if got := g.HashFiles(r, "/data/"+q.Name+"/kept"); got != want {
				t.Errorf("files of hash %s, want %s", got, want)
			}
			patch(t, g, pv, func(pv *corev1.PersistentVolume) {
				pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
			})
			g.Remove(r)
			g.Remove(adopted)
			framework.Gone(t, f.Cluster, pv)
			framework.Gone(t, f.Cluster, &rowanv1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: pv.Spec.CSI.VolumeHandle}})
		})
	}
}

// Velero's data mover: the snapshot is retained, its objects are deleted and made again in another namespace by its handle, so that for a while two
// contents have one handle; deleting the first, retained, leaves the snapshot, deleting the second removes it.
func TestSnapshotByHandle(t *testing.T) {
	f := flow(t)
	g := f.Cluster.Flow(t)
	_, want := snapshotted(f)
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: f.Namespace}}
	if err := f.Get(t.Context(), framework.Key(s), s); err != nil {
		t.Fatal(err)
	}
	first := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: *s.Status.BoundVolumeSnapshotContentName}}
	if err := f.Get(t.Context(), framework.Key(first), first); err != nil {
		t.Fatal(err)
	}
	patch(t, f, first, func(c *snapshotv1.VolumeSnapshotContent) {
		c.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
	})
	handle := *first.Status.SnapshotHandle
	second := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: g.Namespace + "-copy"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: framework.Provisioner, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handle},
			VolumeSnapshotRef: corev1.ObjectReference{Name: "copy", Namespace: g.Namespace},
		},
	}
	if err := f.Create(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	copied := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "copy", Namespace: g.Namespace},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To(second.Name)}},
	}
	if err := g.Create(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	g.SnapshotReady(copied)
	f.Remove(s)
	f.Remove(first)
	g.Claim(framework.Claim{Name: "restored", Snapshot: "copy"})
	p := g.Pod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	if got := g.HashFiles(p, "/data/restored/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
	g.Remove(copied)
	framework.Gone(t, f.Cluster, second)
	framework.Gone(t, f.Cluster, &rowanv1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: handle}})
}
