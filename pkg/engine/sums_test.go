package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func (tp *testPool) snapshot(name, volume string) {
	tp.t.Helper()
	_, err := tp.CreateSnapshot(tp.t.Context(), SnapshotSpec{Name: name, Volume: volume})
	must(tp.t, err)
}

func (tp *testPool) deleteSnapshot(name string) {
	tp.t.Helper()
	must(tp.t, tp.DeleteSnapshot(tp.t.Context(), name))
	tp.jobsDone()
}

// checksums waits until all are made, checks them, and tells of how many blocks there are.
func (tp *testPool) checksums() int64 {
	tp.t.Helper()
	must(tp.t, tp.WaitChecksums(tp.t.Context()))
	tp.check()
	r, err := tp.Check(tp.t.Context())
	must(tp.t, err)
	s, err := tp.Scrub(tp.t.Context(), ScrubSpec{})
	must(tp.t, err)
	if s.Unverified != 0 || s.Verified != r.Checksums*BlockSize || s.Problems != 0 || s.Total != s.Verified {
		tp.t.Fatalf("%d blocks have checksums, a scrub of them: %+v", r.Checksums, s)
	}
	return r.Checksums
}

func (tp *testPool) write(v *Volume, block, n int, fill byte) {
	tp.t.Helper()
	b := make([]byte, n*BlockSize)
	for i := range b {
		b[i] = fill + byte(i/BlockSize)
	}
	_, err := v.WriteAt(b, int64(block)*BlockSize)
	must(tp.t, err)
}

func wantSums(t *testing.T, tp *testPool, want int64, when string) {
	t.Helper()
	if got := tp.checksums(); got != want {
		t.Fatalf("%s: %d blocks have checksums, want %d", when, got, want)
	}
}

// Checksums come with a freeze, stay through joins of frozen layers, and go with what they are of and before it may be overwritten.
func TestChecksumsFollowBlocks(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 16<<20)
	p.write(v, 0, 100, 1)
	p.write(v, 3000, 50, 2)
	wantSums(t, p, 0, "nothing is frozen")
	p.snapshot("a", "v")
	wantSums(t, p, 150, "one snapshot")
	p.write(v, 10, 20, 3)
	wantSums(t, p, 150, "the head has blocks of its own")
	p.snapshot("b", "v")
	wantSums(t, p, 170, "two snapshots")
	p.deleteSnapshot("a")
	wantSums(t, p, 150, "joined with a frozen layer that hides 20 blocks")
	p.write(v, 3000, 50, 9)
	p.snapshot("c", "v")
	p.deleteSnapshot("b")
	wantSums(t, p, 150, "a whole page of a generation is hidden")
	before := p.store.sumBytes.Load()
	p.deleteSnapshot("c")
	wantSums(t, p, 0, "the head has it all")
	p.write(v, 0, 100, 7)
	p.snapshot("d", "v")
	wantSums(t, p, 150, "frozen again, with other content")
	if p.store.sumBytes.Load() == before {
		t.Fatal("checksums were made anew without a byte of metadata")
	}
	must(t, v.Close(t.Context()))
	_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "w", FromVolume: "v"})
	must(t, err)
	wantSums(t, p, 150, "a clone's empty cut")
	must(t, p.DeleteVolume(t.Context(), "v"))
	p.jobsDone()
	p.deleteSnapshot("d")
	must(t, p.DeleteVolume(t.Context(), "w"))
	p.jobsDone()
	wantSums(t, p, 0, "nothing is left")
	must(t, scan(p.store.db, format.SumsAll(), format.Upper(format.SumsAll()), func(key, _ []byte) error {
		t.Errorf("% x is left", key)
		return nil
	}))
}

// What has no checksum yet is known after the death of the process, and what has one is not read again.
func TestChecksumsResume(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 256<<20)
	const pages = 3 * sumPages / 2
	for i := range pages {
		p.write(v, i*PageBlocks, 4, byte(i))
	}
	must(t, p.flush())
	// The pass reads half of the pages and dies before the rest.
	reads := 0
	hold := make(chan struct{})
	held := make(chan struct{})
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", When: func(fsys.Call) bool {
		if reads++; reads == sumPages+3 {
			close(held)
			<-hold
		}
		return true
	}})
	p.snapshot("s", "v")
	<-held
	disk.Clear()
	killed := make(chan error)
	go func() { killed <- p.kill() }()
	<-p.stop
	close(hold)
	must(t, <-killed)
	again := 0
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", When: func(fsys.Call) bool { again++; return true }})
	p.reopen()
	must(t, p.WaitChecksums(t.Context()))
	disk.Clear()
	if again != pages-sumPages {
		t.Fatalf("%d pages were read again, %d had no checksums", again, pages-sumPages)
	}
	wantSums(t, p, 4*pages, "resumed")
	// Nothing is read where all is there.
	must(t, p.kill())
	p.reopen()
	if n := p.unsummed(); n != 0 {
		t.Fatalf("%d generations have lost their mark", n)
	}
}

