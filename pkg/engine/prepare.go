package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

const (
	// An eighth of the pool, within these bounds in blocks, is kept written ahead of the allocator.
	aheadMin = 64 << 20 / BlockSize
	aheadMax = 2 << 30 / BlockSize
	// aheadStep is how much is written ahead at once, in chunks.
	aheadStep = 16
	// aheadKeep is how many free blocks stay written when space goes back to the file system.
	aheadKeep = 512 << 20 / BlockSize
	// pendingMany is how many pending runs start a round by themselves: a snapshot commits what is pending, and should find little. Under load rounds
	// then follow one another without a pause, which cost no throughput when measured.
	pendingMany = 64
	// spacePatience is how long a write waits for space before it gets ENOSPC, once nothing is under way that would free any.
	spacePatience = 10 * time.Second
)

// preparer writes chunks ahead of the allocator, and gives wholly free ones back to the file system.
type preparer struct {
	kicked      chan struct{}
	manyPending chan struct{}
	window      int64 // blocks to keep written ahead
	many        int64 // pending runs that start a round
	stuck       atomic.Pointer[error]

	mu   sync.Mutex
	done chan struct{} // closed when a job ends
}

func newPreparer() preparer {
	return preparer{kicked: make(chan struct{}, 1), manyPending: make(chan struct{}, 1), done: make(chan struct{})}
}

func (r *preparer) kick() {
	select {
	case r.kicked <- struct{}{}:
	default:
	}
}

func (r *preparer) jobDone() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done
}

func (r *preparer) jobEnded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.done)
	r.done = make(chan struct{})
}

// wake is called after every allocation.
func (r *preparer) wake(p *Pool) {
	if p.alloc.Ready() < r.window/2 {
		r.kick()
	}
	if p.pages.pending.Load() > r.many {
		select {
		case r.manyPending <- struct{}{}:
		default:
		}
	}
}

// idleTick is how often the preparer looks whether the pool is idle; every giveBackTicks of them space goes back to the file system.
const (
	idleTick      = time.Second
	giveBackTicks = 10
)

// prepare keeps blocks written ahead. Writing zeroes costs the disk as much as the data that will replace them, so it is done when nobody allocates: the
// first half of the window serves a burst without any, and only below it zeroes are written beside the data, at its pace.
func (p *Pool) prepare() {
	r := &p.preparing
	tick := time.NewTicker(idleTick)
	defer tick.Stop()
	last := p.alloc.Ready()
	for n := 1; ; n++ {
		select {
		case <-p.stop:
			return
		case <-r.kicked:
			p.fill(func(free int64) bool { return free < r.window/2 })
		case <-tick.C:
			if p.alloc.Ready() >= last { // nobody has allocated since
				p.fill(func(free int64) bool {
					idle := free >= last
					last = free
					return idle && free < r.window
				})
			}
			if n%giveBackTicks == 0 {
				p.giveBack()
			}
		}
		last = p.alloc.Ready()
	}
}

// fill writes ahead, step by step, while more are wanted.
func (p *Pool) fill(want func(free int64) bool) {
	for p.failure() == nil && !p.stopping() && want(p.alloc.Ready()) {
		more, err := p.writeAhead()
		if err != nil {
			p.event("writing blocks ahead went wrong; writes that need new blocks wait", "error", err)
			p.preparing.stuck.Store(&err)
			return
		}
		p.preparing.stuck.Store(nil)
		if !more {
			return
		}
	}
}

func (p *Pool) stopping() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

// chunkLimit is how many chunks the pool's size allows.
func (p *Pool) chunkLimit() int64 {
	return p.member.Superblock().Size / (alloc.ChunkBlocks * BlockSize)
}

// writeAhead fills the next chunks with zeroes. Promise "an allocated block never needs file-system space", in this order: zeroes - synced with their
// extents - the chunks' bits committed, synced - handed to the allocator.
func (p *Pool) writeAhead() (more bool, err error) {
	seg, from, to, ok := p.nextUnwritten()
	if !ok {
		return false, nil
	}
	// Data takes no space while the metadata's reserve is spent.
	if !p.member.BallastHeld() {
		if err := p.member.RestoreBallast(); err != nil {
			return false, err
		}
		p.event("the file system has room again; the metadata's reserve is restored")
	}
	if err := p.member.EnsureSegment(seg); err != nil {
		return false, err
	}
	if err := p.member.Prewrite(seg, uint32(from*alloc.ChunkBlocks), uint32(to*alloc.ChunkBlocks)); err != nil {
		return false, err
	}
	ahead := p.alloc.Ahead(seg)
	for k := from; k < to; k++ {
		ahead[k/64] |= 1 << (k % 64)
	}
	err = p.store.commitOne(func(b *batch) { b.put(format.PrewrittenKey(seg), encodeAhead(ahead)) }, func() { p.alloc.AddAhead(seg, from, to) })
	return true, err
}

