package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const (
	// DefaultChecksumRate is how many bytes a second are read to make checksums.
	DefaultChecksumRate = 64 << 20
	// DefaultChecksumDelay is how long a layer has been frozen before its checksums are made. Snapshots that are taken, copied and deleted within it cost
	// no read, and what a snapshot is judged by, how it disturbs its volume, is over by then.
	DefaultChecksumDelay = time.Minute
	// sumRead is the largest read: what stands before a guest's in the device's queue.
	sumRead = 128 << 10 / BlockSize
	// sumPages and sumTime say how many pages' checksums go into one commit, and how long the first of them may wait for it.
	sumPages = 32
	sumTime  = time.Second
	// sumRetry is how long a generation rests in which something was moving.
	sumRetry = time.Second
)

// summing makes checksums, one generation at a time.
type summing struct {
	kicked chan struct{}

	mu    sync.Mutex
	gen   uint64              // whose checksums are being made; 0: none
	void  bool                // and are not to be stored any more
	done  map[uint64]struct{} // generations that have all of theirs
	aside map[uint64]struct{} // those with blocks that could not be read; until the pool is opened or a member comes back
	rest  map[uint64]time.Time
}

func newSumming() summing {
	return summing{kicked: make(chan struct{}, 1), done: map[uint64]struct{}{}, aside: map[uint64]struct{}{}, rest: map[uint64]time.Time{}}
}

// again has those looked at again that were set aside.
func (s *summing) again() {
	s.mu.Lock()
	clear(s.aside)
	s.mu.Unlock()
	s.kick()
}

func (s *summing) kick() {
	select {
	case s.kicked <- struct{}{}:
	default:
	}
}

// loadSummed reads which generations have all their checksums.
func (p *Pool) loadSummed(r reader) error {
	prefix := format.SummedAll()
	return scan(r, prefix, format.Upper(prefix), func(key, _ []byte) error {
		gen, err := format.ParseSummedKey(key)
		p.summing.done[gen] = struct{}{}
		return err
	})
}

// makeSums makes the checksums that are missing, at its own pace, until the pool is closed.
func (p *Pool) makeSums() {
	limit := newLimiter(p.options.ChecksumRate)
	for {
		gen, wait := p.nextUnsummed()
		if gen == 0 {
			timer := time.NewTimer(wait)
			select {
			case <-p.stop:
				timer.Stop()
				return
			case <-p.summing.kicked:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		if p.failure() != nil || p.stopping() {
			return
		}
		err := p.sumGeneration(gen, limit)
		if errors.Is(err, ErrClosed) { // Close closes the pool to readers first, and what stops this when the volumes are flushed
			return
		}
		if err != nil && !p.stopping() {
			if !errors.Is(err, ErrMemberMissing) { // which the pool says anyway
				p.event("making checksums went wrong; these blocks have none until the pool is opened again", "generation", gen, "error", err)
			}
			p.summing.mu.Lock()
			p.summing.aside[gen] = struct{}{}
			p.summing.mu.Unlock()
		}
	}
}

// nextUnsummed returns the oldest generation that is frozen, long enough, and lacks checksums; 0: none, and when to look again.
func (p *Pool) nextUnsummed() (next uint64, wait time.Duration) {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	s := &p.summing
	s.mu.Lock()
	defer s.mu.Unlock()
	freed := p.catalogue.freed()
	now, rest := time.Now(), map[uint64]time.Time{}
	wait = time.Hour
	for _, l := range p.catalogue.layers {
		if l.rec.Head != 0 || freed[l.id] {
			continue
		}
		for _, gen := range l.rec.Gens {
			if _, ok := s.done[gen]; ok {
				continue
			}
			if _, ok := s.aside[gen]; ok {
				continue
			}
			due, ok := s.rest[gen]
			if !ok {
				due = now.Add(max(p.options.ChecksumDelay, 0))
			}
			rest[gen] = due
			if left := due.Sub(now); left > 0 {
				wait = min(wait, left)
			} else if next == 0 || gen < next {
				next = gen
			}
		}
	}
	s.rest = rest
	return next, wait
}

// freed are the layers queued for freeing; mu is held.
func (c *catalogue) freed() map[uint64]bool {
	m := map[uint64]bool{}
	for _, j := range c.jobs {
		if j.Kind == format.JobFree {
			m[j.Layer] = true
		}
	}
	return m
}

// beginSums registers a generation whose checksums are about to be made; false: it is frozen no more. No operation is under way while it looks, so
// whoever thaws the generation does it later, and finds it registered.
func (p *Pool) beginSums(gen uint64) (family uint32, ok bool) {
	p.ops.Lock()
	defer p.ops.Unlock()
	l := p.catalogue.byGen[gen]
	if l == nil || l.rec.Head != 0 || p.beingFreed(l) {
		return 0, false
	}
	p.summing.mu.Lock()
	defer p.summing.mu.Unlock()
	p.summing.gen, p.summing.void = gen, false
	return l.rec.Family, true
}

func (s *summing) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen = 0
}

func (s *summing) voided() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.void
}

// forget is told, on the committer, of generations that are no more. What was read of one is not to be stored either, nor that this was all.
func (s *summing) forget(gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen == gen {
		s.void = true
	}
	delete(s.done, gen)
	delete(s.aside, gen)
}

