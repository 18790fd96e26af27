package engine

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// DefaultSpaceWait is how long a write waits for space in a full pool.
const DefaultSpaceWait = 10 * time.Second

// A write that finds no block waits, holding no lock, pin or gate, and starts over whenever blocks become free. It gets ENOSPC
//   - when nothing is under way that would free a block, and none has become free for Options.SpaceWait: long enough for an operator, or a controller, to
//     grow the pool or to delete a snapshot. The time counts for the pool, not for each write: a guest that writes back a thousand pages, one after the
//     other, learns of the full pool once and not a thousand times ten seconds later;
//   - when it has itself waited for so long and others took what became free.
//
// A thick volume's writes wait for longer, as long as blocks are on their way: what they need was set aside.
//
// In no case they give up before the preparer has tried to get space since the write began to wait, and could not: where the file system takes long
// to answer, that is a slow disk and no full one.

// owedTick is how often a thick volume's write looks whether its blocks are still on their way.
const owedTick = 100 * time.Millisecond

// spaceWait is one write's wait.
type spaceWait struct {
	freed <-chan struct{}
	began time.Time
}

// wait returns nil when it is worth trying again: at once the first time, so that nothing that becomes free between the attempts is missed.
func (w *spaceWait) wait(p *Pool, volume uint64) error {
	freed := w.freed
	w.freed = p.alloc.Freed()
	if freed == nil {
		w.began = time.Now()
		p.preparing.kick()
		return nil
	}
	// Blocks freed by discards are held until a round has made that durable.
	if p.pages.pending.Load() > 0 {
		if err := p.flush(); err != nil {
			return err
		}
	}
	tried := p.preparing.tried.next()
	until, coming := w.until(p, volume, freed)
	select {
	case <-freed:
		return nil // what was held when until looked was free when it asked for the time
	default:
	}
	var late <-chan time.Time
	if !coming {
		left := time.Until(until)
		if left <= 0 {
			return p.noSpace()
		}
		timer := time.NewTimer(left)
		defer timer.Stop()
		tried, late = nil, timer.C
	}
	select {
	case <-freed:
	case <-late:
	case <-tried: // whether space is coming must be asked again
	case <-p.stop:
		return ErrClosed
	}
	return nil
}

// until is when the write gives up, and whether the preparer may get it space still: then not even at that time.
func (w *spaceWait) until(p *Pool, volume uint64, freed <-chan struct{}) (until time.Time, coming bool) {
	patience := cmp.Or(p.options.SpaceWait, DefaultSpaceWait)
	until = w.began.Add(patience)
	if p.mayReserve() {
		tried := p.preparing.stuck.Load()
		coming = tried == nil || tried.began.Before(w.began)
	}
	_, held, _ := p.alloc.Free()
	if owed, _ := p.alloc.PromiseOf(volume); owed > 0 && (held > 0 || p.jobsQueued() > 0) {
		return time.Now().Add(owedTick), coming
	}
	if !coming && held == 0 && p.jobsQueued() == 0 {
		if full := p.full.since(freed).Add(patience); full.Before(until) {
			until = full
		}
	}
	return until, coming
}

func (p *Pool) jobsQueued() int {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	return len(p.catalogue.jobs)
}

// fullTime knows since when the pool has had no block to give: nothing has become free since the channel was made.
type fullTime struct {
	mu    sync.Mutex
	freed <-chan struct{}
	at    time.Time
}

func (f *fullTime) since(freed <-chan struct{}) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.freed != freed {
		f.freed, f.at = freed, time.Now()
	}
	return f.at
}

// noSpace is what a write gets in the end.
func (p *Pool) noSpace() error {
	if p.mayReserve() {
		if tried := p.preparing.stuck.Load(); tried != nil && !errors.Is(tried.err, member.ErrNoSpace) {
			return fmt.Errorf("%w: no space for new blocks can be prepared in pool %q: %w", ErrNoSpace, p.name(), tried.err)
		}
		for _, m := range p.members.table.Load().inUse() {
			if why := m.dev.GrowthStopped(); why != nil {
				return fmt.Errorf("pool %q: %w", p.name(), why)
			}
		}
		return fmt.Errorf("%w: the file system under pool %q is full: free space in %s", ErrNoSpace, p.name(), p.members.table.Load().inUseDirs())
	}
	if n := p.alloc.SetAside(); n > 0 {
		return fmt.Errorf("%w: pool %q is full (%d MiB are set aside for thick volumes); delete snapshots or volumes, or grow it", ErrNoSpace, p.name(),
			n*BlockSize>>20)
	}
	return fmt.Errorf("%w: pool %q is full; delete snapshots or volumes, or grow it", ErrNoSpace, p.name())
}

// broadcast lets many wait for the next of something.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
