package engine

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Deleting a snapshot whose child is a busy head: a join of many pages, with first writes before, during and after it.
func TestJoinUnderLoad(t *testing.T) {
	o := testOptions(t)
	o.ringBytes = 1 << 20
	p := newPool(t, o, 1<<30)
	v := p.volume("v", 256<<20)
	chunk := make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); off += 1 << 20 {
		_, err := v.WriteAt(chunk, off)
		must(t, err)
	}
	for round := range 3 {
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
		must(t, err)
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(round), uint64(w)))
				b := make([]byte, BlockSize)
				for ctx.Err() == nil {
					if _, err := v.WriteAt(b, r.Int64N(v.Size()/BlockSize)*BlockSize); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if round == 1 {
			must(t, p.DeleteSnapshot(t.Context(), "s"))
			wg.Wait()
		} else {
			wg.Wait()
			must(t, p.DeleteSnapshot(t.Context(), "s"))
		}
		stop()
		p.jobsDone()
		p.check()
		if used := p.Info().Used; used != 256<<20 {
			t.Fatalf("%d bytes in use, the volume has %d", used, v.Size())
		}
	}
}

// More pages than one step of a background pass takes, joined and freed.
func TestJoinManyPages(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	const pages = stepPages + 100
	v := p.volume("v", pages*pageBytes)
	b := make([]byte, BlockSize)
	write := func() {
		for page := range int64(pages) {
			_, err := v.WriteAt(b, page*pageBytes)
			must(t, err)
		}
	}
	write()
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	write()
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
	p.check()
	if used := p.Info().Used; used != pages*BlockSize {
		t.Fatalf("%d bytes in use after the join, want %d", used, pages*BlockSize)
	}
	must(t, v.Close(t.Context()))
	must(t, p.DeleteVolume(t.Context(), "v"))
	p.jobsDone()
	if used := p.Info().Used; used != 0 {
		t.Fatalf("%d bytes in use after the free", used)
	}
}

// A generation that a pass leaves nothing of in a page goes by range: what is beside it stays, in that page of other generations, and of its own in pages
// where only some of it is hidden. The next process finds the same.
func TestPassRemovesByRange(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	const pages = 4
	v := p.volume("v", pages*pageBytes)
	want := make([]byte, v.Size())
	write := func(value byte, page int64, every, from, to int) {
		b := bytes.Repeat([]byte{value}, BlockSize)
		for block := from; block < to; block += every {
			off := page*pageBytes + int64(block)*BlockSize
			_, err := v.WriteAt(b, off)
			must(t, err)
			copy(want[off:], b)
		}
	}
	snapshot := func(name string) {
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: name, Volume: "v"})
		must(t, err)
	}
	for page := range int64(pages) {
		write(1, page, 4, 2, runs.Blocks)
	}
	snapshot("below")
	for page := range int64(pages) {
		write(2, page, 2, 0, runs.Blocks)
	}
	snapshot("joined")
	write(3, 0, 2, 0, runs.Blocks)                       // all of the joined one's
	write(3, 2, 2, 0, runs.Blocks)                       // all, and others
	write(3, 2, 2, 1, runs.Blocks)                       //
	write(3, 3, 2, 2*rangeRuns, runs.Blocks)             // all but a few
	write(3, 1, 2, runs.Blocks-rangeRuns/2, runs.Blocks) // a few only
	snapshot("above")
	write(4, 3, 64, 0, runs.Blocks)
	must(t, p.flush())
	must(t, p.DeleteSnapshot(t.Context(), "joined"))
	p.jobsDone()
	p.check()
	expect(t, v, want)
	must(t, p.DeleteSnapshot(t.Context(), "below"))
	must(t, p.DeleteSnapshot(t.Context(), "above"))
	p.jobsDone()
	p.check()
	must(t, p.kill())
	p.reopen()
	expect(t, p.open("v"), want)
	p.check()
}
