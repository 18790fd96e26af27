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

type fataler interface {
	Helper()
	Fatal(...any)
}

func newAllocator(t fataler, store Store, segments ...Segment) *Allocator {
	t.Helper()
	a, err := New(store, segments, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// written models which blocks of chunks that were Reserved at first were ever written.
type written map[uint64]bool

func (w written) add(e Extent) {
	for i := range uint64(e.N) {
		w[e.Place+i] = true
	}
}

// No block is handed out twice, whatever the order of the steps of its life; no chunk is called Written before all of it was; and when all has been given
// back everything is free again.
func TestNeverTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &fakeStore{map[uint32]*Bitmap{}}
		a := newAllocator(t, store)
		chunks := rapid.IntRange(1, 5).Draw(t, "chunks")
		reserved := rapid.IntRange(0, chunks).Draw(t, "reserved")
		a.Add(Reserved, 0, 0, reserved)
		a.Add(Written, 0, reserved, chunks)
		data := written{}
		var taken []Taken
		owned := map[uint64]bool{}
		var pending, committed, held []Extent
		take := func(list *[]Extent) Extent {
			i := rapid.IntRange(0, len(*list)-1).Draw(t, "which")
			e := (*list)[i]
			*list = append((*list)[:i], (*list)[i+1:]...)
			return e
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 9).Draw(t, "op"); {
			case op <= 1:
				place, n, err := a.Alloc(uint64(rapid.IntRange(1, 3).Draw(t, "owner")), rapid.IntRange(1, 700).Draw(t, "want"),
					Kind(rapid.IntRange(0, 1).Draw(t, "prefer")))
				if errors.Is(err, ErrNone) {
					if free, _, _ := a.Free(); free != 0 && len(taken) == 0 {
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
				data.add(e)
				a.Committed([]Extent{e})
				committed = append(committed, e)
				if chunk := uint32(e.Place / ChunkBlocks); store.at(chunk).count() == ChunkBlocks {
					a.MarkWritten([]uint32{chunk})
				}
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
				a.Undo(e)
				forget(owned, e)
			case op == 6 && len(pending) > 0:
				e := take(&pending)
				data.add(e)
				a.Abandon([]Extent{e})
				held = append(held, e)
			case op == 7 && len(taken) == 0:
				var err error
				if taken, err = a.Take(0, rapid.IntRange(1, 2).Draw(t, "most"), rapid.Bool().Draw(t, "partial")); err != nil {
					t.Fatal(err)
				}
			case op == 8 && len(taken) > 0:
				kind := Kind(rapid.IntRange(0, 1).Draw(t, "kind"))
				for _, x := range taken {
					for _, e := range x.Free {
						if kind == Written {
							data.add(e)
						}
					}
				}
				a.PutBack(taken, kind)
				taken = nil
			case op == 9:
				a.LeaveReserved()
			}
			free, heldNow, _ := a.Free()
			if inTaken := heldNow - int64(blocks(held)); free+inTaken != int64(chunks*ChunkBlocks-len(owned)) || inTaken < 0 {
				t.Fatalf("%d free, %d more taken, %d owned", free, inTaken, len(owned))
			}
			checkRoomy(t, a, store)
			for k := range reserved {
				for i := range uint64(ChunkBlocks) {
					if a.segments[0].has[Written].Has(k) && !data[uint64(k)*ChunkBlocks+i] {
						t.Fatalf("chunk %d is Written, and its block %d never was", k, i)
					}
				}
			}
		}
		a.PutBack(taken, Reserved)
		for _, e := range pending {
			a.Undo(e)
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
		if n := a.Ready(Written) + a.Ready(Reserved); n != int64(chunks*ChunkBlocks) {
			t.Fatalf("%d ready at the end", n)
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

func blocks(list []Extent) (n int) {
	for _, e := range list {
		n += e.N
	}
	return n
}

func forget(owned map[uint64]bool, e Extent) {
	for i := range uint64(e.N) {
		delete(owned, e.Place+i)
	}
}

func TestStreamsStayContiguous(t *testing.T) {
	a := newAllocator(t, &fakeStore{map[uint32]*Bitmap{}})
	a.Add(Written, 0, 0, 8)
	next := map[uint64]uint64{}
	for i := range 2000 {
		owner := uint64(1 + i%2)
		place, n, err := a.Alloc(owner, 1, Written)
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
	a := newAllocator(t, &fakeStore{map[uint32]*Bitmap{}})
	a.Add(Written, 0, 0, 4)
	if _, _, err := a.Alloc(1, 1, Written); err != nil {
		t.Fatal(err)
	}
	var got []int
	for {
		_, k, ok, err := a.TakeBack(Written, ChunkBlocks)
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
	a.Add(Written, 0, 2, 4)
	if free, _, _ := a.Free(); free != 4*ChunkBlocks-1 {
		t.Fatalf("%d free", free)
	}
}

// Small writes get written blocks and large ones reserved ones, each in a place of its own; either takes the other's rather than none, and small writes go
// back when there are written ones again.
func TestPreferences(t *testing.T) {
	a := newAllocator(t, &fakeStore{map[uint32]*Bitmap{}})
	a.Add(Written, 0, 0, 1)
	a.Add(Reserved, 0, 1, 4)
	want := func(chunk uint64, n int, prefer Kind) {
		t.Helper()
		place, got, err := a.Alloc(1, n, prefer)
		if err != nil || place/ChunkBlocks != chunk || got != n {
			t.Fatalf("%d blocks at %d of chunk %d, %v; want %d in chunk %d", got, place%ChunkBlocks, place/ChunkBlocks, err, n, chunk)
		}
	}
	a.surplus = 10 * ChunkBlocks
	want(0, 1, Written)
	want(1, 512, Reserved)
	want(0, ChunkBlocks-1, Written)
	want(2, 1, Written) // none is written: another chunk than the stream's
	want(1, 512, Reserved)
	a.Add(Written, 0, 4, 6)
	want(4, 1, Written)
	want(3, ChunkBlocks, Reserved)
	want(5, ChunkBlocks, Reserved) // rather a whole written chunk than what is left of a reserved one
	want(2, ChunkBlocks-1, Reserved)
	want(4, ChunkBlocks-1, Reserved)
	if _, _, err := a.Alloc(2, 1, Written); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
}

// What a pool holds when it is opened: free blocks are counted by kind, from the segment's use where it has one kind, else from the bitmaps.
func TestOpenCountsByKind(t *testing.T) {
	store := &fakeStore{map[uint32]*Bitmap{}}
	store.set(0, 100, true)
	store.set(ChunkBlocks, 30, true)
	store.set(SegmentBlocks, 7, true)
	store.set(2*SegmentBlocks, 5, true)
	chunks := func(list ...int) (c Chunks) {
		for _, k := range list {
			c.Add(k)
		}
		return c
	}
	a := newAllocator(t, store, Segment{Has: [kinds]Chunks{chunks(0, 200), chunks(1)}, Used: 130},
		Segment{Has: [kinds]Chunks{chunks(0)}, Used: 7}, Segment{Has: [kinds]Chunks{{}, chunks(0)}, Used: 5})
	if w, r := a.Ready(Written), a.Ready(Reserved); w != 3*ChunkBlocks-107 || r != 2*ChunkBlocks-35 {
		t.Fatalf("%d and %d are free", w, r)
	}
	if list, err := a.Take(0, 5, true); err != nil || len(list) != 1 || list[0].Chunk != 1 || list[0].Free[0] != (Extent{ChunkBlocks + 30, ChunkBlocks - 30}) {
		t.Fatalf("took %v, %v", list, err)
	}
}

// A write that needs more than there is gets nothing, whatever order it asks in: two that share what is left would both wait for the other's part.
func TestAllOrNone(t *testing.T) {
	a := newAllocator(t, &fakeStore{map[uint32]*Bitmap{}})
	a.Add(Written, 0, 0, 1)
	a.Add(Reserved, 0, 1, 2)
	wants := []int{1000, 24, 100}
	got, err := a.AllocAll(1, wants, Written, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range got {
		for wants[0] == 0 {
			wants = wants[1:]
		}
		if wants[0] -= x.N; wants[0] < 0 {
			t.Fatalf("%v: an extent is of two wants", got)
		}
	}
	if blocks(got) != 1124 {
		t.Fatalf("got %v", got)
	}
	free, _, pending := a.Free()
	if _, err := a.AllocAll(2, []int{500, 425}, Written, nil); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	if f, _, p := a.Free(); f != free || p != pending || f != 2*ChunkBlocks-1124 {
		t.Fatalf("%d free, %d pending after a refusal; before %d and %d", f, p, free, pending)
	}
	// What is free in a chunk that is taken cannot be handed out: all that was taken so far comes back.
	a.Forget(1)
	committed := []Extent{{got[0].Place, 1}, {got[len(got)-1].Place, 1}}
	a.Committed(got)
	if err := a.Hold(committed); err != nil {
		t.Fatal(err)
	}
	taken, err := a.Take(0, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	a.Release(committed)
	free, _, pending = a.Free()
	if _, err := a.AllocAll(2, []int{1, int(free) - 1}, Written, nil); err == nil && len(taken) > 0 {
		t.Fatal("more was handed out than there is")
	}
	if f, _, p := a.Free(); len(taken) > 0 && (f != free || p != pending) {
		t.Fatalf("%d free, %d pending after a refusal; before %d and %d", f, p, free, pending)
	}
	a.PutBack(taken, Reserved)
}

// Whoever waits for blocks learns of those that a write gives back unused.
func TestUndoWakes(t *testing.T) {
	a := newAllocator(t, &fakeStore{map[uint32]*Bitmap{}})
	a.Add(Written, 0, 0, 1)
	place, n, err := a.Alloc(1, ChunkBlocks, Written)
	if err != nil {
		t.Fatal(err)
	}
	freed := a.Freed()
	a.Undo(Extent{place, n})
	select {
	case <-freed:
	default:
		t.Fatal("nobody was told")
	}
}
