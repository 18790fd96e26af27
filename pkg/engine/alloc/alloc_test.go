package alloc

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// fakeStore holds what was applied.
type fakeStore struct{ bits map[uint32]*Bitmap }

func (s *fakeStore) at(n uint32) *Bitmap {
	if s.bits[n] == nil {
		s.bits[n] = &Bitmap{}
	}
	return s.bits[n]
}

func (s *fakeStore) Bitmap(n uint32) (Bitmap, error) { return *s.at(n), nil }

func (s *fakeStore) FreeInSegment(seg uint32) (*[SegmentChunks]uint16, error) {
	var f [SegmentChunks]uint16
	for k := range f {
		f[k] = uint16(ChunkBlocks - s.at(seg*SegmentChunks+uint32(k)).count())
	}
	return &f, nil
}

func (s *fakeStore) set(place uint64, n int, used bool) {
	for i := range uint64(n) {
		b := s.at(uint32((place + i) / ChunkBlocks))
		if used {
			b.set(int((place+i)%ChunkBlocks), 1)
		} else {
			b.clear(int((place+i)%ChunkBlocks), 1)
		}
	}
}

// No block is handed out twice, whatever the order of the steps of its life, and when all has been given back everything is free again.
func TestNeverTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &fakeStore{map[uint32]*Bitmap{}}
		a := New(store, nil)
		chunks := rapid.IntRange(1, 5).Draw(t, "chunks")
		a.AddAhead(0, 0, chunks)
		owned := map[uint64]bool{}
		var pending, committed, held []Extent
		take := func(list *[]Extent) Extent {
			i := rapid.IntRange(0, len(*list)-1).Draw(t, "which")
			e := (*list)[i]
			*list = append((*list)[:i], (*list)[i+1:]...)
			return e
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 6).Draw(t, "op"); {
			case op <= 1:
				place, n, err := a.Alloc(uint64(rapid.IntRange(1, 3).Draw(t, "owner")), rapid.IntRange(1, 700).Draw(t, "want"))
				if errors.Is(err, ErrNone) {
					if free, _, _ := a.Free(); free != 0 {
						t.Fatalf("none, but %d are free", free)
					}
					continue
				}
				for i := range uint64(n) {
					if owned[place+i] {
						t.Fatalf("block %d handed out twice", place+i)
					}
					owned[place+i] = true
				}
				pending = append(pending, Extent{place, n})
			case op == 2 && len(pending) > 0:
				e := take(&pending)
				store.set(e.Place, e.N, true)
				a.Committed([]Extent{e})
				committed = append(committed, e)
			case op == 3 && len(committed) > 0:
				e := take(&committed)
				if err := a.Hold([]Extent{e}); err != nil {
					t.Fatal(err)
				}
				store.set(e.Place, e.N, false)
				held = append(held, e)
			case op == 4 && len(held) > 0:
				release(a, owned, take(&held))
			case op == 5 && len(pending) > 0:
				e := take(&pending)
				a.Undo(e.Place, e.N)
				forget(owned, e)
			case op == 6 && len(pending) > 0:
				e := take(&pending)
				a.Abandon([]Extent{e})
				held = append(held, e)
			}
			if free, _, _ := a.Free(); free != int64(chunks*ChunkBlocks-len(owned)) {
				t.Fatalf("%d free, %d owned", free, len(owned))
			}
		}
		for _, e := range pending {
			a.Undo(e.Place, e.N)
		}
		for _, e := range committed {
			if err := a.Hold([]Extent{e}); err != nil {
				t.Fatal(err)
			}
			store.set(e.Place, e.N, false)
			a.Release([]Extent{e})
		}
		for _, e := range held {
			a.Release([]Extent{e})
		}
		for o := range uint64(4) {
			a.Forget(o)
		}
		if free, held, pending := a.Free(); free != int64(chunks*ChunkBlocks) || held != 0 || pending != 0 || len(a.chunks) != 0 {
			t.Fatalf("at the end %d free, %d held, %d pending, %d chunks in memory", free, held, pending, len(a.chunks))
		}
	})
}

func release(a *Allocator, owned map[uint64]bool, e Extent) {
	a.Release([]Extent{e})
	forget(owned, e)
}

func forget(owned map[uint64]bool, e Extent) {
	for i := range uint64(e.N) {
		delete(owned, e.Place+i)
	}
}

func TestStreamsStayContiguous(t *testing.T) {
	a := New(&fakeStore{map[uint32]*Bitmap{}}, nil)
	a.AddAhead(0, 0, 8)
	next := map[uint64]uint64{}
	for i := range 2000 {
		owner := uint64(1 + i%2)
		place, n, err := a.Alloc(owner, 1)
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if want, ok := next[owner]; ok && place != want && place%ChunkBlocks != 0 {
			t.Fatalf("owner %d got block %d, expected %d", owner, place, want)
		}
		next[owner] = place + 1
	}
}

func TestTakeBack(t *testing.T) {
	a := New(&fakeStore{map[uint32]*Bitmap{}}, nil)
	a.AddAhead(0, 0, 4)
	if _, _, err := a.Alloc(1, 1); err != nil {
		t.Fatal(err)
	}
	var got []int
	for {
		_, k, ok, err := a.TakeBack(ChunkBlocks)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, k)
	}
	if len(got) != 2 || got[0] != 3 || got[1] != 2 {
		t.Fatalf("took back chunks %v, want 3 and 2", got)
	}
	a.AddAhead(0, 2, 4)
	if free, _, _ := a.Free(); free != 4*ChunkBlocks-1 {
		t.Fatalf("%d free", free)
	}
}
