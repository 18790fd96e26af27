package alloc

// Blocks can be promised to an owner: then nobody else is given them, and what the owner is given is taken off its promise. An owner may ask for
// more than it was promised; that comes from what nobody was. A promise is backed by blocks that have their space, those included that are held or
// taken now and come back. Owners without a promise cost nothing.
//
// While a lane is left (LeaveLane), what becomes free there is nobody's, and an owner that gives blocks up there is promised as many: so the other lanes
// hold as much back. How much follows from two bounds, each kept in constant time, for to look up whose each block of the lane is would take as long as
// the lane is large:
//
//   - away: of each owner, what it had been given and not given back when the lane was closed, less what it has lost there since. It may lie on other
//     lanes; never is more of it on the lanes that are left.
//   - what lies on those lanes at all, whoever's it is. As that is moved to the others, it takes what was held back for it.

// promise is an owner's.
type promise struct {
	left int64 // what it may yet ask for; below zero where it was given more than it was promised
	away int64 // no more than this of what it was given lies on lanes that are left
}

// Promise sets n more blocks aside for an owner, if so many are there that nobody was promised. It says whether it did.
func (a *Allocator) Promise(owner uint64, n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > a.spare() {
		return false
	}
	a.changePromise(owner, n, 0)
	return true
}

// SetPromise makes an owner's promise n blocks, whatever is there: the caller knows that they are, or come. The owner has nothing that it was given; or
// the allocator has just been made, and LeaveLane is still to come.
func (a *Allocator) SetPromise(owner uint64, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setPromise(owner, promise{left: n})
	a.wake()
}

// Return changes the promise of an owner that has one by n.
func (a *Allocator) Return(owner uint64, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.promises[owner]; ok {
		a.changePromise(owner, n, 0)
		if n < 0 {
			a.wake()
		}
	}
}

// Lost says that an owner has blocks no more that it was given: if it has a promise, it is promised as many. They are given back with Undo, Abandon or
// Hold, and not before.
func (a *Allocator) Lost(owner uint64, list ...Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.has(owner, list, -1)
}

// Got says that an owner has blocks which somebody else was given: if it has a promise, it needs so many less.
func (a *Allocator) Got(owner uint64, list ...Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.has(owner, list, 1) {
		a.wake()
	}
}

// GotSome is Got for n blocks that lie anywhere.
func (a *Allocator) GotSome(owner uint64, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.promises[owner]; ok {
		away := n
		if a.left == 0 {
			away = 0
		}
		a.changePromise(owner, -n, away)
		a.wake()
	}
}

// has moves blocks between what an owner has (sign 1) and what it is promised (-1).
func (a *Allocator) has(owner uint64, list []Extent, sign int64) bool {
	if _, ok := a.promises[owner]; !ok {
		return false
	}
	n, away := int64(0), int64(0)
	for _, x := range list {
		n += int64(x.N)
		away += a.onLeft(x)
	}
	a.changePromise(owner, -sign*n, sign*away)
	return true
}

// onLeft counts the blocks of an extent that lie on lanes that are left.
func (a *Allocator) onLeft(x Extent) (blocks int64) {
	if a.left == 0 {
		return 0
	}
	for x.N > 0 {
		n := min(x.N, SegmentBlocks-int(x.Place%SegmentBlocks))
		if a.lanes[a.segments[x.Place/SegmentBlocks].lane].left {
			blocks += int64(n)
		}
		x.Place, x.N = x.Place+uint64(n), x.N-n
	}
	return blocks
}

// DropPromise ends an owner's.
func (a *Allocator) DropPromise(owner uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.promises[owner]; ok {
		a.setPromise(owner, promise{})
		delete(a.promises, owner)
		a.wake()
	}
}

// PromiseMoved promises an owner up to n blocks for copies of what lies on lanes that are left, and says how many. With each block that is moved the
// others need to hold one back less, unless what they hold back is less than what lies there: the rest must have been promised to nobody.
func (a *Allocator) PromiseMoved(owner uint64, n int64) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	spare := a.spare()
	if rest := max(a.onLeftLanes()-a.away, 0); rest > spare {
		n = min(n, max(spare, 0))
	}
	if n > 0 {
		a.changePromise(owner, n, 0)
	}
	return n
}

// PromiseOf is what an owner has left of its promise; below zero where it was given more than that.
func (a *Allocator) PromiseOf(owner uint64) (n int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, ok := a.promises[owner]
	return x.left, ok
}

// Promised is how many blocks are promised in all.
func (a *Allocator) Promised() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.promised
}

// SetAside is how many blocks nobody gets who was not promised them: those that are, and those held back while lanes are left.
func (a *Allocator) SetAside() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setAside()
}

func (a *Allocator) setAside() int64 {
	n := a.promised
	if a.left > 0 && a.away > 0 {
		n += min(a.away, a.onLeftLanes())
	}
	return n
}

// onLeftLanes is what lies on the lanes that are left, handed out or in use.
func (a *Allocator) onLeftLanes() (blocks int64) {
	for i := range a.lanes {
		if l := &a.lanes[i]; l.left {
			blocks += l.spaced*ChunkBlocks - l.free[Written] - l.free[Reserved] - l.coming
		}
	}
	return blocks
}

// Unpromised is how many blocks nobody was promised; below zero where promises lack so many.
func (a *Allocator) Unpromised() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.spare()
}

func (a *Allocator) spare() int64 {
	n := a.free[Written] + a.free[Reserved] - a.setAside()
	for i := range a.lanes {
		if l := &a.lanes[i]; !l.closed {
			n += l.coming
		}
	}
	return n
}

func (a *Allocator) changePromise(owner uint64, left, away int64) {
	x := a.promises[owner]
	x.left += left
	x.away += away
	a.setPromise(owner, x)
}

func (a *Allocator) setPromise(owner uint64, x promise) {
	had := a.promises[owner]
	a.promised += max(x.left, 0) - max(had.left, 0)
	a.away += max(x.away, 0) - max(had.away, 0)
	a.promises[owner] = x
	a.tellReady()
}

// admits tells whether an owner may be given n blocks now.
func (a *Allocator) admits(owner uint64, n int64) bool {
	if n > a.free[Written]+a.free[Reserved] {
		return false
	}
	if a.promised == 0 && a.away == 0 {
		return true
	}
	own := min(max(a.promises[owner].left, 0), n)
	return n == own || n-own <= a.spare()
}

// given takes n blocks off an owner's promise, if it has one.
func (a *Allocator) given(owner uint64, n int64) {
	if _, ok := a.promises[owner]; ok {
		a.changePromise(owner, -n, 0)
	}
}
