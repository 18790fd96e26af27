package member

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes loop devices and mounts them")
	}
}

// command runs a program, and skips the test where it is not installed.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath(filepath.Join("/usr/sbin", name)); err != nil {
			t.Skipf("needs %s: it is not installed", name)
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loopDevice makes a blank block device of size bytes.
func loopDevice(t testing.TB, size int64) string {
	t.Helper()
	needRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	device := command(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

// mountLoop mounts a new file system of size bytes and gives its folder and device.
func mountLoop(t testing.TB, kind string, size int64, options ...string) (dir, device string) {
	t.Helper()
	device = loopDevice(t, size)
	command(t, "mkfs."+kind, "-q", device)
	dir = t.TempDir()
	must(t, unix.Mount(device, dir, kind, unix.MS_NOATIME, strings.Join(options, ",")))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir, device
}

// eachPlace runs a test on the test's own temporary folder, where that is on XFS or ext4, and on a new file system of each kind.
func eachPlace(t *testing.T, run func(t *testing.T, dir string)) {
	t.Run("folder", func(t *testing.T) { run(t, tempMember(t)) })
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir, _ := mountLoop(t, kind, 4<<30)
			run(t, filepath.Join(dir, "pool"))
		})
	}
}

// tempMember is a folder that can become a member.
func tempMember(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	u, err := fsys.OS().Usage(dir)
	must(t, err)
	if u.Type != "xfs" && u.Type != "ext4" {
		t.Skipf("needs ext4: temporary files are on %s here", u.Type)
	}
	return filepath.Join(dir, "pool")
}

const testSize = 256 << 20

func testSpec(dir string) Spec {
	return Spec{
		PoolName: "fast", PoolID: format.NewUUID(), MemberID: format.NewUUID(), Directory: dir, Size: testSize, MinSize: testSize, Node: "node-a",
		Created: time.Now(), Metadata: 1,
	}
}

func mustCreate(t testing.TB, fsy fsys.FS, spec Spec) *Member {
	t.Helper()
	m, err := Create(fsy, spec)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

func mustOpen(t testing.TB, fsy fsys.FS, path string, o Options) *Member {
	t.Helper()
	m, err := Open(fsy, path, o)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pattern is n bytes that differ by place and seed, aligned for direct I/O.
func pattern(n int, seed byte) []byte {
	p := fsys.AlignedBuffer(n)
	for i := range p {
		p[i] = byte(i)*7 + byte(i>>8)*3 + byte(i>>16) + seed
	}
	return p
}

func wantData(t testing.TB, m *Member, block uint64, off int, want []byte) {
	t.Helper()
	got := fsys.AlignedBuffer(len(want))
	must(t, m.ReadAt(got, block, off))
	if !bytes.Equal(got, want) {
		t.Fatalf("block %d, offset %d: other bytes than were written", block, off)
	}
}

// recorder is a file system that notes what is synced and, on request, fails it.
type recorder struct {
	fsys.FS
	syncs map[string]int // by base name
	fail  string         // the base name of a file whose Sync fails
	hook  func()         // runs in a Sync, before it is done
}

type recordedFile struct {
	fsys.File
	r *recorder
}

func newRecorder() *recorder { return &recorder{FS: fsys.OS(), syncs: map[string]int{}} }

func (r *recorder) Open(name string, flags fsys.OpenFlags) (fsys.File, error) {
	f, err := r.FS.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return recordedFile{f, r}, nil
}

func (f recordedFile) Sync() error {
	name := filepath.Base(f.Name())
	f.r.syncs[name]++
	if f.r.hook != nil {
		f.r.hook()
	}
	if name == f.r.fail {
		return unix.EIO
	}
	return f.File.Sync()
}

// prewrite makes chunks written, as the engine does.
func prewrite(t testing.TB, m *Member, index, from, to uint32) {
	t.Helper()
	must(t, m.Reserve(index, from, to))
	must(t, m.Zero(index, []Range{{from, to}}))
	must(t, m.MarkWritten(index, from, to))
}