// A pool that is being closed, which takes as long as its volumes' flushes, is no trouble that somebody is told of.
func TestChecksumsOfClosing(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 16<<20)
	p.write(v, 0, 4, 1)
	p.write(v, PageBlocks, 4, 2)
	must(t, p.flush())
	reading, read, reads := make(chan struct{}), make(chan struct{}), 0
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", When: func(fsys.Call) bool {
		if reads++; reads == 1 {
			close(reading)
			<-read
		}
		return true
	}})
	p.snapshot("s", "v")
	<-reading
	// The write is pending, so that the volume's close has something to flush: it is held there.
	p.write(v, 0, 4, 3)
	flushing, flush := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	disk.Add(fsys.Rule{Op: fsys.OpSync, Glob: "*.seg", When: func(fsys.Call) bool {
		if p.closed.Load() && held.CompareAndSwap(false, true) {
			close(flushing)
			<-flush
		}
		return true
	}})
	closed := make(chan error)
	go func() { closed <- p.Close(t.Context()) }()
	<-flushing
	close(read)
	until(t, "the pass has ended", func() bool {
		p.summing.mu.Lock()
		defer p.summing.mu.Unlock()
		return p.summing.gen == 0
	})
	close(flush)
	must(t, <-closed)
	if n := p.figures.Events.Value(); n != 0 {
		t.Errorf("%d events", n)
	}
	disk.Clear()
	p.reopen()
	must(t, p.WaitChecksums(t.Context()))
	wantSums(t, p, 8, "opened again")
}

// Blocks that cannot be read have no checksum, and nothing else suffers.
func TestChecksumsOfUnreadable(t *testing.T) {
	p, disk := memPool(t)
	v, w := p.volume("v", 8<<20), p.volume("w", 8<<20)
	p.write(v, 0, 10, 1)
	p.write(w, 0, 10, 2)
	broken := errors.New("medium error")
	place := p.placeOf("v", 0)
	off := int64(place) * BlockSize
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", Err: broken, When: func(c fsys.Call) bool { return c.Off < off+BlockSize && off < c.Off+c.Len }})
	p.snapshot("a", "v")
	p.snapshot("b", "w")
	must(t, p.WaitChecksums(t.Context()))
	r, err := p.Scrub(t.Context(), ScrubSpec{})
	must(t, err)
	if r.Verified != 10*BlockSize || r.Unverified != 10*BlockSize || r.Problems != 0 {
		t.Fatalf("%+v", r)
	}
	disk.Clear()
	must(t, p.kill())
	p.reopen()
	wantSums(t, p, 20, "after the disk recovered and the pool was opened again")
}

// placeOf tells where a volume's block lies.
func (tp *testPool) placeOf(volume string, block int) uint64 {
	tp.t.Helper()
	must(tp.t, tp.flush())
	line := tp.catalogue.lineageOf(tp.catalogue.layers[tp.catalogue.volumes[volume].rec.Layer])
	list, err := readPage(tp.store.db, line, uint32(block/PageBlocks), nil)
	must(tp.t, err)
	for _, e := range list {
		if off := block % PageBlocks; e.Off() <= off && off < e.End() {
			return e.Place() + uint64(off-e.Off())
		}
	}
	tp.t.Fatalf("block %d of volume %s is not mapped", block, volume)
	return 0
}

// damage writes other bytes to a block behind the engine's back.
func (tp *testPool) damage(place uint64) {
	tp.t.Helper()
	b := bytes.Repeat([]byte{0xee}, BlockSize)
	must(tp.t, tp.data.WriteAt(b, place, 0))
}

func (tp *testPool) scrubFinds() (ScrubReport, []ScrubProblem) {
	tp.t.Helper()
	var list []ScrubProblem
	r, err := tp.Scrub(tp.t.Context(), ScrubSpec{Found: func(p ScrubProblem) { list = append(list, p) }})
	must(tp.t, err)
	return r, list
}

