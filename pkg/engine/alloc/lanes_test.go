package alloc

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// threeLanes has segments 0, 1 and 2 in lanes of their own, with so many chunks each.
func threeLanes(t fataler, store Store, chunks int) *Allocator {
	a := newAllocator(t, store)
	for i := range 3 {
		a.Assign(uint32(i), i)
		a.Add(Written, uint32(i), 0, chunks)
	}
	return a
}

func laneOf(place uint64) int { return int(place / SegmentBlocks) }

// An owner's chunks go round the lanes, and within a lane they follow one another.
func TestStripedGoesRound(t *testing.T) {
	a := threeLanes(t, &fakeStore{map[uint32]*Bitmap{}}, 4)
	next := map[int]uint64{}
	for i := range 12 {
		place, n, err := a.Alloc(7, ChunkBlocks, Written)
		if err != nil || n != ChunkBlocks {
			t.Fatal(n, err)
		}
		lane := laneOf(place)
		if want := (7 + i) % 3; lane != want {
			t.Fatalf("chunk %d is in lane %d, want %d", i, lane, want)
		}
		if at := next[lane]; at != 0 && place != at && i < 9 {
			t.Fatalf("chunk %d of lane %d at %d, the one before ended at %d", i, lane, place, at)
		}
		next[lane] = place + ChunkBlocks
	}
	if _, _, err := a.Alloc(7, 1, Written); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
}

// Filled lanes: the second is touched when the first has nothing left.
func TestFilledOneAfterTheOther(t *testing.T) {
	a := threeLanes(t, &fakeStore{map[uint32]*Bitmap{}}, 2)
	a.SetFilled(true)
	for i := range 6 {
		place, _, err := a.Alloc(uint64(i), ChunkBlocks, Written)
		if err != nil || laneOf(place) != i/2 {
			t.Fatalf("chunk %d is in lane %d: %v", i, laneOf(place), err)
		}
	}
}

// Where volumes are striped, Ready tells of the shortest lane, but not of one that cannot get more.
func TestReadyIsTheShortestLane(t *testing.T) {
	a := threeLanes(t, &fakeStore{map[uint32]*Bitmap{}}, 1)
	a.Add(Written, 0, 1, 3)
	if n := a.Ready(Written); n != 3*ChunkBlocks {
		t.Fatal(n)
	}
	a.SetDry(1, true)
	a.SetDry(2, true)
	if n := a.Ready(Written); n != 3*ChunkBlocks {
		t.Fatal(n)
	}
	a.CloseLane(0)
	if n := a.Ready(Written); n != 2*ChunkBlocks {
		t.Fatalf("%d with only dry lanes open: all that is free", n)
	}
}

// Nothing is handed out of a closed lane, what becomes free there counts again when it is open, and no block is handed out twice.
func TestClosedLanes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &fakeStore{map[uint32]*Bitmap{}}
		a := threeLanes(t, store, 2)
		a.SetFilled(rapid.Bool().Draw(t, "filled"))
		owned, closed := map[uint64]bool{}, [3]bool{}
		var list []Extent
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			lane := rapid.IntRange(0, 2).Draw(t, "lane")
			switch op := rapid.IntRange(0, 6).Draw(t, "op"); {
			case op == 0:
				a.CloseLane(lane)
				closed[lane] = true
			case op == 1:
				a.OpenLane(lane)
				closed[lane] = false
			case op == 2 && len(list) > 0:
				e := list[len(list)-1]
				list = list[:len(list)-1]
				must(t, a.Hold([]Extent{e}))
				store.set(e.Place, e.N, false)
				release(a, owned, e)
			default:
				place, n, err := a.Alloc(uint64(lane), rapid.IntRange(1, 700).Draw(t, "want"), Written)
				if errors.Is(err, ErrNone) {
					continue
				}
				if err != nil || closed[laneOf(place)] {
					t.Fatalf("%d blocks at %d, lanes closed %v: %v", n, place, closed, err)
				}
				for i := range uint64(n) {
					if owned[place+i] {
						t.Fatalf("block %d handed out twice", place+i)
					}
					owned[place+i] = true
				}
				list = append(list, Extent{place, n})
				store.set(place, n, true)
				a.Committed([]Extent{{place, n}})
			}
			want := int64(0)
			for l := range closed {
				if !closed[l] {
					want += 2 * ChunkBlocks
				}
			}
			for place := range owned {
				if !closed[laneOf(place)] {
					want--
				}
			}
			if free, _, _ := a.Free(); free != want {
				t.Fatalf("%d free, want %d", free, want)
			}
			checkRoomy(t, a, store)
		}
		for l := range closed {
			a.OpenLane(l)
		}
		if free, _, _ := a.Free(); free != int64(6*ChunkBlocks-len(owned)) {
			t.Fatalf("%d free at the end", free)
		}
	})
}

func must(t fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
