package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/flushlog"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// loggedPool makes a pool with a volume, and writes to it that a flush has put into the flush log and no commit has. The turn is held: nobody commits.
func loggedPool(t *testing.T, change func(o *Options)) (p *testPool, disk *fsys.Mem, want []byte) {
	t.Helper()
	disk = fsys.NewMem()
	o := testOptions(t)
	o.fs, o.bootID = disk, &[16]byte{1}
	if change != nil {
		change(&o)
	}
	pool, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	p = &testPool{t, pool, o, "/pool"}
	t.Cleanup(func() { _ = p.kill() })
	v := p.volume("v", 1<<20)
	want = fill(t, v, 1)
	must(t, p.flush())
	must(t, v.Discard(8*BlockSize, 2*BlockSize))
	clear(want[8*BlockSize : 10*BlockSize])
	must(t, p.flush())
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	p.rounds.turn.Lock()
	t.Cleanup(p.rounds.turn.Unlock)
	put := func(value byte, off, n int) {
		t.Helper()
		b := bytes.Repeat([]byte{value}, n)
		_, err := v.WriteAt(b, int64(off))
		must(t, err)
		copy(want[off:], b)
	}
	for i := range 5 {
		put(byte(2+i), i*3*BlockSize, 2*BlockSize)
		if i == 2 {
			must(t, v.Discard(30*BlockSize, 4*BlockSize))
			clear(want[30*BlockSize : 34*BlockSize])
		}
		put(byte(100+i), i*3*BlockSize, BlockSize) // in place
		logged, err := p.logPending()
		must(t, err)
		if !logged {
			t.Fatal("the flush needs a commit")
		}
	}
	if _, retired, _ := p.ring.Tail(0, 0, 0); p.flushes.log.Last() != p.pages.seq.Load() || retired == p.flushes.log.Last() {
		t.Fatalf("the log has sequences up to %d of %d; committed are %d", p.flushes.log.Last(), p.pages.seq.Load(), retired)
	}
	return p, disk, want
}

// afterPowerCut opens what is left of a pool after a power cut, in the next boot, with an empty ring folder.
func (tp *testPool) afterPowerCut(disk fsys.FS, boot byte) (*testPool, error) {
	o := tp.o
	o.fs, o.bootID, o.RingDir = disk, &[16]byte{boot}, tp.t.TempDir()
	p, err := OpenPool(tp.t.Context(), "/pool", o)
	next := &testPool{tp.t, p, o, "/pool"}
	if err == nil {
		tp.t.Cleanup(func() { _ = next.kill() })
	}
	return next, err
}

// What a flush has put into the log is there after a power cut, and after the ones that follow.
func TestFlushLogAfterPowerCut(t *testing.T) {
	p, disk, want := loggedPool(t, nil)
	r := rand.New(rand.NewPCG(1, 1))
	for boot := range byte(4) {
		left := disk.CrashClone(r)
		q, err := p.afterPowerCut(left, 2+boot)
		must(t, err)
		v := q.open("v")
		expect(t, v, want)
		q.check()
		// And so on: the log goes on where it was.
		_, err = v.WriteAt(bytes.Repeat([]byte{200 + boot}, BlockSize), 20*BlockSize)
		must(t, err)
		must(t, v.Flush())
		next, err := q.afterPowerCut(left.CrashClone(r), 100+boot)
		must(t, err)
		all := bytes.Clone(want)
		copy(all[20*BlockSize:], bytes.Repeat([]byte{200 + boot}, BlockSize))
		expect(t, next.open("v"), all)
		next.check()
	}
}

