package member

import (
	"bufio"
	"errors"
	"fmt"
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

// wantRefusal checks an error's kind and that its text names what it must.
func wantRefusal(t *testing.T, err, kind error, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v\nwant one that is %q", err, kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q\ndoes not say %q", err, text)
		}
	}
}

func create(spec Spec) error {
	m, err := Create(fsys.OS(), spec)
	if err == nil {
		err = errors.Join(errors.New("it was made"), m.Close())
	}
	return err
}

func TestCreateRefusesFolders(t *testing.T) {
	base := filepath.Dir(tempMember(t))
	sub := func(name string, files ...string) string {
		dir := filepath.Join(base, name)
		must(t, os.MkdirAll(dir, 0o700))
		for _, f := range files {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700))
			must(t, os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600))
		}
		return dir
	}
	wantRefusal(t, create(testSpec(sub("full", "photo.jpg"))), ErrNotEmpty, "photo.jpg")
	wantRefusal(t, create(testSpec(sub("lost", "segments/000000.seg"))), ErrNotEmpty, "000000.seg", "superblock")
	wantRefusal(t, create(testSpec(sub("damaged", superblockName))), ErrForeign, "cannot be read")
	wantRefusal(t, create(testSpec(filepath.Join(sub("file", "f"), "f"))), ErrInvalid, "not a folder")

	taken := sub("taken")
	spec := testSpec(taken)
	spec.PoolName = "slow"
	must(t, mustCreate(t, fsys.OS(), spec).Close())
	wantRefusal(t, create(testSpec(taken)), ErrForeign, `"slow"`, spec.PoolID.String())

	spec = testSpec(sub("size"))
	spec.Size++
	wantRefusal(t, create(spec), ErrInvalid, "1 MiB")
	spec.Size = 1 << 20
	wantRefusal(t, create(spec), ErrInvalid, "too small", "256 MiB")
	spec.Size = 1 << 60
	wantRefusal(t, create(spec), ErrNoSpace, "free")
	spec.Device = "/dev/null"
	spec.Size = testSize
	wantRefusal(t, create(spec), ErrInvalid, "a folder or a device")
	spec = testSpec(sub("name"))
	spec.PoolName = ""
	wantRefusal(t, create(spec), ErrCorrupt, "pool name")
	if names, err := os.ReadDir(filepath.Join(base, "name")); err == nil && len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

// What an interrupted Create leaves does not stop the next one.
func TestCreateAfterInterruption(t *testing.T) {
	dir := tempMember(t)
	must(t, os.MkdirAll(filepath.Join(dir, segmentsName), 0o700))
	for _, name := range []string{flushName, ballastName, superblockTemp} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	mustCreate(t, fsys.OS(), testSpec(dir))
}

func TestCreateRefusesFileSystems(t *testing.T) {
	needRoot(t)
	memory := t.TempDir()
	must(t, unix.Mount("none", memory, "tmpfs", 0, "size=1g"))
	t.Cleanup(func() { must(t, unix.Unmount(memory, 0)) })
	wantRefusal(t, create(testSpec(filepath.Join(memory, "a", "b"))), ErrUnsupported, "tmpfs", "XFS or ext4")
	if names, _ := os.ReadDir(memory); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	dir, _ := mountLoop(t, "ext4", 512<<20, "nobarrier")
	wantRefusal(t, create(testSpec(filepath.Join(dir, "pool"))), ErrUnsupported, "nobarrier")
	dir, _ = mountLoop(t, "ext4", 512<<20)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	wantRefusal(t, create(testSpec(filepath.Join(dir, "pool"))), ErrNotWritable, "read-only")
}

