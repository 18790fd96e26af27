package fsys

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashClone is what the file system may hold after a power cut at this moment: every choice that the contract leaves open is made by rng. The clone
// has no open files and no locks, and everything in it is durable. The original goes on as if nothing had happened.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	return m.clone(&cloner{
		names: func(n *memNode) (now, durable map[string]*memNode) {
			states := append([]map[string]*memNode{n.durable}, n.later...)
			now = states[rng.IntN(len(states))]
			return now, now
		},
		data: func(d *memData, dev *memDevice) *memData { return d.crash(rng, dev) },
	})
}

// KillClone is what the file system holds when the process that used it is killed and the machine goes on: all that was written, with the locks
// dropped, and no more of it durable than before.
func (m *Mem) KillClone() *Mem {
	return m.clone(&cloner{
		names: func(n *memNode) (now, durable map[string]*memNode) { return n.names, n.durable },
		data:  func(d *memData, dev *memDevice) *memData { return d.copy(dev) },
	})
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
	copied := &Mem{}
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
	copied := &memNode{device: c.devices[n.device], mtime: n.mtime}
	c.nodes[n] = copied
	if n.data != nil {
		copied.data = c.data(n.data, copied.device)
		return copied
	}
	now, durable := c.names(n)
	copied.names, copied.durable = c.folder(now), c.folder(durable)
	if !maps.Equal(copied.names, copied.durable) {
		copied.changed()
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

func (d *memData) crash(rng *rand.Rand, dev *memDevice) *memData {
	left := newMemData(dev)
	left.size = d.sizes[rng.IntN(len(d.sizes))]
	left.sizes[0] = left.size
	maps.Copy(left.written, d.written)
	maps.Copy(left.space, d.space)
	for _, number := range slices.Sorted(maps.Keys(d.pages)) {
		page := &memPage{}
		for i := range page.durable {
			page.durable[i] = d.pages[number].durable[i]
			if later := d.pages[number].later[i]; len(later) > 0 {
				// Half of the time the durable content stays, however many writes came later.
				if pick := rng.IntN(2 * len(later)); pick < len(later) {
					page.durable[i] = later[pick].data
				}
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

func (d *memData) copy(dev *memDevice) *memData {
	copied := newMemData(dev)
	copied.size, copied.sizes = d.size, slices.Clone(d.sizes)
	maps.Copy(copied.written, d.written)
	maps.Copy(copied.writing, d.writing)
	maps.Copy(copied.space, d.space)
	maps.Copy(copied.spacing, d.spacing)
	for number, page := range d.pages {
		twin := &memPage{durable: page.durable}
		for i, later := range page.later {
			twin.later[i] = slices.Clone(later)
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
