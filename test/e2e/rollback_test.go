package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// maxRollback is the time from the request to roll a volume back until it can be staged.
const maxRollback = 2 * time.Second

// rollBack asks for a claim to be put back.
func rollBack(f *framework.Flow, name, claim, snapshot string, when rowanv1alpha1.WhenInUse) *rowanv1alpha1.VolumeRollback {
	f.Helper()
	r := &rowanv1alpha1.VolumeRollback{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: name},
		Spec:       rowanv1alpha1.VolumeRollbackSpec{PersistentVolumeClaimName: claim, VolumeSnapshotName: snapshot, WhenInUse: when},
	}
	if err := f.Create(f.Context(), r); err != nil {
		f.Fatal(err)
	}
	return r
}

// rolledBack waits until it is done.
func rolledBack(f *framework.Flow, r *rowanv1alpha1.VolumeRollback) *rowanv1alpha1.VolumeRollback {
	f.Helper()
	return framework.Until(f, f.Cluster, r, framework.Wait, func(r *rowanv1alpha1.VolumeRollback) error {
		if meta.IsStatusConditionTrue(r.Status.Conditions, rowanv1alpha1.Complete) {
			return nil
		}
		return fmt.Errorf("%+v", r.Status.Conditions)
	})
}

// detached waits until a claim's volume has no device.
func detached(f *framework.Flow, pvc *corev1.PersistentVolumeClaim) *rowanv1alpha1.LocalVolume {
	f.Helper()
	v := &rowanv1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: f.Bound(pvc).Spec.CSI.VolumeHandle}}
	return framework.Until(f, f.Cluster, v, framework.Wait, func(v *rowanv1alpha1.LocalVolume) error {
		if meta.IsStatusConditionFalse(v.Status.Conditions, rowanv1alpha1.Attached) {
			return nil
		}
		return fmt.Errorf("%+v", v.Status.Conditions)
	})
}

// A claim is wrecked and put back in place: refused while a pod has it, done when the pod is gone, undone with the safety snapshot.
func TestRollback(t *testing.T) {
	f := flow(t)
	pvc, p, want := written(f)
	f.Snapshot("good", "data")
	f.Run(p, "rm -r /data/data/kept")
	f.WriteFiles(p, "/data/data/kept")
	wreck := f.HashFiles(p, "/data/data/kept")

	refused := rollBack(f, "refused", "data", "good", rowanv1alpha1.Refuse)
	framework.Until(f, f.Cluster, refused, framework.Wait, func(r *rowanv1alpha1.VolumeRollback) error {
		c := meta.FindStatusCondition(r.Status.Conditions, rowanv1alpha1.Failed)
		if c == nil || c.Status != metav1.ConditionTrue {
			return fmt.Errorf("%+v", r.Status.Conditions)
		}
		if !strings.Contains(c.Message, "pod p") {
			f.Errorf("it does not name the pod: %s", c.Message)
		}
		return nil
	})
	waiting := rollBack(f, "waiting", "data", "good", rowanv1alpha1.Wait)
	framework.Until(f, f.Cluster, waiting, framework.Wait, func(r *rowanv1alpha1.VolumeRollback) error {
		if c := meta.FindStatusCondition(r.Status.Conditions, rowanv1alpha1.Complete); c == nil || c.Reason != rowanv1alpha1.ReasonWaitingForUsers {
			return fmt.Errorf("%+v", r.Status.Conditions)
		}
		return nil
	})
	if got := f.HashFiles(p, "/data/data/kept"); got != wreck {
		t.Errorf("in use it has files of hash %s, want %s", got, wreck)
	}
	f.Remove(p)
	q := f.AskPod(framework.Pod{Name: "q", Claims: []string{"data"}}) // at the same time as the rollback: it waits, or is waited for
	done := waiting
	if meta.IsStatusConditionFalse(detachedOrHeld(f, pvc).Status.Conditions, rowanv1alpha1.Attached) {
		done = rolledBack(f, waiting)
		f.Running(q)
		if got := f.HashFiles(q, "/data/data/kept"); got != want {
			t.Errorf("rolled back it has files of hash %s, want %s", got, want)
		}
		f.Remove(q)
	} else {
		f.Running(q)
		f.Remove(q)
		done = rolledBack(f, waiting)
		q = again(t, f, "r", want)
		f.Remove(q)
	}
	detached(f, pvc)
	rolledBack(f, rollBack(f, "undo", "data", done.Status.SafetySnapshotName, rowanv1alpha1.Refuse))
	again(t, f, "s", wreck)
}

// detachedOrHeld is the volume once it is known who was first: the rollback that waits, or another pod.
func detachedOrHeld(f *framework.Flow, pvc *corev1.PersistentVolumeClaim) *rowanv1alpha1.LocalVolume {
	f.Helper()
	v := &rowanv1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: f.Bound(pvc).Spec.CSI.VolumeHandle}}
	return framework.Until(f, f.Cluster, v, framework.Wait, func(v *rowanv1alpha1.LocalVolume) error {
		r := v.Status.Rollback
		if meta.IsStatusConditionFalse(v.Status.Conditions, rowanv1alpha1.Attached) && r != nil && (r.HeldSince != nil || r.DoneAt != nil) ||
			meta.IsStatusConditionTrue(v.Status.Conditions, rowanv1alpha1.Attached) {
			return nil
		}
		return fmt.Errorf("%+v", v.Status)
	})
}

// A hundred GiB are put back as fast as one.
func TestRollbackOfALargeVolume(t *testing.T) {
	c := cluster(t)
	f := c.Undisturbed(t)
	// A node of a test has less than that: the pool promises thirty times what it has.
	set, _ := f.PoolSet("large", otherNode(t, f, ""), "4Gi", 3000)
	f.StorageClass("large", map[string]string{"poolSet": set.Name})
	pvc := f.Claim(framework.Claim{Name: "data", Class: f.Class("large"), Size: "100Gi"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	f.Snapshot("good", "data")
	f.Run(p, `rm -r /data/data/kept; for i in $(seq 400); do head -c 300000 /dev/urandom > /data/data/$i; done; sync`)
	f.Remove(p)
	detached(f, pvc)
	begun := time.Now()
	r := rolledBack(f, rollBack(f, "r", "data", "good", rowanv1alpha1.Refuse))
	took := time.Since(begun)
	t.Logf("rollback of a volume of 100 GiB, safety snapshot included, from the request until it can be staged: %s", took)
	if took > maxRollback {
		t.Errorf("it took %s, want at most %s", took, maxRollback)
	}
	if r.Status.Size.Value() != 100<<30 {
		t.Errorf("it has %s", r.Status.Size)
	}
	again(t, f, "q", want)
}

// A StatefulSet's volume, as docs/rollback.md says.
func TestRollbackStatefulSet(t *testing.T) {
	f := flow(t)
	f.StatefulSet("db", 1)
	p := f.Running(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: "db-0"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	f.Snapshot("good", "data-db-0")
	f.Run(p, "rm -r /data/data/kept; sync")
	r := rollBack(f, "r", "data-db-0", "good", rowanv1alpha1.Wait)
	f.Scale("db", 0)
	framework.Gone(t, f.Cluster, p)
	rolledBack(f, r)
	f.Scale("db", 1)
	p = f.Running(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: "db-0"}})
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
}
