package alloc

import (
	"slices"
)

// MaxLanes is how many lanes there can be: members that a pool has had since it was opened.
const MaxLanes = 256

// lane is a member's segments.
type lane struct {
	free   [kinds]int64 // of its chunks, closed or not
	roomy  int64        // of free[Written], those in roomy chunks
	spaced int64        // its chunks that have their space
	coming int64        // held or taken
	closed bool
	left   bool // closed, and what lies there is to be moved to the others
	dry    bool // no more chunks can be added, for now
}

// extentOf is a claim's extent in one lane.
type extentOf struct {
	claim
	lane uint16
}

// turn is a lane to be searched, from a chunk on.
type turn struct {
	start uint32
	lane  uint16
}

// SetFilled says whether one lane is filled after the other, in their order. Else each volume's chunks go round the lanes.
func (a *Allocator) SetFilled(filled bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.filled = filled
	a.tellReady()
}

// AddLane makes sure that there is such a lane.
func (a *Allocator) AddLane(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addLane(n)
	a.tellReady()
}

func (a *Allocator) addLane(n int) {
	for len(a.lanes) <= n {
		a.lanes = append(a.lanes, lane{})
	}
}

// Lanes is how many lanes there are, closed ones included.
func (a *Allocator) Lanes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.lanes)
}

// Assign says in which lane a segment is that has no chunk yet.
func (a *Allocator) Assign(seg uint32, lane int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.assign(seg, lane)
}

func (a *Allocator) assign(seg uint32, lane int) {
	a.grow(seg)
	a.addLane(lane)
	a.segments[seg].lane = uint16(lane)
}

// CloseLane ends the handing out of a lane's blocks: owners leave their chunks there.
func (a *Allocator) CloseLane(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closeLane(n)
}

func (a *Allocator) closeLane(n int) {
	a.addLane(n)
	if a.lanes[n].closed {
		return
	}
	for x, c := range a.current {
		if int(a.segments[c.number/SegmentChunks].lane) == n {
			a.leave(x, c)
		}
	}
	a.lanes[n].closed = true
	a.roomy -= a.lanes[n].roomy
	for kind := range kinds {
		a.free[kind] -= a.lanes[n].free[kind]
	}
	a.tellReady()
}

// LeaveLane is CloseLane for a lane whose blocks are to be moved to the others: from this moment on the others hold back what owners that have a promise
// may yet lose there. had says what each of those was promised in all: what it was given is that less what it has left.
func (a *Allocator) LeaveLane(n int, had map[uint64]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closeLane(n)
	if !a.lanes[n].left {
		a.lanes[n].left = true
		a.left++
	}
	for owner, all := range had {
		if x, ok := a.promises[owner]; ok {
			x.away = all - x.left
			a.setPromise(owner, x)
		}
	}
}

// OpenLane undoes both.
func (a *Allocator) OpenLane(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.lanes[n].closed {
		return
	}
	if a.lanes[n].left {
		a.lanes[n].left = false
		if a.left--; a.left == 0 {
			for owner, x := range a.promises {
				x.away = 0
				a.promises[owner] = x
			}
			a.away = 0
		}
	}
	a.lanes[n].closed = false
	a.roomy += a.lanes[n].roomy
	for kind := range kinds {
		a.free[kind] += a.lanes[n].free[kind]
	}
	a.tellReady()
	a.wake()
}

// SetDry says whether no more chunks can be added to a lane now. Ready looks at the others then.
func (a *Allocator) SetDry(n int, dry bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lanes[n].dry != dry {
		a.lanes[n].dry = dry
		a.tellReady()
	}
}

// ReadyIn is about how many blocks of a kind could be handed out of a lane now; of Written ones, in roomy chunks.
func (a *Allocator) ReadyIn(n int, kind Kind) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n >= len(a.lanes) || a.lanes[n].closed {
		return 0
	}
	return a.lanes[n].ready(kind)
}

// Unsettled counts the blocks of a lane that are handed out and not committed, or committed away and not free, or taken: somebody may be at them.
func (a *Allocator) Unsettled(n int) (blocks int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.chunks {
		if int(a.segments[c.number/SegmentChunks].lane) != n {
			continue
		}
		if blocks += c.pending + c.held; c.taken {
			blocks++
		}
	}
	return blocks
}

// Drop forgets the chunks of a segment of a closed lane, in none of which a block is in use.
func (a *Allocator) Drop(seg uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(seg) >= len(a.segments) {
		return
	}
	s := &a.segments[seg]
	for kind := range kinds {
		a.lanes[s.lane].spaced -= int64(s.has[kind].Count())
		a.addFree(s, kind, -int64(s.free[kind]))
		s.free[kind], s.best[kind], s.has[kind] = 0, ChunkBlocks, Chunks{}
	}
	a.addRoomy(s, -s.roomy)
	s.partial, s.rough = false, false
	if s.count != nil {
		a.recent = slices.DeleteFunc(a.recent, func(c *counts) bool { return c == s.count })
		s.count = nil
	}
}

func (a *Allocator) addFree(s *segment, kind Kind, n int64) {
	l := &a.lanes[s.lane]
	l.free[kind] += n
	if l.closed {
		return
	}
	a.free[kind] += n
	a.tell(kind)
}

// tell is tellReady for what concerns one kind.
func (a *Allocator) tell(kind Kind) {
	if len(a.lanes) == 1 {
		a.tellReadyOf(kind, a.lanes[0].ready(kind))
		return
	}
	a.tellReady()
}

func (l *lane) ready(kind Kind) int64 {
	if kind == Written {
		return l.roomy
	}
	return l.free[kind]
}

func (a *Allocator) tellReady() {
	for kind := range kinds {
		all, open, least := int64(0), int64(0), int64(0)
		for i := range a.lanes {
			l := &a.lanes[i]
			if l.closed {
				continue
			}
			n := l.ready(kind)
			if all += n; l.dry {
				continue
			}
			if open == 0 || n < least {
				least = n
			}
			open++
		}
		ready := all
		if !a.filled && open > 0 {
			ready = open * least
		}
		a.tellReadyOf(kind, ready)
	}
}

// tellReadyOf leaves out what is set aside: of Reserved blocks, for they make up for Written ones.
func (a *Allocator) tellReadyOf(kind Kind, n int64) {
	if kind == Reserved {
		n -= a.setAside()
	}
	a.ready[kind].Store(n)
}

// turns lists the open lanes in the order in which a claim looks for its next chunk, each with where it looks first.
func (a *Allocator) turns(list []turn, x claim, last *chunk) []turn {
	if len(a.lanes) == 1 {
		start := uint32(0)
		if last != nil {
			start = last.number
		}
		return append(list, turn{start: start})
	}
	first := 0
	switch {
	case a.filled:
	case last != nil:
		first = int(a.segments[last.number/SegmentChunks].lane) + 1
	default:
		first = int(x.owner % uint64(len(a.lanes)))
	}
	for i := range a.lanes {
		n := uint16((first + i) % len(a.lanes))
		if !a.lanes[n].closed {
			list = append(list, turn{a.last[extentOf{x, n}], n})
		}
	}
	return list
}
