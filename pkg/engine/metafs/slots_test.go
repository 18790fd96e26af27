package metafs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// TestRotationSyncsNoFolder fills memtables while every sync of a folder is held up: the writer begins two more logs without one, and without a
// rename.
func TestRotationSyncsNoFolder(t *testing.T) {
	fault := fsys.Fault(newMem(t))
	r := fsys.Record(fault)
	fs := New(r, Config{OnFatal: func(err error) { t.Error(err) }, LogBytes: 64 << 10})
	logs := make(chan string, 1000)
	o := smallOptions(fs)
	o.AddEventListener(pebble.EventListener{WALCreated: func(i pebble.WALCreateInfo) { logs <- i.Path }})
	db, err := pebble.Open("/meta", o)
	must(t, err)
	last := uint64(0)
	rotate := func(n int) {
		for len(logs) > 0 {
			<-logs
		}
		for len(logs) < n {
			last++
			must(t, commit(db, last, 1, 3000))
		}
	}
	// Until Pebble recycles logs, slots are made, in the background.
	rotate(20)
	must(t, db.Flush())
	fs.slots.wait()
	for range 5 {
		r.Reset()
		release := make(chan struct{})
		fault.Add(fsys.Rule{Op: fsys.OpSyncDir, When: func(fsys.Call) bool { <-release; return true }})
		rotate(2)
		for _, e := range r.Events() {
			if inLog := strings.HasSuffix(e.Name, "/"+logFolder) || inLogFolder(e.Name); inLog && e.Op != fsys.OpWriteDurable {
				t.Errorf("a rotation did: %s", e)
			}
		}
		close(release)
		fault.Clear()
		must(t, db.Flush())
	}
	verify(t, db)
	must(t, db.Close())
	fs.Close()
}

// TestSettle ends a process between a slot's zeroes and the sync of its name, and the next one, by a power cut, when it has used that slot and made
// no other.
func TestSettle(t *testing.T) {
	run := func(m mutation) error {
		for seed := range uint64(30) {
			disk := newSubsetFS()
			must(t, disk.MkdirAll("/meta"))
			first := New(disk, Config{LogBytes: 64 << 10})
			first.mutation = mutateSlotName // which is what the death leaves
			db, err := pebble.Open("/meta", smallOptions(first))
			must(t, err)
			first.slots.wait()
			killed := disk.kill(nil)
			must(t, db.Close())
			first.Close()

			creates := func(c fsys.Call) bool { return c.Flags&fsys.Create != 0 }
			fault := fsys.Fault(killed, fsys.Rule{Op: fsys.OpOpen, Glob: "slot-*", Err: unix.EIO, When: creates})
			second := New(fault, Config{LogBytes: 64 << 10})
			second.mutation = m
			db, err = pebble.Open("/meta", smallOptions(second))
			must(t, err)
			must(t, commit(db, 1, 1, 100))
			cut := killed.crash(rand.New(rand.NewPCG(seed, 2)))
			must(t, db.Close())
			second.Close()

			third := New(cut, Config{LogBytes: 64 << 10})
			db, err = pebble.Open("/meta", smallOptions(third))
			must(t, err)
			latest := verify(t, db)
			must(t, db.Close())
			third.Close()
			if latest != 1 {
				return fmt.Errorf("seed %d: the commit is gone", seed)
			}
		}
		return nil
	}
	must(t, run(""))
	if run(mutateUnsettled) == nil {
		t.Fatalf("not noticed: %s", mutateUnsettled)
	}
}

// closed is a DB of ten commits that nobody has open, on /meta.
func closedDB(t *testing.T) *fsys.Mem {
	mem := newMem(t)
	fs := New(mem, Config{LogBytes: 64 << 10})
	db, err := pebble.Open("/meta", smallOptions(fs))
	must(t, err)
	for i := range uint64(10) {
		must(t, commit(db, i+1, 1, 1000))
	}
	must(t, db.Close())
	fs.Close()
	return mem
}

func liveSlot(t *testing.T, mem *fsys.Mem) string {
	t.Helper()
	fs := New(mem, Config{})
	names, err := fs.List("/meta/" + logFolder)
	must(t, err)
	if len(names) != 1 {
		t.Fatalf("logs %q, want one", names)
	}
	path, err := fs.slots.find("/meta/" + logFolder + "/" + names[0])
	must(t, err)
	return path
}

func TestReadOnlyChangesNothing(t *testing.T) {
	r := fsys.Record(closedDB(t))
	fs := New(r, Config{})
	o := smallOptions(fs)
	o.ReadOnly = true
	db, err := pebble.Open("/meta", o)
	must(t, err)
	if verify(t, db) != 10 {
		t.Fatal("commits are missing")
	}
	must(t, db.Close())
	fs.Close()
	if text := r.Text("/meta"); text != "open LOCK create write\nlock LOCK\n" {
		t.Fatalf("it did:\n%s", text)
	}
}

// Damage of a header must not pass for a slot without a log.
func TestDamagedHeadersAreRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, mem *fsys.Mem, slot fsys.File)
		want   string
	}{
		{"a bit", func(t *testing.T, _ *fsys.Mem, slot fsys.File) { overwrite(t, slot, []byte{0xff}, 9) }, "slot-1.log: pebble: corruption"},
		{"zeroes", func(t *testing.T, _ *fsys.Mem, slot fsys.File) { overwrite(t, slot, make([]byte, slotHeader), 0) }, "its header is damaged"},
		{"two claims", func(t *testing.T, mem *fsys.Mem, slot fsys.File) {
			p := make([]byte, slotHeader)
			_, err := slot.ReadAt(p, 0)
			must(t, err)
			other, err := mem.Open("/meta/log/slot-99.log", fsys.Create|fsys.Write)
			must(t, err)
			overwrite(t, other, p, 0)
			must(t, other.Close())
		}, "is in /meta/log/slot-1.log and in /meta/log/slot-99.log"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mem := closedDB(t)
			slot, err := mem.Open(liveSlot(t, mem), fsys.Write)
			must(t, err)
			test.damage(t, mem, slot)
			must(t, slot.Close())
			fs := New(mem, Config{})
			_, err = pebble.Open("/meta", smallOptions(fs))
			if !pebble.IsCorruptionError(err) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got error %v, want corruption, %q", err, test.want)
			}
			fs.Close()
		})
	}
}