// releaseBallast is the metadata store's call for space. It says whether there was any to give.
func (p *Pool) releaseBallast() bool {
	if !p.member.BallastHeld() || p.member.ReleaseBallast() != nil {
		return false
	}
	p.event("the file system is full; the metadata goes on with its reserve: free some space")
	return true
}

// nextUnwritten finds the lowest stretch of chunks, at most a step, that are not written ahead.
func (p *Pool) nextUnwritten() (seg uint32, from, to int, ok bool) {
	limit := p.chunkLimit()
	for first := int64(0); first < limit; first += alloc.SegmentChunks {
		seg = uint32(first / alloc.SegmentChunks)
		ahead := p.alloc.Ahead(seg)
		last := int(min(alloc.SegmentChunks, limit-first))
		for from = 0; from < last && ahead[from/64]&(1<<(from%64)) != 0; from++ {
		}
		if from == last {
			continue
		}
		for to = from; to < last && to-from < aheadStep && ahead[to/64]&(1<<(to%64)) == 0; to++ {
		}
		return seg, from, to, true
	}
	return 0, 0, 0, false
}

// giveBack punches chunks that have been free for a while, beyond what is kept. Promise "punched ranges leave the allocator until preallocated again",
// in this order: taken out of the allocator - its bit cleared in a synced commit - punched.
func (p *Pool) giveBack() {
	for range 256 {
		if p.failure() != nil || p.stopping() {
			return
		}
		seg, k, ok, err := p.alloc.TakeBack(max(aheadKeep, p.preparing.window))
		if err == nil && ok {
			ahead := p.alloc.Ahead(seg)
			err = p.store.commitOne(func(b *batch) { b.put(format.PrewrittenKey(seg), encodeAhead(ahead)) }, nil)
			if err == nil {
				err = p.member.Punch(seg, uint32(k*alloc.ChunkBlocks), alloc.ChunkBlocks)
			}
		}
		if err != nil {
			p.event("giving free space back to the file system went wrong", "segment", seg, "error", err)
		}
		if err != nil || !ok {
			return
		}
	}
}

// spaceWait is one write's wait for space.
type spaceWait struct {
	freed    <-chan struct{}
	deadline time.Time
}

// wait returns nil when it is worth trying again: at once the first time, so that nothing that becomes free between the attempts is missed. It holds no
// lock, pin or gate.
func (w *spaceWait) wait(p *Pool) error {
	p.preparing.kick()
	freed := w.freed
	w.freed = p.alloc.Freed()
	if freed == nil {
		return nil
	}
	if w.deadline.IsZero() {
		w.deadline = time.Now().Add(cmp.Or(p.options.patience, spacePatience))
	}
	// Blocks freed by discards are held until a round has made that durable.
	if p.pages.pending.Load() > 0 {
		if err := p.flush(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	if p.hopeless() {
		return p.noSpace()
	}
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return p.noSpace()
	case <-p.stop:
		return ErrClosed
	}
}

// hopeless tells that nothing is under way that could free a block.
func (p *Pool) hopeless() bool {
	free, held, _ := p.alloc.Free()
	if free > 0 || held > 0 {
		return false
	}
	p.catalogue.mu.RLock()
	jobs := len(p.catalogue.jobs)
	p.catalogue.mu.RUnlock()
	_, _, _, more := p.nextUnwritten()
	return jobs == 0 && !more
}

func (p *Pool) noSpace() error {
	if e := p.preparing.stuck.Load(); e != nil && errors.Is(*e, member.ErrNoSpace) {
		return fmt.Errorf("%w: the file system under pool %q is full: %w", ErrNoSpace, p.name(), *e)
	}
	return fmt.Errorf("%w: pool %q is full; delete snapshots or volumes, or grow it", ErrNoSpace, p.name())
}

func encodeAhead(ahead [alloc.SegmentChunks / 64]uint64) []byte {
	var b []byte
	for _, w := range ahead {
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24), byte(w>>32), byte(w>>40), byte(w>>48), byte(w>>56))
	}
	return b
}
