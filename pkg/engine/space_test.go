package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// untilPatience is for a slow disk with other work on it: zeroes for a whole window took 40 s there.
const untilPatience = 2 * time.Minute

// until waits for something that the pool does by itself.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(untilPatience)
	defer deadline.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, untilPatience)
		}
	}
}

// memoryPool is a pool on a disk in memory, and what syncs its segments got.
func memoryPool(t *testing.T) (*testPool, *fsys.Mem, *fsys.Recorder) {
	t.Helper()
	disk := fsys.NewMem()
	seen := fsys.Record(disk)
	o := testOptions(t)
	o.fs, o.bootID = seen, &[16]byte{1}
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	t.Cleanup(func() {
		if !t.Failed() {
			tp.check()
		}
		_ = tp.kill()
	})
	return tp, disk, seen
}

// quiet waits until the preparer has nothing to do.
func (tp *testPool) quiet() {
	tp.t.Helper()
	until(tp.t, "the windows are full", func() bool {
		return tp.alloc.Ready(alloc.Written) >= tp.preparing.window.Load() && tp.alloc.Ready(alloc.Reserved) >= tp.preparing.spare.Load()
	})
}

func (tp *testPool) kinds() (has [2]int) {
	tp.t.Helper()
	segments, err := readSegments(tp.store.db)
	must(tp.t, err)
	for _, s := range segments {
		has[alloc.Written] += s.Has[alloc.Written].Count()
		has[alloc.Reserved] += s.Has[alloc.Reserved].Count()
	}
	return has
}

// segmentSyncs commits what a volume has pending and counts the syncs of segments that takes.
func segmentSyncs(t *testing.T, v *Volume, seen *fsys.Recorder) (n int) {
	t.Helper()
	seen.Reset()
	must(t, v.pool.flush())
	for _, e := range seen.Events() {
		if e.Op == fsys.OpSync && bytes.HasSuffix([]byte(e.Name), []byte(".seg")) {
			n++
		}
	}
	return n
}

// Large writes take reserved chunks, and their flush syncs the segment. A chunk whose every block is in use is written from then on: no flush of an
// overwrite syncs the segment, after a reopening neither, and a power cut takes nothing.
func TestFilledChunkIsWritten(t *testing.T) {
	p, disk, seen := memoryPool(t)
	v := p.volume("v", 16<<20)
	p.quiet()
	before := p.kinds()
	zeroes := p.DataCounts().PrewrittenBytes
	data := fill(t, v, 1) // four chunks, 1 MiB at a time
	if n := segmentSyncs(t, v, seen); n != 1 {
		t.Fatalf("%d syncs of the segment", n)
	}
	if got := p.DataCounts().PrewrittenBytes; got != zeroes {
		t.Fatalf("%d bytes of zeroes were written for large writes", got-zeroes)
	}
	if now := p.kinds(); now[alloc.Written] != before[alloc.Written]+4 {
		t.Fatalf("written and reserved: %v, before %v", now, before)
	}
	overwrite := func(b byte) {
		copy(data[5<<20:], bytes.Repeat([]byte{b}, BlockSize))
		_, err := v.WriteAt(data[5<<20:5<<20+BlockSize], 5<<20)
		must(t, err)
	}
	overwrite(2)
	if n := segmentSyncs(t, v, seen); n != 0 {
		t.Fatalf("%d syncs of the segment for an overwrite", n)
	}
	must(t, p.kill())
	p.reopen()
	v = p.open("v")
	must(t, v.Flush()) // what the process before may have left unsynced
	overwrite(3)
	if n := segmentSyncs(t, v, seen); n != 0 {
		t.Fatalf("%d syncs of the segment for an overwrite after a reopening", n)
	}
	r := rand.New(rand.NewPCG(1, 9))
	for range 8 {
		o := testOptions(t)
		o.fs, o.bootID = disk.CrashClone(r), &[16]byte{2}
		left, err := OpenPool(t.Context(), "/pool", o)
		must(t, err)
		tp := &testPool{t, left, o, "/pool"}
		expect(t, tp.open("v"), data)
		tp.check()
		must(t, tp.kill())
	}
}

// What a large write leaves of its chunk is written with zeroes when the pool is idle, beside the data there.
func TestPartialChunkIsFinished(t *testing.T) {
	p, _, seen := memoryPool(t)
	v := p.volume("v", 1<<20)
	p.quiet()
	before, ready := p.kinds(), p.alloc.Ready(alloc.Written)
	data := fill(t, v, 1)
	must(t, v.Flush())
	must(t, v.Close(t.Context())) // gives its chunk up
	until(t, "the chunk is written", func() bool {
		// The allocator is told last; the record alone says nothing of what the member knows.
		return p.kinds()[alloc.Written] == before[alloc.Written]+1 && p.alloc.Ready(alloc.Written) > ready
	})
	v = p.open("v")
	expect(t, v, data)
	_, err := v.WriteAt(data[:BlockSize], 0)
	must(t, err)
	if n := segmentSyncs(t, v, seen); n != 0 {
		t.Fatalf("%d syncs of the segment", n)
	}
}

