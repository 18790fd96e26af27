package fsys

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashClone is what the file system may hold after a power cut at this moment: every choice that the contract leaves open is made by rng. The clone
// has no open files and no locks, and everything in it is durable. The original goes on as if nothing had happened.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	// How likely a sector gets something later than its durable content: of some cuts nothing, of some all.
	keep := [...]float64{0, 0.1, 0.5, 0.5, 0.9, 1}[rng.IntN(6)]
	return m.clone(&cloner{
		names: func(n *memNode) (now, durable map[string]*memNode) {
			if now = n.durable; len(n.later) > 0 {
				if i := rng.IntN(len(n.later) + 1); i > 0 {
					now = n.later[i-1].names
				}
			}
			return now, now
		},
		data: func(d *memData, dev *memDevice) *memData { return d.crash(rng, dev, keep) },
	})
}

// KillClone is what the file system holds when the process that used it is killed and the machine goes on: all that was written, with the locks
// dropped, and no more of it durable than before. Of the writes that were under way, which end after the process, rng chooses the sectors that they
// reach; without one they are whole.
func (m *Mem) KillClone(rng *rand.Rand) *Mem {
	clone, _ := m.killed(rng)
	return clone
}

func (m *Mem) killed(rng *rand.Rand) (*Mem, *Late) {
	late := &Late{}
	late.m = m.clone(&cloner{
		names: func(n *memNode) (now, durable map[string]*memNode) { return n.names, n.durable },
		data:  func(d *memData, dev *memDevice) *memData { return d.copy(rng, dev, late) },
	})
	return late.m, late
}

// cloner copies a tree; what is reached twice is copied once.
type cloner struct {
	names   func(*memNode) (now, durable map[string]*memNode)
	data    func(*memData, *memDevice) *memData
	devices map[*memDevice]*memDevice
	nodes   map[*memNode]*memNode
}

func (m *Mem) clone(c *cloner) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.devices, c.nodes = map[*memDevice]*memDevice{}, map[*memNode]*memNode{}
	copied := &Mem{clock: m.clock, numbers: m.numbers, operations: m.operations, writes: map[int]*memChange{}, syncs: map[int]uint64{}}
	for _, d := range m.devices {
		dev := &memDevice{id: d.id, prefix: d.prefix, total: d.total, typ: d.typ, dirty: map[*memPage]struct{}{}}
		c.devices[d] = dev
		copied.devices = append(copied.devices, dev)
	}
	copied.root = c.node(m.root)
	return copied
}

func (c *cloner) node(n *memNode) *memNode {
	if done := c.nodes[n]; done != nil {
		return done
	}
	copied := &memNode{number: n.number, device: c.devices[n.device], mtime: n.mtime}
	c.nodes[n] = copied
	if n.data != nil {
		copied.data = c.data(n.data, copied.device)
		return copied
	}
	now, durable := c.names(n)
	copied.names, copied.durable = c.folder(now), c.folder(durable)
	if !maps.Equal(copied.names, copied.durable) {
		copied.changed(0)
	}
	return copied
}

// folder goes through the names in order, so that the same seed makes the same choices.
func (c *cloner) folder(names map[string]*memNode) map[string]*memNode {
	copied := make(map[string]*memNode, len(names))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		copied[name] = c.node(names[name])
	}
	return copied
}

func (d *memData) crash(rng *rand.Rand, dev *memDevice, keep float64) *memData {
	left := newMemData(dev)
	left.size = d.sizes[rng.IntN(len(d.sizes))].size
	left.sizes[0].size = left.size
	maps.Copy(left.written, d.written)
	maps.Copy(left.space, d.space)
	for _, number := range slices.Sorted(maps.Keys(d.pages)) {
		page := &memPage{}
		for i := range page.durable {
			page.durable[i] = d.pages[number].durable[i]
			if later := d.pages[number].later[i]; len(later) > 0 && rng.Float64() < keep {
				page.durable[i] = later[rng.IntN(len(later))].data
			}
		}
		left.pages[number] = page
	}
	left.cut()
	return left
}

// cut drops what lies beyond the size: a file that grows again shows zeroes there.
func (d *memData) cut() {
	for number, page := range d.pages {
		for i := range page.durable {
			switch at := number*pageSize + int64(i)*sectorSize; {
			case page.durable[i] == nil:
			case at >= d.size:
				page.durable[i] = nil
			case at+sectorSize > d.size:
				content := *page.durable[i]
				clear(content[d.size-at:])
				page.durable[i] = &content
			}
		}
	}
}

func (d *memData) copy(rng *rand.Rand, dev *memDevice, late *Late) *memData {
	copied := newMemData(dev)
	copied.size, copied.sizes = d.size, slices.Clone(d.sizes)
	for i := range copied.sizes {
		copied.sizes[i].by = landed(copied.sizes[i].by)
	}
	maps.Copy(copied.written, d.written)
	maps.Copy(copied.space, d.space)
	for number, by := range d.writing {
		copied.writing[number] = landed(by)
	}
	for number, by := range d.spacing {
		copied.spacing[number] = landed(by)
	}
	for _, number := range slices.Sorted(maps.Keys(d.pages)) {
		page := d.pages[number]
		twin := &memPage{durable: page.durable}
		for i, later := range page.later {
			for _, v := range later {
				if v.by.ended != 0 || rng == nil || rng.IntN(2) == 0 {
					v.by = landed(v.by)
					twin.later[i] = append(twin.later[i], v)
				} else {
					late.sectors = append(late.sectors, lateSector{copied, number, i, v.data, v.direct})
				}
			}
		}
		copied.pages[number] = twin
		if _, ok := d.dirty[page]; ok {
			copied.dirty[twin] = struct{}{}
		}
		if _, ok := d.device.dirty[page]; ok {
			dev.dirty[twin] = struct{}{}
		}
	}
	return copied
}

// landed is a change as the next process finds it: ended.
func landed(by *memChange) *memChange {
	if by == nil || by.ended != 0 {
		return by
	}
	return &memChange{ended: 1}
}
