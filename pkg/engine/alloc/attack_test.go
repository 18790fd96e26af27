package alloc

import "testing"

// Two owners share the last chunk. When one goes, the other's extent stays known: its blocks are not handed out to a third.
func TestSharedChunkOutlivesAnOwner(t *testing.T) {
	store := &fakeStore{map[uint32]*Bitmap{}}
	a := newAllocator(t, store)
	a.Add(Written, 0, 0, 1)
	taken := map[uint64]bool{}
	take := func(owner uint64, commit bool) {
		t.Helper()
		place, n, err := a.Alloc(owner, 1, Written)
		if err != nil {
			t.Fatal(err)
		}
		if taken[place] {
			t.Fatalf("block %d is handed out twice", place)
		}
		taken[place] = true
		if commit {
			store.set(place, n, true)
			a.Committed([]Extent{{place, n}})
		}
	}
	take(1, true)
	take(2, true)
	a.Forget(1)
	take(2, false)
	take(3, false)
}

// A shared chunk fills up and its owners move on one after the other; what is held there in between stays known.
func TestSharedChunkKeepsHeldBlocks(t *testing.T) {
	store := &fakeStore{map[uint32]*Bitmap{}}
	a := newAllocator(t, store)
	a.Add(Written, 0, 0, 1)
	take := func(owner uint64, want int) {
		t.Helper()
		place, n, err := a.Alloc(owner, want, Written)
		if err != nil || n != want {
			t.Fatalf("owner %d wanted %d blocks and got %d: %v", owner, want, n, err)
		}
		store.set(place, n, true)
		a.Committed([]Extent{{place, n}})
	}
	take(1, 500)
	take(2, 524)
	a.Add(Written, 0, 1, 3)
	take(1, ChunkBlocks)
	held := []Extent{{10, 20}}
	if err := a.Hold(held); err != nil {
		t.Fatal(err)
	}
	store.set(10, 20, false)
	take(2, ChunkBlocks)
	a.Release(held)
	got := 0
	for got <= 20 {
		_, n, err := a.Alloc(3, 1, Written)
		if err != nil {
			break
		}
		if n != 1 {
			t.Fatalf("%d blocks after %d", n, got)
		}
		got += n
	}
	if got != 20 {
		t.Fatalf("%d blocks were handed out, 20 were free", got)
	}
}
