package host

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine"
)

func TestLocksExclude(t *testing.T) {
	var l locks
	var readers, writers [3]atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			for range 500 {
				k := rnd.IntN(3)
				ctx, cancel := context.WithCancel(t.Context())
				if rnd.IntN(4) == 0 {
					cancel() // granted if free, else given up at once
				}
				if rnd.IntN(2) == 0 {
					if release, err := l.shared(ctx, fmt.Sprint(k)); err == nil {
						if readers[k].Add(1); writers[k].Load() != 0 {
							t.Error("a reader beside a writer")
						}
						readers[k].Add(-1)
						release()
					}
				} else if release, err := l.exclusive(ctx, fmt.Sprint(k)); err == nil {
					if writers[k].Add(1) != 1 || readers[k].Load() != 0 {
						t.Error("a writer is not alone")
					}
					writers[k].Add(-1)
					release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if len(l.table) != 0 {
		t.Errorf("%d keys are left of which nobody uses one", len(l.table))
	}
}

func TestLocksQueueInOrder(t *testing.T) {
	var l locks
	free, err := l.shared(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := l.exclusive(waiting, "k")
		gaveUp <- err
	}()
	for queued := false; !queued; {
		l.mu.Lock()
		queued = len(l.table["k"].queue) == 1
		l.mu.Unlock()
	}
	late := make(chan func(), 1)
	go func() {
		release, err := l.shared(t.Context(), "k") // behind the writer, though readers hold it
		if err != nil {
			t.Error(err)
		}
		late <- release
	}()
	for queued := false; !queued; {
		l.mu.Lock()
		queued = len(l.table["k"].queue) == 2
		l.mu.Unlock()
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, engine.ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Fatalf("gave up with %v", err)
	}
	(<-late)() // let go by the writer that left
	free()
	if len(l.table) != 0 {
		t.Errorf("%d keys are left", len(l.table))
	}
}
