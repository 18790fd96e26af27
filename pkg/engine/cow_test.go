package engine

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// cowVolume makes a volume in COW mode, written whole, with a snapshot of that.
func (tp *testPool) cowVolume(name string, size int64) *Volume {
	tp.t.Helper()
	_, err := tp.CreateVolume(tp.t.Context(), VolumeSpec{Name: name, Size: size, Mode: CopyOnWrite})
	must(tp.t, err)
	v := tp.open(name)
	for i := range size / BlockSize {
		tp.writeStamp(v, i, 1, 1)
	}
	tp.snapshot(name+"-s", name)
	must(tp.t, tp.WaitChecksums(tp.t.Context())) // whose reads would meet what tests do to the disk
	return v
}

func (tp *testPool) writeStamp(v *Volume, block, blocks int64, n uint64) {
	tp.t.Helper()
	b := make([]byte, blocks*BlockSize)
	for i := range blocks {
		stampBlock(b[i*BlockSize:][:BlockSize], block+i, n)
	}
	_, err := v.WriteAt(b, block*BlockSize)
	must(tp.t, err)
}

// placesOf is where a volume's blocks are.
func (tp *testPool) placesOf(v *Volume) (places []uint64) {
	tp.t.Helper()
	for page := range uint32((v.Size() + pageBytes - 1) / pageBytes) {
		list, err := tp.pages.lookup(&v.mapping, page, 0, PageBlocks, nil)
		must(tp.t, err)
		for _, e := range list {
			for i := range uint64(e.Len()) {
				places = append(places, e.Place()+i)
			}
		}
	}
	return places
}

// A first write costs one read and two writes of a block, whatever the number of snapshots, and the volume keeps its layout. Later ones cost one write.
func TestCopyOnWrite(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.cowVolume("v", 4<<20)
	places := p.placesOf(v)
	want := readAll(t, v)
	for i := range 20 {
		name := string(rune('a'+i)) + "v-s"
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: name, Volume: "v"})
		must(t, err)
		before := v.Info().Counters
		block := int64(i * 7)
		p.writeStamp(v, block, 1, 2)
		c := v.Info().Counters
		if r, w := c.DataReadBytes-before.DataReadBytes, c.DataWriteBytes-before.DataWriteBytes; r != BlockSize || w != 2*BlockSize ||
			c.DataReads-before.DataReads != 1 || c.DataWrites-before.DataWrites != 2 || c.FirstWrites != before.FirstWrites || c.Copies != before.Copies+1 {
			t.Fatalf("a first write read %d bytes and wrote %d: %+v", r, w, c)
		}
		p.writeStamp(v, block, 1, 3)
		if again := v.Info().Counters; again.DataWriteBytes-c.DataWriteBytes != BlockSize || again.DataReads != c.DataReads {
			t.Fatalf("a second write: %+v, before %+v", again, c)
		}
	}
	for i, place := range p.placesOf(v) {
		if place != places[i] {
			t.Fatalf("block %d of the volume is at %d, was at %d", i, place, places[i])
		}
	}
	s, err := p.OpenSnapshot(t.Context(), "v-s")
	must(t, err)
	if !bytes.Equal(readAll(t, s), want) {
		t.Fatal("the snapshot has changed")
	}
	must(t, s.Close())
	p.check()
	must(t, p.kill())
	p.reopen()
	if v = p.open("v"); v.Info().Mode != CopyOnWrite {
		t.Fatal("the mode is forgotten")
	}
	p.check()
}

// Parts of blocks and many blocks at once, over owned, frozen and unmapped ones.
func TestCopyOnWriteParts(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.cowVolume("v", 8<<20)
	s, err := p.OpenSnapshot(t.Context(), "v-s")
	must(t, err)
	frozen := readAll(t, s)
	must(t, v.Discard(100*BlockSize, 50*BlockSize))
	want := bytes.Clone(frozen)
	clear(want[100*BlockSize : 150*BlockSize])
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		off := r.Int64N(v.Size()/sectorSize) * sectorSize
		n := min(v.Size()-off, (1+r.Int64N(1<<(1+r.IntN(11))))*sectorSize)
		for i := range n {
			want[off+i] = byte(r.Uint32())
		}
		_, err := v.WriteAt(want[off:off+n], off)
		must(t, err)
	}
	if !bytes.Equal(readAll(t, v), want) || !bytes.Equal(readAll(t, s), frozen) {
		t.Fatal("the volume or its snapshot shows something else")
	}
	must(t, s.Close())
	p.check()
}

// What a clone inherited is another's layout: it is redirected. What the clone wrote itself is copied.
func TestCopyOnWriteClone(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	p.cowVolume("v", 1<<20)
	_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "c", FromVolume: "v", Mode: CopyOnWrite})
	must(t, err)
	c := p.open("c")
	p.writeStamp(c, 3, 1, 2)
	if n := c.Info().Counters; n.Copies != 0 || n.FirstWrites != 1 {
		t.Fatalf("an inherited block: %+v", n)
	}
	p.snapshot("c-s", "c")
	p.writeStamp(c, 3, 2, 3)
	if n := c.Info().Counters; n.Copies != 1 || n.FirstWrites != 2 {
		t.Fatalf("an own block and an inherited one: %+v", n)
	}
	p.check()
}