// A process that opens the pool after a power cut dies at any of its commits: the next one, in the same boot, finds a ring in which nothing is, and all
// that the log had.
func TestFlushLogOutlivesAnOpening(t *testing.T) {
	p, disk, want := loggedPool(t, nil)
	r := rand.New(rand.NewPCG(2, 2))
	left := disk.CrashClone(r)
	type death struct {
		disk *fsys.Mem
		ring string
	}
	var deaths []death
	opening := fsys.Fault(left)
	ringDir := t.TempDir()
	opening.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", When: func(fsys.Call) bool {
		d := death{left.KillClone(r), t.TempDir()}
		files, err := filepath.Glob(filepath.Join(ringDir, "*"))
		if err != nil {
			t.Error(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil {
				err = os.WriteFile(filepath.Join(d.ring, filepath.Base(f)), b, 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		}
		deaths = append(deaths, d)
		return false
	}})
	o := p.o
	o.fs, o.bootID, o.RingDir = opening, &[16]byte{2}, ringDir
	pool, err := OpenPool(t.Context(), "/pool", o)
	must(t, err)
	opening.Clear()
	q := &testPool{t, pool, o, "/pool"}
	expect(t, q.open("v"), want)
	must(t, q.kill())
	if len(deaths) < 3 {
		t.Fatalf("%d writes to the metadata's log while the pool was opened", len(deaths))
	}
	for i, d := range deaths {
		o.fs, o.RingDir = d.disk, d.ring
		pool, err := OpenPool(t.Context(), "/pool", o)
		if err != nil {
			t.Fatalf("death %d of %d: %v", i, len(deaths), err)
		}
		q := &testPool{t, pool, o, "/pool"}
		expect(t, q.open("v"), want)
		q.check()
		must(t, q.kill())
	}
}

// Where the log has no room, or too much is pending for a record, a flush commits; and the timer is asked to make room.
func TestFlushLogMakesRoom(t *testing.T) {
	p, disk, want := loggedPool(t, func(o *Options) { o.flushSlots = 6 })
	if logged, err := p.logPending(); !logged || err != nil { // nothing is pending that it does not have
		t.Fatalf("a flush with nothing to log: %v, %v", logged, err)
	}
	v, block := p.volumeOpen("v"), make([]byte, BlockSize)
	write := func(at int64) {
		t.Helper()
		_, err := v.WriteAt(block, at*BlockSize)
		must(t, err)
		clear(want[at*BlockSize : (at+1)*BlockSize])
	}
	write(40)
	if logged, err := p.logPending(); !logged || err != nil {
		t.Fatalf("the last slot: %v, %v", logged, err)
	}
	write(42)
	if logged, err := p.logPending(); logged || err != nil {
		t.Fatalf("a record over one that is not committed: %v, %v", logged, err)
	}
	p.rounds.turn.Unlock()
	until(t, "the timer's commit has made room", func() bool {
		p.rounds.turn.Lock()
		defer p.rounds.turn.Unlock()
		_, retired, _ := p.ring.Tail(0, 0, 0)
		return p.flushes.log.Free(retired) == 6
	})
	must(t, v.Flush())
	p.rounds.turn.Lock()
	for i := range int64(flushlog.MaxEntries + 1) {
		write(64 + 2*(i%90))
	}
	for i := range int64(flushlog.MaxEntries) {
		must(t, v.Discard((64+2*(i%90))*BlockSize, BlockSize))
	}
	if logged, err := p.logPending(); logged || err != nil {
		t.Fatalf("more than a record holds: %v, %v", logged, err)
	}
	p.rounds.turn.Unlock()
	must(t, v.Flush())
	p.rounds.turn.Lock()
	q, err := p.afterPowerCut(disk.CrashClone(rand.New(rand.NewPCG(3, 3))), 2)
	must(t, err)
	expect(t, q.open("v"), want)
	q.check()
}

func (tp *testPool) volumeOpen(name string) *Volume { return tp.catalogue.volumes[name].open }

