package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// dataRuns lists the runs with a place in one page of a family, as the store has them.
func (tp *testPool) dataRuns(family, page uint32) []runs.Entry {
	tp.t.Helper()
	list, err := storedRuns(tp.Pool, family, page)
	must(tp.t, err)
	return list
}

func storedRuns(p *Pool, family, page uint32) (list []runs.Entry, err error) {
	prefix := format.RunPagePrefix(family, page)
	err = scan(p.store.db, prefix, format.Upper(prefix), func(key, val []byte) error {
		_, gen, block, err := format.ParseRunKey(key)
		if err != nil {
			return err
		}
		e, err := entryOf(val, block, gen)
		if err == nil && !e.IsZero() {
			list = append(list, e)
		}
		return err
	})
	return list, err
}

// relocateAll moves every run of a page, heads' and frozen ones.
func (tp *testPool) relocateAll(family, page uint32) (moved int) {
	tp.t.Helper()
	var count volumeCounters
	moved, err := tp.relocate(relocation{family, page, tp.dataRuns(family, page), func(n int) (uint64, int, error) {
		return tp.alloc.Alloc(1<<62, n, alloc.Reserved)
	}, &count})
	must(tp.t, err)
	return moved
}

func stampBlock(b []byte, block int64, n uint64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(block))
		binary.LittleEndian.PutUint64(b[i+8:], n)
	}
}

func readAll(t *testing.T, dev interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}) []byte {
	t.Helper()
	b := make([]byte, dev.Size())
	_, err := dev.ReadAt(b, 0)
	must(t, err)
	return b
}

// All runs of a page change their places: of a head, of a snapshot below it, and of a clone; what shows does not change, in open maps or in new ones.
func TestRelocate(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 2<<20)
	r := rand.New(rand.NewPCG(1, 2))
	write := func(v *Volume, n int) {
		for range n {
			block := r.Int64N(v.Size() / BlockSize)
			b := make([]byte, (1+r.Int64N(min(8, v.Size()/BlockSize-block)))*BlockSize)
			stampBlock(b, block, r.Uint64())
			_, err := v.WriteAt(b, block*BlockSize)
			must(t, err)
		}
	}
	write(v, 100)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	write(v, 60)
	must(t, v.Discard(64*BlockSize, 20*BlockSize))
	_, err = p.CreateVolume(t.Context(), VolumeSpec{Name: "c", FromSnapshot: "s"})
	must(t, err)
	c := p.open("c")
	write(c, 40)
	s, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	wantV, wantC, wantS := readAll(t, v), readAll(t, c), readAll(t, s)
	must(t, p.flush())
	used := p.Info().Used
	family := v.mapping.lineage.Load().family
	before := p.dataRuns(family, 0)
	if moved := p.relocateAll(family, 0); int64(moved)*BlockSize != used {
		t.Fatalf("%d blocks moved, %d in use", moved, used/BlockSize)
	}
	after := map[uint64]bool{}
	for _, e := range p.dataRuns(family, 0) {
		for i := range uint64(e.Len()) {
			after[e.Place()+i] = true
		}
	}
	for _, e := range before {
		for i := range uint64(e.Len()) {
			if after[e.Place()+i] {
				t.Fatalf("block %d is still in use", e.Place()+i)
			}
		}
	}
	verify := func(v, c *Volume, s *SnapshotReader) {
		t.Helper()
		if !bytes.Equal(readAll(t, v), wantV) || !bytes.Equal(readAll(t, c), wantC) || !bytes.Equal(readAll(t, s), wantS) {
			t.Fatal("what shows has changed")
		}
		p.check()
	}
	verify(v, c, s)
	if got := p.Info().Used; got != used {
		t.Fatalf("%d bytes in use, were %d", got, used)
	}
	must(t, s.Close())
	must(t, p.kill())
	p.reopen()
	v, c = p.open("v"), p.open("c")
	s, err = p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	verify(v, c, s)
	must(t, s.Close())
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
}

// What is pending is not moved: its run is in no commit.
func TestRelocatePending(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 1<<20)
	b := make([]byte, BlockSize)
	_, err := v.WriteAt(b, 0)
	must(t, err)
	var list []runs.Entry
	list, err = p.pages.lookup(&v.mapping, 0, 0, 1, list)
	must(t, err)
	moved, err := p.relocate(relocation{v.mapping.lineage.Load().family, 0, list, func(n int) (uint64, int, error) {
		return p.alloc.Alloc(1<<62, n, alloc.Reserved)
	}, &v.count})
	if moved != 0 || err != nil {
		t.Fatalf("moved %d pending blocks, %v", moved, err)
	}
}

