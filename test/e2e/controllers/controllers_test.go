package controllers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

func poolSet(name string) *v1alpha1.PoolSet {
	return &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PoolSetSpec{
		NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"disks": name}},
		Template:     v1alpha1.PoolTemplate{Members: []v1alpha1.Member{{Directory: &v1alpha1.DirectoryMember{Path: "/var/lib/rowan/pool"}}}}}}
}

func volume(name, node, pool, uuid string) *v1alpha1.LocalVolume {
	return &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: node, Pool: pool, PoolUUID: uuid}, CSIName: name,
			Size: resource.MustParse("1Gi"), Requested: resource.MustParse("1Gi")}}
}

// A life of pools with two replicas that both work at once, which an election may make for a moment: as if there were one.
func TestTwoLeadersAtOnce(t *testing.T) {
	w := start(t)
	w.run(false)
	w.run(false)
	w.create(poolSet("fast"))
	disks := map[string]string{"disks": "fast"}
	const nodes = 12
	for i := range nodes {
		w.node(fmt.Sprintf("node-%d", i), disks)
	}
	var pools v1alpha1.PoolList
	w.until("a pool on every node", func() (bool, error) {
		err := w.List(t.Context(), &pools)
		return len(pools.Items) == nodes, err
	})
	on := map[string]bool{}
	for i := range pools.Items {
		p := &pools.Items[i]
		on[p.Spec.NodeName] = true
		w.serve(p)
		w.renew(p.Spec.NodeName, "")
	}
	if len(on) != nodes {
		t.Fatalf("pools on %v", on)
	}
	var set v1alpha1.PoolSet
	w.until("all pools counted", func() (bool, error) {
		err := w.get(&set, "fast")
		return set.Status.Ready == nodes && meta.IsStatusConditionTrue(set.Status.Conditions, v1alpha1.Ready), err
	})

	// The label goes: the empty pool goes, and the one with a volume stays.
	w.create(volume("vol-1", "node-1", "fast-node-1", "uuid-node-1"))
	for _, name := range []string{"node-0", "node-1"} {
		var n corev1.Node
		w.must(w.get(&n, name))
		w.change(&n, false, func() { delete(n.Labels, "disks") })
	}
	w.until("the pools are unselected", func() (bool, error) {
		var p0, p1 v1alpha1.Pool
		err := w.get(&p0, "fast-node-0")
		if err == nil {
			err = w.get(&p1, "fast-node-1")
		}
		both := meta.IsStatusConditionTrue(p0.Status.Conditions, v1alpha1.Unselected) &&
			meta.IsStatusConditionTrue(p1.Status.Conditions, v1alpha1.Unselected)
		return both, err
	})
	w.clock.SetTime(w.clock.Now().Add(time.Minute))
	var empty v1alpha1.Pool
	w.until("the empty pool is given up", func() (bool, error) {
		err := w.get(&empty, "fast-node-0")
		return empty.Spec.DesiredState == v1alpha1.Absent, err
	})
	w.finish(&empty)
	w.until("the empty pool is gone", func() (bool, error) { return apierrors.IsNotFound(w.get(&empty, "fast-node-0")), nil })
	var full v1alpha1.Pool
	w.must(w.get(&full, "fast-node-1"))
	if full.Spec.DesiredState != v1alpha1.Present || full.DeletionTimestamp != nil {
		t.Errorf("%+v", full.Spec)
	}

	// The PoolSet goes: its pools stay.
	w.must(w.Delete(t.Context(), &set))
	w.until("the set is gone", func() (bool, error) { return apierrors.IsNotFound(w.get(&set, "fast")), nil })
	w.must(w.List(t.Context(), &pools))
	for _, p := range pools.Items {
		if p.Spec.DesiredState != v1alpha1.Present || p.DeletionTimestamp != nil {
			t.Errorf("%s: %+v", p.Name, p.Spec)
		}
	}
	if len(pools.Items) != nodes-1 {
		t.Errorf("%d pools are left", len(pools.Items))
	}
}

// serve plays the agent that made the pool.
func (w *world) serve(p *v1alpha1.Pool) {
	w.t.Helper()
	w.change(p, true, func() {
		size := resource.MustParse("10Gi")
		p.Status.UUID, p.Status.Identity, p.Status.Size = "uuid-"+p.Spec.NodeName, p.Spec.NodeName, &size
		meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{Type: v1alpha1.Ready, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonServing})
	})
}

