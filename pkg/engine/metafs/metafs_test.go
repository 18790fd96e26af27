package metafs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want one that is %v", err, target)
	}
}

// newMem is a file system with a durable folder /meta.
func newMem(t *testing.T) *fsys.Mem {
	m := fsys.NewMem()
	must(t, m.MkdirAll("/meta"))
	must(t, m.SyncDir("/"))
	return m
}

func TestCommitIsOneDurableWrite(t *testing.T) {
	r := fsys.Record(newMem(t))
	fs := New(r, Config{LogBytes: 64 << 10})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	fs.slots.wait()
	r.Reset()
	before := fs.Stats().Counts()
	for i, size := range []int{100, 100, 4000, 20_000} {
		must(t, commit(db, uint64(i+1), 1, size))
	}
	const want = `write-durable log/slot-1.log 4096+4096
write-durable log/slot-1.log 4096+4096
write-durable log/slot-1.log 4096+8192
write-durable log/slot-1.log 8192+20480
`
	if got := r.Text("/meta"); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	c := fs.Stats().Counts().Sub(before)
	if c.LogPayload+c.LogPadding != 4096+4096+8192+20480 || c.LogPayload < 24_200 || c.LogPayload > 24_500 || c.LogWrites != 4 || c.Bytes() != c.LogPayload {
		t.Fatalf("%+v", c)
	}
	must(t, db.Close())
	fs.Close()
}

// TestLogsAreRecycled follows a log's file through prewriting, use, growth and reuse.
func TestLogsAreRecycled(t *testing.T) {
	r := fsys.Record(newMem(t))
	fs := New(r, Config{LogBytes: 64 << 10})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	for i := range uint64(400) {
		must(t, commit(db, i+1, 1, 3000))
	}
	must(t, db.Flush())
	verify(t, db)
	must(t, db.Close())
	fs.Close()
	text := r.Text("/meta")
	made := strings.Count(text, "create exclusive write direct")
	if headers := strings.Count(text, ".log 0+4096\n"); made > 8 || headers < 2*made {
		t.Fatalf("%d slots were made for %d logs, with recycling it should be a few", made, headers)
	}
	if c := fs.Stats().Counts(); c.Flush < 300_000 || c.Manifest == 0 || c.Other == 0 {
		t.Fatalf("%+v", c)
	}
	fs = New(r, Config{})
	db, err = pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	if verify(t, db) != 400 {
		t.Fatal("commits are missing")
	}
	must(t, db.Close())
	fs.Close()
}

// failing opens a DB over faults and returns where OnFatal reports to.
func failing(t *testing.T, mem *fsys.Mem) (*pebble.DB, *fsys.FaultFS, <-chan error) {
	fault := fsys.Fault(mem)
	fatal := make(chan error, 16)
	fs := New(fault, Config{OnFatal: func(err error) { fatal <- err }, LogBytes: 64 << 10})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	fs.slots.wait()
	return db, fault, fatal
}

func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing happened in a minute")
		panic("unreachable")
	}
}

// The DBs of these tests are not closed: they are as dead as the pool they stand for.
func TestFailuresAreReportedAndParked(t *testing.T) {
	for _, test := range []struct {
		name string
		rule fsys.Rule
		big  bool // commits need a new log
	}{
		{"log write", fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", Err: unix.EIO}, false},
		{"folder sync", fsys.Rule{Op: fsys.OpSyncDir, Err: unix.EIO}, true},
		{"log creation", fsys.Rule{Op: fsys.OpOpen, Glob: "slot-*.log", Err: unix.EROFS}, true},
		{"log header", fsys.Rule{Op: fsys.OpWriteDurable, Glob: "slot-*.log", Err: unix.EIO, When: func(c fsys.Call) bool { return c.Off == 0 }}, true},
		{"manifest sync", fsys.Rule{Op: fsys.OpSync, Glob: "MANIFEST-*", Err: unix.EIO}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			mem := newMem(t)
			db, fault, fatal := failing(t, mem)
			must(t, commit(db, 1, 1, 100))
			fault.Add(test.rule)
			done := make(chan error, 1)
			size := 100
			if test.big {
				size = 60 << 10
			}
			go func() {
				for i := uint64(2); i < 20; i++ {
					if err := commit(db, i, 1, size); err != nil {
						done <- err
						return
					}
				}
				done <- db.Flush()
			}()
			err := wait(t, fatal)
			if !errors.Is(err, test.rule.Err) && !strings.Contains(err.Error(), test.rule.Err.Error()) {
				t.Fatalf("reported %v, want %v", err, test.rule.Err)
			}
			select {
			case err := <-done:
				t.Fatalf("the commits went on after the failure, to %v", err)
			default:
			}
			// What is on disk opens again.
			again := New(mem.KillClone(nil), Config{})
			left, err := pebble.Open("/meta", smallOptions(again))
			must(t, err)
			if verify(t, left) < 1 {
				t.Fatal("the commit before the failure is gone")
			}
			must(t, left.Close())
			again.Close()
		})
	}
}