// A run that is freed while it is copied is left alone, and its copy is free again.
func TestRelocateGone(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 1<<20)
	_, err := v.WriteAt(make([]byte, 8*BlockSize), 0)
	must(t, err)
	must(t, p.flush())
	family := v.mapping.lineage.Load().family
	list := p.dataRuns(family, 0)
	must(t, v.Close(t.Context()))
	moved, err := p.relocate(relocation{family, 0, list, func(n int) (uint64, int, error) {
		must(t, p.DeleteVolume(t.Context(), "v"))
		p.jobsDone()
		return p.alloc.Alloc(1<<62, n, alloc.Reserved)
	}, &v.count})
	if moved != 0 || err != nil {
		t.Fatalf("moved %d blocks of a volume that was deleted, %v", moved, err)
	}
	p.check()
	if _, _, pending := p.alloc.Free(); pending != 0 || p.Info().Used != 0 {
		t.Fatalf("%d blocks are still handed out, %d bytes in use", pending, p.Info().Used)
	}
}

// Moves of everything, again and again, while guests write and read: a head in place and with first writes, a snapshot and a clone.
func TestRelocateUnderLoad(t *testing.T) {
	o := testOptions(t)
	o.ringBytes = 1 << 20
	p := newPool(t, o, 1<<30)
	v := p.volume("v", 8<<20)
	const blocks = 8 << 20 / BlockSize
	base := make([]byte, 8<<20)
	for i := range int64(blocks) {
		stampBlock(base[i*BlockSize:][:BlockSize], i, 1)
	}
	_, err := v.WriteAt(base, 0)
	must(t, err)
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	s, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	family := v.mapping.lineage.Load().family
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var wg sync.WaitGroup
	const writers = 4
	for w := range int64(writers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(w)))
			have := map[int64]uint64{}
			b, want := make([]byte, BlockSize), make([]byte, BlockSize)
			for n := uint64(2); ctx.Err() == nil; n++ {
				block := r.Int64N(blocks/writers)*writers + w
				if last, ok := have[block]; ok {
					stampBlock(want, block, last)
					if _, err := v.ReadAt(b, block*BlockSize); err != nil || !bytes.Equal(b, want) {
						t.Errorf("block %d does not show write %d: %x %v", block, last, b[:16], err)
						return
					}
				}
				if stampBlock(b, block, n); n%2 == 0 {
					if _, err := v.WriteAt(b, block*BlockSize); err != nil {
						t.Error(err)
						return
					}
				} else { // in parts
					for off := int64(0); off < BlockSize; off += 1024 {
						if _, err := v.WriteAt(b[off:off+1024], block*BlockSize+off); err != nil {
							t.Error(err)
							return
						}
					}
				}
				have[block] = n
			}
		})
	}
	wg.Go(func() {
		b := make([]byte, 64*BlockSize)
		for r := rand.New(rand.NewPCG(4, 1)); ctx.Err() == nil; {
			off := r.Int64N(blocks-64) * BlockSize
			if _, err := s.ReadAt(b, off); err != nil || !bytes.Equal(b, base[off:][:len(b)]) {
				t.Errorf("the snapshot has changed: %v", err)
				return
			}
		}
	})
	moved := 0
	for r := rand.New(rand.NewPCG(5, 1)); ctx.Err() == nil; {
		page := uint32(r.IntN(2))
		list := p.dataRuns(family, page)
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		n, err := p.relocate(relocation{family, page, list[:min(len(list), 16)], func(n int) (uint64, int, error) {
			return p.alloc.Alloc(1<<62, n, alloc.Reserved)
		}, &v.count})
		must(t, err)
		moved += n
	}
	wg.Wait()
	t.Logf("%d blocks moved", moved)
	must(t, s.Close())
	p.check()
}

func TestReadGen(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 8<<20)
	for _, block := range []int64{0, 3, 4, 9, 1023, 1024} {
		_, err := v.WriteAt(make([]byte, BlockSize), block*BlockSize)
		must(t, err)
	}
	must(t, p.flush())
	g := v.mapping.lineage.Load()
	it, err := p.store.db.NewIter(&pebble.IterOptions{LowerBound: format.RunPrefix(), UpperBound: format.Upper(format.RunPrefix())})
	must(t, err)
	defer it.Close()
	for _, c := range []struct{ page, off, end, want, first int }{
		{0, -1, 1, 1, 0}, {0, 1, 3, 0, 0}, {0, 4, 5, 1, 3}, {0, 2, 10, 2, 3}, {0, 0, 1024, 4, 0}, {0, 1000, 1025, 1, 1023}, {1, 0, 1, 1, 0}, {1, 1, 9, 0, 0},
	} {
		list, err := readGen(it, g.family, uint32(c.page), g.top, c.off, c.end)
		if err != nil || len(list) != c.want || c.want > 0 && list[0].Off() != c.first {
			t.Errorf("page %d blocks %d to %d: %v, %v", c.page, c.off, c.end, list, err)
		}
	}
}