// The mode changes in use, both ways.
func TestChangeMode(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 1<<20)
	p.writeStamp(v, 0, 8, 1)
	p.snapshot("v-s", "v")
	p.writeStamp(v, 0, 1, 2)
	for i, mode := range []Mode{CopyOnWrite, RedirectOnWrite} {
		info, err := p.ChangeVolume(t.Context(), "v", VolumeChange{Mode: &mode})
		if err != nil || info.Mode != mode {
			t.Fatal(info.Mode, err)
		}
		p.writeStamp(v, int64(1+i), 1, 2)
	}
	if n := v.Info().Counters; n.Copies != 1 || n.FirstWrites != 1+1+1 {
		t.Fatalf("%+v", n)
	}
	bad := Mode(7)
	if _, err := p.ChangeVolume(t.Context(), "v", VolumeChange{Mode: &bad}); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	p.check()
}

// A reader of the old place that takes its time makes the write a redirected one, and sees the old content. Nobody else writes to the old place before it
// has ended.
func TestCopyOnWriteSlowReader(t *testing.T) {
	p, disk := memPool(t)
	p.options.pinPatience = pinPatience
	v := p.cowVolume("v", 1<<20)
	s, err := p.OpenSnapshot(t.Context(), "v-s")
	must(t, err)
	want := readAll(t, s)
	places := p.placesOf(v)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", Times: 1, When: func(fsys.Call) bool {
		once.Do(func() { close(held) })
		<-release
		return true
	}})
	got := make([]byte, BlockSize)
	read := make(chan error, 1)
	go func() { _, err := s.ReadAt(got, 5*BlockSize); read <- err }()
	<-held
	eventually(t, "a write beside a slow reader", func() { p.writeStamp(v, 5, 1, 2) })
	eventually(t, "another", func() { p.writeStamp(v, 5, 1, 3) })
	if now := p.placesOf(v); now[5] == places[5] {
		t.Fatal("the old place was overwritten while it was being read")
	}
	must(t, p.flush())
	close(release)
	must(t, <-read)
	if !bytes.Equal(got, want[5*BlockSize:6*BlockSize]) {
		t.Fatal("the snapshot's reader saw what was written later")
	}
	must(t, s.Close())
	p.check()
	if marks := p.marks.n.Load(); marks != 0 {
		t.Fatalf("%d marks are left", marks)
	}
}

// An old block that cannot be read, and a device that takes no copy, make the write a redirected one.
func TestCopyOnWriteErrors(t *testing.T) {
	p, disk := memPool(t)
	v := p.cowVolume("v", 1<<20)
	p.quiet() // no zeroes are written ahead
	failed := errors.New("a bad sector")
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", Times: 1, Err: failed})
	p.writeStamp(v, 5, 1, 2)
	disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: "*.seg", Times: 1, Err: failed,
		When: func(c fsys.Call) bool { return c.Len == BlockSize }})
	p.writeStamp(v, 6, 1, 2)
	if n := v.Info().Counters; n.Copies != 0 || n.FirstWrites < 2 {
		t.Fatalf("%+v", n)
	}
	b := make([]byte, BlockSize)
	want := make([]byte, BlockSize)
	for block := int64(5); block < 7; block++ {
		stampBlock(want, block, 2)
		if _, err := v.ReadAt(b, block*BlockSize); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("block %d: %v", block, err)
		}
	}
	p.check()
}

// Many writers over a volume whose snapshots come and go; every snapshot keeps what it shows, and copies share commits.
func TestCopyOnWriteUnderLoad(t *testing.T) {
	o := testOptions(t)
	o.ringBytes = 1 << 20
	p := newPool(t, o, 1<<30)
	v := p.cowVolume("v", 4<<20)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var wg sync.WaitGroup
	const writers = 8
	for w := range int64(writers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			b := make([]byte, BlockSize)
			for n := uint64(2); ctx.Err() == nil; n++ {
				block := r.Int64N(v.Size()/BlockSize/writers)*writers + w
				stampBlock(b, block, n)
				k := int64(r.IntN(2)) * 1024 // the whole, or all but a part that was written in the same way just before
				if _, err := v.WriteAt(b[:k], block*BlockSize); err != nil && k > 0 {
					t.Error(err)
					return
				}
				if _, err := v.WriteAt(b[k:], block*BlockSize+k); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, BlockSize)
				if _, err := v.ReadAt(got, block*BlockSize); err != nil || !bytes.Equal(got, b) {
					t.Errorf("block %d shows %x, want %x: %v", block, got[:16], b[:16], err)
					return
				}
			}
		})
	}
	for n := 0; ctx.Err() == nil; n++ {
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "now", Volume: "v"})
		must(t, err)
		s, err := p.OpenSnapshot(t.Context(), "now")
		must(t, err)
		first := readAll(t, s)
		for range 5 {
			if !bytes.Equal(readAll(t, s), first) {
				t.Error("a snapshot has changed")
			}
		}
		if n%3 == 0 {
			mode := Mode(n / 3 % 2)
			_, err = p.ChangeVolume(t.Context(), "v", VolumeChange{Mode: &mode})
			must(t, err)
		}
		must(t, s.Close())
		must(t, p.DeleteSnapshot(t.Context(), "now"))
	}
	wg.Wait()
	c := v.Info().Counters
	t.Logf("%d copies, %d redirected", c.Copies, c.FirstWrites)
	if c.Copies == 0 {
		t.Error("nothing was copied")
	}
	p.jobsDone()
	p.check()
}
