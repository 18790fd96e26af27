package e2e

import (
	"fmt"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// A pod's writes fill its pool: a write that needs new blocks fails with ENOSPC, what is written stays readable and can be overwritten, new snapshots and
// volumes are refused and told why. When a snapshot is deleted all of it goes on, and every byte is right.
func TestFullPool(t *testing.T) {
	f := flow(t)
	node := otherNode(t, f, "")
	set, pool := f.PoolSet("small", node, "1Gi", 1000)
	f.StorageClass("small", map[string]string{"poolSet": set.Name})
	f.Claim(framework.Claim{Name: "disk", Class: f.Class("small"), Size: "1Gi", Block: true})
	f.Claim(framework.Claim{Name: "files", Class: f.Class("small"), Size: "64Mi"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"files"}, Blocks: []string{"disk"}})
	f.WriteFiles(p, "/data/files/kept")
	kept := f.HashFiles(p, "/data/files/kept")
	const part = 400 // MiB: two of them nearly fill the pool
	old := f.WriteDevice(p, "disk", 0, part)
	s, _ := f.Snapshot("s", "disk")
	now := f.WriteDevice(p, "disk", 0, part)

	out, err := f.Try(p, fmt.Sprintf("dd if=/dev/urandom of=%sdisk bs=1M seek=%d count=%d iflag=fullblock oflag=direct conv=notrunc 2>&1", framework.DeviceDir, part, part))
	if err == nil || !strings.Contains(out, "No space left on device") {
		t.Fatalf("a write to a full pool says %q, %v; want ENOSPC", out, err)
	}
	f.PoolSays(pool, rowanv1alpha1.SpaceScarce, metav1.ConditionTrue)
	framework.UntilEvent(t, f.Cluster, pool, "takes no new volumes and snapshots")
	refused := f.AskSnapshot("refused", "disk")
	framework.Until(t, f.Cluster, refused, framework.Wait, func(s *snapshotv1.VolumeSnapshot) error {
		if s.Status == nil || s.Status.Error == nil || s.Status.Error.Message == nil || !strings.Contains(*s.Status.Error.Message, "takes no new volumes and snapshots") {
			return fmt.Errorf("status %v", s.Status)
		}
		return nil
	})
	// The side-car goes on asking for it, deleted or not, until it hears something else than that there is no space.
	if err := f.Delete(t.Context(), refused); err != nil {
		t.Fatal(err)
	}
	f.Claim(framework.Claim{Name: "late", Class: f.Class("small"), Size: "64Mi"})
	late := f.AskPod(framework.Pod{Name: "late", Claims: []string{"late"}})
	framework.UntilEvent(t, f.Cluster, late, "free storage")
	if got := f.HashDevice(p, "disk", part); got != now {
		t.Errorf("in a full pool the device reads as %s, want %s", got, now)
	}
	now = f.WriteDevice(p, "disk", 0, part/2) // of blocks that it owns
	rest := f.HashDeviceAt(p, "disk", part/2, part/2)

	// As a virtual machine's monitor does: the same write again until it goes through.
	f.Run(p, fmt.Sprintf(`head -c 64m /dev/urandom > /tmp/third; sha256sum < /tmp/third > /tmp/want
		(until dd if=/tmp/third of=%sdisk bs=1M seek=%d oflag=direct conv=notrunc,fsync; do :; done; touch /tmp/through) >/dev/null 2>&1 &`, framework.DeviceDir, 2*part))
	if _, err := f.Try(p, "[ ! -e /tmp/through ]"); err != nil {
		t.Error("a write went through before there was space for it")
	}
	f.Remove(s)
	f.Run(p, "for i in $(seq 1200); do [ -e /tmp/through ] && exit 0; sleep 0.1; done; exit 1")
	if got, want := f.HashDeviceAt(p, "disk", 2*part, 64), f.Run(p, "cat /tmp/want"); got != want {
		t.Errorf("what was written when there was space again has hash %s, want %s", got, want)
	}
	f.PoolSays(pool, rowanv1alpha1.SpaceScarce, metav1.ConditionFalse)
	f.Running(late)
	framework.Gone(t, f.Cluster, refused)

	f.Remove(p)
	q := f.Pod(framework.Pod{Name: "q", Claims: []string{"files"}, Blocks: []string{"disk"}})
	if got := f.HashFiles(q, "/data/files/kept"); got != kept {
		t.Errorf("files of hash %s, want %s", got, kept)
	}
	if got := f.HashDevice(q, "disk", part/2); got != now || got == old {
		t.Errorf("what was overwritten in the full pool has hash %s, want %s", got, now)
	}
	if got := f.HashDeviceAt(q, "disk", part/2, part/2); got != rest {
		t.Errorf("what was written before has hash %s, want %s", got, rest)
	}
}
