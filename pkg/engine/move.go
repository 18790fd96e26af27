package engine

import (
	"fmt"
	"slices"
	"sync"

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
	top          uint64 // the generation that the heir's run of the old place carries
}

type moveOutcome uint8

const (
	moveDone  moveOutcome = iota + 1
	moveGone              // the run is no longer there: nothing was changed, the copy is free again
	moveOwned             // the heir's head owns the run by now: likewise
)

// moves commits moves in groups, one after the other. A move joins the group that has not begun: its copy is written before that group's flush
// begins.
type moves struct {
	mu      sync.Mutex // guards next and running
	next    *moveGroup
	running bool

	turn sync.Mutex // held while a group is committed
	late []*move    // of a mutation only
}

type moveGroup struct {
	list  []*move
	done  chan struct{} // closed when it is durable and published, or has failed
	err   error
	ended chan struct{} // closed when every pin older than the publication has ended
}

// commitMoves takes moves whose copies are written from there through steps 3 to 5. The group's ended tells when step 6 is over.
func (p *Pool) commitMoves(list ...*move) (*moveGroup, error) {
	ms := &p.moves
	ms.mu.Lock()
	g := ms.next
	if g == nil {
		g = &moveGroup{done: make(chan struct{}), ended: make(chan struct{})}
		ms.next = g
	}
	g.list = append(g.list, list...)
	lead := !ms.running
	ms.running = true
	ms.mu.Unlock()
	if lead {
		p.runMoves()
		ms.mu.Lock()
		more := ms.next != nil
		ms.running = more
		ms.mu.Unlock()
		if more {
			go p.runAllMoves()
		}
	}
	<-g.done
	return g, g.err
}

// runAllMoves commits groups until nobody waits for one.
func (p *Pool) runAllMoves() {
	ms := &p.moves
	for {
		p.runMoves()
		ms.mu.Lock()
		if ms.next == nil {
			ms.running = false
			ms.mu.Unlock()
			return
		}
		ms.mu.Unlock()
	}
}

func (p *Pool) runMoves() {
	ms := &p.moves
	ms.turn.Lock()
	defer ms.turn.Unlock()
	ms.mu.Lock()
	g := ms.next
	ms.next = nil
	ms.mu.Unlock()
	err := p.commitGroup(g)
	if err != nil {
		g.err = err
	}
	select {
	case <-g.done: // a mutation's
	default:
		close(g.done)
	}
}

// commitGroup is steps 3 to 5 for a group.
func (p *Pool) commitGroup(g *moveGroup) error {
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
	return p.commitThen(c.compose,
		step{do: func() { p.dropCopies(g.list) }},
		step{mutateCopySynced, func() {
			if p.breaks(mutateCopyPublish) {
				p.publishMoves(p.moves.late)
				p.moves.late = g.list
			} else {
				p.publishMoves(g.list)
			}
			if p.breaks(mutateCopyPinned) {
				close(g.ended)
			} else {
				p.epochs.Defer(func() { close(g.ended) })
			}
			if p.breaks(mutateCopySynced) {
				close(g.done)
			}
		}},
		step{mutateReuseSynced, func() { p.release(c.freed) }},
	)
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