func TestNoSpace(t *testing.T) {
	fault := fsys.Fault(newMem(t))
	freed := 0
	fs := New(fault, Config{
		OnFatal: func(err error) { t.Error(err) }, LogBytes: 64 << 10,
		OnNoSpace: func() bool {
			freed++
			fault.Clear()
			return true
		},
	})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	fs.slots.wait()
	for i, rule := range []fsys.Rule{
		{Op: fsys.OpWriteDurable, Err: unix.ENOSPC}, {Op: fsys.OpWrite, Glob: "*.sst", Err: unix.ENOSPC}, {Op: fsys.OpOpen, Glob: "*.sst", Err: unix.ENOSPC},
	} {
		fault.Add(rule)
		must(t, commit(db, uint64(i+1), 1, 1000))
		must(t, db.Flush())
		if freed != i+1 {
			t.Fatalf("%d times asked for space, want %d", freed, i+1)
		}
	}
	verify(t, db)
	must(t, db.Close())
	fs.Close()
}

// Two calls meet a full file system at once; there is space to free once. Both go on.
func TestNoSpaceTwiceAtOnce(t *testing.T) {
	left := 1
	fs := New(newMem(t), Config{OnNoSpace: func() bool { left--; return left >= 0 }})
	var met sync.WaitGroup
	met.Add(2)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			first := true
			if err := fs.retry(func() error {
				if !first {
					return nil
				}
				first = false
				met.Done()
				met.Wait()
				return unix.ENOSPC
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	fs.Close()
}

func TestCorruptionIsReported(t *testing.T) {
	mem := newMem(t)
	fs := New(mem, Config{LogBytes: 64 << 10})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	must(t, commit(db, 1, 1, 50_000))
	must(t, db.Flush())
	must(t, db.Close())
	fs.Close()
	names, err := mem.ReadDir("/meta")
	must(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			f, err := mem.Open("/meta/"+name, fsys.Write)
			must(t, err)
			_, err = f.WriteAt(make([]byte, 512), 512)
			must(t, err)
			must(t, f.Close())
		}
	}
	fatal := make(chan error, 16)
	fs = New(mem, Config{OnFatal: func(err error) { fatal <- err }})
	db, err = pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	_, _, err = db.Get(commitKey(1))
	if err == nil || err == pebble.ErrNotFound {
		t.Fatalf("reading damage: %v", err)
	}
	wait(t, fatal)
	must(t, db.Close())
	fs.Close()
}

func TestVFS(t *testing.T) {
	dir := t.TempDir()
	fs := New(fsys.OS(), Config{})
	name := filepath.Join(dir, "a")
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	must(t, err)
	for _, part := range []string{"hello ", "world"} {
		_, err := f.Write([]byte(part))
		must(t, err)
	}
	_, err = f.SyncTo(4)
	must(t, err)
	must(t, f.SyncData())
	must(t, f.Close())
	f, err = fs.Open(name, vfs.SequentialReadsOption)
	must(t, err)
	must(t, f.Prefetch(0, 5))
	if p, err := io.ReadAll(f); err != nil || string(p) != "hello world" {
		t.Fatalf("%q, %v", p, err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 11 || info.DeviceID() != (vfs.DeviceID{}) {
		t.Fatal(info, err)
	}
	g, err := fs.Create(name, vfs.WriteCategoryUnspecified) // a new file, and the old one can still be read
	must(t, err)
	must(t, g.Close())
	p := make([]byte, 5)
	_, err = f.ReadAt(p, 6)
	must(t, err)
	must(t, f.Close())

	lock, err := fs.Lock(name + ".lock")
	must(t, err)
	_, err = fs.Lock(name + ".lock")
	wantIs(t, err, fsys.ErrLocked)
	must(t, lock.Close())

	_, err = fs.OpenDir(name)
	wantIs(t, err, unix.ENOTDIR)
	d, err := fs.OpenDir(dir)
	must(t, err)
	must(t, d.Sync())
	must(t, d.Close())
	wantIs(t, fs.Link(name, name+"2"), vfs.ErrUnsupported)
	must(t, vfs.LinkOrCopy(fs, name, name+"2"))
	_, err = fs.Open(name + "3")
	wantIs(t, err, os.ErrNotExist)
	if u, err := fs.GetDiskUsage(dir); err != nil || u.TotalBytes != u.UsedBytes+u.AvailBytes {
		t.Fatal(u, err)
	}
	rw, err := fs.OpenReadWrite(name+"3", vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = rw.WriteAt([]byte("x"), 3)
	must(t, err)
	must(t, rw.Close())
	if names, err := fs.List(dir); err != nil || len(names) != 4 {
		t.Fatal(names, err)
	}
}
