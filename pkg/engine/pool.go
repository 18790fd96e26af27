package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/epoch"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
)

// Pool is an open pool. Its methods may be called at once from many goroutines.
//
// Order of locks: ops, the flow, a volume's gate, ranges of blocks, rounds.turn or moves.turn, catalogue.mu, then those inside the parts. Whoever waits for
// space or for the ring holds none, and whoever waits for a range of blocks holds no pin: who has the range may be waiting for pins.
type Pool struct {
	options  Options
	figures  *Figures // nil: nobody counts
	fs       fsys.FS
	members  *members
	data     dataDevice
	combiner combiner
	store    *store
	pages    *pages
	alloc    *alloc.Allocator
	ring     *ring.Ring
	flushes  flushLog
	epochs   epoch.Domain
	takers   epoch.Domain // pins of COW's last steps: see partWrite.take
	locks    rangelock.Table
	rounds   rounds
	flow     flow
	moves    moves
	marks    moveMarks
	maps     openMaps
	tidying  sync.Mutex // one volume at a time; before all other locks but ops

	changing  sync.Mutex // held by who adds, finds, drains or removes a member, or moves the metadata; before ops
	metaStuck error      // why the metadata does not move as long as the pool is open; nil: it may. Guarded by changing

	// ops is held by one operation on the catalogue at a time. They take milliseconds, and what they may assume is simple for it.
	ops       sync.Mutex
	catalogue *catalogue

	preparing preparer
	full      fullTime
	level     SpaceLevel // as last told to the observer; the preparer's
	summing   summing
	scrubbing sync.Mutex // held by the scrub under way
	nextMap   atomic.Uint64
	failed    atomic.Pointer[error]
	stop      chan struct{}
	drainKick chan struct{}
	drainWhy  atomic.Pointer[error] // what is in the way of a drain: of the last pass
	jobKick   chan struct{}
	jobsHeld  atomic.Bool // by a test: queued passes stay queued
	wg        sync.WaitGroup
	closed    atomic.Bool
	readOnly  error // why, when opened so

	identity format.Superblock // of the member that had the metadata when it was opened: the pool's id and name do not change
}

// dataDevice is where blocks live.
type dataDevice interface {
	ReadAt(p []byte, place uint64, off int) error
	WriteAt(p []byte, place uint64, off int) error
	Alignment() int
}

func (p *Pool) event(message string, keysAndValues ...any) {
	if p.figures != nil {
		p.figures.Events.Add(1)
	}
	if p.options.Observer != nil {
		p.options.Observer.Event(p.name(), message, keysAndValues...)
	}
}

func (p *Pool) name() string { return p.identity.PoolName }

// failure returns why the pool takes no writes, or nil.
func (p *Pool) failure() error {
	if e := p.failed.Load(); e != nil {
		return *e
	}
	return p.readOnly
}

// refusal returns why the catalogue cannot be changed, or nil. It is asked with ops held, so that Close waits for whoever got nil.
func (p *Pool) refusal() error {
	if p.closed.Load() {
		return ErrClosed
	}
	return p.failure()
}

// fail marks the pool failed, for good. Promise "a failed flush is final": the mark is in the ring too, so that an engine restarted in the same boot
// does not take a later flush's word.
func (p *Pool) fail(cause error) {
	err := fmt.Errorf("pool %q: %w: %w", p.name(), ErrFailed, cause)
	if !p.failed.CompareAndSwap(nil, &err) {
		return
	}
	if p.ring != nil {
		if rerr := p.ring.SetFailed(cause.Error()); rerr != nil {
			p.event("the pool failed and its ring could not be marked", "error", rerr)
		}
	}
	p.preparing.jobEnded() // those who wait for jobs learn that they wait in vain
	p.event("the pool has failed and takes no more writes; read what you need, then restart the machine", "cause", cause)
}