// A log that says what cannot be keeps the pool from being opened, rather than without writes that were flushed; unless that is asked for.
func TestFlushLogDamaged(t *testing.T) {
	p, disk, _ := loggedPool(t, nil)
	left := disk.CrashClone(rand.New(rand.NewPCG(4, 4)))
	f, err := left.Open(filepath.Join("/pool/meta", flushLogName), fsys.Write)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 512), 2*4096) // the second of its records
	must(t, err)
	must(t, f.Close())
	if _, err := p.afterPowerCut(left, 2); !errors.Is(err, ErrLost) || !errors.Is(err, flushlog.ErrDamaged) {
		t.Fatalf("opened with a damaged flush log: %v", err)
	}
	p.o.ReadOnly = true
	if _, err := p.afterPowerCut(left, 2); !errors.Is(err, ErrLost) {
		t.Fatalf("opened for looking with a damaged flush log: %v", err)
	}
	p.o.AcceptLoss = true
	q, err := p.afterPowerCut(left, 2)
	must(t, err)
	before := readAll(t, q.open("v"))
	if before[0] != 100 || before[3*BlockSize] != 1 { // the first record's, and not the second's
		t.Fatalf("%d, %d", before[0], before[3*BlockSize])
	}
	_ = q.Close(t.Context())
	p.o.ReadOnly = false
	q, err = p.afterPowerCut(left, 3)
	must(t, err)
	v := q.open("v")
	expect(t, v, before)
	q.check()
	// What was given up does not come back behind what is written now.
	want := fill(t, v, 9)
	must(t, v.Flush())
	q.o.AcceptLoss = false
	q, err = q.afterPowerCut(left.CrashClone(rand.New(rand.NewPCG(6, 6))), 4)
	must(t, err)
	expect(t, q.open("v"), want)
	q.check()
}

// A log that cannot be read, or was written by a newer program, says so; one that cannot be read is given up if that is asked for.
func TestFlushLogUnreadable(t *testing.T) {
	p, disk, _ := loggedPool(t, nil)
	left := disk.CrashClone(rand.New(rand.NewPCG(7, 7)))
	bad := fsys.Fault(left)
	bad.Add(fsys.Rule{Op: fsys.OpRead, Glob: flushLogName, Err: syscall.EIO})
	if _, err := p.afterPowerCut(bad, 2); !errors.Is(err, ErrLost) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("opened with a flush log that cannot be read: %v", err)
	}
	name := filepath.Join("/pool/meta", flushLogName)
	f, err := left.Open(name, fsys.Write)
	must(t, err)
	record := make([]byte, 4096)
	_, err = f.ReadAt(record, 4096)
	must(t, err)
	newer := bytes.Clone(record)
	newer[8]++
	clear(newer[12:16])
	binary.LittleEndian.PutUint32(newer[12:], crc32.Checksum(newer, crc32.MakeTable(crc32.Castagnoli)))
	_, err = f.WriteAt(newer, 4096)
	must(t, err)
	p.o.AcceptLoss = true
	for _, p.o.ReadOnly = range []bool{true, false} {
		if _, err := p.afterPowerCut(left, 2); !errors.Is(err, ErrIncompatible) {
			t.Fatalf("opened with a newer program's flush log: %v", err)
		}
	}
	_, err = f.WriteAt(record, 4096)
	must(t, err)
	must(t, f.Close())
	q, err := p.afterPowerCut(bad, 2)
	must(t, err)
	bad.Clear()
	want := fill(t, q.open("v"), 9)
	must(t, q.volumeOpen("v").Flush())
	q.o.AcceptLoss = false
	q, err = q.afterPowerCut(left.CrashClone(rand.New(rand.NewPCG(8, 8))), 3)
	must(t, err)
	expect(t, q.open("v"), want)
	q.check()
}

// A program that does not know the flush log does not open a pool that has one.
func TestFlushLogIsAFeature(t *testing.T) {
	p, _, _ := loggedPool(t, nil)
	if f := p.members.table.Load().meta.dev.Superblock().Incompatible; f != format.FlushLog {
		t.Fatalf("features %b", f)
	}
}

