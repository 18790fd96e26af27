package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func TestBadInput(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	ctx := t.Context()
	v := p.volume("v", 4<<20)
	_, err := p.CreateSnapshot(ctx, SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	other := p.volume("other", 1<<20)
	must(t, other.Close(ctx))
	long := strings.Repeat("x", MaxNameLen+1)
	create := func(spec VolumeSpec) error { _, err := p.CreateVolume(ctx, spec); return err }
	snap := func(name, volume string) error {
		_, err := p.CreateSnapshot(ctx, SnapshotSpec{Name: name, Volume: volume})
		return err
	}
	grow := func(name string, size int64) error { _, err := p.GrowVolume(ctx, name, size); return err }
	rollback := func(volume, snapshot string) error { _, err := p.RollbackVolume(ctx, volume, snapshot, ""); return err }
	open := func(name string) error { _, err := p.OpenVolume(ctx, name); return err }
	for _, c := range []struct {
		what string
		err  error
		want error
		text string
	}{
		{"size 0", create(VolumeSpec{Name: "a"}), ErrInvalid, "1 MiB"},
		{"size negative", create(VolumeSpec{Name: "a", Size: -1}), ErrInvalid, "-1 bytes"},
		{"size not of 1 MiB", create(VolumeSpec{Name: "a", Size: 1<<20 + 512}), ErrInvalid, "1 MiB"},
		{"size over the limit", create(VolumeSpec{Name: "a", Size: 65 << 40}), ErrInvalid, "64 TiB"},
		{"empty name", create(VolumeSpec{Size: 1 << 20}), ErrInvalid, "1 to 128"},
		{"long name", create(VolumeSpec{Name: long, Size: 1 << 20}), ErrInvalid, "129 bytes"},
		{"name with slash", create(VolumeSpec{Name: "a/b", Size: 1 << 20}), ErrInvalid, "slashes"},
		{"name with newline", create(VolumeSpec{Name: "a\nb", Size: 1 << 20}), ErrInvalid, "control"},
		{"name ..", create(VolumeSpec{Name: "..", Size: 1 << 20}), ErrInvalid, ".."},
		{"labels too long", create(VolumeSpec{Name: "a", Size: 1 << 20, Labels: map[string]string{"k": strings.Repeat("x", 5000)}}), ErrInvalid, "labels"},
		{"volume exists", create(VolumeSpec{Name: "v", Size: 1 << 20}), ErrExists, `"v"`},
		{"two sources", create(VolumeSpec{Name: "a", FromVolume: "v", FromSnapshot: "s"}), ErrInvalid, "at once"},
		{"missing source snapshot", create(VolumeSpec{Name: "a", FromSnapshot: "x"}), ErrNotFound, `"x"`},
		{"missing source volume", create(VolumeSpec{Name: "a", FromVolume: "x"}), ErrNotFound, `"x"`},
		{"restore smaller", create(VolumeSpec{Name: "a", FromSnapshot: "s", Size: 1 << 20}), ErrInvalid, "smaller"},
		{"clone smaller", create(VolumeSpec{Name: "a", FromVolume: "v", Size: 1 << 20}), ErrInvalid, "smaller"},
		{"snapshot exists", snap("s", "v"), ErrExists, `"s"`},
		{"snapshot of nothing", snap("t", "x"), ErrNotFound, `"x"`},
		{"snapshot with slash", snap("a/b", "v"), ErrInvalid, "slashes"},
		{"shrink", grow("v", 1<<20), ErrShrink, "it has 4194304"},
		{"grow missing", grow("x", 1<<20), ErrNotFound, `"x"`},
		{"grow by no unit", grow("v", 4<<20+4096), ErrInvalid, "1 MiB"},
		{"open twice", open("v"), ErrInUse, `"v"`},
		{"open missing", open("x"), ErrNotFound, `"x"`},
		{"delete while open", p.DeleteVolume(ctx, "v"), ErrInUse, "detach"},
		{"delete missing", p.DeleteVolume(ctx, "x"), ErrNotFound, `"x"`},
		{"delete missing snapshot", p.DeleteSnapshot(ctx, "x"), ErrNotFound, `"x"`},
		{"roll back while open", rollback("v", "s"), ErrInUse, "detach"},
		{"roll back to another's", rollback("other", "s"), ErrNotDescendant, "restore it"},
		{"roll back to nothing", rollback("other", "x"), ErrNotFound, `"x"`},
		{"write beyond the end", second(v.WriteAt(make([]byte, 512), 4<<20)), block.ErrOutOfRange, "4194304"},
		{"write not aligned", second(v.WriteAt(make([]byte, 100), 0)), block.ErrUnaligned, "100 bytes"},
		{"discard beyond the end", v.Discard(0, 5<<20), block.ErrOutOfRange, ""},
	} {
		if !errors.Is(c.err, c.want) || !strings.Contains(c.err.Error(), c.text) {
			t.Errorf("%s: got %v; want %v with %q", c.what, c.err, c.want, c.text)
		}
	}
	// What was refused changed nothing.
	if info := p.Info(); info.Volumes != 2 || info.Snapshots != 1 || info.State != "Ready" {
		t.Errorf("%+v", info)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPoolBadInput(t *testing.T) {
	o := testOptions(t)
	create := func(spec PoolSpec) error { _, err := CreatePool(t.Context(), spec, o); return err }
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"no place", create(PoolSpec{Name: "p"}), ErrInvalid},
		{"two places", create(PoolSpec{Name: "p", Directory: "/a", Device: "/b"}), ErrInvalid},
		{"no name", create(PoolSpec{Directory: t.TempDir()}), ErrInvalid},
		{"too small", create(PoolSpec{Name: "p", Directory: t.TempDir(), Size: 1 << 20}), ErrInvalid},
		{"negative", create(PoolSpec{Name: "p", Directory: t.TempDir(), Size: -1 << 30}), ErrInvalid},
		{"tmpfs", create(PoolSpec{Name: "p", Directory: "/dev/shm/rowan-test-none", Size: MinPoolSize}), ErrUnsupported},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if _, err := OpenPool(t.Context(), t.TempDir(), o); !errors.Is(err, ErrNotFound) {
		t.Errorf("open of an empty folder: %v", err)
	}
	p := newPool(t, o, MinPoolSize)
	if err := create(PoolSpec{Name: "q", Directory: p.dir, Size: MinPoolSize}); !errors.Is(err, ErrForeign) {
		t.Errorf("create over another pool: %v", err)
	}
	o.patience = time.Millisecond
	if _, err := OpenPool(t.Context(), p.dir, o); !errors.Is(err, ErrLocked) {
		t.Errorf("second engine: %v", err)
	}
}

func fill(t *testing.T, v *Volume, b byte) []byte {
	t.Helper()
	data := bytes.Repeat([]byte{b}, int(v.Size()))
	_, err := v.WriteAt(data, 0)
	must(t, err)
	return data
}

func expect(t *testing.T, dev interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}, want []byte) {
	t.Helper()
	got := make([]byte, dev.Size())
	_, err := dev.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatal("content is wrong")
	}
}