// Info tells how the pool is.
func (p *Pool) Info() PoolInfo {
	meta := p.metaMember()
	info := PoolInfo{
		Name: p.name(), ID: p.identity.PoolID.String(), Node: p.identity.Node, Member: meta.Dir(), Device: meta.Superblock().Device, State: "Ready",
		Size: p.members.table.Load().size(), MetadataBytes: p.store.db.bytes(),
		Members: p.memberInfos(), Allocation: AllocationStriped,
	}
	if p.store.filledPolicy {
		info.Allocation = AllocationFilled
	}
	if err := p.degraded(); err != nil {
		info.State, info.Reason = "Degraded", err.Error()
	}
	if err := p.failure(); err != nil {
		info.State, info.Reason = "Failed", err.Error()
		if p.failed.Load() == nil {
			info.State = "ReadOnly"
		}
	}
	c := p.catalogue
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, l := range c.layers {
		info.Used += l.owned.Load() * BlockSize
	}
	for _, v := range c.volumes {
		info.Provisioned += int64(v.rec.Size)
		if v.rec.Thick {
			info.Thick += int64(v.rec.Size)
		}
	}
	info.Free = max(info.Size-info.Used, 0)
	left := p.spaceLeft()
	info.Reserved = left.setAside
	info.Available, info.Level, info.WarnAt, info.RefuseAt = left.bytes, left.level(0), p.options.WarnAt, p.options.RefuseAt
	info.ChecksumBytes, info.Unsummed = int64(p.store.sumBytes.Load()), p.unsummed()
	info.Volumes, info.Snapshots, info.Jobs = len(c.volumes), len(c.snapshots), len(c.jobs)
	return info
}

// Close ends every background task, commits what is pending and lets the pool go. Open volumes are closed.
func (p *Pool) Close(ctx context.Context) error {
	if !p.closed.CompareAndSwap(false, true) {
		return ErrClosed
	}
	// Operations under way end first; those that come later find the pool closed.
	p.ops.Lock()
	//lint:ignore SA2001 its end is what is waited for
	p.ops.Unlock()
	var errs error
	for _, v := range p.openVolumes() {
		if err := v.Close(ctx); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	close(p.stop)
	p.wg.Wait()
	p.tidying.Lock()
	//lint:ignore SA2001 likewise: it holds no pin while it commits its moves
	p.tidying.Unlock()
	clean := p.failure() == nil && errs == nil
	if clean {
		errs = p.flush()
		if errs == nil {
			errs = p.store.commitOne(func(b *batch) { b.s.pool.Clean = true }, nil)
		}
	}
	p.waitForPins()
	errs = errors.Join(errs, p.closeFlushLog(), p.store.close())
	errs = errors.Join(errs, p.pages.close())
	if p.ring != nil {
		if clean && errs == nil {
			errs = p.ring.Remove()
		} else {
			errs = errors.Join(errs, p.ring.Close())
		}
	}
	return errors.Join(errs, p.members.close())
}

func (p *Pool) openVolumes() (open []*Volume) {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	for _, v := range p.catalogue.volumes {
		if v.open != nil {
			open = append(open, v.open)
		}
	}
	return open
}

// start begins the background tasks.
func (p *Pool) start() {
	p.wg.Go(p.runTimer)
	p.wg.Go(p.runJobs)
	p.wg.Go(p.prepare)
	p.wg.Go(p.runTidy)
	p.wg.Go(p.runDrains)
	if p.options.ChecksumRate > 0 {
		p.wg.Go(p.makeSums)
	}
	if p.options.ScrubEvery > 0 {
		p.wg.Go(p.scrubTimer)
	}
	p.kickJobs()
	p.kickDrain()
	p.preparing.kick()
}

// roundInterval is how long a run may be pending: what a power cut can take from those who never flush.
const roundInterval = time.Second

// runTimer commits pending runs every second, and when there are many or the ring is half full.
func (p *Pool) runTimer() {
	tick := time.NewTicker(roundInterval)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		case <-p.preparing.manyPending:
		}
		p.flushes.few.Store(false)
		if p.pages.pending.Load() == 0 || p.failure() != nil {
			continue
		}
		if err := p.flush(); err != nil {
			p.event("periodic commit went wrong", "error", err)
		}
	}
}

// waitForRing makes room in the ring by a round.
func (p *Pool) waitForRing() error {
	if err := p.flush(); err != nil {
		return err
	}
	return nil
}

// WaitJobs returns when no layer is queued for freeing or joining.
func (p *Pool) WaitJobs(ctx context.Context) error {
	for {
		p.catalogue.mu.RLock()
		n := len(p.catalogue.jobs)
		changed := p.preparing.jobDone()
		p.catalogue.mu.RUnlock()
		if n == 0 {
			return nil
		}
		if err := p.failure(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d background jobs: %w", n, ctx.Err())
		case <-p.stop:
			return ErrClosed
		}
	}
}
