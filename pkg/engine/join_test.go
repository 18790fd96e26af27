package engine

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
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
