package alloc

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// promiseModel is volumes over an allocator of three lanes: what each block in use is for.
type promiseModel struct {
	*rapid.T
	a      *Allocator
	store  *fakeStore
	chunks int
	size   map[uint64]int64 // of those that have a promise, in blocks
	gain   map[uint64]int64 // what such a one got by a join, as far as its promise does not know
	has    []holding
	left   [3]bool
}

type holding struct {
	owner uint64
	Extent
	gained bool // by a join whose pass has not ended: it may be hidden
}

const (
	modelThin   = 3
	modelFrozen = 4
	modelMover  = 5
)

func (m *promiseModel) owned(owner uint64) (n int64) {
	for _, h := range m.has {
		if h.owner == owner {
			n += int64(h.N)
		}
	}
	return n
}

// take has an owner write n new blocks, one extent or several; short of space it returns false.
func (m *promiseModel) take(owner, as uint64, n int) bool {
	for n > 0 {
		place, got, err := m.a.Alloc(owner, n, Written)
		if errors.Is(err, ErrNone) {
			return false
		}
		if err != nil || m.left[laneOf(place)] {
			m.Fatalf("%d blocks at %d, lanes left %v: %v", got, place, m.left, err)
		}
		m.store.set(place, got, true)
		m.a.Committed([]Extent{{place, got}})
		m.has = append(m.has, holding{owner: as, Extent: Extent{place, got}})
		n -= got
	}
	return true
}