func ringFile(t *testing.T, o Options) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(o.RingDir, "*.ring"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	return files[0]
}

// A dead process whose ring is gone in the same boot: acknowledged writes may be lost, and only an operator may say that this is so.
func TestRingLost(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"missing": func(t *testing.T, file string) { must(t, os.Remove(file)) },
		"damaged": func(t *testing.T, file string) { must(t, os.WriteFile(file, bytes.Repeat([]byte{7}, 4096), 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, testOptions(t), MinPoolSize)
			v := p.volume("v", 4<<20)
			flushed := fill(t, v, 1)
			must(t, v.Flush())
			must(t, p.kill())
			damage(t, ringFile(t, p.o))
			if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "--accept-loss") {
				t.Fatalf("opened: %v", err)
			}
			p.o.AcceptLoss = true
			p.reopen()
			expect(t, p.open("v"), flushed)
		})
	}
}

// After a reboot the ring is gone by rights. What was flushed is there.
func TestReboot(t *testing.T) {
	o := testOptions(t)
	boot := [16]byte{1}
	o.bootID = &boot
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 4<<20)
	flushed := fill(t, v, 1)
	must(t, v.Flush())
	must(t, p.kill())
	must(t, os.Remove(ringFile(t, o)))
	next := [16]byte{2}
	p.o.bootID = &next
	p.reopen()
	expect(t, p.open("v"), flushed)
}