func overwrite(t *testing.T, f fsys.File, p []byte, off int64) {
	t.Helper()
	_, err := f.WriteAt(p, off)
	must(t, err)
}

func TestLogNames(t *testing.T) {
	fs := New(newMem(t), Config{LogBytes: 64 << 10})
	defer fs.Close()
	must(t, fs.MkdirAll("/meta/log", 0))
	create := func(log uint64) string {
		t.Helper()
		name := filepath.Join("/meta/log", logName(log))
		l, err := fs.createLog(name)
		must(t, err)
		_, err = l.Write([]byte("x"))
		must(t, err)
		must(t, l.Close())
		return name
	}
	for log := range uint64(8) {
		create(log + 10)
	}
	name := filepath.Join("/meta/log", logName(12))
	if _, err := fs.createLog(name); err == nil {
		t.Fatal("a log was created that is there")
	}
	if info, err := fs.Stat(name); err != nil || info.Name() != "000012.log" || info.Size() != 64<<10 {
		t.Fatal(info, err)
	}
	f, err := fs.Open(name)
	must(t, err)
	p := make([]byte, 2)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "x\x00" {
		t.Fatalf("%q, %v", p, err)
	}
	_, err = f.WriteAt(p, 0)
	wantIs(t, err, vfs.ErrUnsupported)
	must(t, f.Close())
	wantIs(t, fs.Rename(name, "/meta/log/000099.log"), vfs.ErrUnsupported)
	_, err = fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	wantIs(t, err, vfs.ErrUnsupported)
	fs.slots.wait()
	// Of removed logs a few slots are kept, whose names are used again by no other slot.
	for log := range uint64(7) {
		must(t, fs.Remove(filepath.Join("/meta/log", logName(log+10))))
	}
	wantIs(t, fs.Remove(name), os.ErrNotExist)
	_, err = fs.Open(name)
	wantIs(t, err, os.ErrNotExist)
	_, err = fs.Open("/meta/log/abc.log")
	if err == nil || errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for log := range uint64(6) {
		create(log + 20)
	}
	names, err := fs.List("/meta/log")
	must(t, err)
	if want := []string{"000017.log", "000020.log", "000021.log", "000022.log", "000023.log", "000024.log", "000025.log"}; !slices.Equal(names, want) {
		t.Fatalf("logs %q, want %q", names, want)
	}
	fs.slots.wait()
	if left, err := fs.fsys.ReadDir("/meta/log"); err != nil || len(left) > 8 {
		t.Fatal(left, err)
	}
}

// Slots are prepared, taken and removed at once, by Pebble's writer, its cleanup and ours.
func TestSlotsConcurrently(t *testing.T) {
	fs := New(newMem(t), Config{LogBytes: 4 << 10})
	must(t, fs.MkdirAll("/meta/log", 0))
	removable := make(chan string, 3)
	var wg sync.WaitGroup
	wg.Go(func() {
		for name := range removable {
			if err := fs.Remove(name); err != nil {
				t.Error(err)
			}
		}
	})
	for log := range uint64(200) {
		name := filepath.Join("/meta/log", logName(log+1))
		l, err := fs.createLog(name)
		must(t, err)
		must(t, l.Close())
		removable <- name
	}
	close(removable)
	wg.Wait()
	if names, err := fs.List("/meta/log"); err != nil || len(names) != 0 {
		t.Fatal(names, err)
	}
	fs.Close()
}

func TestHeader(t *testing.T) {
	p := make([]byte, 2*slotHeader)
	encodeHeader(p[:slotHeader], 0x1234)
	if got, want := fmt.Sprintf("%x", p[:24]), "52574e4c4f473031341200000000000038eb4d8300000000"; got != want {
		t.Fatalf("header %s, want %s", got, want)
	}
	if log, err := decodeHeader(p); log != 0x1234 || err != nil {
		t.Fatal(log, err)
	}
}

func FuzzHeader(f *testing.F) {
	p := make([]byte, slotHeader)
	f.Add(p[:0])
	f.Add(p)
	encodeHeader(p, 7)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		log, err := decodeHeader(p)
		if err != nil && (log != 0 || !pebble.IsCorruptionError(err)) {
			t.Fatal(log, err)
		}
		if err != nil || log == 0 {
			return
		}
		again := make([]byte, slotHeader)
		if encodeHeader(again, log); string(again[:20]) != string(p[:20]) {
			t.Fatalf("%x, and %x when written again", p[:20], again[:20])
		}
	})
}

// A DB whose logs are files of their own is not opened as if it had none.
func TestLogsElsewhereAreRefused(t *testing.T) {
	mem := newMem(t)
	fs := New(mem, Config{})
	o := smallOptions(fs)
	o.WALDir = ""
	db, err := pebble.Open("/meta", o)
	must(t, err)
	must(t, commit(db, 1, 1, 100))
	must(t, db.Close())
	fs.Close()
	fs = New(mem, Config{})
	if _, err := pebble.Open("/meta", smallOptions(fs)); err == nil || !strings.Contains(err.Error(), "WALDir changed") {
		t.Fatalf("got error %v, want that the logs are elsewhere", err)
	}
	fs.Close()
}
