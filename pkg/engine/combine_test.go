package engine

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// combineWhileHeld begins n writes of a block, at scattered offsets, while the device holds the first requests back; the first shared request after them
// fails with fail, if that is set. It returns the writes' errors when the device has gone on, and how many blocks that request had. What waits is one
// request, or up to three if what is held lies in its midst. The zeroes that a pool writes ahead are larger, and left alone.
func combineWhileHeld(t *testing.T, p *testPool, disk *fsys.FaultFS, v *Volume, n int, fail error) (errs []error, shared int) {
	t.Helper()
	release := make(chan struct{})
	var requests, blocks atomic.Int32
	disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: "*.seg", Err: fail, When: func(c fsys.Call) bool {
		if c.Len > combineMost*BlockSize {
			return false
		}
		if requests.Add(1) <= combineLeast {
			<-release
			return false
		}
		return c.Len > BlockSize && blocks.CompareAndSwap(0, int32(c.Len/BlockSize))
	}})
	errs = make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = v.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, BlockSize), combineOffset(i)) })
	}
	until(t, "the others wait", func() bool {
		p.combiner.mu.Lock()
		defer p.combiner.mu.Unlock()
		return len(p.combiner.queue) == n-combineLeast && requests.Load() == combineLeast
	})
	close(release)
	wg.Wait()
	return errs, int(blocks.Load())
}

func combineOffset(i int) int64 { return int64(i*37%64) * 5 * BlockSize }

// Writes to new blocks that come while others are under way share a request, whatever their offsets.
func TestCombine(t *testing.T) {
	p, disk := memPool(t)
	p.quiet()
	v := p.volume("v", 4<<20)
	const n = 24
	before, data := p.DataCounts().Writes, v.Info().Counters.DataWrites
	errs, _ := combineWhileHeld(t, p, disk, v, n, nil)
	for i, err := range errs {
		if err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	if got := p.DataCounts().Writes - before; got > combineLeast+3 {
		t.Errorf("%d requests for %d writes, %d of them together", got, n, n-combineLeast)
	}
	if got := v.Info().Counters.DataWrites - data; got != n {
		t.Errorf("%d data writes are counted, want %d", got, n)
	}
	verify := func() {
		t.Helper()
		b := make([]byte, BlockSize)
		for i := range n {
			_, err := v.ReadAt(b, combineOffset(i))
			must(t, err)
			if !bytes.Equal(b, bytes.Repeat([]byte{byte(i + 1)}, BlockSize)) {
				t.Fatalf("write %d is not there", i)
			}
		}
	}
	verify()
	must(t, p.kill())
	p.reopen()
	v = p.open("v")
	verify()
	p.check()
}

// When a shared request goes wrong, every write in it fails, nothing of them is seen, and the volume goes on.
func TestCombineFails(t *testing.T) {
	p, disk := memPool(t)
	p.quiet()
	v := p.volume("v", 4<<20)
	const n = 12
	failed := 0
	errs, shared := combineWhileHeld(t, p, disk, v, n, unix.EIO)
	b := make([]byte, BlockSize)
	for i, err := range errs {
		want := byte(i + 1)
		if err != nil {
			if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), `write volume "v"`) {
				t.Errorf("write %d: %v", i, err)
			}
			failed, want = failed+1, 0
		}
		_, err := v.ReadAt(b, combineOffset(i))
		must(t, err)
		if !bytes.Equal(b, bytes.Repeat([]byte{want}, BlockSize)) {
			t.Errorf("block of write %d begins with %d, want %d", i, b[0], want)
		}
	}
	if failed == 0 || failed != shared {
		t.Errorf("%d writes failed, the request had %d", failed, shared)
	}
	for i := range n {
		_, err := v.WriteAt(bytes.Repeat([]byte{9}, BlockSize), combineOffset(i))
		must(t, err)
	}
	must(t, v.Flush())
	p.check()
}

// Where nothing that waits lies side by side, more requests are under way; where much does, fewer.
func TestCombineLimit(t *testing.T) {
	c := combiner{limit: combineLeast}
	number := uint64(0)
	fill := func(step uint64) {
		c.queue = nil
		for i := range uint64(8) {
			c.queue = append(c.queue, &combined{b: make([]byte, BlockSize), place: i * step, number: number})
			number++
		}
	}
	for range 2 * combineDepth {
		fill(2)
		c.take()
	}
	if c.limit != combineDepth {
		t.Errorf("scattered blocks: %d requests under way, want %d", c.limit, combineDepth)
	}
	for range 2 * combineDepth {
		fill(1)
		if group := c.take(); len(group) != 8 || len(c.queue) != 0 {
			t.Fatalf("took %d of 8 blocks side by side", len(group))
		}
	}
	if c.limit != combineLeast {
		t.Errorf("blocks side by side: %d requests under way, want %d", c.limit, combineLeast)
	}
	for i := range uint64(2 * combineMost) {
		c.queue = append(c.queue, &combined{b: make([]byte, BlockSize), place: i, number: i ^ 1})
	}
	if group := c.take(); len(group) != combineMost || group[0].place > 1 {
		t.Errorf("took %d blocks from %d on, want %d that have the oldest, block 1", len(group), group[0].place, combineMost)
	}
}
