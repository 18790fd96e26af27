package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

const (
	// An eighth of the pool, within these bounds in blocks, is kept written ahead of the allocator: what small writes take.
	aheadMin = 64 << 20 / BlockSize
	aheadMax = 2 << 30 / BlockSize
	// A sixteenth of the pool, within these bounds in blocks, is kept reserved: what large writes take, and small ones when nothing else is there.
	spareMin = 32 << 20 / BlockSize
	spareMax = 1 << 30 / BlockSize
	// aheadStep is how much is written ahead at once, and reserved at once at least, in chunks.
	aheadStep = 16
	// aheadKeep is how many free blocks stay written when space goes back to the file system.
	aheadKeep = 512 << 20 / BlockSize
	// pendingMany is the weight of pending runs that starts a round by itself: a snapshot commits what is pending, and should find little. Each round flushes
	// the device and its log write does so again, and requests wait meanwhile: docs/design/engine.md has the rates for each size.
	pendingMany = 512
	// replacingMany is the same for runs whose pages must be read and rewritten, at up to half a millisecond each: a cut may wait for that round with its
	// gates shut.
	replacingMany = 4
)

// preparer keeps chunks ready for the allocator, and gives wholly free ones back to the file system. space.go does the work.
type preparer struct {
	kicked      chan struct{}
	manyPending chan struct{}
	window      atomic.Int64          // blocks to keep written ahead
	spare       atomic.Int64          // blocks to keep reserved
	step        atomic.Int64          // chunks to reserve at once
	many        int64                 // weight of pending runs that starts a round
	wanted      atomic.Bool           // somebody took a written block, and the window is half empty
	stuck       atomic.Pointer[stuck] // why there is no more space to prepare, though the pool's size allows it
	tried       broadcast             // told when an attempt to prepare space has ended
	rested      broadcast             // told when all is prepared that can be, and nobody allocated meanwhile

	// turn is held for each step of the preparer's, and by who takes a member out from under it; before Pool.ops.
	turn sync.Mutex
	// space is held while chunks are reserved or punched: by the preparer, or by who sets space aside for a volume. After turn and Pool.ops.
	space sync.Mutex

	mu   sync.Mutex
	done chan struct{} // closed when a job ends
}

// stuck is an attempt to prepare space that went wrong.
type stuck struct {
	began time.Time
	err   error
}

func newPreparer() preparer {
	return preparer{kicked: make(chan struct{}, 1), manyPending: make(chan struct{}, 1), done: make(chan struct{})}
}

