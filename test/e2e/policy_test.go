package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// policyWait is how long a policy by the minute may take for its next snapshot, a new leader of rowan-controller's replicas included.
const policyWait = 4 * time.Minute

// A policy by the minute takes, prunes and holds, while rowan-controller is killed again and again; away for minutes, it makes up for one of those that it
// missed; what it took restores; and it goes with its snapshots, but for the held one. Alone, for it takes rowan-controller away.
func TestDisruptSnapshotPolicy(t *testing.T) {
	f := disturb(t)
	_, _, want := written(f)
	asked := everAsked(t, f)
	p := &v1alpha1.SnapshotPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: "minutely"}, Spec: retention.Policy{
		Selector: retention.Selector{MatchAll: true}, Schedules: []retention.Schedule{{Name: "minutely", Cron: "* * * * *"}},
		Retention: &retention.Retention{KeepLast: 1}, DeletionPolicy: retention.DeletionDelete}}
	create(t, f, p)
	killController(t, f)

	first := policySnapshots(t, f, "a first snapshot", func(ready []snapshotv1.VolumeSnapshot) bool { return len(ready) > 0 })[0]
	held := first.DeepCopy()
	metav1.SetMetaDataAnnotation(&held.ObjectMeta, retention.AnnotationHold, "this test")
	if err := f.Patch(t.Context(), held, client.MergeFrom(&first)); err != nil {
		t.Fatal(err)
	}

	// Away while two snapshots are due, the fewest of which it can be seen that only the last is made up for.
	replicasOf(t, f, 0)
	last := nominal(t, &settled(t, f)[0])
	missed, due := last.Add(time.Minute), last.Add(2*time.Minute)
	err := wait.PollUntilContextTimeout(t.Context(), time.Second, 10*time.Minute, true, func(context.Context) (bool, error) { return time.Now().After(due), nil })
	if err != nil {
		t.Fatal(err)
	}
	replicasOf(t, f, 2)
	policySnapshots(t, f, "one that is made up for", func(ready []snapshotv1.VolumeSnapshot) bool { return !nominal(t, &ready[0]).Before(due) })

	killController(t, f)
	ready := policySnapshots(t, f, "one after that, and the held one", func(ready []snapshotv1.VolumeSnapshot) bool {
		return nominal(t, &ready[0]).After(due) && len(ready) == 2
	})
	if was := asked(); !was[due] || was[missed] {
		t.Errorf("snapshots were asked for at %v: of those missed, %s to %s, the last is made up for, and it alone", was, missed, due)
	}
	if ready[1].Name != held.Name {
		t.Errorf("%s is not the held snapshot %s", ready[1].Name, held.Name)
	}

	f.Claim(framework.Claim{Name: "restored", Snapshot: held.Name})
	r := f.Pod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	if got := f.HashFiles(r, "/data/restored/kept"); got != want {
		t.Errorf("restored files have hash %s, want %s", got, want)
	}
	f.Remove(p)
	left := policySnapshots(t, f, "the held one alone", func(ready []snapshotv1.VolumeSnapshot) bool { return len(ready) == 1 })
	if left[0].Name != held.Name {
		t.Errorf("%s is left, not the held %s", left[0].Name, held.Name)
	}
	f.RemoveSnapshot(held.Name)
}

// killController ends all replicas of rowan-controller at once.
func killController(t *testing.T, f *framework.Flow) {
	t.Helper()
	if err := f.Kill("rowan-controller"); err != nil {
		t.Fatal(err)
	}
}

// everAsked notes the times that the flow's snapshots are for, as they are made: one that was pruned since was made, too.
func everAsked(t *testing.T, f *framework.Flow) func() map[time.Time]bool {
	t.Helper()
	w, err := f.Watch(t.Context(), &snapshotv1.VolumeSnapshotList{}, client.InNamespace(f.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	var mu sync.Mutex
	ended := false
	all := map[time.Time]bool{}
	go func() {
		for e := range w.ResultChan() {
			s, is := e.Object.(*snapshotv1.VolumeSnapshot)
			if !is || e.Type != watch.Added {
				continue
			}
			runs, err := retention.ParseRuns(s.Annotations[retention.AnnotationSchedules])
			mu.Lock()
			if err == nil {
				all[runs["minutely"].UTC()] = true
			}
			mu.Unlock()
		}
		mu.Lock()
		ended = true
		mu.Unlock()
	}()
	return func() map[time.Time]bool {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if ended {
			t.Fatal("the watch of snapshots ended before the test")
		}
		return maps.Clone(all)
	}
}

// settled are the flow's snapshots when none is being made or deleted any more, newest first.
func settled(t *testing.T, f *framework.Flow) []snapshotv1.VolumeSnapshot {
	t.Helper()
	return policySnapshots(t, f, "all to be ready", func(ready []snapshotv1.VolumeSnapshot) bool {
		var list snapshotv1.VolumeSnapshotList
		err := f.List(t.Context(), &list, client.InNamespace(f.Namespace))
		return err == nil && len(ready) == len(list.Items)
	})
}

func create(t *testing.T, f *framework.Flow, o client.Object) {
	t.Helper()
	if err := f.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// policySnapshots of the flow that are ready, newest first, once they are as wanted.
func policySnapshots(t *testing.T, f *framework.Flow, what string, as func(ready []snapshotv1.VolumeSnapshot) bool) []snapshotv1.VolumeSnapshot {
	t.Helper()
	var ready []snapshotv1.VolumeSnapshot
	err := wait.PollUntilContextTimeout(t.Context(), 500*time.Millisecond, policyWait, true, func(ctx context.Context) (bool, error) {
		var list snapshotv1.VolumeSnapshotList
		if err := f.List(ctx, &list, client.InNamespace(f.Namespace)); err != nil {
			return false, nil // the API server may be away for a moment
		}
		ready = slices.DeleteFunc(list.Items, func(s snapshotv1.VolumeSnapshot) bool {
			return s.DeletionTimestamp != nil || s.Status == nil || s.Status.ReadyToUse == nil || !*s.Status.ReadyToUse
		})
		slices.SortFunc(ready, func(a, b snapshotv1.VolumeSnapshot) int { return nominal(t, &b).Compare(nominal(t, &a)) })
		return as(ready), nil
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v; there are %d ready ones", what, err, len(ready))
	}
	return ready
}

// nominal time that a snapshot was taken for.
func nominal(t *testing.T, s *snapshotv1.VolumeSnapshot) time.Time {
	t.Helper()
	runs, err := retention.ParseRuns(s.Annotations[retention.AnnotationSchedules])
	if err != nil {
		t.Fatal(err)
	}
	return runs["minutely"]
}

// replicasOf rowan-controller are that many from now on.
func replicasOf(t *testing.T, f *framework.Flow, replicas int32) {
	t.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: f.Options.Namespace, Name: "rowan-controller"}}
	if err := f.Patch(t.Context(), d, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))); err != nil {
		t.Fatal(err)
	}
	framework.Until(t, f.Cluster, d, framework.Wait, func(d *appsv1.Deployment) error {
		if d.Status.ReadyReplicas != replicas || d.Status.ObservedGeneration != d.Generation {
			return fmt.Errorf("%d replicas are ready, %d wanted", d.Status.ReadyReplicas, replicas)
		}
		return nil
	})
	// A Deployment does not count a pod that ends, which may still be at work.
	for _, p := range ours(t, f) {
		if p.Labels["app.kubernetes.io/component"] == "controller" && p.DeletionTimestamp != nil {
			framework.Gone(t, f.Cluster, &p)
		}
	}
}
