package attachtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

// command runs a program to its end, or skips the test where it is not installed.
func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// mounted mounts ext4 until the test, or unmount, ends it.
func mounted(t testing.TB, path string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(path, dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", path, err)
	}
	var done bool
	t.Cleanup(func() {
		if !done {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir, func() {
		t.Helper()
		done = true
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatalf("unmount: %v", err)
		}
	}
}

func testFileSystem(t *testing.T, c Config) {
	dev := block.NewRAM(256<<20, 512)
	at := attached(t, started(t, c), "ext4", dev, attach.Options{})
	command(t, "mkfs.ext4", "-q", "-E", "nodiscard", at.Path())
	dir, unmount := mounted(t, at.Path())
	rng := rand.New(rand.NewPCG(1, 2))
	content := map[string][]byte{}
	for i := range 40 {
		p := make([]byte, rng.IntN(2<<20))
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		name := fmt.Sprintf("dir%d/file%d", i%5, i)
		content[name] = p
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	command(t, "fsck.ext4", "-f", "-n", at.Path())
	dir, unmount = mounted(t, at.Path())
	for name, want := range content {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s does not hold what was written (%v)", name, err)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	full := dev.Allocated()
	unix.Sync()
	command(t, "fstrim", dir)
	if now := dev.Allocated(); now > full/2 {
		t.Errorf("after deleting everything and fstrim the device holds %d bytes of %d", now, full)
	}
	unmount()
	command(t, "fsck.ext4", "-f", "-n", at.Path())
}

func testDetachWhileMounted(t *testing.T, c Config) {
	at := attached(t, started(t, c), "mounted", block.NewRAM(64<<20, 512), attach.Options{})
	command(t, "mkfs.ext4", "-q", at.Path())
	dir, unmount := mounted(t, at.Path())
	err := at.Detach(limited(t))
	if !errors.Is(err, attach.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("detach of a mounted device: %v; want ErrInUse, naming %s", err, dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("still there"), 0o644); err != nil {
		t.Errorf("write after the refused detach: %v", err)
	}
	unmount()
	dir, unmount = mounted(t, at.Path()) // the refused detach must not have left a request behind
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "still there" {
		t.Errorf("read %q, %v", got, err)
	}
	unmount()
}

func testDetachWhileOpen(t *testing.T, c Config) {
	at := attached(t, started(t, c), "open", block.NewRAM(16<<20, 512), attach.Options{})
	f := opened(t, at)
	err := at.Detach(limited(t))
	if !errors.Is(err, attach.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("detach of an open device: %v; want ErrInUse, naming process %d", err, os.Getpid())
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("write after the refused detach: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = opened(t, at)
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("read after opening again: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := at.Detach(limited(t)); err != nil {
		t.Errorf("detach after it was closed: %v", err)
	}
	if err := at.Detach(limited(t)); err != nil {
		t.Errorf("detach again: %v", err)
	}
}