// size fits the preparer to its pool, and again when that has grown.
func (r *preparer) size(p *Pool) {
	chunks := p.chunkLimit()
	r.window.Store(min(max(chunks*alloc.ChunkBlocks/8, aheadMin), aheadMax))
	r.spare.Store(min(max(chunks*alloc.ChunkBlocks/16, spareMin), spareMax))
	// ext4 lets no write to a file begin while space is reserved in it, and waits for those under way. So a large pool reserves whole segments, before
	// anything is written to them.
	r.step.Store(min(max(chunks/8, aheadStep), alloc.SegmentChunks))
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

// wake is called after every allocation. One that did not ask for written blocks does not have any written: the zeroes would stand in its way.
func (r *preparer) wake(p *Pool, prefer alloc.Kind) {
	if prefer == alloc.Written && p.alloc.Ready(alloc.Written) < r.window.Load()/2 {
		r.wanted.Store(true)
		r.kick()
	}
	if p.alloc.Ready(alloc.Reserved) < r.spare.Load() {
		r.kick()
	}
	if p.pages.pending.Load() > r.many || p.pages.replacing.Load() > replacingMany {
		r.askForCommit()
	}
}

// askForCommit has the timer commit what is pending now.
func (r *preparer) askForCommit() {
	select {
	case r.manyPending <- struct{}{}:
	default:
	}
}

// idleTick is how often the preparer looks whether the pool is idle; every giveBackTicks of them space goes back to the file system. Up to quietRequests
// within a tick it takes for none.
const (
	idleTick      = time.Second
	giveBackTicks = 10
	quietRequests = 64
)

// prepare keeps blocks reserved, which costs next to nothing, and written ahead. Writing zeroes costs the disk as much as the data that will replace
// them, so it is done when nobody allocates, and step by step where somebody reads or overwrites: the first half of the window serves a burst without any,
// and only below it zeroes are written beside the data, at its pace.
func (p *Pool) prepare() {
	r := &p.preparing
	tick := time.NewTicker(idleTick)
	defer tick.Stop()
	last, still, requests := p.alloc.Handed(), 0, p.requests()
	for n := 1; ; n++ {
		select {
		case <-p.stop:
			return
		case <-r.kicked:
			wanted := r.wanted.Swap(false)
			p.fill(false, func() bool {
				return wanted && p.alloc.Ready(alloc.Written) < r.window.Load()/2 && p.alloc.Ready(alloc.Reserved) >= r.spare.Load()
			})
		case <-tick.C:
			idle := func() bool { return p.alloc.Handed() == last }
			if still++; !idle() {
				still = 0
			}
			if still >= giveBackTicks {
				p.alloc.LeaveReserved()
			}
			p.survey(idle)
			c := zeroPace{requests: p.requests, seen: requests}
			p.fill(false, func() bool { return idle() && p.alloc.Ready(alloc.Written) < r.window.Load() && c.step() })
			p.fill(true, func() bool { return idle() && c.step() })
			if idle() && !c.short {
				r.rested.tell()
			}
			if n%giveBackTicks == 0 {
				p.giveBack(idle)
			}
			p.watchSpace()
		}
		last, requests = p.alloc.Handed(), p.requests()
	}
}

// zeroPace lets one step a tick pass while there are requests to the members, and any number while there are none: 64 MiB a second are little beside them,
// and at the disk's full speed those who read and overwrite would share it with the zeroes.
type zeroPace struct {
	requests func() uint64
	seen     uint64 // requests when the last tick ended
	steps    int
	short    bool // a step was refused
}

func (c *zeroPace) step() bool {
	if c.steps > 0 && c.requests()-c.seen > quietRequests {
		c.short = true
		return false
	}
	c.steps++
	return true
}

// requests counts what the members were asked to read and write so far, zeroes left out. It may be less when a member has gone: that looks busy for a tick.
func (p *Pool) requests() uint64 {
	c := p.DataCounts()
	return c.Reads + c.Writes
}

// fill reserves what is missing and writes zeroes to reserved chunks, step by step, while it is wanted. With partial, only to those that have blocks in
// use: until they are written, every flush that covers a write there syncs their file.
func (p *Pool) fill(partial bool, want func() bool) {
	defer p.preparing.tried.tell()
	for p.failure() == nil && !p.stopping() {
		began := time.Now()
		more, err := p.prepareOnce(partial, want)
		if errors.Is(err, member.ErrFlush) { // the sync covered writes, too
			p.fail(err)
			return
		}
		if err != nil {
			if p.preparing.stuck.Swap(&stuck{began, err}) == nil {
				p.event("preparing space went wrong; writes that need new blocks wait when there are none left", "error", err)
			}
			return
		}
		p.preparing.stuck.Store(nil)
		if !more {
			return
		}
	}
}

// prepareOnce is one step of fill.
func (p *Pool) prepareOnce(partial bool, want func() bool) (more bool, err error) {
	p.preparing.turn.Lock()
	defer p.preparing.turn.Unlock()
	if err = p.reserveSpare(); err == nil && want() {
		more, err = p.writeZeroes(partial)
	}
	return more, err
}

// WaitPrepared returns when the pool has prepared for later writes what it does while nobody allocates: space that is reserved, and zeroes written ahead.
// Who measures waits for it, so that the disk is quiet. While volumes are written to it may not return before ctx ends.
func (p *Pool) WaitPrepared(ctx context.Context) error {
	if err := p.failure(); err != nil {
		return err
	}
	select {
	case <-p.preparing.rested.next():
		return p.failure()
	case <-p.stop:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// survey has the allocator find out which chunks are roomy in what was in the pool when it was opened, while nobody writes; until it has, no zeroes are
// written where free blocks in pieces are taken for roomy chunks.
func (p *Pool) survey(idle func() bool) {
	for more := true; more && idle() && !p.stopping(); {
		var err error
		if more, err = p.alloc.Survey(); err != nil {
			p.event("counting free blocks went wrong; it is tried again", "error", err)
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
