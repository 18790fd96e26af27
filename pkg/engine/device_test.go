package engine

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skipf("needs %s: it is not installed", name)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loopDevice makes a blank block device.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes loop devices and mounts them")
	}
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	dev := tool(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { tool(t, "losetup", "--detach", dev) })
	return dev
}

// A pool on a blank device: XFS is made and mounted, closed and found again by the device; what is not blank is refused by name.
func TestPoolOnDevice(t *testing.T) {
	o := testOptions(t)
	dev := loopDevice(t, 2<<30)
	tool(t, "mkfs.ext4", "-q", dev)
	spec := PoolSpec{Name: "disk", Device: dev, Size: MinPoolSize}
	if _, err := CreatePool(t.Context(), spec, o); !errors.Is(err, ErrNotBlank) || !strings.Contains(err.Error(), "ext4") {
		t.Fatalf("create on ext4: %v", err)
	}
	spec.Wipe = true
	p, err := CreatePool(t.Context(), spec, o)
	must(t, err)
	tp := &testPool{t, p, o, dev}
	v := tp.volume("v", 8<<20)
	want := fill(t, v, 7)
	if info := p.Info(); info.Device != dev || !strings.HasPrefix(info.Member, o.MountDir) {
		t.Errorf("%+v", info)
	}
	tp.check()
	must(t, p.Close(t.Context()))
	tp.reopen()
	expect(t, tp.open("v"), want)
	tp.check()
	must(t, tp.Close(t.Context()))
	spec.Wipe = false
	if _, err := CreatePool(t.Context(), spec, o); !errors.Is(err, ErrNotBlank) && !errors.Is(err, ErrForeign) {
		t.Fatalf("create over a pool: %v", err)
	}
}

// A neighbour fills the file system under the pool: new blocks wait, then get ENOSPC that says so; what is owned, and deletes, go on; freed space is
// used again.
func TestFullFileSystem(t *testing.T) {
	dev := loopDevice(t, 1<<30)
	tool(t, "mkfs.ext4", "-q", "-m", "0", dev)
	dir := t.TempDir()
	must(t, unix.Mount(dev, dir, "ext4", unix.MS_NOATIME, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	o := testOptions(t)
	o.SpaceWait, o.RefuseAt = 300*time.Millisecond, 2
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: filepath.Join(dir, "pool"), Size: 512 << 20}, o)
	must(t, err)
	tp := &testPool{t, p, o, filepath.Join(dir, "pool")}
	v := tp.volume("v", 1<<30)
	chunk := bytes.Repeat([]byte{3}, 1<<20)
	_, err = v.WriteAt(chunk, 0)
	must(t, err)
	hog := filepath.Join(dir, "hog")
	fillFileSystem(t, hog)
	at := int64(1 << 20)
	for err == nil && at < v.Size() {
		_, err = v.WriteAt(chunk, at)
		at += 1 << 20
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "file system under") {
		t.Fatalf("after %d bytes: %v", at, err)
	}
	_, err = v.WriteAt(chunk, 0)
	must(t, err)
	must(t, v.Flush())
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	tp.jobsDone()
	must(t, os.Remove(hog))
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err = v.WriteAt(chunk, at); err == nil {
			break
		}
		if !errors.Is(err, ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("after the neighbour left: %v", err)
		}
	}
	tp.check()
	must(t, tp.Close(t.Context()))
}

func fillFileSystem(t *testing.T, file string) {
	t.Helper()
	u, err := fsys.OS().Usage(filepath.Dir(file))
	must(t, err)
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	for step := u.Available; step >= 4096; {
		info, err := f.Stat()
		must(t, err)
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), step); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else {
			must(t, err)
		}
	}
}
