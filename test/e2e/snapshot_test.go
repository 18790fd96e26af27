package e2e

import (
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// A snapshot is taken while a pod writes, and restored with the source's own YAML and to a larger claim: the files are those of before, the file system
// has grown.
func TestSnapshotAndRestore(t *testing.T) {
	t.Parallel() // or its parts would keep all other flows waiting
	for _, class := range []string{framework.ClassROW, framework.ClassCOW} {
		t.Run(class, func(t *testing.T) {
			f := flow(t)
			f.Claim(framework.Claim{Name: "data", Class: class, Size: "1G"})
			p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
			f.WriteFiles(p, "/data/data/kept")
			want := f.HashFiles(p, "/data/data/kept")
			f.Run(p, `(while :; do head -c 100000 /dev/urandom > /data/data/noise; done) >/dev/null 2>&1 & echo $! > /tmp/pid`)
			f.Snapshot("s", "data")
			f.Run(p, `kill $(cat /tmp/pid); rm -r /data/data/kept; sync`)

			f.Claim(framework.Claim{Name: "same", Class: class, Size: "1G", Snapshot: "s"})
			f.Claim(framework.Claim{Name: "larger", Class: class, Size: "2Gi", Snapshot: "s"})
			r := f.Pod(framework.Pod{Name: "reader", Claims: []string{"same", "larger"}})
			for _, claim := range []string{"same", "larger"} {
				if got := f.HashFiles(r, "/data/"+claim+"/kept"); got != want {
					t.Errorf("claim %s has files of hash %s, want %s", claim, got, want)
				}
			}
			small, large := kibibytes(t, f, r, "same"), kibibytes(t, f, r, "larger")
			if small > 1<<20 || large < 1900<<10 {
				t.Errorf("file systems of %d and %d KiB, want under 1 GiB and about 2 GiB", small, large)
			}
		})
	}
}

// A snapshot outlives its claim, and a copy of it the snapshot, deleted at once as CDI does.
func TestOutliving(t *testing.T) {
	f := flow(t)
	data := f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	s, _ := f.Snapshot("s", "data")
	f.Remove(p)
	pv := f.Bound(data)
	f.Remove(data)
	framework.Gone(t, f.Cluster, pv)

	restored := f.Claim(framework.Claim{Name: "restored", Snapshot: "s"})
	f.Bound(restored)
	f.Remove(s)
	r := f.Pod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	if got := f.HashFiles(r, "/data/restored/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
}

// A clone has its source's content of that moment, and each goes its own way.
func TestClone(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	f.Claim(framework.Claim{Name: "clone", Source: "data"})
	q := f.Pod(framework.Pod{Name: "cloned", Claims: []string{"clone"}})
	if got := f.HashFiles(q, "/data/clone/kept"); got != want {
		t.Errorf("the clone has files of hash %s, want %s", got, want)
	}
	f.Run(q, "rm -r /data/clone/kept; sync")
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("what the clone deleted changed its source: hash %s, want %s", got, want)
	}
}

// A raw block device, its snapshot and its restore, byte for byte.
func TestRawBlock(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "disk", Block: true})
	p := f.Pod(framework.Pod{Name: "writer", Blocks: []string{"disk"}})
	f.Run(p, "dd if=/dev/urandom of=/dev/rowan/disk bs=1M count=64 oflag=direct conv=fsync 2>/dev/null")
	want := f.HashDevice(p, "disk", 64)
	f.Snapshot("s", "disk")
	f.Run(p, "dd if=/dev/zero of=/dev/rowan/disk bs=1M count=32 oflag=direct conv=fsync 2>/dev/null")
	f.Claim(framework.Claim{Name: "restored", Block: true, Snapshot: "s"})
	r := f.Pod(framework.Pod{Name: "reader", Blocks: []string{"restored"}})
	if got := f.HashDevice(r, "restored", 64); got != want {
		t.Errorf("the restored device has hash %s, want %s", got, want)
	}
	if got := f.HashDevice(p, "disk", 64); got == want {
		t.Error("the source has its old content")
	}
}

// XFS of one identity, twice in one pod.
func TestXFSBesideItsSource(t *testing.T) {
	f := flow(t)
	f.StorageClass("xfs", map[string]string{"csi.storage.k8s.io/fstype": "xfs"})
	f.Claim(framework.Claim{Name: "data", Class: f.Class("xfs")})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	f.Snapshot("s", "data")
	f.Remove(p)
	f.Claim(framework.Claim{Name: "restored", Class: f.Class("xfs"), Snapshot: "s"})
	r := f.Pod(framework.Pod{Name: "both", Claims: []string{"data", "restored"}})
	for _, claim := range []string{"data", "restored"} {
		if got := f.HashFiles(r, "/data/"+claim+"/kept"); got != want {
			t.Errorf("%s has files of hash %s, want %s", claim, got, want)
		}
	}
	if fs := f.Run(r, "grep -c ' /data/.* xfs ' /proc/mounts"); strings.TrimSpace(fs) != "2" {
		t.Errorf("%s mounts of XFS, want 2", fs)
	}
}
