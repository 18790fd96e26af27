package e2e

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
	"github.com/rowan-csi/rowan/test/e2e/group"
)

// Where the writer's records go, and how many groups are cut under it. A record is a sector.
var layout = group.Layout{Volumes: 8, Slots: 16}

const groupCuts = 20

// writeInOrder writes records until it is killed: each is sent when the one before has returned, to the next device. /tmp/n is the last that returned.
const writeInOrder = `(n=0; while :; do
  n=$((n+1)); v=$(((n-1)%%%[1]d)); s=$(((n-1)/%[1]d%%%[2]d))
  printf '%%-511s\n' $n | dd of=%[3]sdisk-$v bs=512 seek=$s count=1 iflag=fullblock oflag=direct conv=notrunc 2>/tmp/error || exit 1
  echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n
done) >/dev/null 2>&1 & echo $! > /tmp/pid`

// A group is one moment: of each of 20 cuts under a pod that orders its writes across eight volumes, what is restored is a beginning of that order.
func TestGroupIsOneMoment(t *testing.T) {
	f := flow(t)
	labels := map[string]string{"cut-together": "yes"}
	w := framework.Pod{Name: "writer"}
	for v := range layout.Volumes {
		name := fmt.Sprint("disk-", v)
		f.Claim(framework.Claim{
			Name: name, Block: true, Size: "10Mi", Class: []string{framework.ClassROW, framework.ClassCOW}[v%2], Labels: labels,
		})
		w.Blocks = append(w.Blocks, name)
	}
	p := f.Pod(w)
	f.Run(p, fmt.Sprintf(writeInOrder, layout.Volumes, layout.Slots, framework.DeviceDir))
	f.Run(p, fmt.Sprintf("until [ $(cat /tmp/n) -ge %d ]; do kill -0 $(cat /tmp/pid); done", layout.Volumes*layout.Slots)) // every slot holds a record
	returned := func() uint64 {
		n, err := strconv.ParseUint(f.Run(p, "cat /tmp/n"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	type cut struct {
		least, most uint64
		snapshots   map[string]*snapshotv1.VolumeSnapshot
	}
	var cuts []cut
	for i := range groupCuts {
		c := cut{least: returned()}
		g := f.AskGroup(fmt.Sprint("cut-", i), labels)
		c.snapshots = f.GroupReady(g)
		c.most = returned() + 1 // one may have been sent
		if len(c.snapshots) != layout.Volumes {
			t.Fatalf("group %s has %d snapshots", g.Name, len(c.snapshots))
		}
		cuts = append(cuts, c)
	}
	f.Run(p, "kill $(cat /tmp/pid); cat /tmp/error >&2; [ $(cat /tmp/n) -gt 0 ]")
	for i, c := range cuts {
		t.Run(fmt.Sprint("cut-", i), func(t *testing.T) {
			t.Parallel()
			n, err := layout.Prefix(restored(f.In(t), fmt.Sprint("cut-", i), c.snapshots))
			if err != nil {
				t.Fatal(err)
			}
			if n < c.least || n > c.most {
				t.Errorf("the cut has %d records; %d had returned when it was asked for, %d were sent when it was ready", n, c.least, c.most)
			}
			t.Logf("%d records: %d had returned before, %d after", n, c.least, c.most-1)
		})
	}
}

// restored is what the slots hold of claims made of a group's snapshots, by volume and slot.
func restored(f *framework.Flow, name string, snapshots map[string]*snapshotv1.VolumeSnapshot) [][]uint64 {
	f.Helper()
	r := framework.Pod{Name: name}
	for v := range layout.Volumes {
		disk := fmt.Sprint("disk-", v)
		claim := name + "-" + disk
		f.Claim(framework.Claim{Name: claim, Block: true, Size: "10Mi", Class: []string{framework.ClassROW, framework.ClassCOW}[v%2], Snapshot: snapshots[disk].Name})
		r.Blocks = append(r.Blocks, claim)
	}
	p := f.Pod(r)
	held := make([][]uint64, layout.Volumes)
	for v, claim := range r.Blocks {
		out := f.Run(p, fmt.Sprintf("set -o pipefail; dd if=%s%s bs=512 count=%d iflag=direct 2>/dev/null | tr -d ' '", framework.DeviceDir, claim, layout.Slots))
		for word := range strings.FieldsSeq(out) {
			n, err := strconv.ParseUint(word, 10, 64)
			if err != nil {
				f.Fatalf("%s holds no record: %v", claim, err)
			}
			held[v] = append(held[v], n)
		}
		if len(held[v]) != layout.Slots {
			f.Fatalf("%s has %d records, want %d", claim, len(held[v]), layout.Slots)
		}
	}
	f.Remove(p)
	return held
}

// A group over two nodes is refused with the names of both; one of a node is deleted as a whole, and what was restored of it stays.
func TestGroupLimits(t *testing.T) {
	f := flow(t)
	nodes := someNodes(t, f, 2)
	for i, name := range []string{"here", "here-too", "there"} {
		f.Claim(framework.Claim{Name: name, Labels: map[string]string{"all": "yes", "node": []string{"one", "one", "two"}[i]}})
	}
	p := f.Pod(framework.Pod{Name: "one", Node: nodes[0], Claims: []string{"here", "here-too"}})
	f.Pod(framework.Pod{Name: "two", Node: nodes[1], Claims: []string{"there"}})
	f.WriteFiles(p, "/data/here/kept")
	want := f.HashFiles(p, "/data/here/kept")

	apart := f.AskGroup("apart", map[string]string{"all": "yes"})
	content := &groupsnapshotv1.VolumeGroupSnapshotContent{}
	framework.Until(t, f.Cluster, apart, framework.Wait, func(g *groupsnapshotv1.VolumeGroupSnapshot) error {
		if g.Status == nil || g.Status.BoundVolumeGroupSnapshotContentName == nil {
			return errors.New("no content")
		}
		content.Name = *g.Status.BoundVolumeGroupSnapshotContentName
		return nil
	})
	framework.Until(t, f.Cluster, content, framework.Wait, func(c *groupsnapshotv1.VolumeGroupSnapshotContent) error {
		if c.Status == nil || c.Status.Error == nil || c.Status.Error.Message == nil {
			return errors.New("no error")
		}
		for _, words := range []string{"volumes are not in one pool", "on node " + nodes[0], "on node " + nodes[1]} {
			if !strings.Contains(*c.Status.Error.Message, words) {
				return fmt.Errorf("%q does not say %q", *c.Status.Error.Message, words)
			}
		}
		return nil
	})
	f.Remove(apart)

	g := f.AskGroup("together", map[string]string{"node": "one"})
	members := f.GroupReady(g)
	if len(members) != 2 {
		t.Fatalf("%d snapshots", len(members))
	}
	f.Claim(framework.Claim{Name: "restored", Snapshot: members["here"].Name})
	r := f.Pod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	// One alone: it waits for the group.
	if err := f.Delete(f.Context(), members["here-too"]); err != nil {
		t.Fatal(err)
	}
	handle := ""
	framework.Until(t, f.Cluster, g, framework.Wait, func(g *groupsnapshotv1.VolumeGroupSnapshot) error {
		content.Name = *g.Status.BoundVolumeGroupSnapshotContentName
		return nil
	})
	if err := f.Get(f.Context(), framework.Key(content), content); err != nil || content.Status.VolumeGroupSnapshotHandle == nil {
		t.Fatalf("%+v, %v", content.Status, err)
	}
	handle = *content.Status.VolumeGroupSnapshotHandle
	local := &rowanv1alpha1.LocalSnapshotGroup{ObjectMeta: metav1.ObjectMeta{Name: handle}}
	if err := f.Get(f.Context(), framework.Key(local), local); err != nil || len(local.Spec.Members) != 2 {
		t.Fatalf("%+v, %v", local.Spec, err)
	}
	for _, m := range local.Spec.Members {
		s := &rowanv1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: m.Snapshot}}
		if err := f.Get(f.Context(), framework.Key(s), s); err != nil || s.Spec.DesiredState != rowanv1alpha1.Present || s.Spec.Group != handle {
			t.Errorf("snapshot %s: %+v, %v", m.Snapshot, s.Spec, err)
		}
	}
	f.Remove(g)
	framework.Gone(t, f.Cluster, local)
	for _, m := range local.Spec.Members {
		framework.Gone(t, f.Cluster, &rowanv1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: m.Snapshot}})
	}
	if got := f.HashFiles(r, "/data/restored/kept"); got != want {
		t.Errorf("after the group is gone, what was restored of it has hash %s, want %s", got, want)
	}
}

