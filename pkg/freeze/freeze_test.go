package freeze

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roles of this test's own program: a process that freezes and then hangs, and its guard.
const (
	roleFreeze = "ROWAN_TEST_FREEZE" // the mount point
	roleGuard  = "ROWAN_TEST_GUARD"  // the notes
	roleNotes  = "ROWAN_TEST_NOTES"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(roleGuard) != "":
		gone := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(gone)
		}()
		Guard(context.Background(), os.Getenv(roleGuard), gone, func(int, error) {})
		os.Exit(0)
	case os.Getenv(roleFreeze) != "":
		os.Exit(hang())
	}
	os.Exit(m.Run())
}

// guard of this process. Were it in no variable, the collector would close its input, and it would thaw at once.
var guard *exec.Cmd

// hang freezes, says so, and waits for its end. With "guarded" it starts a guard first.
func hang() int {
	notes := os.Getenv(roleNotes)
	if len(os.Args) > 1 && os.Args[1] == "guarded" {
		guard = exec.Command("/proc/self/exe")
		guard.Env = append(os.Environ(), roleGuard+"="+notes)
		guard.SysProcAttr = &unix.SysProcAttr{Setsid: true}
		if _, err := guard.StdinPipe(); err != nil {
			return 2
		}
		if err := guard.Start(); err != nil {
			return 3
		}
	}
	f := &Freezer{Notes: notes, Guarded: func() bool { return true }}
	if _, err := f.Freeze(context.Background(), os.Getenv(roleFreeze)); err != nil {
		fmt.Println(err)
		return 4
	}
	fmt.Println("frozen")
	<-time.After(time.Minute) // to be killed: without a timer the runtime ends a process whose goroutines all wait
	return 5
}

// disk is a file system on a loop device.
type disk struct {
	t                  *testing.T
	image, dir, device string
	notes              string
}

func newDisk(t *testing.T, fsType string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and loop devices")
	}
	notes, err := os.MkdirTemp("/dev/shm", "rowan-freeze-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(notes)) })
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "image"), dir: t.TempDir(), notes: filepath.Join(notes, "frozen")}
	f, err := os.Create(d.image)
	must(t, err)
	must(t, errors.Join(f.Truncate(512<<20), f.Close()))
	d.run("mkfs."+fsType, "-q", d.image)
	d.device = strings.TrimSpace(d.run("losetup", "-f", "--show", d.image))
	t.Cleanup(func() { d.run("losetup", "-d", d.device) })
	d.run("mount", d.device, d.dir)
	t.Cleanup(func() {
		if _, err := ThawAll(d.notes); err != nil { // or the unmount hangs
			t.Error(err)
		}
		d.run("umount", d.dir)
	})
	return d
}