func TestDamagedFiles(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"superblock": func(dir string) error { return flip(filepath.Join(dir, "rowan.pool"), 100) },
		"manifest":   func(dir string) error { return truncateAll(filepath.Join(dir, "meta", "MANIFEST-*")) },
		"metadata":   func(dir string) error { return os.RemoveAll(filepath.Join(dir, "meta")) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, testOptions(t), MinPoolSize)
			fill(t, p.volume("v", 4<<20), 1)
			must(t, p.Close(t.Context()))
			must(t, damage(p.dir))
			if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("opened: %v", err)
			}
		})
	}
}

func flip(file string, at int) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b[at] ^= 0xff
	return os.WriteFile(file, b, 0o600)
}

func truncateAll(pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		return errors.Join(err, errors.New("no file "+pattern))
	}
	for _, f := range files {
		err = errors.Join(err, os.Truncate(f, 3))
	}
	return err
}

// A failed flush is final, and the mark outlives the process within the boot.
func TestFailedFlush(t *testing.T) {
	o := testOptions(t)
	faults := fsys.Fault(fsys.OS())
	o.fs = faults
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 4<<20)
	data := fill(t, v, 1)
	must(t, p.flush()) // committed, the chunk is known to be written: from here on the flush file is what is synced
	faults.Add(fsys.Rule{Op: fsys.OpSync, Glob: "flush", Err: unix.EIO})
	if _, err := v.WriteAt(data[:BlockSize], 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(); !errors.Is(err, ErrFailed) && !errors.Is(err, unix.EIO) {
		t.Fatalf("flush: %v", err)
	}
	faults.Clear()
	if _, err := v.WriteAt(data[:BlockSize], 0); !errors.Is(err, ErrFailed) {
		t.Fatalf("write to a failed pool: %v", err)
	}
	if err := v.Flush(); !errors.Is(err, ErrFailed) {
		t.Fatalf("flush of a failed pool: %v", err)
	}
	expect(t, v, data) // what can be read is not withheld
	if info := p.Info(); info.State != "Failed" || !strings.Contains(info.Reason, "input/output error") {
		t.Fatalf("%+v", info)
	}
	must(t, p.kill())
	if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrFailed) {
		t.Fatalf("opened in the same boot: %v", err)
	}
	p.o.bootID = &[16]byte{9}
	p.reopen()
	expect(t, p.open("v"), data)
}

// A metadata log that cannot be written fails the pool, and nobody hangs; another process, in another boot, finds what was flushed.
func TestFailedLog(t *testing.T) {
	o := testOptions(t)
	faults := fsys.Fault(fsys.OS())
	o.fs = faults
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 4<<20)
	data := fill(t, v, 1)
	must(t, v.Flush())
	faults.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", Err: unix.EIO})
	if _, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "w", Size: 1 << 20}); err == nil {
		t.Fatal("a volume was made without a log")
	}
	if _, err := v.WriteAt(data[:BlockSize], 0); !errors.Is(err, ErrFailed) {
		t.Fatalf("write to a failed pool: %v", err)
	}
	expect(t, v, data)
	if info := p.Info(); info.State != "Failed" {
		t.Fatalf("%+v", info)
	}
	if err := p.Close(t.Context()); err == nil {
		t.Fatal("a failed pool closed as if nothing had happened")
	}
}