// someNodes are names of nodes that can have volumes.
func someNodes(t *testing.T, f *framework.Flow, least int) (names []string) {
	t.Helper()
	var pools rowanv1alpha1.PoolList
	if err := f.List(f.Context(), &pools); err != nil {
		t.Fatal(err)
	}
	for _, p := range pools.Items {
		names = append(names, p.Spec.NodeName)
	}
	if len(names) < least {
		t.Skipf("needs %d nodes with pools, there are %d", least, len(names))
	}
	return names
}

// The disks of a VM are cut one by one by whoever froze its guest, who waits for every creation time; Windows thaws by itself after 10 s. With 50 other snapshots under way
// all six are cut 5 s after the first was asked for, at the latest; as a group, too.
func TestSixDisksAmongMany(t *testing.T) {
	const disks, others, each = 6, 10, 5
	const bar = 5 * time.Second
	f := cluster(t).Undisturbed(t)
	labels := map[string]string{"vm": "one"}
	vm, noise := framework.Pod{Name: "vm"}, framework.Pod{Name: "noise"}
	for i := range disks {
		name := fmt.Sprint("disk-", i)
		f.Claim(framework.Claim{Name: name, Block: true, Size: "10Mi", Labels: labels})
		vm.Blocks = append(vm.Blocks, name)
	}
	for i := range others {
		name := fmt.Sprint("other-", i)
		f.Claim(framework.Claim{Name: name, Size: "20Mi"})
		noise.Claims = append(noise.Claims, name)
	}
	f.Pod(vm)
	f.Pod(noise)
	ask := func(round string) (all []*snapshotv1.VolumeSnapshot) {
		for i := range others * each {
			all = append(all, f.AskSnapshot(fmt.Sprintf("%s-other-%d", round, i), fmt.Sprint("other-", i%others)))
		}
		return all
	}
	many := ask("single")
	begun := time.Now()
	var six []*snapshotv1.VolumeSnapshot
	for i := range disks {
		six = append(six, f.AskSnapshot(fmt.Sprint("disk-", i), fmt.Sprint("disk-", i)))
	}
	report(t, f, "six_disks_cut", begun, bar, six)
	for _, s := range many {
		f.SnapshotReady(s)
	}

	many = ask("group")
	begun = time.Now()
	g := f.AskGroup("vm", labels)
	six = nil
	for _, s := range f.GroupReady(g) {
		six = append(six, s)
	}
	if len(six) != disks {
		t.Fatalf("the group has %d snapshots", len(six))
	}
	report(t, f, "six_disks_group_cut", begun, bar, six)
	for _, s := range many {
		f.SnapshotReady(s)
	}
}

// report prints how long after the request the last of the snapshots was cut, by the node's clock, and how far apart they are.
func report(t *testing.T, f *framework.Flow, name string, begun time.Time, bar time.Duration, snapshots []*snapshotv1.VolumeSnapshot) {
	t.Helper()
	var first, last time.Time
	for _, s := range snapshots {
		f.SnapshotReady(s)
		content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: *s.Status.BoundVolumeSnapshotContentName}}
		if err := f.Get(f.Context(), framework.Key(content), content); err != nil {
			t.Fatal(err)
		}
		o := &rowanv1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: *content.Status.SnapshotHandle}}
		if err := f.Get(f.Context(), framework.Key(o), o); err != nil || o.Status.Cut == nil {
			t.Fatalf("%s: %+v, %v", o.Name, o.Status, err)
		}
		at := o.Status.Cut.CreationTime.Time
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	fmt.Printf("%s_seconds %.3f after the request, %.3f apart (bar %.0f)\n", name, last.Sub(begun).Seconds(), last.Sub(first).Seconds(), bar.Seconds())
	if last.Sub(begun) > bar {
		t.Errorf("%s: the last was cut %v after the request, want %v at most", name, last.Sub(begun), bar)
	}
}