func (d *disk) run(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (d *disk) freezer() *Freezer {
	return &Freezer{Notes: d.notes, Guarded: func() bool { return true }, Mounts: func(string) ([]string, error) { return []string{d.dir}, nil }}
}

// written is closed once a file of that name could be written: when the file system is thawed.
func (d *disk) written(name string) <-chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(d.dir, name), []byte("x"), 0o600) }()
	return done
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waits fails the test where a write goes through, and thawed where it does not.
func (d *disk) frozen(write <-chan error) {
	d.t.Helper()
	select {
	case err := <-write:
		d.t.Fatalf("it is not frozen: a write went through (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
}

func (d *disk) thawed(write <-chan error, within time.Duration) {
	d.t.Helper()
	select {
	case err := <-write:
		must(d.t, err)
	case <-time.After(within):
		d.t.Fatalf("it is frozen still after %s", within)
	}
}

var fileSystems = []string{"ext4", "xfs"}

// What is on the device of a frozen file system: all that was written, in files. ext4 needs no replay of its journal; XFS replays the one record that it
// writes for those who mount a copy.
func TestFreeze(t *testing.T) {
	for _, fsType := range fileSystems {
		t.Run(fsType, func(t *testing.T) {
			d := newDisk(t, fsType)
			f := d.freezer()
			must(t, os.WriteFile(filepath.Join(d.dir, "kept"), []byte(strings.Repeat("kept", 1<<18)), 0o600))
			z, err := f.Devices(t.Context(), []string{d.device})
			must(t, err)
			write := d.written("later")
			d.frozen(write)
			if _, err := f.Freeze(t.Context(), d.dir); !errors.Is(err, ErrFrozen) {
				t.Errorf("frozen twice: %v", err)
			}
			copied := d.image + ".copy"
			d.run("cp", "--sparse=always", d.image, copied)
			must(t, z.Thaw())
			d.thawed(write, time.Second)
			if left, err := os.ReadDir(d.notes); err != nil || len(left) != 0 {
				t.Errorf("notes are left: %v, %v", left, err)
			}
			if fsType == "ext4" {
				if out := d.run("dumpe2fs", "-h", copied); strings.Contains(out, "needs_recovery") {
					t.Error("its journal needs recovery")
				}
				d.run("e2fsck", "-fn", copied)
			}
			dir := t.TempDir()
			options := "loop,ro,noload"
			if fsType == "xfs" {
				options = "loop,ro,norecovery,nouuid"
			}
			d.run("mount", "-o", options, copied, dir) // without the journal
			got, err := os.ReadFile(filepath.Join(dir, "kept"))
			_, later := os.Stat(filepath.Join(dir, "later"))
			d.run("umount", dir)
			if err != nil || string(got) != strings.Repeat("kept", 1<<18) || !errors.Is(later, os.ErrNotExist) {
				t.Errorf("%d bytes, %v; later: %v", len(got), err, later)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	d := newDisk(t, "ext4")
	f := d.freezer()
	f.Guarded = func() bool { return false }
	if _, err := f.Freeze(t.Context(), d.dir); !errors.Is(err, ErrUnguarded) {
		t.Errorf("without a guard: %v", err)
	}
	f = d.freezer()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Freeze(ended, d.dir); !errors.Is(err, ErrSlow) {
		t.Errorf("out of time: %v", err)
	}
	f.Mounts = func(string) ([]string, error) { return []string{"/dev/null"}, nil } // bound as a device
	if _, err := f.Devices(t.Context(), []string{d.device}); !errors.Is(err, ErrNotMounted) {
		t.Errorf("not mounted: %v", err)
	}
	d.run("fsfreeze", "-f", d.dir)
	_, err := d.freezer().Freeze(t.Context(), d.dir)
	d.run("fsfreeze", "-u", d.dir)
	if !errors.Is(err, ErrFrozen) {
		t.Errorf("frozen by another: %v", err)
	}
	d.thawed(d.written("x"), time.Second)
	if left, err := os.ReadDir(d.notes); err != nil || len(left) != 0 {
		t.Errorf("notes are left: %v, %v", left, err)
	}
}

// A freeze that takes too long is thawed by the guard, and whoever froze is told.
func TestGuardThawsWhatHangs(t *testing.T) {
	for _, fsType := range fileSystems {
		t.Run(fsType, func(t *testing.T) {
			d := newDisk(t, fsType)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				Guard(ctx, d.notes, nil, func(_ int, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}()
			defer func() { cancel(); <-ended }()
			z, err := d.freezer().Freeze(t.Context(), d.dir)
			must(t, err)
			begun, write := time.Now(), d.written("x")
			d.frozen(write)
			d.thawed(write, Limit+time.Second)
			t.Logf("thawed after %s", time.Since(begun))
			if time.Since(begun) < Limit-time.Second {
				t.Error("thawed too early")
			}
			if err := z.Thaw(); !errors.Is(err, ErrThawed) {
				t.Errorf("it does not know: %v", err)
			}
		})
	}
}

// A process that is killed while it has a file system frozen: its guard thaws it, or, where that is gone, too, the next process.
func TestKilled(t *testing.T) {
	for _, fsType := range fileSystems {
		for _, guarded := range []string{"guarded", "alone"} {
			t.Run(fsType+" "+guarded, func(t *testing.T) {
				d := newDisk(t, fsType)
				c := exec.Command("/proc/self/exe", guarded)
				c.Env = append(os.Environ(), roleFreeze+"="+d.dir, roleNotes+"="+d.notes)
				out, err := c.StdoutPipe()
				must(t, err)
				must(t, c.Start())
				line := make([]byte, 100)
				n, _ := out.Read(line)
				if string(line[:n]) != "frozen\n" {
					t.Fatalf("%q", line[:n])
				}
				write := d.written("x")
				d.frozen(write)
				begun := time.Now()
				must(t, c.Process.Kill())
				_ = c.Wait() // killed
				if guarded == "guarded" {
					d.thawed(write, 6*time.Second)
				} else {
					d.frozen(write)
					n, err := ThawAll(d.notes)
					if n != 1 || err != nil {
						t.Errorf("%d thawed, %v", n, err)
					}
					d.thawed(write, time.Second)
				}
				t.Logf("thawed %s after the kill", time.Since(begun))
				n, err = ThawAll(d.notes) // a note of what is not frozen any more
				if n != 0 || err != nil {
					t.Errorf("%d thawed, %v", n, err)
				}
			})
		}
	}
}

// Notes that stand for nothing, or cannot be read, keep no process from starting, and the former are removed.
func TestNotes(t *testing.T) {
	notes := t.TempDir()
	if n, err := ThawAll(filepath.Join(notes, "none")); n != 0 || err != nil {
		t.Errorf("no folder: %d, %v", n, err)
	}
	must(t, os.WriteFile(filepath.Join(notes, "1-2"+suffix), []byte(`{"path":"/nonexistent","major":1023,"minor":7,"at":1}`), 0o600))
	must(t, os.WriteFile(filepath.Join(notes, "other"), []byte("x"), 0o600))
	if n, err := ThawAll(notes); n != 0 || err != nil {
		t.Errorf("a device that is gone: %d, %v", n, err)
	}
	left, err := os.ReadDir(notes)
	if err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("%v, %v", left, err)
	}
	must(t, os.WriteFile(filepath.Join(notes, "bad"+suffix), []byte(`{`), 0o600))
	if _, err := ThawAll(notes); err == nil || !strings.Contains(err.Error(), "bad"+suffix) {
		t.Errorf("a note that cannot be read: %v", err)
	}
}
