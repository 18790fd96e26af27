package freeze

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/hack/stack"
)

var (
	rounds = flag.Int("rounds", 3, "snapshots of each file system whose freeze is timed")
	dirty  = flag.Int64("dirty", 1<<30, "bytes that are written to the page cache before each")
)

const (
	gi = 1 << 30
	// maxFrozen is how long writers may wait, at the 99th percentile.
	maxFrozen = time.Second
	// maxThaw is after which time they go on when the driver was killed.
	maxThaw = 6 * time.Second
)

// world is a stack with a driver.
type world struct {
	*stack.Stack
	t   *testing.T
	ctx context.Context
}

func start(t *testing.T) *world {
	t.Helper()
	if err := stack.Check(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	t.Cleanup(cancel)
	bin := t.TempDir()
	must(t, stack.Build(ctx, bin))
	s, err := stack.Start(ctx, stack.Config{Bin: bin, Name: "freeze", Size: 12 * gi, Driver: true, Temp: os.Getenv("TMPDIR"), Logs: t.ArtifactDir()})
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{s, t, ctx}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func capability(fsType string) *csi.VolumeCapability {
	c := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
	if fsType == "" {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}
	return c
}

// volume makes a volume; snapshot "" is blank.
func (w *world) volume(name, fsType, snapshot string) string {
	w.t.Helper()
	q := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 4 * gi}, VolumeCapabilities: []*csi.VolumeCapability{capability(fsType)},
	}
	if snapshot != "" {
		q.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot}}}
	}
	resp, err := csi.NewControllerClient(w.CSI).CreateVolume(w.ctx, q)
	must(w.t, err)
	return resp.GetVolume().GetVolumeId()
}

// stage mounts a volume, and unstages it when the test ends.
func (w *world) stage(id, fsType string) (dir string) {
	w.t.Helper()
	dir = filepath.Join(w.Dir, "staging-"+id)
	must(w.t, os.MkdirAll(dir, 0o750))
	_, err := csi.NewNodeClient(w.CSI).NodeStageVolume(w.ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: dir, VolumeCapability: capability(fsType),
	})
	must(w.t, err)
	return dir
}

func (w *world) unstage(id, dir string) {
	w.t.Helper()
	_, err := csi.NewNodeClient(w.CSI).NodeUnstageVolume(w.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: dir})
	must(w.t, err)
}

func (w *world) snapshot(name, id string) (string, error) {
	resp, err := csi.NewControllerClient(w.CSI).CreateSnapshot(w.ctx, &csi.CreateSnapshotRequest{
		Name: name, SourceVolumeId: id, Parameters: map[string]string{"consistency": "FilesystemFreeze"},
	})
	return resp.GetSnapshot().GetSnapshotId(), err
}

func (w *world) deleteSnapshot(id string) {
	w.t.Helper()
	_, err := csi.NewControllerClient(w.CSI).DeleteSnapshot(w.ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	must(w.t, err)
}

// ticker writes a byte to a file again and again, and keeps how long the longest write took.
type ticker struct {
	stop chan struct{}
	done chan time.Duration
}

func tick(t *testing.T, dir string) *ticker {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "tick"))
	must(t, err)
	k := &ticker{make(chan struct{}), make(chan time.Duration, 1)}
	go func() {
		longest, pause := time.Duration(0), time.NewTicker(time.Millisecond)
		defer pause.Stop()
		for {
			begun := time.Now()
			if _, err := f.WriteAt([]byte{1}, 0); err != nil {
				t.Error(err)
			}
			longest = max(longest, time.Since(begun))
			select {
			case <-k.stop:
				k.done <- longest
				_ = f.Close() // its content is of no matter
				return
			case <-pause.C:
			}
		}
	}()
	return k
}

func (k *ticker) longest() time.Duration {
	close(k.stop)
	return <-k.done
}

// fill writes random bytes over a file, and leaves them in the page cache.
func fill(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	random, chunk := rand.NewChaCha8(seed), make([]byte, 4<<20)
	_, _ = random.Read(chunk)
	for at := int64(0); at < size; at += int64(len(chunk)) {
		copy(chunk, fmt.Sprint(at, seed))
		_, err := f.WriteAt(chunk[:min(size-at, int64(len(chunk)))], at)
		must(t, err)
	}
}

