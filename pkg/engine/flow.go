package engine

import "sync"

// flowBytes is how much large writes may have under way in a pool at once. What is in the device's queue stands before every flush and every write of
// the metadata's log: with eight writes of 1 MiB side by side a restore, which is one log write, took 42-57 ms at the 99th percentile, with two of them
// 4-7 ms; the writers were nearly as fast, and their longest waits shorter. With three, a scheduler that serves by sector (mq-deadline) can always have a
// large write ahead of a small one: single small writes, of the log and of a plain file alike, then waited for 150-800 ms.
const flowBytes = 2 << 20

// flow lets large writes pass in order, so that no more than so many bytes are under way. Who waits for it holds no lock, pin or gate; who has passed may
// wait for a gate or a range of blocks, whose holders never wait for the flow.
type flow struct {
	mu    sync.Mutex
	bytes int64 // under way
	queue []flowWaiter
}

type flowWaiter struct {
	bytes int64
	pass  chan struct{}
}

// enter waits for its turn with so many bytes; leave takes the same number.
func (f *flow) enter(n int) {
	w := flowWaiter{bytes: flowShare(n)}
	f.mu.Lock()
	if len(f.queue) == 0 && f.bytes+w.bytes <= flowBytes {
		f.bytes += w.bytes
		f.mu.Unlock()
		return
	}
	w.pass = make(chan struct{})
	f.queue = append(f.queue, w)
	f.mu.Unlock()
	<-w.pass
}

func (f *flow) leave(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes -= flowShare(n)
	for len(f.queue) > 0 && f.bytes+f.queue[0].bytes <= flowBytes {
		f.bytes += f.queue[0].bytes
		close(f.queue[0].pass)
		f.queue = f.queue[1:]
	}
}

// flowShare is what a write counts as: one that is larger than all there is goes alone.
func flowShare(n int) int64 { return min(int64(n), flowBytes) }