// A flush whose record cannot be written fails, and no later one says that all is well.
func TestFlushLogFails(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 1<<20)
	fill(t, v, 1)
	must(t, p.flush())
	disk.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: flushLogName, Err: syscall.EIO, Times: 1})
	fill(t, v, 2)
	must(t, v.Discard(0, BlockSize)) // a run
	if err := v.Flush(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	if err := v.Flush(); !errors.Is(err, ErrFailed) {
		t.Fatalf("the next flush: %v", err)
	}
}

// A pool whose metadata has moved has its log there.
func TestFlushLogMoves(t *testing.T) {
	disk := crashDisk()
	p, want := movableOn(t, disk)
	must(t, p.moveMetadata())
	if m := p.members.table.Load().meta; m.index != 1 {
		t.Fatalf("the metadata is on %v", m)
	}
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	must(t, put(p.volumeOpen("v"), 2<<20, BlockSize, 9)) // a first write
	if logged, err := p.logPending(); !logged || err != nil {
		t.Fatalf("%v, %v", logged, err)
	}
	if _, err := disk.Stat(filepath.Join("/second/pool/meta", flushLogName)); err != nil {
		t.Fatal(err)
	}
	o := p.o
	o.fs, o.bootID, o.RingDir, o.Members = disk.CrashClone(rand.New(rand.NewPCG(9, 9))), &[16]byte{2}, t.TempDir(), []string{"/second/pool"}
	pool, err := OpenPool(t.Context(), "/pool", o)
	must(t, err)
	q := &testPool{t, pool, o, "/pool"}
	defer q.kill()
	v := q.open("v")
	wantContent(t, v, want)
	b := make([]byte, BlockSize)
	_, err = v.ReadAt(b, 2<<20)
	must(t, err)
	if b[0] != 9 {
		t.Fatalf("what was flushed after the move is %d", b[0])
	}
	q.check()
}

// A pool that is opened for looking only shows what was flushed, and changes nothing.
func TestFlushLogLookedAt(t *testing.T) {
	p, disk, want := loggedPool(t, nil)
	left := disk.CrashClone(rand.New(rand.NewPCG(5, 5)))
	o := p.o
	p.o.ReadOnly = true
	q, err := p.afterPowerCut(left, 2)
	must(t, err)
	expect(t, q.open("v"), want)
	specs := []DiffSpec{{Volume: "v"}, {From: "s", Volume: "v"}, {From: "s", Volume: "v", Start: 8 * BlockSize}, {Volume: "v", Max: 2}}
	var looked []DiffPage
	for _, spec := range specs {
		d, err := q.Diff(t.Context(), spec)
		must(t, err)
		looked = append(looked, d)
	}
	if err := q.Close(t.Context()); !errors.Is(err, errReadOnly) {
		t.Fatalf("close: %v", err)
	}
	p.o = o
	q, err = p.afterPowerCut(left, 2)
	must(t, err)
	expect(t, q.open("v"), want)
	for i, spec := range specs {
		d, err := q.Diff(t.Context(), spec)
		must(t, err)
		if !reflect.DeepEqual(looked[i], d) || len(d.Ranges) == 0 {
			t.Errorf("%+v: looked at %+v, opened %+v", spec, looked[i], d)
		}
	}
	q.check()
}

// Without space for a log a pool works, and its flushes commit.
func TestFlushLogWithoutSpace(t *testing.T) {
	p, disk := memPool(t)
	must(t, p.Close(t.Context()))
	must(t, disk.Remove(filepath.Join("/pool/meta", flushLogName)))
	disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: flushLogName, Err: syscall.ENOSPC})
	p.reopen()
	disk.Clear()
	v := p.volume("v", 1<<20)
	want := fill(t, v, 7)
	must(t, v.Flush())
	if _, retired, _ := p.ring.Tail(0, 0, 0); retired != p.pages.seq.Load() {
		t.Fatalf("committed are %d of %d", retired, p.pages.seq.Load())
	}
	expect(t, v, want)
	p.check()
}