// Writers wait for a moment only, however much is dirty, and the snapshot holds what was written before.
func TestFrozenFor(t *testing.T) {
	w := start(t)
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			id := w.volume("v-"+fsType, fsType, "")
			dir := w.stage(id, fsType)
			defer w.unstage(id, dir)
			var waited []time.Duration
			for n := range *rounds {
				fill(t, filepath.Join(dir, "data"), *dirty)
				mark := fmt.Sprintf("round %d", n)
				must(t, os.WriteFile(filepath.Join(dir, "mark"), []byte(mark), 0o600))
				k := tick(t, dir)
				snap, err := w.snapshot(fmt.Sprintf("s-%s-%d", fsType, n), id)
				waited = append(waited, k.longest())
				if status.Code(err) == codes.Aborted && strings.Contains(err.Error(), "could not be written out in time") {
					t.Logf("round %d: nothing was frozen: %v", n, err)
					waited = waited[:len(waited)-1]
					continue
				}
				must(t, err)
				if n == 0 {
					w.restored(t, fsType, snap, mark)
				}
				w.deleteSnapshot(snap)
			}
			if len(waited) == 0 {
				t.Fatal("nothing was frozen: the disk is too slow for this test")
			}
			slices.Sort(waited)
			p99 := waited[min(len(waited)-1, len(waited)*99/100)]
			t.Logf("frozen-%s-p99 %.3f s (bar %.3f s; %d snapshots with %d MiB dirty each, median %.3f s)", fsType, p99.Seconds(), maxFrozen.Seconds(),
				len(waited), *dirty>>20, waited[len(waited)/2].Seconds())
			if p99 > maxFrozen {
				t.Errorf("writers waited %s", p99)
			}
		})
	}
}

// restored looks at what a snapshot of a frozen file system has.
func (w *world) restored(t *testing.T, fsType, snap, mark string) {
	t.Helper()
	id := w.volume("r-"+fsType, fsType, snap)
	dir := w.stage(id, fsType)
	got, err := os.ReadFile(filepath.Join(dir, "mark"))
	if err != nil || string(got) != mark {
		t.Errorf("the snapshot has %q, %v; want %q", got, err, mark)
	}
	w.unstage(id, dir)
	_, err = csi.NewControllerClient(w.CSI).DeleteVolume(w.ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	must(t, err)
}

// A raw block volume is refused with a reason; one that is not mounted needs no freeze.
func TestWithoutAFileSystem(t *testing.T) {
	w := start(t)
	block := w.volume("block", "", "")
	if _, err := w.snapshot("s-block", block); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "KubeVirt") {
		t.Errorf("a raw block volume: %v", err)
	}
	id := w.volume("v", "ext4", "")
	dir := w.stage(id, "ext4")
	must(t, os.WriteFile(filepath.Join(dir, "mark"), []byte("x"), 0o600))
	w.unstage(id, dir)
	snap, err := w.snapshot("s", id)
	must(t, err)
	w.restored(t, "ext4", snap, "x")
	w.deleteSnapshot(snap)
}

// The driver is killed while it has the file system frozen: its guard thaws it.
func TestKilledWhileFrozen(t *testing.T) {
	w := start(t)
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			id := w.volume("v-"+fsType, fsType, "")
			dir := w.stage(id, fsType)
			notes := filepath.Join(w.FrozenDir, "*.frozen")
			asked := make(chan error, 1)
			killed := false
			for try := 0; !killed; try++ {
				if try == 50 {
					t.Fatal("no freeze was seen")
				}
				fill(t, filepath.Join(dir, "data"), 64<<20)
				go func() { _, err := w.snapshot(fmt.Sprintf("s-%s-%d", fsType, try), id); asked <- err }()
				for ended := false; !ended && !killed; {
					select {
					case err := <-asked:
						must(t, err)
						ended = true
					default:
						if found, _ := filepath.Glob(notes); len(found) > 0 { // it is frozen, or will be before the process can end
							must(t, w.KillDriver())
							killed = true
						}
					}
				}
			}
			begun := time.Now()
			done := make(chan error, 1)
			go func() { done <- os.WriteFile(filepath.Join(dir, "after"), []byte("x"), 0o600) }()
			select {
			case err := <-done:
				must(t, err)
			case <-time.After(maxThaw):
				t.Errorf("frozen still %s after the kill", maxThaw)
				must(t, <-done)
			}
			t.Logf("thaw-after-kill-%s %.3f s (bar %.3f s)", fsType, time.Since(begun).Seconds(), maxThaw.Seconds())
			<-asked
			must(t, w.StartDriver(w.ctx))
			w.unstage(id, dir)
		})
	}
}
