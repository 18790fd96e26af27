package engine

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// A move gives a stretch of a run another place: the content stays, and with it the generation that wrote it. COW moves what a snapshot keeps out of
// the way of a write, tidy what lies scattered, a drain what lies on a member. All do it in this order, and so keep DESIGN §2's promises:
//
//  1. The caller holds the lock of the range and has marked it (moveMarks), so nothing else moves, splits, removes or first creates a run there, and
//     nobody writes there in place: what is copied is what stays.
//  2. Copy to new blocks. Nobody else knows them.
//  3. Flush the copy's member: "no batch holds a run whose data was not covered by a member flush begun after that data write returned". One flush
//     serves every move whose copy was written before it began.
//  4. Commit the run's new place, synced; shared likewise. In the same batch the old place becomes the heir's (COW), or free. The batch is composed
//     from what the store holds then: where the run has gone meanwhile, because its layer was freed, nothing is changed and the copy is dropped.
//  5. Publish the new place to every open map of the family. Until then, maps show the old place, and it holds the same bytes.
//  6. Wait for pins older than that. Who looked the old place up has done with it: "a pool block changes hands only when nobody can still touch it".
//     Then the old place is free, or may be overwritten.
//
// A process that dies, or a power cut: before 4 is durable the store knows the old place alone, which nobody has touched; the copy's blocks were
// never committed and are free at the next opening. After 4 the store knows the copy, which was flushed before; the old place still has the old
// content, or, once 6 was reached, some of what the heir's guest wrote to it last, sector by sector, which is the heir's and nobody else's. Requests
// of the dead process that land late do so before the next one has the segments' locks: on the copy or on the old place, whose owner in the store is
// the one they were for.
//
// DESIGN has step 5 before 4. Then a page read from the store in between would show the old place, and be kept. Here what is read before 4 is patched
// in 5, and what is read after 4 has the new place.
type move struct {
	family, page uint32
	run          runs.Entry // what is moved, and where it is now
	to           uint64     // where the copy is
	copied       copyState
	heir         *Volume // takes the old place, as its head's; nil: it becomes free
	rest         moveOutcome
	hint         moveHint
	top          uint64 // the generation that the heir's run of the old place carries
}

type moveOutcome uint8

const (
	moveDone  moveOutcome = iota + 1
	moveGone              // the run is no longer there: nothing was changed, the copy is free again
	moveOwned             // the heir's head owns the run by now: likewise
)

// moveHint is what the heir's map tells about a run that is to be moved: where in the page it begins, and that no block beside what is moved is the
// heir's, so that neither run will be continued by a neighbour. The commit goes by the store; with a hint that is right it finds the run in one look.
type moveHint struct {
	ok    bool
	start int
}

// hintOf is asked with the lock of e's blocks, which a lookup in the map returned.
func (p *pages) hintOf(m *mapping, g *lineage, page uint32, e runs.Entry) (h moveHint) {
	k := m.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cache.Has(k) {
		return h
	}
	for overlay := range s.pending(k) {
		if runs.Overlaps(overlay.list, e.Off()-1, e.End()+1) {
			return h
		}
	}
	list, _ := s.cache.Get(k)
	whole, ok := runs.At(list, e.Off())
	if !ok || whole.Gen() != e.Gen() {
		return h
	}
	for _, beside := range []int{e.Off() - 1, e.End()} {
		if x, ok := runs.At(list, beside); ok && g.owns(x.Gen()) {
			return h
		}
	}
	return moveHint{true, whole.Off()}
}

// moves commits moves in groups. A move joins the group that has not begun: its copy is written before that group's flush begins. A group begins when the
// one before has been handed to the committer, so its flush and its planning go on while that one waits for its sync; the committer makes them durable in
// their order, and each step of a group comes after the same step of the group before. Two at most are on their way: with more, fewer copies would share
// what a flush and a sync can carry.
type moves struct {
	mu      sync.Mutex // guards next, under and running
	next    *moveGroup
	under   *moveGroup // the last one that began
	running bool

	turn sync.Mutex // held from a group's beginning until it is handed over
	late []*move    // of a mutation only
}

type moveGroup struct {
	list   []*move
	before *moveGroup    // the one that began before it, while that is not done
	done   chan struct{} // closed when it is durable and published, or has failed
	ended  chan struct{} // closed when every pin older than the publication has ended
	over   chan struct{} // closed when it has failed, or has ended, or that took longer than pinPatience after the publication

	once, overOnce sync.Once
	patience       *time.Timer
	err            error // set before done is closed
}

func newMoveGroup() *moveGroup {
	return &moveGroup{done: make(chan struct{}), ended: make(chan struct{}), over: make(chan struct{})}
}

// finish says how the group went: the first to tell is believed.
func (g *moveGroup) finish(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.done)
	})
	if err != nil {
		g.noMore()
	}
}

// noMore lets go who waits for older pins: one wake-up for all of a write's waiting.
func (g *moveGroup) noMore() { g.overOnce.Do(func() { close(g.over) }) }

// commitMoves takes moves whose copies are written from there through steps 3 to 5. The group's ended tells when step 6 is over.
func (p *Pool) commitMoves(list ...*move) (*moveGroup, error) {
	g := p.joinMoves(list)
	<-g.done
	return g, g.err
}

