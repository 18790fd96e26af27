package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const mi = int64(1) << 20

// loop is a loop device over a sparse file.
type loop struct {
	t    *testing.T
	dev  string
	file string
}

// needRoot skips what needs real devices and mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches loop devices and mounts them")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
}

func newLoop(t *testing.T, size int64) *loop {
	t.Helper()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return attachLoop(t, file)
}

func attachLoop(t *testing.T, file string) *loop {
	t.Helper()
	l := &loop{t: t, file: file, dev: tool(t, "losetup", "--find", "--show", file)}
	t.Cleanup(func() { tool(t, "losetup", "--detach", l.dev) })
	return l
}

func (l *loop) grow(size int64) {
	l.t.Helper()
	if err := os.Truncate(l.file, size); err != nil {
		l.t.Fatal(err)
	}
	tool(l.t, "losetup", "--set-capacity", l.dev)
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// hasCapSysResource says whether this process may grow a mounted ext4.
func hasCapSysResource(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	ok(t, unix.Capget(&header, &data[0]))
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// point is a path for a mount, undone at the end.
func point(t *testing.T, m *Mounter, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	t.Cleanup(func() {
		if err := m.Unmount(context.Background(), path); err != nil {
			t.Error(err)
		}
	})
	return path
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lookup(t *testing.T, m *Mounter, path, device string) Point {
	t.Helper()
	p, err := m.Lookup(path, device)
	ok(t, err)
	return p
}

// TestLife formats, mounts, writes, grows, binds and cleans up, with both file systems.
func TestLife(t *testing.T) {
	for _, fs := range []string{ext4, xfs} {
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, fresh %t", fs, fresh), func(t *testing.T) { testLife(t, fs, fresh) })
		}
	}
}

func testLife(t *testing.T, fs string, fresh bool) {
	l, m, ctx := newLoop(t, 300*mi), New(), t.Context()
	if found, err := m.Detect(ctx, l.dev); err != nil || found != "" {
		t.Fatalf("empty device: %q, %v", found, err)
	}
	ok(t, m.Format(ctx, l.dev, fs, fresh))
	if found, err := m.Detect(ctx, l.dev); err != nil || found != fs {
		t.Fatalf("formatted: %q, %v", found, err)
	}
	ok(t, m.Check(ctx, l.dev, fs))
	stage, target := point(t, m, "stage dir"), point(t, m, "target") // a space, as the mount table escapes it
	if p := lookup(t, m, stage, l.dev); p.Mounted {
		t.Fatalf("before mounting: %+v", p)
	}
	ok(t, m.Mount(ctx, l.dev, stage, fs, []string{"nosuid", "noatime"}))
	if p := lookup(t, m, stage, l.dev); p != (Point{Mounted: true, Same: true, FSType: fs}) {
		t.Errorf("mounted: %+v", p)
	}
	if err := os.WriteFile(filepath.Join(stage, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}

	before, err := m.Usage(stage)
	ok(t, err)
	l.grow(600 * mi)
	if n, err := m.DeviceSize(l.dev); err != nil || n != 600*mi {
		t.Fatalf("device's size: %d, %v", n, err)
	}
	for range 2 { // the second has nothing to do
		err := m.Grow(ctx, l.dev, stage, fs)
		if errors.Is(err, ErrMounted) && fs == ext4 && !hasCapSysResource(t) {
			ok(t, m.Unmount(ctx, stage))
			ok(t, m.GrowUnmounted(ctx, l.dev, fs))
			err = m.Mount(ctx, l.dev, stage, fs, []string{"nosuid", "noatime"})
		}
		ok(t, err)
	}
	after, err := m.Usage(stage)
	ok(t, err)
	if by := after.Bytes - before.Bytes; by < 250*mi || by > 300*mi {
		t.Errorf("file system grew by %d", by)
	}
	if after.BytesUsed+after.BytesFree > after.Bytes || after.BytesUsed <= 0 || after.InodesUsed <= 0 ||
		after.Inodes != after.InodesUsed+after.InodesFree {
		t.Errorf("usage: %+v", after)
	}

	ok(t, m.BindDirectory(ctx, stage, target, false))
	if got, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(got) != "content" {
		t.Errorf("read back %q, %v", got, err)
	}
	if ts, err := m.Targets(l.dev); err != nil || !slices.Equal(ts, []string{stage, target}) {
		t.Errorf("targets: %q, %v", ts, err)
	}
	for range 2 {
		ok(t, m.Unmount(ctx, target))
		ok(t, m.Remove(target))
	}
	ok(t, m.Unmount(ctx, stage))
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("target is still there: %v", err)
	}
	if ts, err := m.Targets(l.dev); err != nil || len(ts) != 0 {
		t.Errorf("targets in the end: %q, %v", ts, err)
	}
}

// TestReadOnly is that a read-only bind refuses writes, keeps the flags of what it shows, and leaves that writable; by either system call.
func TestReadOnly(t *testing.T) {
	l, m, ctx := newLoop(t, 32*mi), New(), t.Context()
	ok(t, m.Format(ctx, l.dev, ext4, true))
	stage := point(t, m, "stage")
	ok(t, m.Mount(ctx, l.dev, stage, ext4, []string{"nosuid", "nodev", "noatime"}))
	for name, bind := range map[string]func(target string) error{
		"mount_setattr": func(target string) error { return m.BindDirectory(ctx, stage, target, true) },
		"remount": func(target string) error {
			if err := m.BindDirectory(ctx, stage, target, false); err != nil {
				return err
			}
			return m.remountReadOnly(target)
		},
	} {
		target := point(t, m, "target")
		ok(t, bind(target))
		if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: write: %v", name, err)
		}
		if p := lookup(t, m, target, l.dev); p != (Point{Mounted: true, Same: true, ReadOnly: true, FSType: ext4}) {
			t.Errorf("%s: %+v", name, p)
		}
		e, err := m.at(target)
		ok(t, err)
		for _, o := range []string{"ro", "nosuid", "nodev", "noatime"} {
			if !slices.Contains(e.MountOptions, o) {
				t.Errorf("%s: options %v lack %s", name, e.MountOptions, o)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(stage, "f"), nil, 0o600); err != nil {
		t.Errorf("write to what is shown: %v", err)
	}
}

// TestCopyBesideItsSource is an XFS mounted beside a copy of it, which has the same UUID.
func TestCopyBesideItsSource(t *testing.T) {
	l, m, ctx := newLoop(t, 300*mi), New(), t.Context()
	ok(t, m.Format(ctx, l.dev, xfs, true))
	stage, other := point(t, m, "source"), point(t, m, "copy")
	ok(t, m.Mount(ctx, l.dev, stage, xfs, nil))
	if err := os.WriteFile(filepath.Join(stage, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "sync", "-f", stage)
	file := filepath.Join(t.TempDir(), "copy.img")
	tool(t, "dd", "if="+l.dev, "of="+file, "bs=1M", "conv=sparse", "status=none")
	c := attachLoop(t, file)
	if err := m.Mount(ctx, c.dev, other, xfs, nil); err == nil {
		t.Fatal("the copy mounts without nouuid: this test tests nothing")
	}
	ok(t, m.Mount(ctx, c.dev, other, xfs, []string{"nouuid"}))
	if got, err := os.ReadFile(filepath.Join(other, "f")); err != nil || string(got) != "content" {
		t.Errorf("read from the copy: %q, %v", got, err)
	}
	if p := lookup(t, m, other, l.dev); !p.Mounted || p.Same {
		t.Errorf("the copy taken for its source: %+v", p)
	}
	ok(t, m.Unmount(ctx, other))
}

func TestBlock(t *testing.T) {
	l, m, ctx := newLoop(t, 8*mi), New(), t.Context()
	a, b := point(t, m, "a"), point(t, m, "b")
	ok(t, m.BindDevice(ctx, l.dev, a, false))
	ok(t, m.BindDevice(ctx, l.dev, b, true))
	if p := lookup(t, m, a, l.dev); p != (Point{Mounted: true, Same: true}) {
		t.Errorf("writable: %+v", p)
	}
	if p := lookup(t, m, b, l.dev); p != (Point{Mounted: true, Same: true, ReadOnly: true}) {
		t.Errorf("read-only: %+v", p)
	}
	if err := os.WriteFile(a, []byte(strings.Repeat("x", 4096)), 0o600); err != nil {
		t.Errorf("write through the target: %v", err)
	}
	if n, err := m.DeviceSize(a); err != nil || n != 8*mi {
		t.Errorf("size through the target: %d, %v", n, err)
	}
	if ts, err := m.Targets(l.dev); err != nil || !slices.Equal(ts, []string{a, b}) {
		t.Errorf("targets: %q, %v", ts, err)
	}
	for _, p := range []string{a, b, a} {
		ok(t, m.Unmount(ctx, p))
		ok(t, m.Remove(p))
	}
	if _, err := os.Stat(a); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("target is still there: %v", err)
	}
	if got := make([]byte, 4096); true {
		f, err := os.Open(l.dev)
		ok(t, err)
		_, err = f.Read(got)
		ok(t, errors.Join(err, f.Close()))
		if strings.Trim(string(got), "x") != "" {
			t.Error("what was written did not reach the device")
		}
	}
}

func TestUnmountStack(t *testing.T) {
	l, m, ctx := newLoop(t, 8*mi), New(), t.Context()
	ok(t, m.Format(ctx, l.dev, ext4, true))
	p := point(t, m, "p")
	for range 3 {
		ok(t, m.BindDirectory(ctx, t.TempDir(), p, false))
	}
	ok(t, m.Unmount(ctx, p))
	if got := lookup(t, m, p, l.dev); got.Mounted {
		t.Errorf("still mounted: %+v", got)
	}
	busy := point(t, m, "busy")
	ok(t, m.Mount(ctx, l.dev, busy, ext4, nil))
	f, err := os.Create(filepath.Join(busy, "open"))
	ok(t, err)
	if err := m.Unmount(ctx, busy); err == nil {
		t.Error("unmounted while a file is open")
	}
	ok(t, f.Close())
	if err := m.Remove(busy); err == nil {
		t.Error("removed a mount point in use")
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := m.Unmount(canceled, busy); !errors.Is(err, context.Canceled) {
		t.Errorf("unmount when canceled: %v", err)
	}
}

func TestCheckRepairs(t *testing.T) {
	l, m, ctx := newLoop(t, 32*mi), New(), t.Context()
	ok(t, m.Format(ctx, l.dev, ext4, true))
	tool(t, "debugfs", "-w", "-R", "ssv free_blocks_count 1", l.dev)
	tool(t, "tune2fs", "-E", "force_fsck", l.dev)
	ok(t, m.Check(ctx, l.dev, ext4))

	tool(t, "debugfs", "-w", "-R", "clri <2>", l.dev) // no root directory: not a thing to repair unasked
	tool(t, "tune2fs", "-E", "force_fsck", l.dev)
	if err := m.Check(ctx, l.dev, ext4); !errors.Is(err, ErrDamaged) {
		t.Errorf("check of a file system without a root directory: %v", err)
	}
}

func TestGrowUnmounted(t *testing.T) {
	l, m, ctx := newLoop(t, 32*mi), New(), t.Context()
	ok(t, m.Format(ctx, l.dev, ext4, true))
	p := point(t, m, "p")
	ok(t, m.Mount(ctx, l.dev, p, ext4, nil))
	before, err := m.Usage(p)
	ok(t, err)
	ok(t, m.Unmount(ctx, p))
	l.grow(64 * mi)
	for range 2 {
		ok(t, m.GrowUnmounted(ctx, l.dev, ext4))
	}
	ok(t, m.Mount(ctx, l.dev, p, ext4, nil))
	if after, err := m.Usage(p); err != nil || after.Bytes-before.Bytes < 28*mi {
		t.Errorf("grew from %+v to %+v, %v", before, after, err)
	}
	if err := m.GrowUnmounted(ctx, l.dev, xfs); err == nil {
		t.Error("XFS grew unmounted")
	}
}

func TestErrors(t *testing.T) {
	l, m, ctx := newLoop(t, 8*mi), New(), t.Context()
	for name, err := range map[string]error{
		"format btrfs":    m.Format(ctx, l.dev, "btrfs", true),
		"xfs too small":   m.Format(ctx, l.dev, xfs, true),
		"grow btrfs":      m.Grow(ctx, l.dev, "/", "btrfs"),
		"mount nothing":   m.Mount(ctx, l.dev, point(t, m, "a"), ext4, nil),
		"bind no device":  m.BindDevice(ctx, "/dev/none", point(t, m, "b"), false),
		"bind over a dir": m.BindDevice(ctx, l.dev, t.TempDir(), false),
		"remove a full directory": func() error {
			dir := t.TempDir()
			ok(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
			return m.Remove(dir)
		}(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := m.Lookup("/proc", "/dev/null"); err == nil {
		t.Error("a character device passes for a disk")
	}
	if _, err := m.Targets("/dev/none"); err == nil {
		t.Error("no device passes for one")
	}
	if p, err := m.Lookup("/nowhere/at/all", l.dev); err != nil || p.Mounted {
		t.Errorf("a path that is not there: %+v, %v", p, err)
	}
}

func TestXFSArgs(t *testing.T) {
	const usage61 = "[-m crc=0|1,finobt=0|1,uuid=xxx,rmapbt=0|1,reflink=0|1,inobtcount=0|1,bigtime=0|1] [-i perblock=n,sparse=0|1,nrext64=0|1]"
	got := strings.Join(xfsArgs(usage61+" [-i exchange=0|1] [-n parent=0|1]", "/dev/x", true), " ")
	want := "-q -f -K -m crc=1 -m finobt=1 -m reflink=1 -m rmapbt=0 -m bigtime=1 -m inobtcount=1 " +
		"-i sparse=1 -i nrext64=0 -i exchange=0 -n parent=0 /dev/x"
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := strings.Join(xfsArgs(usage61, "/dev/x", false), " "); strings.Contains(got, "parent") || strings.Contains(got, "-K") {
		t.Errorf("6.1: %s", got)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a`: "/a", `/a\040b`: "/a b", `/\134\011\012`: "/\\\t\n", `/end\04`: `/end\04`, `\999`: `\999`} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
