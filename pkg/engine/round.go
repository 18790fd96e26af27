package engine

import (
	"fmt"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// rounds makes what is pending durable. A FLUSH joins the next round that has not begun, never one under way, because that one's member flush may have
// begun before the FLUSH's writes returned. A round begins when the one before has been handed to the committer, and may flush and compose while that one
// waits for its sync; the committer makes them durable in their order.
type rounds struct {
	mu      sync.Mutex // guards next, under and running, and every round's before
	next    *round
	under   *round // the last one that began
	running bool

	turn sync.Mutex // held from a round's beginning until it is handed over, and for a whole cut
}

type round struct {
	commit bool          // somebody needs the runs committed; else durable is enough
	handed chan struct{} // closed when its batches are applied: the turn is over
	done   chan struct{} // closed when it is durable, or has failed
	err    error
	before *round // the one that began before it; nil when this one is done
}

// flush returns when every write that returned before the call is committed, durably.
func (p *Pool) flush() error { return p.flushRound(true) }

// flushRound is flush; without commit it returns when every write that returned before the call is durable.
func (p *Pool) flushRound(commit bool) error {
	r, lead := p.joinRound(commit)
	if lead {
		// Nobody runs rounds: this caller does, its own first, and hands over the others.
		finish := p.beginRound()
		if p.moreRounds() {
			go p.runRounds()
		}
		finish()
	}
	<-r.done
	return r.err
}

// flushHanded returns when every run that was published before the call is with the committer: not durable yet, and before all that is handed to it later.
func (p *Pool) flushHanded() {
	r, lead := p.joinRound(true)
	if lead {
		go p.runRounds()
	}
	<-r.handed
}

// joinRound returns the next round. With lead the caller must see to it that rounds are run.
func (p *Pool) joinRound(commit bool) (r *round, lead bool) {
	rs := &p.rounds
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.next == nil {
		rs.next = &round{handed: make(chan struct{}), done: make(chan struct{})}
	}
	rs.next.commit = rs.next.commit || commit
	if !rs.running {
		rs.running = true
		return rs.next, true
	}
	if under := rs.under; p.breaks(mutateJoinRound) && under != nil {
		return under, false
	}
	return rs.next, false
}

// moreRounds tells whether somebody waits for a round; if not, nobody runs them any more.
func (p *Pool) moreRounds() bool {
	rs := &p.rounds
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.running = rs.next != nil
	return rs.running
}

// runRounds runs rounds until nobody waits for one.
func (p *Pool) runRounds() {
	for more := true; more; more = p.moreRounds() {
		finish := p.beginRound()
		go finish()
	}
}

// beginRound takes the next round as far as the committer; finish takes it to its end. Two at most are on their way from there: more would only make small
// batches of what one sync could carry.
func (p *Pool) beginRound() (finish func()) {
	rs := &p.rounds
	rs.mu.Lock()
	before := rs.under
	var oldest *round
	if before != nil {
		oldest = before.before
	}
	rs.mu.Unlock()
	if oldest != nil {
		<-oldest.done
	}
	rs.turn.Lock()
	defer rs.turn.Unlock()
	rs.mu.Lock()
	r := rs.next
	rs.next = nil
	rs.mu.Unlock()
	if !r.commit {
		if logged, err := p.logPending(); logged {
			r.err = err
			close(r.handed)
			return func() { close(r.done) }
		}
	}
	rs.mu.Lock()
	r.before, rs.under = before, r
	rs.mu.Unlock()
	wait := p.beginCommit(nil, nil)
	close(r.handed)
	return func() {
		if r.err = wait(); r.err == nil && before != nil {
			// With nothing to commit it is the round before that vouches for what was pending.
			<-before.done
			r.err = before.err
		}
		rs.mu.Lock()
		r.before = nil
		rs.mu.Unlock()
		close(r.done)
	}
}

// beginCommit is the round itself, called with its turn held; wait returns when it is durable. With extra, all of it and extra is one batch: a cut.
//
// It keeps "FLUSH is a round" and "no batch holds a run whose data was not covered by a member flush begun after that data write returned", in this
// order: seal (note N; every run up to N is in, and its data write has returned, because runs are published after their data) - flush the members -
// apply the batch and wait for its sync - only then retire the ring up to N, let the cached pages take the runs, and release blocks that the batch took
// away, once older pins have ended. The next round's steps may come in between, but each step of a round comes after the same step of the round before:
// batches are applied and synced in order, and what follows the sync is done by the committer's one goroutine.
func (p *Pool) beginCommit(extra func(b *batch) error, durable func()) (wait func() error) {
	if p.failure() != nil {
		return p.failure
	}
	rule := mutateRoundFlush
	if extra != nil {
		rule = mutateCutFlush
	}
	if extra != nil && p.breaks(mutateCutFlushEarly) {
		rule = mutateCutFlushEarly
	}
	began := time.Now()
	sealed := p.pages.sealAll()
	if err := p.flushMember(rule); err != nil {
		p.fail(fmt.Errorf("flush member: %w", err))
		return p.failure
	}
	if extra == nil && len(sealed.pages) == 0 && len(sealed.abandoned) == 0 {
		return p.failure
	}
	c := roundCommit{p: p, sealed: sealed, extra: extra, rewritten: map[*pendingPage]struct{}{}, volumes: map[*volume]struct{}{}}
	j := p.jobThen(c.compose,
		step{do: func() {
			if durable != nil {
				durable()
			}
		}},
		step{mutateRetire, func() { p.ring.Retire(sealed.seq) }},
		step{do: func() { p.pages.settle(sealed, c.rewritten) }},
		step{mutateReuseSynced, func() { p.release(c.freed) }},
		step{do: func() {
			if f := p.figures; f != nil {
				f.RoundTime.since(began)
				f.RoundRuns.Observe(int64(len(sealed.pages)))
			}
		}},
	)
	p.store.start(j)
	return func() error { return p.store.wait(j) }
}

// flushMember is the flush that a rule asks for.
func (p *Pool) flushMember(rule mutation) error {
	if p.breaks(rule) {
		return nil
	}
	if f := p.figures; f != nil {
		defer f.MemberFlush.since(time.Now())
	}
	return p.flushMembers()
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
	p.epochs.Defer(func() {
		p.takers.Defer(func() {
			p.did(mutateReusePinned)
			p.alloc.Release(freed)
		})
	})
}

// waitForPins returns when every pin that exists now has ended, of either kind.
func (p *Pool) waitForPins() {
	p.epochs.Wait()
	p.takers.Wait()
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
	c.p.alloc.Lost(pp.v.entry.id, res.freed...)
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
