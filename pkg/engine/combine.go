package engine

import (
	"cmp"
	"slices"
	"sync"
)

const (
	// combineMost is how many blocks one request has at most, and combineSmall how many a write that may become part of one.
	combineMost  = 32
	combineSmall = 8
	// Writes to new blocks go to the device one by one while fewer than combineLeast requests are under way: two keep it busy while one's callers go on.
	// Where what waits does not lie side by side, up to combineDepth are under way. docs/design/engine.md has the measurements.
	combineLeast = 2
	combineDepth = 32
	// combineForget is after how many writes the limit is looked for anew.
	combineForget = 4096
)

// combiner has writes to new blocks share requests. The allocator gives those who write at once blocks side by side, however scattered the guests'
// offsets: so what waits while others are under way becomes one request to the device, at a fraction of the processor time. A write that finds the device
// idle does not wait.
//
// Promise "a run enters the map only after its data write returned": whoever waited goes on when the request with its blocks has ended, and if that went
// wrong, none of its writes is acknowledged. Each holds its own blocks, lock, pin and gate meanwhile. Who waits, waits for requests to the device only.
type combiner struct {
	mu     sync.Mutex
	flying int // requests under way
	limit  int // of them, from which on writes wait
	count  int
	queue  []*combined // by place
	arrive uint64
}

// combined is a write that waits.
type combined struct {
	b      []byte
	place  uint64
	number uint64      // in the order of arrival
	group  []*combined // what it is to write, by place, itself included; nil: it was written
	err    error
	turn   chan struct{}
}

var combinedWrites = sync.Pool{New: func() any { return &combined{turn: make(chan struct{}, 1)} }}

func (w *combined) blocks() int { return len(w.b) / BlockSize }

func (w *combined) end() uint64 { return w.place + uint64(w.blocks()) }

// writeNewBlocks writes whole blocks that nobody knows of yet.
func (p *Pool) writeNewBlocks(count *volumeCounters, b []byte, place uint64) error {
	if len(b) > combineSmall*BlockSize {
		return p.writeData(count, b, place, 0)
	}
	count.wrote(b)
	c := &p.combiner
	w := c.enter(b, place)
	if w == nil {
		err := p.data.WriteAt(b, place, 0)
		c.leave()
		return err
	}
	<-w.turn
	if w.group != nil {
		p.writeTogether(w.group)
		c.leave()
	}
	err := w.err
	w.b, w.group, w.err = nil, nil, nil
	combinedWrites.Put(w)
	return err
}

// enter admits a write, or has it wait.
func (c *combiner) enter(b []byte, place uint64) *combined {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count%combineForget == 0 {
		c.limit = combineLeast
	}
	c.count++
	if c.flying < c.limit {
		c.flying++
		return nil
	}
	w := combinedWrites.Get().(*combined)
	w.b, w.place, w.number = b, place, c.arrive
	c.arrive++
	i := len(c.queue)
	for i > 0 && c.queue[i-1].place > place {
		i--
	}
	c.queue = slices.Insert(c.queue, i, w)
	return w
}

// leave ends a request. The next one is led by the first of its writes.
func (c *combiner) leave() {
	c.mu.Lock()
	c.flying--
	var lead []*combined
	for c.flying < c.limit && len(c.queue) > 0 {
		group := c.take()
		group[0].group = group
		lead = append(lead, group[0])
		c.flying++
	}
	c.mu.Unlock()
	for _, w := range lead {
		w.turn <- struct{}{}
	}
}

// take takes the oldest that waits out of the queue, with what lies beside it, and follows with the limit how much that is.
func (c *combiner) take() (group []*combined) {
	from := 0
	for i, w := range c.queue {
		if w.number < c.queue[from].number {
			from = i
		}
	}
	to, blocks := from+1, c.queue[from].blocks()
	for from > 0 && c.queue[from-1].end() == c.queue[from].place && blocks+c.queue[from-1].blocks() <= combineMost {
		from--
		blocks += c.queue[from].blocks()
	}
	for to < len(c.queue) && c.queue[to-1].end() == c.queue[to].place && blocks+c.queue[to].blocks() <= combineMost {
		blocks += c.queue[to].blocks()
		to++
	}
	group = slices.Clone(c.queue[from:to])
	c.queue = slices.Delete(c.queue, from, to)
	c.limit += cmp.Compare(max(combineLeast, combineDepth/(len(group)*len(group))), c.limit)
	return group
}

// writeTogether writes what a group has and tells the others.
func (p *Pool) writeTogether(group []*combined) {
	first := group[0]
	b := first.b
	if len(group) > 1 {
		buffer := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buffer)
		b = (*buffer)[:0]
		for _, w := range group {
			b = append(b, w.b...)
		}
	}
	if p.breaks(mutateCombine) {
		p.did(mutateCombine)
		tellCombined(group, nil)
	}
	err := p.data.WriteAt(b, first.place, 0)
	if first.err = err; !p.breaks(mutateCombine) {
		tellCombined(group, err)
	}
}

func tellCombined(group []*combined, err error) {
	for _, w := range group[1:] {
		w.err = err
		w.turn <- struct{}{}
	}
}
