package member

import (
	"sync"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

const (
	// contiguousFrom is from how many bytes on a write goes out of contiguous memory.
	contiguousFrom = 256 << 10
	// contiguousBuffers is how many of ioBytes there are in the process: two huge pages.
	contiguousBuffers = 4
)

// contiguous is physically contiguous memory for large writes. A write of 1 MiB out of ordinary memory is 256 pieces of 4 KiB, and a virtual disk's whole
// queue has room for 128 or 256 pieces: one such write fills it, the next stands in the scheduler, and there every flush and every small write waits
// behind it. Copying a MiB costs 0.1 ms. With a writer of 1 MiB at depth 8, two at a time: the longest 4 KiB write to a plain file beside it went from
// 450 ms to 4, the writer's own longest from 18-60 ms to 9-14 ms, and its rate did not fall. Where all buffers are taken, or memory for them is not to be
// had, writes go out of the memory they come in.
var contiguous struct {
	mu   sync.Mutex
	made bool
	free [][]byte
}

// takeContiguous returns ioBytes, or nil; whoever takes them gives them back.
func takeContiguous() []byte {
	c := &contiguous
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.made {
		c.made = true
		for range contiguousBuffers / 2 {
			if mem, err := fsys.NewContiguous(2 * ioBytes); err == nil {
				c.free = append(c.free, mem[:ioBytes:ioBytes], mem[ioBytes:])
			}
		}
	}
	n := len(c.free)
	if n == 0 {
		return nil
	}
	b := c.free[n-1]
	c.free = c.free[:n-1]
	return b
}

func giveContiguous(b []byte) {
	contiguous.mu.Lock()
	defer contiguous.mu.Unlock()
	contiguous.free = append(contiguous.free, b)
}
