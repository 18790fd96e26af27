package alloc

// Blocks can be promised to an owner: then nobody else is given them, and what the owner is given is taken off its promise. An owner may ask for
// more than it was promised; that comes from what nobody was. A promise is backed by blocks that have their space, those included that are held or
// taken now and come back. Owners without a promise cost nothing.

// Promise sets n more blocks aside for an owner, if so many are there that nobody was promised. It says whether it did.
func (a *Allocator) Promise(owner uint64, n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > a.spare() {
		return false
	}
	a.setPromise(owner, a.promises[owner]+n)
	return true
}

// SetPromise makes an owner's promise n blocks, whatever is there: the caller knows that they are, or come.
func (a *Allocator) SetPromise(owner uint64, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setPromise(owner, n)
	a.wake()
}

// Return changes the promise of an owner that has one by n: it gives back what it was given, or will need, or needs no more. Of blocks that are
// given back with Undo it is told before.
func (a *Allocator) Return(owner uint64, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if had, ok := a.promises[owner]; ok {
		a.setPromise(owner, had+n)
		if n < 0 {
			a.wake()
		}
	}
}

// DropPromise ends an owner's.
func (a *Allocator) DropPromise(owner uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.promises[owner]; ok {
		a.setPromise(owner, 0)
		delete(a.promises, owner)
		a.wake()
	}
}

// PromiseOf is what an owner has left of its promise; below zero where it was given more than that.
func (a *Allocator) PromiseOf(owner uint64) (n int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, ok = a.promises[owner]
	return n, ok
}

// Promised is how many blocks are set aside in all.
func (a *Allocator) Promised() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.promised
}

// Unpromised is how many blocks nobody was promised; below zero where promises lack so many.
func (a *Allocator) Unpromised() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.spare()
}

func (a *Allocator) spare() int64 {
	n := a.free[Written] + a.free[Reserved] - a.promised
	for i := range a.lanes {
		if l := &a.lanes[i]; !l.closed {
			n += l.coming
		}
	}
	return n
}

func (a *Allocator) setPromise(owner uint64, n int64) {
	a.promised += max(n, 0) - max(a.promises[owner], 0)
	a.promises[owner] = n
	a.tellReady()
}

// admits tells whether an owner may be given n blocks now.
func (a *Allocator) admits(owner uint64, n int64) bool {
	if n > a.free[Written]+a.free[Reserved] {
		return false
	}
	if a.promised == 0 {
		return true
	}
	own := min(max(a.promises[owner], 0), n)
	return n == own || n-own <= a.spare()
}

// given takes n blocks off an owner's promise, if it has one.
func (a *Allocator) given(owner uint64, n int64) {
	if had, ok := a.promises[owner]; ok {
		a.setPromise(owner, had-n)
	}
}