// A sync that fails while zeroes are written is a failed flush: the kernel may have dropped writes that no flush has covered.
func TestFailedZeroesFailThePool(t *testing.T) {
	disk := fsys.Fault(fsys.NewMem())
	o := testOptions(t)
	o.fs, o.bootID, o.Observer = disk, &[16]byte{1}, nil
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	defer tp.kill()
	v := tp.volume("v", 1<<20)
	tp.quiet()
	fill(t, v, 1)
	must(t, v.Flush())
	disk.Add(fsys.Rule{Op: fsys.OpSync, Glob: "*.seg", Err: errors.New("the device has gone")})
	must(t, v.Close(t.Context()))
	until(t, "the pool has failed", func() bool { return p.Info().State == "Failed" })
}

// Space that is free and beyond what is kept is punched, reserved chunks like written ones, and can be used again.
func TestSpaceGoesBack(t *testing.T) {
	p, _, seen := memoryPool(t)
	v := p.volume("v", 128<<20)
	p.quiet()
	fill(t, v, 1)
	must(t, v.Discard(0, v.Size()))
	must(t, p.flush())
	until(t, "what was discarded is free", func() bool { free, held, _ := p.alloc.Free(); return held == 0 && free > 128<<20/BlockSize })
	for kind, keep := range map[alloc.Kind]int64{alloc.Written: 0, alloc.Reserved: 0} {
		seg, k, ok, err := p.alloc.TakeBack(kind, keep)
		must(t, err)
		if !ok {
			t.Fatalf("nothing of kind %d to give back", kind)
		}
		seen.Reset()
		must(t, p.punch(seg, k))
		punched := false
		for _, e := range seen.Events() {
			punched = punched || (e.Op == fsys.OpPunch && e.Off == int64(k)*alloc.ChunkBlocks*BlockSize)
		}
		if s := p.alloc.Spaced(seg); !punched || s.Has(k) {
			t.Fatalf("chunk %d: punched %v", k, punched)
		}
	}
	expect(t, v, make([]byte, v.Size()))
	expect(t, v, fill(t, v, 2))
}

// Free blocks in holes are no room for a burst of small writes: with a window's worth of holes free the pool still writes zeroes ahead, and small writes go
// to what lies in one piece.
func TestHolesAreNotWrittenAhead(t *testing.T) {
	p, _, _ := memoryPool(t)
	v, small := p.volume("v", 128<<20), p.volume("small", 60<<20) // the window need not be the last free block
	p.quiet()
	fill(t, v, 1)
	for at := int64(0); at < small.Size(); at += 128 << 10 { // takes what was written ahead
		_, err := small.WriteAt(make([]byte, 128<<10), at)
		must(t, err)
	}
	for at := int64(0); at < v.Size(); at += 2 * BlockSize {
		must(t, v.Discard(at, BlockSize))
	}
	must(t, p.flush())
	until(t, "what was discarded is free", func() bool { _, held, pending := p.alloc.Free(); return held == 0 && pending == 0 })
	window, holes := p.preparing.window.Load(), v.Size()/BlockSize/2
	if holes < window {
		t.Fatalf("%d holes are fewer than the window's %d blocks: the test shows nothing", holes, window)
	}
	must(t, p.WaitPrepared(t.Context()))
	if free, _, _ := p.alloc.Free(); p.alloc.Ready(alloc.Written) < window || free < window+holes {
		t.Fatalf("%d blocks are ready, want the window's %d beside %d in holes; %d are free", p.alloc.Ready(alloc.Written), window, holes, free)
	}
	w := p.volume("w", v.Size())
	adjacent, last := 0, uint64(0)
	for i := range 256 {
		at := i * 7
		_, err := w.WriteAt(make([]byte, BlockSize), int64(at)*BlockSize)
		must(t, err)
		list, err := p.pages.lookup(&w.mapping, uint32(at/runs.Blocks), at%runs.Blocks, at%runs.Blocks+1, nil)
		must(t, err)
		if list[0].Place() == last+1 {
			adjacent++
		}
		last = list[0].Place()
	}
	if adjacent < 250 {
		t.Fatalf("%d of 256 writes went beside the one before", adjacent)
	}
}

// Zeroes are written at the disk's speed while there are no requests to it, and a step at a time beside them.
func TestZeroesMakeWayForRequests(t *testing.T) {
	requests := uint64(100)
	c := zeroPace{requests: func() uint64 { return requests }, seen: 100}
	for ; requests <= 100+quietRequests; requests++ {
		if !c.step() {
			t.Fatalf("refused after %d requests", requests-100)
		}
	}
	if c.step() || !c.short {
		t.Fatal("a second step beside requests")
	}
	c = zeroPace{requests: c.requests, seen: 100}
	if !c.step() || c.short || c.step() || !c.short {
		t.Fatal("want one step beside requests, and to know that more was wanted")
	}
}
