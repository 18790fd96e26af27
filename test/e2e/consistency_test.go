package e2e

import (
	"fmt"
	"strings"
	"testing"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

var frozen = map[string]string{rowanv1alpha1.ConsistencyAnnotation: "FilesystemFreeze"}

// askFrozen makes a VolumeSnapshot whose annotation asks for a frozen file system.
func askFrozen(f *framework.Flow, name, claim string) *snapshotv1.VolumeSnapshot {
	f.Helper()
	s := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace, Annotations: frozen},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}
	if err := f.Create(f.Context(), s); err != nil {
		f.Fatal(err)
	}
	return s
}

// Files that nobody flushed are in a snapshot of a frozen file system, and whoever writes goes on after it.
func TestFrozenSnapshot(t *testing.T) {
	f := flow(t)
	pvc := f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
	f.Run(p, `mkdir /data/data/kept; for i in $(seq 50); do head -c 100000 /dev/urandom > /data/data/kept/$i; done`) // no sync
	want := f.HashFiles(p, "/data/data/kept")
	s := askFrozen(f, "s", "data")
	f.SnapshotReady(s)
	f.Run(p, "rm -r /data/data/kept; touch /data/data/after; sync")

	content := &snapshotv1.VolumeSnapshotContent{}
	content.Name = *s.Status.BoundVolumeSnapshotContentName
	if err := f.Get(f.Context(), framework.Key(content), content); err != nil {
		t.Fatal(err)
	}
	l := &rowanv1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: *content.Status.SnapshotHandle}}
	if err := f.Get(f.Context(), framework.Key(l), l); err != nil {
		t.Fatal(err)
	}
	if l.Spec.Volume != f.Bound(pvc).Spec.CSI.VolumeHandle || l.Status.Cut == nil || l.Status.Cut.Frozen != rowanv1alpha1.FrozenFileSystem {
		t.Errorf("%+v, %+v", l.Spec, l.Status.Cut)
	}
	f.Claim(framework.Claim{Name: "restored", Snapshot: "s"})
	r := f.Pod(framework.Pod{Name: "r", Claims: []string{"restored"}})
	if got := f.HashFiles(r, "/data/restored/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
}

// All file systems of a group are frozen for its one cut, and what nobody flushed on any of them is in it.
func TestFrozenGroup(t *testing.T) {
	f := flow(t)
	labels, w := map[string]string{"frozen-together": "yes"}, framework.Pod{Name: "w"}
	for _, name := range []string{"log", "data"} {
		f.Claim(framework.Claim{Name: name, Labels: labels})
		w.Claims = append(w.Claims, name)
	}
	p := f.Pod(w)
	f.Run(p, `for d in log data; do mkdir /data/$d/kept; for i in $(seq 20); do head -c 100000 /dev/urandom > /data/$d/kept/$i; done; done`) // no sync
	want := map[string]string{}
	for _, name := range w.Claims {
		want[name] = f.HashFiles(p, "/data/"+name+"/kept")
	}
	g := f.AskGroupAs("g", labels, frozen)
	members := f.GroupReady(g)
	f.Run(p, "rm -r /data/log/kept /data/data/kept; touch /data/log/after; sync")

	content := &groupsnapshotv1.VolumeGroupSnapshotContent{}
	content.Name = *g.Status.BoundVolumeGroupSnapshotContentName
	if err := f.Get(f.Context(), framework.Key(content), content); err != nil {
		t.Fatal(err)
	}
	l := &rowanv1alpha1.LocalSnapshotGroup{ObjectMeta: metav1.ObjectMeta{Name: *content.Status.VolumeGroupSnapshotHandle}}
	if err := f.Get(f.Context(), framework.Key(l), l); err != nil {
		t.Fatal(err)
	}
	if len(l.Status.Frozen) != len(w.Claims) {
		t.Errorf("frozen were %v of %v", l.Status.Frozen, l.Spec.Members)
	}
	r := framework.Pod{Name: "r"}
	for _, name := range w.Claims {
		f.Claim(framework.Claim{Name: "restored-" + name, Snapshot: members[name].Name})
		r.Claims = append(r.Claims, "restored-"+name)
	}
	q := f.Pod(r)
	for _, name := range w.Claims {
		if got := f.HashFiles(q, "/data/restored-"+name+"/kept"); got != want[name] {
			t.Errorf("%s: files of hash %s, want %s", name, got, want[name])
		}
	}
	f.Remove(g)
}

// A raw block claim says why it is not frozen.
func TestFrozenBlockRefused(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "disk", Block: true})
	f.Pod(framework.Pod{Name: "p", Blocks: []string{"disk"}})
	s := askFrozen(f, "s", "disk")
	framework.Until(f, f.Cluster, s, framework.Wait, func(s *snapshotv1.VolumeSnapshot) error {
		if s.Status == nil || s.Status.Error == nil || s.Status.Error.Message == nil || !strings.Contains(*s.Status.Error.Message, "KubeVirt") {
			return fmt.Errorf("%+v", s.Status)
		}
		return nil
	})
	f.Remove(s)
}