// Disks move to another node while the leader is ended and another takes over; then a deletion's finalizer is left behind by its caller.
func TestDisksMoveAndLeadersChange(t *testing.T) {
	w := start(t)
	stop := w.run(true)
	w.create(poolSet("fast"))
	w.node("old", map[string]string{"disks": "fast"})
	var pool v1alpha1.Pool
	w.until("the pool", func() (bool, error) { err := w.get(&pool, "fast-old"); return err == nil, err })
	w.serve(&pool)
	const volumes = 30
	for i := range volumes {
		w.create(volume(fmt.Sprintf("vol-%d", i), "old", "fast-old", "uuid-old"))
	}
	w.renew("old", "")
	w.must(w.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "old"}}))
	w.node("new", nil)
	w.clock.SetTime(w.clock.Now().Add(time.Hour))
	w.renew("new", "uuid-old")
	w.until("the pool moves", func() (bool, error) { err := w.get(&pool, "fast-old"); return pool.Spec.NodeName == "new", err })
	stop() // in the middle of the volumes, or shortly after
	w.run(true)
	var list v1alpha1.LocalVolumeList
	w.until("all volumes follow", func() (bool, error) {
		err := w.List(t.Context(), &list, client.MatchingFields{"spec.nodeName": "new"})
		return len(list.Items) == volumes, err
	})
	for _, v := range list.Items {
		if v.Spec.DesiredState != v1alpha1.Present || v.DeletionTimestamp != nil || meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.NodeLost) {
			t.Errorf("%s: %+v %+v", v.Name, v.Spec, v.Status)
		}
	}
	v := &list.Items[0]
	w.change(v, false, func() { v.Spec.DesiredState = v1alpha1.Absent })
	w.finish(v)
	kept := &list.Items[1] // one key only
	w.must(w.Delete(t.Context(), kept))
	w.must(w.Delete(t.Context(), v))
	w.clock.SetTime(w.clock.Now().Add(time.Minute))
	w.until("the finalizer is removed", func() (bool, error) { return apierrors.IsNotFound(w.get(v, v.Name)), nil })
	w.must(w.get(kept, kept.Name))
}

// Claims of volumes and of snapshots are placed; the definitions of snapshots come when all runs already.
func TestClaimsArePlaced(t *testing.T) {
	w := start(t)
	w.run(false)
	waits := storagev1.VolumeBindingWaitForFirstConsumer
	w.create(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "rowan"}, Provisioner: v1alpha1.DriverName, VolumeBindingMode: &waits})
	w.node("far", nil)
	w.node("near", nil)
	source := w.claim("source", nil)
	w.create(volume("vol-source", "far", "fast-far", "uuid-far"), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName,
				VolumeHandle: "vol-source"}}}})
	clone := w.claim("clone", &corev1.TypedObjectReference{Kind: "PersistentVolumeClaim", Name: "source"})
	group := snapshotv1.GroupName
	restore := w.claim("restore", &corev1.TypedObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "cut"})
	w.change(source, false, func() { source.Spec.VolumeName = "pv" })
	w.placed(clone, "far")

	for _, name := range []string{"volumesnapshots", "volumesnapshotcontents"} {
		b, err := os.ReadFile(w.path("snapshot.storage.k8s.io_" + name + ".yaml"))
		w.must(err)
		w.apply(string(b))
	}
	w.until("a snapshot can be made", func() (bool, error) {
		claim := "source"
		err := w.Create(t.Context(), &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cut"},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}}})
		return err == nil || apierrors.IsAlreadyExists(err), err
	})
	w.placed(restore, "far")
	w.until("an event says so", func() (bool, error) {
		var events eventsv1.EventList
		err := w.List(t.Context(), &events)
		for _, e := range events.Items {
			if e.Reason == "SourceNode" && e.Regarding.Name == "restore" && strings.HasPrefix(e.Note, "VolumeSnapshot cut is on node far:") {
				return true, nil
			}
		}
		return false, err
	})
	// From a claim's creation until it is placed: this must be shorter than a pod's way to the scheduler and through it.
	var took []time.Duration
	for i := range 100 {
		begin := time.Now()
		c := w.claim(fmt.Sprintf("fast-%d", i), &corev1.TypedObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "cut"})
		w.placed(c, "far")
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("100 claims one after the other, from the request to make them until they are seen to be placed: median %s, 95th percentile %s, slowest %s",
		took[50], took[95], took[99])
}

func (w *world) claim(name string, from *corev1.TypedObjectReference) *corev1.PersistentVolumeClaim {
	w.t.Helper()
	class := "rowan"
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, DataSourceRef: from, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	w.create(c)
	return c
}

func (w *world) placed(c *corev1.PersistentVolumeClaim, node string) {
	w.t.Helper()
	w.until("claim "+c.Name+" is placed", func() (bool, error) {
		err := w.get(c, c.Name)
		return c.Annotations["volume.kubernetes.io/selected-node"] == node, err
	})
}
