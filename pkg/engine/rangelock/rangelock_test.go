package rangelock

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

func TestExclusiveWhereTheyTouch(t *testing.T) {
	var table Table
	var owner [64]atomic.Int32
	var wg sync.WaitGroup
	for w := range int32(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range 20000 {
				off := r.IntN(63)
				end := off + 1 + r.IntN(64-off-1)
				k := Key{1, uint32(r.IntN(2))}
				table.Lock(k, off, end)
				if k.Page == 0 {
					for i := off; i < end; i++ {
						if !owner[i].CompareAndSwap(0, w+1) {
							t.Errorf("block %d held twice", i)
						}
					}
					for i := off; i < end; i++ {
						owner[i].Store(0)
					}
				}
				table.Unlock(k, off, end)
			}
		})
	}
	wg.Wait()
	for i := range table.shards {
		if len(table.shards[i].held) != 0 {
			t.Fatal("a lock was left behind")
		}
	}
}

func TestApartSideBySide(t *testing.T) {
	var table Table
	k := Key{1, 1}
	table.Lock(k, 0, 8)
	table.Lock(k, 8, 16) // would hang if they excluded each other
	table.Unlock(k, 0, 8)
	table.Unlock(k, 8, 16)
}
