// Package rangelock is the engine's one lock table: exclusive locks on ranges of blocks within a page, keyed by (family, page).
//
// Ranges of one page that do not touch are held side by side. Whoever needs several takes them in ascending order. A lock is not re-entrant.
package rangelock

import "sync"

const shards = 256

// Key names a page of a family.
type Key struct {
	Family uint32
	Page   uint32
}

type span struct{ off, end int }

// Table is a lock table; its zero value is ready.
type Table struct {
	shards [shards]shard
}

type shard struct {
	mu      sync.Mutex
	cond    *sync.Cond
	held    map[Key][]span
	waiters int
}

// Lock takes [off, end) of the page, waiting for whoever holds a part of it.
func (t *Table) Lock(k Key, off, end int) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = make(map[Key][]span)
		s.cond = sync.NewCond(&s.mu)
	}
	for overlaps(s.held[k], off, end) {
		s.waiters++
		s.cond.Wait()
		s.waiters--
	}
	s.held[k] = append(s.held[k], span{off, end})
}

// Unlock gives back exactly what one Lock took.
func (t *Table) Unlock(k Key, off, end int) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held[k]
	for i, h := range held {
		if h == (span{off, end}) {
			held[i] = held[len(held)-1]
			if held = held[:len(held)-1]; len(held) == 0 {
				delete(s.held, k)
			} else {
				s.held[k] = held
			}
			if s.waiters > 0 {
				s.cond.Broadcast()
			}
			return
		}
	}
	panic("rangelock: unlock of a range that is not held")
}

func (t *Table) shard(k Key) *shard {
	h := (uint64(k.Family)<<32 | uint64(k.Page)) * 0x9e3779b97f4a7c15
	return &t.shards[h>>56]
}

func overlaps(held []span, off, end int) bool {
	for _, h := range held {
		if off < h.end && h.off < end {
			return true
		}
	}
	return false
}
