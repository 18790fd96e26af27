package engine

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
)

// moveMarks say which blocks of a family's pages are being moved. Writes in place take no lock, so they ask here, after their lookup: a marked range
// is written under its lock, and so after the move.
//
// A mark outlives every pin that is older than the end of its move: who looked up before the end asks after it, and must not miss the mark. Where a
// mover must know that nobody writes in place any more, it waits for the pins older than its mark; COW need not, because it marks before it loads the
// lineage that says the blocks are not its head's, and who writes in place has loaded one that says they are.
//
// Where a move's commit fails, the store may show it for as long as the process lives, and after the next start it may never have been: a page read
// from the store then names places as the head's that are the snapshot's. The pool has failed before the mark and the lock are given up, so whoever
// writes to what a head owns asks for the failure after it has asked for the mark, or has the lock: "state read from Pebble is never taken as durable".
type moveMarks struct {
	n  atomic.Int64
	mu sync.Mutex
	of map[rangelock.Key][]moveSpan
}

type moveSpan struct{ off, end int }

func (m *moveMarks) set(k rangelock.Key, off, end int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil {
		m.of = map[rangelock.Key][]moveSpan{}
	}
	m.of[k] = append(m.of[k], moveSpan{off, end})
	m.n.Add(1)
}

// clear takes away what one set did.
func (m *moveMarks) clear(k rangelock.Key, off, end int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.of[k]
	i := slices.Index(list, moveSpan{off, end})
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(m.of, k)
	} else {
		m.of[k] = list
	}
	m.n.Add(-1)
}

func (m *moveMarks) has(k rangelock.Key, off, end int) bool {
	if m.n.Load() == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.of[k], func(s moveSpan) bool { return s.off < end && off < s.end })
}

// openMaps are the maps of a family that are open: what a move must be published to.
type openMaps struct {
	mu       sync.RWMutex
	byFamily map[uint32][]*mapping
}

func (o *openMaps) add(m *mapping) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byFamily == nil {
		o.byFamily = map[uint32][]*mapping{}
	}
	f := m.lineage.Load().family
	o.byFamily[f] = append(o.byFamily[f], m)
}

func (o *openMaps) remove(m *mapping) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := m.lineage.Load().family
	// A copy: who has the old list may be going through it.
	list := slices.DeleteFunc(slices.Clone(o.byFamily[f]), func(x *mapping) bool { return x == m })
	if len(list) == 0 {
		delete(o.byFamily, f)
	} else {
		o.byFamily[f] = list
	}
}

func (o *openMaps) of(family uint32) []*mapping {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.byFamily[family]
}