func TestFullFileSystem(t *testing.T) {
	for kind, size := range map[string]int64{"ext4": 512 << 20, "xfs": 640 << 20} {
		t.Run(kind, func(t *testing.T) {
			dir, _ := mountLoop(t, kind, size)
			m := mustCreate(t, fsys.OS(), testSpec(filepath.Join(dir, "pool")))
			must(t, m.EnsureSegment(0))
			must(t, m.EnsureSegment(1))
			must(t, m.Reserve(1, 0, 4*ChunkBlocks))
			before, err := m.Usage()
			must(t, err)
			err = m.Reserve(0, 0, 1<<18)
			wantRefusal(t, err, ErrNoSpace, "segment 0")
			after, err := m.Usage()
			must(t, err)
			if kept := before.Available - after.Available; kept > 1<<20 {
				t.Errorf("%d bytes of what there was not enough of stay taken", kept)
			}
			must(t, m.ReleaseBallast())
			// Fill it for good: the rest of the space, then single blocks.
			fill, err := os.Create(filepath.Join(dir, "fill"))
			must(t, err)
			defer fill.Close()
			for chunk, off := int64(64<<20), int64(0); chunk >= 4096; {
				if err := unix.Fallocate(int(fill.Fd()), 0, off, chunk); err == unix.ENOSPC {
					chunk /= 2
				} else {
					must(t, err)
					off += chunk
				}
			}
			wantRefusal(t, m.RestoreBallast(), ErrNoSpace, "ballast")
			if m.BallastHeld() {
				t.Error("a part of the ballast counts as held")
			}
			wantRefusal(t, m.WriteAt(pattern(1<<20, 1), 0, 0), ErrNoSpace, "segment 0", "byte 0")
			must(t, m.Flush())
			// What was reserved can be written, even where each write makes the file's extents more.
			for i := range uint64(4 * ChunkBlocks) {
				must(t, m.WriteAt(pattern(BlockSize, byte(i)), 1<<18+i*1201%(4*ChunkBlocks), 0))
				if i%512 == 0 {
					must(t, m.Flush())
				}
			}
			must(t, m.Flush())
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	open := func(path string) error {
		m, err := Open(fsys.OS(), path, Options{MountDir: t.TempDir()})
		if err == nil {
			err = errors.Join(errors.New("it was opened"), m.Close())
		}
		return err
	}
	dir := tempMember(t)
	wantRefusal(t, open(dir), ErrNotFound, dir)
	wantRefusal(t, open("/dev/null"), ErrUnsupported, "neither")
	wantRefusal(t, open(filepath.Dir(dir)), ErrNotFound, superblockName)

	must(t, mustCreate(t, fsys.OS(), testSpec(dir)).Close())
	name := filepath.Join(dir, superblockName)
	good, err := os.ReadFile(name)
	must(t, err)
	for what, b := range map[string][]byte{
		"empty": {}, "short": good[:100], "long": append(good[:format.SuperblockSize:format.SuperblockSize], 0), "zeroes": make([]byte, len(good)),
	} {
		must(t, os.WriteFile(name, b, 0o600))
		t.Run(what, func(t *testing.T) { wantRefusal(t, open(dir), ErrCorrupt, name) })
	}
}

// TestMain lets TestLocked run this program as the other process, which holds a member until its input ends.
func TestMain(m *testing.M) {
	dir := os.Getenv("MEMBER_TEST_HOLD")
	if dir == "" {
		os.Exit(m.Run())
	}
	held, err := Open(fsys.OS(), dir, Options{})
	if err == nil {
		fmt.Println("held")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		err = held.Close()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func TestLocked(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.EnsureSegment(0))
	if _, err := Open(fsys.OS(), dir, Options{LockTimeout: time.Millisecond}); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice in one process: %v", err)
	}
	must(t, m.Close())

	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "MEMBER_TEST_HOLD="+dir)
	input, err := holder.StdinPipe()
	must(t, err)
	output, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	defer func() { _ = holder.Process.Kill() }()
	if line, err := bufio.NewReader(output).ReadString('\n'); line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	_, err = Open(fsys.OS(), dir, Options{LockTimeout: time.Millisecond})
	wantRefusal(t, err, ErrLocked, dir, "stop the other engine")
	_, err = Open(fsys.OS(), dir, Options{LockTimeout: time.Millisecond, ReadOnly: true})
	wantRefusal(t, err, ErrLocked)
	wantRefusal(t, create(testSpec(dir)), ErrForeign)

	// A waiting Open gets the member as soon as the other process is done.
	opened := make(chan error, 1)
	go func() {
		m, err := Open(fsys.OS(), dir, Options{LockTimeout: time.Minute})
		if err == nil {
			err = m.Close()
		}
		opened <- err
	}()
	must(t, input.Close())
	must(t, holder.Wait())
	must(t, <-opened)
}

// The lock of one segment alone, as a dead process's last request may hold it, keeps the member shut.
func TestSegmentLocked(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.EnsureSegment(3))
	must(t, m.Close())
	f, err := fsys.OS().Open(segmentName(dir, 3), fsys.Write)
	must(t, err)
	must(t, f.Lock())
	_, err = Open(fsys.OS(), dir, Options{LockTimeout: time.Millisecond})
	wantRefusal(t, err, ErrLocked, "000003.seg")
	must(t, f.Close())
	mustOpen(t, fsys.OS(), dir, Options{LockTimeout: time.Millisecond})
}
