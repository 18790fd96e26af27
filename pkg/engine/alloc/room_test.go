package alloc

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// checkRoomy compares what is counted as roomy with what the chunks have.
func checkRoomy(t fataler, a *Allocator, store Store) {
	t.Helper()
	all, lanes := int64(0), make([]int64, len(a.lanes))
	for i := range a.segments {
		s, n := &a.segments[i], 0
		for k := range SegmentChunks {
			if !s.has[Written].Has(k) {
				continue
			}
			chunk := uint32(i*SegmentChunks + k)
			b, err := store.Bitmap(chunk)
			if err != nil {
				t.Fatal(err)
			}
			free := ChunkBlocks - b.count()
			if c := a.chunks[chunk]; c != nil {
				free = c.free
			}
			if s.rough || free >= roomy {
				n += free
			}
		}
		if n != s.roomy {
			t.Fatal("segment", i, "has", n, "roomy blocks, counted as", s.roomy)
		}
		lanes[s.lane] += int64(n)
	}
	for i := range a.lanes {
		if l := &a.lanes[i]; l.roomy != lanes[i] {
			t.Fatal("lane", i, "has", lanes[i], "roomy blocks, counted as", l.roomy)
		} else if !l.closed {
			all += l.roomy
		}
	}
	if a.roomy != all {
		t.Fatal("there are", all, "roomy blocks, counted as", a.roomy)
	}
}

// holes hands out chunks of Written blocks, and frees every so manyth of them again.
func holes(t fataler, a *Allocator, store *fakeStore, chunks, every int) {
	t.Helper()
	var freed []Extent
	for range chunks {
		place, n, err := a.Alloc(9, ChunkBlocks, Written)
		if err != nil || n != ChunkBlocks {
			t.Fatal(n, err)
		}
		store.set(place, n, true)
		a.Committed([]Extent{{place, n}})
		for i := 0; i < ChunkBlocks; i += every {
			freed = append(freed, Extent{place + uint64(i), 1})
		}
	}
	must(t, a.Hold(freed))
	for _, x := range freed {
		store.set(x.Place, x.N, false)
	}
	a.Release(freed)
	a.Forget(9)
}

// What is free in holes is not ready for a burst, nor kept from being used: small writes go to roomy chunks first, then to what has most, and get every
// block there is.
func TestRoomyFirstThenHoles(t *testing.T) {
	store := &fakeStore{map[uint32]*Bitmap{}}
	a := newAllocator(t, store)
	a.Add(Written, 0, 0, 3)
	holes(t, a, store, 2, 8) // chunks 1 and 2
	holes(t, a, store, 1, 3)
	if free, _, _ := a.Free(); a.Ready(Written) != 0 || free != 2*128+342 {
		t.Fatalf("%d are ready of %d that are free, all of them in holes", a.Ready(Written), free)
	}
	a.Add(Written, 0, 3, 4)
	if n := a.Ready(Written); n != ChunkBlocks {
		t.Fatalf("%d are ready, one chunk is wholly free", n)
	}
	var order []uint64
	for {
		place, n, err := a.Alloc(1, 1, Written)
		if errors.Is(err, ErrNone) {
			break
		}
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if chunk := place / ChunkBlocks; len(order) == 0 || order[len(order)-1] != chunk {
			order = append(order, chunk)
		}
		checkRoomy(t, a, store)
	}
	if free, _, _ := a.Free(); free != 0 || len(order) != 4 || order[0] != 3 || order[1] != 0 {
		t.Fatalf("chunks were used in the order %v, want 3 (whole), 0 (a third free), then the others; %d blocks are left", order, free)
	}
}

// Holes do not make up for roomy chunks when space goes back to the file system: they would be zeroed again at once.
func TestTakeBackLeavesRoomyChunks(t *testing.T) {
	store := &fakeStore{map[uint32]*Bitmap{}}
	a := newAllocator(t, store)
	a.Add(Written, 0, 0, 8)
	holes(t, a, store, 5, 2)
	taken := 0
	for {
		_, _, ok, err := a.TakeBack(Written, 2*ChunkBlocks)
		must(t, err)
		if !ok {
			break
		}
		taken++
		checkRoomy(t, a, store)
	}
	if taken != 1 || a.Ready(Written) != 2*ChunkBlocks {
		t.Fatalf("%d chunks were taken back and %d blocks are ready; want one, and the two chunks that are to be kept", taken, a.Ready(Written))
	}
}

// Of what is there when the allocator is made all free blocks count as ready, until each segment was surveyed; then it is as if it had always been known.
func TestSurvey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &fakeStore{map[uint32]*Bitmap{}}
		var segments []Segment
		for i := range rapid.IntRange(1, 3).Draw(t, "segments") {
			var s Segment
			for k := range rapid.IntRange(1, 4).Draw(t, "chunks") {
				kind := Kind(rapid.IntRange(0, 1).Draw(t, "kind"))
				s.Has[kind].Add(k)
				n := rapid.SampledFrom([]int{0, 1, ChunkBlocks - roomy, ChunkBlocks - roomy + 1, ChunkBlocks}).Draw(t, "used")
				if n > 0 {
					store.set(uint64(i*SegmentBlocks+k*ChunkBlocks), n, true)
				}
				s.Used += n
			}
			segments = append(segments, s)
		}
		a := newAllocator(t, store, segments...)
		for more := true; more; {
			checkRoomy(t, a, store)
			place, n, err := a.Alloc(1, rapid.IntRange(1, 500).Draw(t, "want"), Written)
			if err == nil && rapid.Bool().Draw(t, "commit") {
				store.set(place, n, true)
				a.Committed([]Extent{{place, n}})
			}
			more, err = a.Survey()
			must(t, err)
		}
		for i := range a.segments {
			if a.segments[i].rough {
				t.Fatalf("segment %d is not surveyed", i)
			}
		}
		checkRoomy(t, a, store)
	})
}