// cut takes up to n blocks off one of an owner's extents.
func (m *promiseModel) cut(ok func(h holding) bool, n int) (x holding, found bool) {
	var at []int
	for i, h := range m.has {
		if ok(h) {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return x, false
	}
	h := &m.has[rapid.SampledFrom(at).Draw(m.T, "extent")]
	x = *h
	if x.N = min(n, h.N); x.N < h.N {
		h.Place, h.N = h.Place+uint64(x.N), h.N-x.N
	} else {
		*h = m.has[len(m.has)-1]
		m.has = m.has[:len(m.has)-1]
	}
	return x, true
}

func (m *promiseModel) free(x holding) {
	must(m.T, m.a.Hold([]Extent{x.Extent}))
	m.store.set(x.Place, x.N, false)
	m.a.Release([]Extent{x.Extent})
}

// drop has an owner give blocks up.
func (m *promiseModel) drop(owner uint64, n int) bool {
	x, ok := m.cut(func(h holding) bool { return h.owner == owner }, n)
	if ok {
		m.a.Lost(owner, x.Extent)
		m.free(x)
	}
	return ok
}

// leave is a drain that begins, if the others have the room.
func (m *promiseModel) leave(lane int) {
	if m.left[lane] {
		return
	}
	m.a.LeaveLane(lane, m.size)
	if m.left[lane] = m.a.Unpromised() >= 0; !m.left[lane] {
		m.a.OpenLane(lane)
	}
}

// move moves blocks off the lanes that are left, as many as may be.
func (m *promiseModel) move(n int) {
	x, ok := m.cut(func(h holding) bool { return m.left[laneOf(h.Place)] }, n)
	if !ok {
		return
	}
	may := m.a.PromiseMoved(modelMover, int64(x.N))
	if may < int64(x.N) {
		rest := x
		rest.Place, rest.N = x.Place+uint64(may), x.N-int(may)
		m.has = append(m.has, rest)
		x.N = int(may)
	}
	if may > 0 {
		if !m.take(modelMover, x.owner, x.N) {
			m.Fatalf("%d blocks that may be moved have no room", may)
		}
		m.free(x)
	}
	m.a.DropPromise(modelMover)
}

// join gives an owner what is frozen; what it would have beyond its size is hidden and removed. ends: its pass has ended.
func (m *promiseModel) join(owner uint64) {
	before := m.owned(owner)
	for i := range m.has {
		if m.has[i].owner == modelFrozen {
			m.has[i].owner, m.has[i].gained = owner, true
		}
	}
	m.gain[owner] += m.owned(owner) - before
	for over := m.owned(owner) - m.size[owner]; over > 0; {
		x, _ := m.cut(func(h holding) bool { return h.owner == owner && h.gained }, int(over))
		m.free(x)
		m.gain[owner] -= int64(x.N)
		over -= int64(x.N)
	}
}

func (m *promiseModel) ends(owner uint64) {
	m.a.GotSome(owner, m.gain[owner])
	m.gain[owner] = 0
	for i := range m.has {
		m.has[i].gained = m.has[i].gained && m.has[i].owner != owner
	}
}

// freeze is a cut, if there is space for it, or a rollback, which frees what the owner has.
func (m *promiseModel) freeze(owner uint64, rollback bool) {
	left, _ := m.a.PromiseOf(owner)
	if !rollback && !m.a.Promise(owner, max(m.size[owner]-left, 0)) {
		return
	}
	for i := range m.has {
		if m.has[i].owner == owner {
			m.has[i].owner, m.has[i].gained = modelFrozen, false
		}
	}
	for rollback {
		x, ok := m.cut(func(h holding) bool { return h.owner == modelFrozen }, ChunkBlocks)
		if !ok {
			break
		}
		m.free(x)
	}
	m.gain[owner] = 0
	m.a.SetPromise(owner, m.size[owner])
}

// reopen makes another allocator of what is stored.
func (m *promiseModel) reopen() {
	m.a = newAllocator(m.T, m.store, m.segments()...)
	for lane, left := range m.left {
		if left {
			m.a.CloseLane(lane)
		}
	}
	for owner, size := range m.size {
		m.a.SetPromise(owner, size-m.owned(owner)+m.gain[owner])
	}
	for lane, left := range m.left {
		if left {
			m.a.LeaveLane(lane, m.size)
		}
	}
}

func (m *promiseModel) segments() []Segment {
	list := make([]Segment, 3)
	for i := range list {
		list[i].Lane = i
		for k := range m.chunks {
			list[i].Has[Written].Add(k)
		}
	}
	for _, h := range m.has {
		list[laneOf(h.Place)].Used += h.N
	}
	return list
}

// Whatever is written, given up, frozen, joined, rolled back and moved while lanes are left, opened again and reopened: when the others have taken what
// they can get, those who were promised their size can give up all that they have and write it whole. And what could be moved when a lane was left can be.
func TestPromisesWhileLanesAreLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &promiseModel{T: t, store: &fakeStore{map[uint32]*Bitmap{}}, chunks: rapid.IntRange(1, 2).Draw(t, "chunks")}
		m.size, m.gain = map[uint64]int64{}, map[uint64]int64{}
		m.a = newAllocator(t, m.store, m.segments()...)
		owners := []uint64{1, 2}
		for _, owner := range owners {
			size := rapid.Int64Range(1, 800).Draw(t, "size")
			if !m.a.Promise(owner, size) {
				t.Fatal("an empty allocator has no space")
			}
			m.size[owner] = size
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			owner, n := rapid.SampledFrom(owners).Draw(t, "owner"), rapid.IntRange(1, 400).Draw(t, "n")
			lane := rapid.IntRange(0, 2).Draw(t, "lane")
			switch rapid.IntRange(0, 12).Draw(t, "op") {
			case 0, 1:
				if n := min(int64(n), m.size[owner]-m.owned(owner)); !m.take(owner, owner, int(n)) {
					t.Fatalf("owner %d wants %d blocks of its own and gets none", owner, n)
				}
			case 2, 3:
				m.drop(owner, n)
			case 4, 5:
				m.take(modelThin, modelThin, n)
			case 6:
				m.drop(modelThin, n)
			case 7:
				m.leave(lane)
			case 8:
				m.a.OpenLane(lane)
				m.left[lane] = false
			case 9:
				m.move(n)
			case 10:
				m.freeze(owner, n%3 == 0)
			case 11:
				if n%2 == 0 && m.gain[owner] == 0 {
					m.join(owner)
				} else {
					m.ends(owner)
				}
			case 12:
				m.heir(owner, n)
				if n%2 == 0 {
					m.reopen()
				}
			}
		}
		for m.take(modelThin, modelThin, 1) {
		}
		for _, owner := range owners {
			for m.drop(owner, ChunkBlocks) {
			}
		}
		for _, owner := range owners {
			if !m.take(owner, owner, int(m.size[owner])) {
				t.Fatalf("owner %d was promised %d blocks and does not get them", owner, m.size[owner])
			}
		}
	})
}

// heir is a write in COW: the owner gets a frozen block's place, which is copied to a new one.
func (m *promiseModel) heir(owner uint64, n int) {
	x, ok := m.cut(func(h holding) bool { return h.owner == modelFrozen }, min(n, int(m.size[owner]-m.owned(owner))))
	if !ok || x.N == 0 {
		m.has = append(m.has, x)
		return
	}
	had := slices.Clone(m.has)
	if !m.a.Promise(modelMover, int64(x.N)) || !m.take(modelMover, modelFrozen, x.N) {
		m.has = append(had, x)
	} else {
		m.has = append(m.has, holding{owner: owner, Extent: x.Extent})
		m.a.Got(owner, x.Extent)
	}
	m.a.DropPromise(modelMover)
}
