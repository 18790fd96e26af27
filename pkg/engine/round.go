package engine

import (
	"fmt"
	"sync"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// rounds makes what is pending durable. Rounds follow one another; a FLUSH joins the next one that has not begun, never one under way, because that
// one's member flush may have begun before the FLUSH's writes returned.
type rounds struct {
	mu      sync.Mutex // guards next, under and running
	next    *round
	under   *round // the last one that began
	running bool

	turn sync.Mutex // held for a whole round
}

type round struct {
	done chan struct{}
	err  error
}

// flush returns when every write that returned before the call is durable.
func (p *Pool) flush() error {
	rs := &p.rounds
	rs.mu.Lock()
	r := rs.next
	if r == nil {
		r = &round{done: make(chan struct{})}
		rs.next = r
	}
	if rs.running {
		if under := rs.under; p.breaks(mutateJoinRound) && under != nil {
			r = under
		}
		rs.mu.Unlock()
		<-r.done
		return r.err
	}
	// Nobody runs rounds: this caller does, its own first, and hands over after it.
	rs.running = true
	rs.mu.Unlock()
	p.runRound()
	rs.mu.Lock()
	more := rs.next != nil
	rs.running = more
	rs.mu.Unlock()
	if more {
		go p.runRounds()
	}
	return r.err
}

// runRounds runs rounds until nobody waits for one.
func (p *Pool) runRounds() {
	rs := &p.rounds
	for {
		p.runRound()
		rs.mu.Lock()
		if rs.next == nil {
			rs.running = false
			rs.mu.Unlock()
			return
		}
		rs.mu.Unlock()
	}
}

func (p *Pool) runRound() {
	rs := &p.rounds
	rs.turn.Lock()
	defer rs.turn.Unlock()
	rs.mu.Lock()
	r := rs.next
	rs.next, rs.under = nil, r
	rs.mu.Unlock()
	r.err = p.commitPending(nil, nil)
	close(r.done)
}

// commitPending is the round itself, called with its turn held. With extra, all of it and extra is one batch: a cut.
//
// It keeps "FLUSH is a round" and "no batch holds a run whose data was not covered by a member flush begun after that data write returned", in this
// order: seal (note N; every run up to N is in, and its data write has returned, because runs are published after their data) - flush the members -
// apply the batch and wait for its sync - only then retire the ring up to N, let the cached pages take the runs, and release blocks that the batch took
// away, once older pins have ended.
func (p *Pool) commitPending(extra func(b *batch) error, durable func()) error {
	if err := p.failure(); err != nil {
		return err
	}
	rule := mutateRoundFlush
	if extra != nil {
		rule = mutateCutFlush
	}
	sealed := p.pages.sealAll()
	if err := p.flushMember(rule); err != nil {
		err = fmt.Errorf("flush member: %w", err)
		p.fail(err)
		return err
	}
	if extra == nil && len(sealed.pages) == 0 && len(sealed.abandoned) == 0 {
		return p.failure()
	}
	c := roundCommit{p: p, sealed: sealed, extra: extra, rewritten: map[*pendingPage]struct{}{}, volumes: map[*volume]struct{}{}}
	return p.commitThen(c.compose,
		step{do: func() {
			if durable != nil {
				durable()
			}
		}},
		step{mutateRetire, func() { p.ring.Retire(sealed.seq) }},
		step{do: func() { p.pages.settle(sealed, c.rewritten) }},
		step{mutateReuseSynced, func() { p.release(c.freed) }},
	)
}

// flushMember is the flush that a rule asks for.
func (p *Pool) flushMember(rule mutation) error {
	if p.breaks(rule) {
		return nil
	}
	return p.member.Flush()
}

// release gives held blocks back when nobody can still touch them. Their removal is durable.
func (p *Pool) release(freed []extent) {
	if len(freed) == 0 {
		return
	}
	if p.breaks(mutateReusePinned) {
		p.alloc.Release(freed)
		return
	}
	p.epochs.Defer(func() { p.alloc.Release(freed) })
}

// roundCommit composes a round's batches on the committer.
type roundCommit struct {
	p         *Pool
	sealed    sealedRuns
	at        int // pages composed
	extra     func(b *batch) error
	rewritten map[*pendingPage]struct{}
	volumes   map[*volume]struct{} // of the pages in this batch
	freed     []extent
}

func (c *roundCommit) compose(b *batch) (more bool, err error) {
	for ; c.at < len(c.sealed.pages); c.at++ {
		if c.extra == nil && b.full() {
			c.counts(b)
			return true, nil
		}
		pp := c.sealed.pages[c.at]
		c.volumes[pp.v.entry] = struct{}{}
		pp.v.entry.stored += pp.mapped
		if err := c.page(b, pp); err != nil {
			return false, fmt.Errorf("volume %q page %d: %w", pp.v.name, pp.page, err)
		}
	}
	c.p.alloc.Abandon(c.sealed.abandoned)
	c.freed = append(c.freed, c.sealed.abandoned...)
	c.counts(b)
	b.s.pool.RingSeq = c.sealed.seq
	if c.extra != nil {
		return false, c.extra(b)
	}
	return false, nil
}

// counts puts what the volumes map with this batch's pages into this batch: the ring's replay counts on from there if the process dies before the next.
func (c *roundCommit) counts(b *batch) {
	for v := range c.volumes {
		b.put(format.VolumeUseKey(v.id), format.VolumeUse{Mapped: uint64(v.stored), Written: true}.Encode())
	}
	clear(c.volumes)
}

func (c *roundCommit) page(b *batch, pp *pendingPage) error {
	g := pp.v.mapping.lineage.Load()
	if plain(pp, g) {
		for _, e := range pp.list {
			b.putRun(g.family, pp.page, e.Gen(), e.Off(), format.Run{Len: e.Len(), Place: e.Place()})
			b.unmarked = append(b.unmarked, extent{Place: e.Place(), N: e.Len()})
			b.use(g.layer, int64(e.Len()), 0)
		}
		return b.touch(g.layer, g.top, pp.page)
	}
	c.rewritten[pp] = struct{}{}
	lp, err := readLayerPage(b.s.db, g, pp.page)
	if err != nil {
		return err
	}
	res, err := b.rewrite(g, pp.page, &lp, lp.apply(lp.visible(), pp.list))
	if err != nil {
		return err
	}
	b.committed = append(b.committed, res.taken...)
	if err := c.p.alloc.Hold(res.freed); err != nil {
		return err
	}
	c.freed = append(c.freed, res.freed...)
	return nil
}

// plain tells that the page's pending runs lie over nothing of the volume's own: they can be put beside what is there without looking.
func plain(pp *pendingPage, g *lineage) bool {
	if pp.mixed || pp.own != g.own {
		return false
	}
	for _, e := range pp.list {
		if e.IsZero() || e.Replaces() {
			return false
		}
	}
	return true
}