// A full pool: new blocks get ENOSPC, owned ones are overwritten, a deleted snapshot's space lets the waiting write go on.
func TestFullPool(t *testing.T) {
	o := testOptions(t)
	o.SpaceWait, o.RefuseAt = 300*time.Millisecond, 2
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 512<<20)
	chunk := bytes.Repeat([]byte{1}, 1<<20)
	var err error
	written := int64(0)
	for ; err == nil && written < v.Size(); written += 1 << 20 {
		_, err = v.WriteAt(chunk, written)
	}
	if !errors.Is(err, ErrNoSpace) || written < 200<<20 {
		t.Fatalf("after %d bytes: %v", written, err)
	}
	_, err = v.WriteAt(chunk, 0)
	must(t, err)
	must(t, v.Flush())
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	if _, err = v.WriteAt(chunk, 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a redirected write in a full pool: %v", err)
	}
	must(t, v.Discard(100<<20, 1<<20)) // owned by the snapshot: frees nothing
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
	_, err = v.WriteAt(chunk, 0)
	must(t, err)
	must(t, v.Discard(0, 64<<20))
	_, err = v.WriteAt(chunk, 300<<20)
	must(t, err)
}

// SnapshotUsage says what deleting frees.
func TestSnapshotUsage(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 8<<20)
	fill(t, v, 1)
	take := func(name string) {
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: name, Volume: "v"})
		must(t, err)
	}
	take("a")
	_, err := v.WriteAt(bytes.Repeat([]byte{2}, 3<<20), 2<<20)
	must(t, err)
	take("b")
	_, err = v.WriteAt(bytes.Repeat([]byte{3}, 2<<20), 4<<20)
	must(t, err)
	for _, name := range []string{"b", "a"} {
		usage, err := p.SnapshotUsage(t.Context(), name)
		must(t, err)
		before := p.Info().Used
		must(t, p.DeleteSnapshot(t.Context(), name))
		p.jobsDone()
		if freed := before - p.Info().Used; freed != usage || freed == 0 {
			t.Errorf("deleting %q freed %d bytes, usage said %d", name, freed, usage)
		}
	}
}

// A snapshot that is read while it is deleted stays whole; its blocks are freed when the reader closes, also when the process died in between.
func TestReaderKeepsSnapshot(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 8<<20)
	old := fill(t, v, 1)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	fill(t, v, 2)
	r, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	fill(t, v, 3)
	expect(t, r, old)
	if _, err := p.Snapshot("s"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the name is still there: %v", err)
	}
	p.check()
	must(t, p.kill())
	report, err := CheckOffline(t.Context(), p.dir, p.o)
	must(t, err)
	if len(report.Problems) > 0 {
		t.Fatalf("after the reader died: %v", report.Problems)
	}
	p.reopen()
	p.jobsDone()
	if used := p.Info().Used; used != 8<<20 {
		t.Fatalf("%d bytes in use", used)
	}
}

func TestWrittenAndParent(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 4<<20)
	if info := v.Info(); info.Written || info.HasParent || info.Mapped != 0 {
		t.Fatalf("a new volume: %+v", info)
	}
	_, err := v.WriteAt(make([]byte, 512), 512)
	must(t, err)
	must(t, p.kill())
	p.reopen()
	info, err := p.Volume("v")
	must(t, err)
	if !info.Written || info.Mapped != BlockSize {
		t.Fatalf("a written volume after the death of the process: %+v", info)
	}
	_, err = p.CreateVolume(t.Context(), VolumeSpec{Name: "c", FromVolume: "v"})
	must(t, err)
	if info, err = p.Volume("c"); err != nil || !info.HasParent {
		t.Fatalf("a clone: %+v, %v", info, err)
	}
}

// The engine's devices pass the suite that every device passes; a reopening is the death of the process.
func TestVolumeConforms(t *testing.T) {
	p := newPool(t, testOptions(t), 4*MinPoolSize)
	n := 0
	name := func() string { n++; return fmt.Sprintf("v%d", n) }
	last := ""
	blocktest.Run(t, blocktest.Config{
		New: func(t testing.TB) block.Device {
			last = name()
			_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: last, Size: blocktest.MinSize})
			if err != nil {
				t.Fatal(err)
			}
			return p.open(last)
		},
		Reopen: func(t testing.TB, dev block.Device) block.Device {
			must(p.t, p.kill())
			p.reopen()
			return p.open(last)
		},
		ReadOnly: func(t testing.TB) block.Device {
			s := name()
			_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: s, Volume: last})
			if err != nil {
				t.Fatal(err)
			}
			r, err := p.OpenSnapshot(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			return r
		},
	})
}
