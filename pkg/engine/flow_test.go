package engine

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// queued waits until so many wait for the flow.
func (f *flow) queued(t *testing.T, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d wait", n), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.queue) == n
	})
}

// They pass in order, no more than the flow's bytes at once, and one that is too large for it alone.
func TestFlow(t *testing.T) {
	var f flow
	passed := make(chan int)
	const half = flowBytes / 2
	f.enter(half)
	f.enter(half)
	sizes := []int{2 * half, half, 16 * half, half}
	for i, n := range sizes {
		go func() { f.enter(n); passed <- i }()
		f.queued(t, i+1)
	}
	f.leave(half) // too little for the first: nobody goes before it
	f.queued(t, 4)
	f.leave(half)
	for i, left := range []int{3, 2, 1, 0} {
		if got := <-passed; got != i {
			t.Fatalf("%d passed, want %d", got, i)
		}
		f.queued(t, left)
		f.leave(sizes[i])
	}
	if f.bytes != 0 || len(f.queue) != 0 {
		t.Fatalf("%d bytes, %d waiting at the end", f.bytes, len(f.queue))
	}
}

// Large writes that wait for the device keep small ones, and the metadata, from nothing; those behind them wait outside.
func TestLargeWritesWaitOutside(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 64<<20)
	p.quiet()
	hold := make(chan struct{})
	var mu sync.Mutex
	inside := 0
	disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: "*.seg", When: func(c fsys.Call) bool {
		if c.Len >= 1<<20 && filepath.Ext(c.Name) == ".seg" {
			mu.Lock()
			inside++
			mu.Unlock()
			<-hold
		}
		return true
	}})
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			if _, err := v.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 1<<20), i<<20); err != nil {
				t.Error(err)
			}
		})
	}
	p.flow.queued(t, 8-flowBytes>>20)
	eventually(t, "a small write and a flush beside held large ones", func() {
		if _, err := v.WriteAt(make([]byte, BlockSize), 32<<20); err != nil {
			t.Error(err)
		}
		if err := v.Flush(); err != nil {
			t.Error(err)
		}
	})
	mu.Lock()
	if inside > flowBytes>>20 {
		t.Errorf("%d large writes are under way", inside)
	}
	mu.Unlock()
	close(hold)
	wg.Wait()
	p.check()
}
