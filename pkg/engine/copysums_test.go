package engine

import (
	"errors"
	"testing"
)

// Checksums stay with what COW and tidy move.
func TestChecksumsOfMoved(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.cowVolume("v", 4<<20)
	must(t, p.WaitChecksums(t.Context()))
	made := p.store.sumBytes.Load()
	for i := range int64(40) {
		p.writeStamp(v, i*25, 1, 2)
	}
	if c := v.Info().Counters; c.Copies < 40 {
		t.Fatalf("%d copies", c.Copies)
	}
	must(t, p.flush())
	wantSums(t, p, 1024, "after COW has moved 40 of them")
	for start := int64(0); ; {
		step, err := p.Tidy(t.Context(), TidySpec{Volume: "v", Start: start, Rate: -1})
		must(t, err)
		if start = step.Next; start == 0 {
			break
		}
	}
	wantSums(t, p, 1024, "after tidy")
	if p.store.sumBytes.Load() != made {
		t.Fatal("a move changed checksums")
	}
}

// What is damaged is not copied: the write goes on as ROW, and the damage stays where a scrub finds it.
func TestCopyVerifies(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.cowVolume("v", 1<<20)
	must(t, p.WaitChecksums(t.Context()))
	place := p.placesOf(v)[10]
	p.damage(place)
	p.writeStamp(v, 10, 1, 2)
	if now := p.placesOf(v)[10]; now == place {
		t.Fatal("the volume took the place of what could not be copied")
	}
	must(t, p.flush())
	r, found := p.scrubFinds()
	if r.Problems != 1 || found[0].FileOffset%(1<<30) != int64(place)*BlockSize%(1<<30) || found[0].Offset != 10*BlockSize || found[0].Volumes != nil {
		t.Fatalf("%+v %+v", r, found)
	}
	list, err := storedRuns(p.Pool, p.catalogue.layers[p.catalogue.snapshots["v-s"].rec.Layer].rec.Family, 0)
	must(t, err)
	for i, e := range list {
		if e.Place() <= place && place < e.Place()+uint64(e.Len()) {
			list = list[i : i+1]
			break
		}
	}
	var count volumeCounters
	_, err = p.relocate(relocation{p.catalogue.layers[p.catalogue.snapshots["v-s"].rec.Layer].rec.Family, 0, list, func(n int) (uint64, int, error) {
		return p.alloc.Alloc(1<<62, n, 0)
	}, &count})
	if !errors.Is(err, errDamagedCopy) {
		t.Fatalf("moving what is damaged: %v", err)
	}
	// Mended, so that the check at the end finds nothing.
	b := make([]byte, BlockSize)
	stampBlock(b, 10, 1)
	must(t, p.data.WriteAt(b, place, 0))
}