// commitAway is commitMoves, and waits for step 6 as well, though not for long; ended tells whether it is over.
func (p *Pool) commitAway(list ...*move) (g *moveGroup, ended bool, err error) {
	g = p.joinMoves(list)
	<-g.over
	<-g.done
	select {
	case <-g.ended:
		ended = true
	default:
	}
	return g, ended, g.err
}

// joinMoves puts moves into the next group, and sees to it that groups are committed.
func (p *Pool) joinMoves(list []*move) *moveGroup {
	ms := &p.moves
	ms.mu.Lock()
	g := ms.next
	if g == nil {
		g = newMoveGroup()
		ms.next = g
	}
	g.list = append(g.list, list...)
	lead := !ms.running
	ms.running = true
	ms.mu.Unlock()
	if lead {
		// Nobody commits groups: this caller does, its own first, and hands over the others.
		p.beginMoves()
		if p.moreMoves() {
			go p.runMoves()
		}
	}
	return g
}

// moreMoves tells whether somebody waits for a group; if not, nobody commits them any more.
func (p *Pool) moreMoves() bool {
	ms := &p.moves
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.running = ms.next != nil
	return ms.running
}

// runMoves commits groups until nobody waits for one.
func (p *Pool) runMoves() {
	for more := true; more; more = p.moreMoves() {
		p.beginMoves()
	}
}

// beginMoves takes the next group as far as the committer, who takes it to its end.
func (p *Pool) beginMoves() {
	ms := &p.moves
	ms.mu.Lock()
	before := ms.under
	var oldest *moveGroup
	if before != nil {
		oldest = before.before
	}
	ms.mu.Unlock()
	if oldest != nil {
		<-oldest.done
	}
	ms.turn.Lock()
	defer ms.turn.Unlock()
	ms.mu.Lock()
	g := ms.next
	ms.next, ms.under = nil, g
	if before != nil {
		before.before = nil // done: it keeps nothing
	}
	g.before = before
	ms.mu.Unlock()
	if err := p.beginGroup(g); err != nil {
		g.finish(err)
	}
}

// beginGroup is step 3 for a group, and hands it over for steps 4 and 5.
func (p *Pool) beginGroup(g *moveGroup) error {
	if err := p.failure(); err != nil {
		return err
	}
	if err := p.flushMember(mutateCopyFlush); err != nil {
		err = fmt.Errorf("flush member: %w", err)
		p.fail(err)
		return err
	}
	slices.SortStableFunc(g.list, compareMoves)
	c := moveCommit{p: p, list: g.list}
	j := p.jobThen(c.compose,
		step{do: func() { p.dropCopies(g.list) }},
		step{mutateCopySynced, func() {
			if p.breaks(mutateCopyPublish) {
				p.publishMoves(p.moves.late)
				p.moves.late = g.list
			} else {
				p.publishMoves(g.list)
			}
			p.awaitOlder(g)
			if p.breaks(mutateCopySynced) {
				g.finish(nil)
			}
		}},
		step{mutateReuseSynced, func() { p.release(c.freed) }},
		step{do: func() { g.finish(nil) }},
	)
	p.store.start(j)
	go func() {
		if err := p.store.wait(j); err != nil {
			g.finish(err)
		}
	}()
	return nil
}

// awaitOlder is step 6 for a group.
func (p *Pool) awaitOlder(g *moveGroup) {
	g.patience = time.AfterFunc(cmp.Or(p.options.pinPatience, pinPatience), g.noMore)
	ended := func() {
		close(g.ended)
		g.patience.Stop()
		g.noMore()
	}
	if p.breaks(mutateCopyPinned) {
		ended()
	} else {
		p.epochs.Defer(ended)
	}
}

// dropCopies frees the copies that no run names. The moves' callers wrote them, and nobody else has seen them.
func (p *Pool) dropCopies(list []*move) {
	for _, m := range list {
		if m.rest != moveDone {
			p.alloc.Undo(extent{Place: m.to, N: m.run.Len()})
		}
	}
}

// publishMoves is step 5.
func (p *Pool) publishMoves(list []*move) {
	for _, m := range list {
		if m.rest != moveDone {
			continue
		}
		for _, other := range p.maps.of(m.family) {
			p.pages.moved(other, m)
		}
	}
}

// moved patches a page of a map, if it is there: what it shows of the run is at its new place now, and in the heir's map the old place is the heir's
// own. A page that is being read is read again. Pending runs are of no concern: they are not committed, so nobody moves them.
func (p *pages) moved(m *mapping, mv *move) {
	k := m.key(mv.page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.loading[k]; l != nil {
		l.stale = true
	}
	if !s.cache.Has(k) {
		return
	}
	list, _ := s.cache.Get(k)
	from := mv.run
	var buf [16]runs.Entry
	for _, e := range runs.Slice(buf[:0], list, from.Off(), from.End()) {
		if e.IsZero() || e.Gen() != from.Gen() {
			continue
		}
		at := uint64(e.Off() - from.Off())
		switch {
		case e.Place() != from.Place()+at: // read after the commit
		case mv.heir != nil && m == &mv.heir.mapping:
			list = runs.Insert(list, runs.Data(e.Off(), e.Len(), e.Place(), mv.top))
		default:
			list = runs.Insert(list, runs.Data(e.Off(), e.Len(), mv.to+at, e.Gen()))
		}
	}
	s.cache.Put(k, list)
}