// sumGeneration makes the checksums of one generation that are missing. It may end at any point: what is stored stays, and pages that have a record are
// passed over the next time.
func (p *Pool) sumGeneration(gen uint64, limit *limiter) error {
	family, ok := p.beginSums(gen)
	if !ok {
		return nil
	}
	defer p.summing.end()
	w := sumWriter{p: p, gen: gen, family: family, limit: limit, buf: fsys.AlignedBuffer(sumRead * BlockSize)}
	for next := uint32(0); ; {
		pages, err := touchedFrom(p.store.db, gen, next, sumPages)
		if err != nil {
			return err
		}
		for _, page := range pages {
			if p.stopping() || p.summing.voided() {
				return nil
			}
			if err := w.page(page); err != nil {
				return fmt.Errorf("page %d: %w", page, err)
			}
		}
		if len(pages) < sumPages {
			return w.finish()
		}
		next = pages[len(pages)-1] + 1
	}
}

// sumWriter gathers the checksums of a generation's pages and stores them.
type sumWriter struct {
	p       *Pool
	gen     uint64
	family  uint32
	limit   *limiter
	buf     []byte
	pages   map[uint32]*format.Sums
	first   time.Time
	any     bool // the generation has blocks
	moving  bool // some were moved or removed while they were read
	stopped bool
}

func (w *sumWriter) page(page uint32) error {
	if has, err := hasKey(w.p.store.db, format.SumsKey(w.gen, page)); has || err != nil {
		w.any = w.any || has
		return err
	}
	list, err := readGeneration(w.p.store.db, w.family, page, w.gen)
	if err != nil {
		return err
	}
	sums := &format.Sums{}
	for _, e := range list {
		if err := w.entry(page, e, sums); err != nil {
			return err
		}
		if w.stopped || w.moving {
			return nil
		}
	}
	if sums.Count() == 0 {
		return nil
	}
	if w.pages == nil {
		w.pages, w.first = map[uint32]*format.Sums{}, time.Now()
	}
	w.pages[page] = sums
	if len(w.pages) >= sumPages || time.Since(w.first) >= sumTime {
		return w.store(false)
	}
	return nil
}

// entry reads a run, a piece at a time.
func (w *sumWriter) entry(page uint32, e runs.Entry, sums *format.Sums) error {
	for at := e.Off(); at < e.End() && !e.IsZero(); {
		n := min(e.End()-at, sumRead)
		if !w.limit.wait(w.p.stop, nil, n*BlockSize) {
			w.stopped = true
			return nil
		}
		b := w.buf[:n*BlockSize]
		there, err := w.p.readFrozen(format.RunPage{Family: w.family, Page: page}, e, at, b)
		if err != nil {
			return err
		}
		if !there {
			w.moving = true
			return nil
		}
		for i := range n {
			sums.Set(at+i, checksum(b[i*BlockSize:(i+1)*BlockSize]))
		}
		at += n
	}
	return nil
}

// finish stores the rest, and the mark that says that this was all.
func (w *sumWriter) finish() error {
	if w.stopped {
		return nil
	}
	if w.any || len(w.pages) > 0 || w.moving {
		if err := w.store(!w.moving); err != nil {
			return err
		}
	}
	s := &w.p.summing
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.void: // it is another layer's business now
	case w.moving:
		s.rest[w.gen] = time.Now().Add(sumRetry)
	default:
		s.done[w.gen] = struct{}{}
	}
	return nil
}

// store commits what was gathered: steps 3 and 5 above. A checksum whose block was removed since it was read is left out.
func (w *sumWriter) store(all bool) error {
	err := w.p.store.commit(func(b *batch) (bool, error) {
		if w.p.summing.voided() {
			return false, nil
		}
		before := b.Len()
		for _, page := range slices.Sorted(maps.Keys(w.pages)) {
			list, err := readGeneration(b.s.db, w.family, page, w.gen)
			if err != nil {
				return false, err
			}
			sums := w.pages[page]
			keepOnly(sums, list)
			if sums.Count() > 0 {
				b.put(format.SumsKey(w.gen, page), sums.Encode())
			}
		}
		if all {
			b.put(format.SummedKey(w.gen), nil)
		}
		b.s.sumBytes.Add(uint64(b.Len() - before))
		return false, nil
	}, nil)
	w.any = w.any || len(w.pages) > 0
	w.pages = nil
	return err
}

// WaitChecksums returns when every frozen block has its checksum, but for those that cannot be read.
func (p *Pool) WaitChecksums(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := p.failure(); err != nil {
			return err
		}
		p.catalogue.mu.RLock()
		n := p.unsummed()
		p.catalogue.mu.RUnlock()
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.stop:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for the checksums of %d generations: %w", n, ctx.Err())
		}
	}
}

// unsummed counts the generations that lack checksums; catalogue.mu is held.
func (p *Pool) unsummed() (n int) {
	p.summing.mu.Lock()
	defer p.summing.mu.Unlock()
	freed := p.catalogue.freed()
	for _, l := range p.catalogue.layers {
		if l.rec.Head != 0 || freed[l.id] {
			continue
		}
		for _, gen := range l.rec.Gens {
			_, done := p.summing.done[gen]
			_, aside := p.summing.aside[gen]
			if !done && !aside {
				n++
			}
		}
	}
	return n
}