// A mismatch says whose it is and where.
func TestScrubNamesDamage(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 16<<20)
	p.write(v, 0, 100, 1)
	p.write(v, 2000, 10, 5)
	p.snapshot("old", "v")
	p.write(v, 50, 1, 3) // hides one of them from what comes
	p.snapshot("new", "v")
	_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "copy", FromSnapshot: "new"})
	must(t, err)
	p.write(v, 2000, 10, 6)
	must(t, p.flush())
	must(t, p.WaitChecksums(t.Context()))

	hidden := p.placeOf("copy", 49) + 1
	p.damage(hidden)
	p.damage(p.placeOf("copy", 2004))
	p.damage(p.placeOf("copy", 2005))
	r, found := p.scrubFinds()
	if len(found) != 2 || r.Problems != 2 || r.Damaged != 3*BlockSize || r.Verified != (111-3)*BlockSize {
		t.Fatalf("%+v %+v", r, found)
	}
	one, two := found[0], found[1]
	old, latest := ScrubSnapshot{"old", "v"}, ScrubSnapshot{"new", "v"}
	if one.Pool != "p" || one.Offset != 50*BlockSize || one.Length != BlockSize || !slices.Equal(one.Snapshots, []ScrubSnapshot{old}) || one.Volumes != nil ||
		one.Member != "/pool" || one.File != "/pool/segments/000000.seg" || one.FileOffset != int64(hidden)*BlockSize {
		t.Errorf("first: %+v", one)
	}
	if two.Offset != 2004*BlockSize || two.Length != 2*BlockSize || !slices.Equal(two.Snapshots, []ScrubSnapshot{old, latest}) ||
		!slices.Equal(two.Volumes, []string{"copy"}) {
		t.Errorf("second: %+v", two)
	}
	// One that cannot be read is told apart from its neighbours.
	off := two.FileOffset
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", Err: errors.New("medium error"), When: func(c fsys.Call) bool {
		return c.Off <= off && off < c.Off+c.Len
	}})
	if r, found = p.scrubFinds(); r.Damaged != 3*BlockSize || !strings.Contains(found[1].Reason, "medium error") {
		t.Errorf("unreadable: %+v %+v", r, found)
	}
	disk.Clear()
	// The metadata knows nothing of it.
	report, err := p.Check(t.Context())
	if err != nil || len(report.Problems) > 0 {
		t.Fatal(report, err)
	}
}

// A checksum of what was overwritten would be a false alarm: scrubs side by side with everything else find nothing.
func TestScrubBesideEverything(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 4<<20)
	stop := make(chan struct{})
	errs := make(chan error, 2)
	go func() {
		r := rand.New(rand.NewPCG(1, 2))
		b := make([]byte, 8*BlockSize)
		for {
			select {
			case <-stop:
				errs <- nil
				return
			default:
			}
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if _, err := v.WriteAt(b, int64(r.IntN(1000))*BlockSize); err != nil {
				errs <- err
				return
			}
		}
	}()
	go func() {
		for {
			select {
			case <-stop:
				errs <- nil
				return
			default:
			}
			if err := p.scrubbed(); err != nil {
				errs <- err
				return
			}
		}
	}()
	for i := range 60 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		p.snapshot(name, "v")
		if i%3 == 0 {
			must(t, p.WaitChecksums(t.Context()))
		}
		if i%2 == 0 {
			must(t, p.DeleteSnapshot(t.Context(), name))
		}
	}
	close(stop)
	must(t, errors.Join(<-errs, <-errs))
	must(t, v.Close(t.Context()))
	p.checksums()
}

// Check finds checksums where none may be, and marks without them.
func TestCheckFindsWrongChecksums(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 16<<20)
	p.write(v, 0, 10, 1)
	p.snapshot("s", "v")
	p.write(v, 0, 10, 2)
	must(t, p.WaitChecksums(t.Context()))
	must(t, p.flush())
	frozen, head := p.catalogue.layers[p.catalogue.snapshots["s"].rec.Layer].rec.Gens[0], p.catalogue.layers[p.catalogue.volumes["v"].rec.Layer].rec.Gens[0]
	sums := &format.Sums{}
	sums.Set(3, 1)
	extra := &format.Sums{}
	extra.Set(11, 1)
	for i, c := range []struct {
		key, value []byte
		want       string
	}{
		{format.SumsKey(head, 0), sums.Encode(), "which is written in place"},
		{format.SummedKey(head), nil, "which is written in place"},
		{format.SumsKey(frozen, 2), sums.Encode(), "it has no run there"},
		{format.SumsKey(999, 0), sums.Encode(), "no layer has it"},
		{format.SumsKey(frozen, 0), extra.Encode(), "1 blocks of page 0 where it has no run"},
		{format.SumsKey(frozen, 0), sums.Encode(), "lacks those of 9 blocks"},
		{format.SumsKey(frozen, 0), []byte{7}, "damaged record"},
	} {
		was, closer, err := p.store.db.Get(c.key)
		if err == nil {
			was = bytes.Clone(was)
			must(t, closer.Close())
		}
		must(t, p.store.db.at.db.Set(c.key, c.value, pebble.Sync))
		r, cerr := p.Check(t.Context())
		must(t, cerr)
		if !strings.Contains(strings.Join(r.Problems, "\n"), c.want) {
			t.Errorf("%d: %q, want %q", i, r.Problems, c.want)
		}
		if err == nil {
			must(t, p.store.db.at.db.Set(c.key, was, pebble.Sync))
		} else {
			must(t, p.store.db.at.db.Delete(c.key, pebble.Sync))
		}
	}
	p.check()
}
