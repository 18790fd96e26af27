package fsys

import (
	"math/rand/v2"
	"path/filepath"
)

// Late is what a killed process had under way and what has not landed yet: requests live on in the kernel, and with them the locks of their files.
type Late struct {
	m       *Mem
	sectors []lateSector
	locked  []*memNode
}

type lateSector struct {
	data   *memData
	page   int64
	sector int
	bytes  *memSector
	direct bool
}

// DeadClone is KillClone with the sectors that have not been reached still to come. Of the files whose names match locks, which the process had locked,
// those stay locked that it has something under way to; all of them, where that is to another file: a thread that waits in the kernel keeps every
// descriptor of its process.
func (m *Mem) DeadClone(rng *rand.Rand, locks string) (*Mem, *Late) {
	clone, late := m.killed(rng)
	writing := map[*memData]bool{}
	for _, s := range late.sectors {
		writing[s.data] = true
	}
	var all []*memNode
	var walk func(n *memNode)
	walk = func(n *memNode) {
		for name, child := range n.names {
			if child.data == nil {
				walk(child)
			} else if ok, _ := filepath.Match(locks, name); ok {
				all = append(all, child)
				if writing[child.data] {
					late.locked = append(late.locked, child)
				}
			}
		}
	}
	walk(clone.root)
	if len(writing) > len(late.locked) {
		late.locked = all
	}
	for _, n := range late.locked {
		n.holder = &memFile{}
	}
	return clone, late
}

// Land lets sectors land, each with a probability; with 1 all of them, and then the locks go. It may be called again.
func (l *Late) Land(share float64, rng *rand.Rand) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	var left []lateSector
	for _, s := range l.sectors {
		if share < 1 && rng.Float64() >= share {
			left = append(left, s)
			continue
		}
		l.m.clock++
		by := &memChange{ended: l.m.clock}
		bytes := memSector{}
		if s.bytes != nil {
			bytes = *s.bytes
		}
		s.data.writeSector(s.page, s.sector, 0, bytes[:], s.direct, by)
	}
	if l.sectors = left; share < 1 {
		return
	}
	for _, n := range l.locked {
		n.holder = nil
	}
	l.locked = nil
}
