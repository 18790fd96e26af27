// Package mapcache keeps flattened pages of volume maps in memory that the Go heap knows nothing of.
//
// Memory is one anonymous mapping per cache, cut into slabs of 64 KiB; a slab holds items of one size class. When nothing is free, the clock hand picks
// a slab that was not used since it last came by and gives up every page in it, so that memory can move between size classes. Pages carry no pointers,
// so neither the collector nor GOMEMLIMIT sees them, and the limit is exact.
//
// A Cache is not safe for concurrent use: its owner's lock guards it. Slices that Get returns are valid until the next call of Put or Drop. They have
// room for growth behind them: runs.Insert works in place while there is room, and Put then only notes the new length.
package mapcache

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const (
	slabSize  = 64 << 10
	entrySize = 16
	// MinSize is the smallest cache, in bytes: one slab for every size class.
	MinSize = slabSize * 9
)

// classes are the capacities of items, in entries.
var classes = [...]int{4, 8, 16, 32, 64, 128, 256, 512, runs.Blocks}

func init() {
	if unsafe.Sizeof(runs.Entry{}) != entrySize {
		panic("mapcache: an entry is not 16 bytes")
	}
}

// Key names a page of a map.
type Key uint64

// ref finds an item: slab << 10 | index within the slab (at most 1024 of the smallest class).
type ref uint32

type slab struct {
	class int8 // index into classes; -1: free
	used  bool // touched since the hand came by
	open  bool // in the class's list of open slabs
	live  int  // items in use
	keys  []Key
	lens  []int16 // entries in use; -1: free item
	free  []uint16
}

// Cache holds pages under one limit.
type Cache struct {
	mem   []byte
	slabs []slab
	index map[Key]ref
	hand  int
	open  [len(classes)][]int // slabs of a class with a free item, perhaps stale
	spare []int               // free slabs

	Hits, Misses, Evictions uint64
}

// New makes a cache of at most limit bytes.
func New(limit int64) (*Cache, error) {
	limit = max(limit, MinSize) / slabSize * slabSize
	mem, err := unix.Mmap(-1, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for the map cache: %w", limit, err)
	}
	c := &Cache{mem: mem, slabs: make([]slab, limit/slabSize), index: make(map[Key]ref)}
	for i := len(c.slabs) - 1; i >= 0; i-- {
		c.slabs[i].class = -1
		c.spare = append(c.spare, i)
	}
	return c, nil
}

// Close gives the memory back. Nothing may be used after it.
func (c *Cache) Close() error { return unix.Munmap(c.mem) }

// Get returns a page's entries, and whether the page is here.
func (c *Cache) Get(k Key) ([]runs.Entry, bool) {
	r, ok := c.index[k]
	if !ok {
		c.Misses++
		return nil, false
	}
	c.Hits++
	s := &c.slabs[r>>10]
	s.used = true
	i := int(r & 1023)
	return c.item(int(r>>10), i)[:s.lens[i]], true
}

// Has tells whether the page is here, without counting it as used.
func (c *Cache) Has(k Key) bool {
	_, ok := c.index[k]
	return ok
}

// Put stores a copy of a page's entries, replacing what was there.
func (c *Cache) Put(k Key, list []runs.Entry) {
	if r, ok := c.index[k]; ok {
		s, i := &c.slabs[r>>10], int(r&1023)
		if len(list) <= classes[s.class] && (s.class == 0 || len(list) > classes[s.class]/4) {
			if item := c.item(int(r>>10), i)[:len(list)]; len(list) > 0 && &item[0] != &list[0] {
				copy(item, list)
			}
			s.lens[i], s.used = int16(len(list)), true
			return
		}
	}
	// The list may alias the very item that is given up here, or one in a slab that is evicted to make room.
	list = append(make([]runs.Entry, 0, len(list)), list...)
	c.Drop(k)
	n := c.slab(classFor(len(list)))
	s := &c.slabs[n]
	i := int(s.free[len(s.free)-1])
	s.free = s.free[:len(s.free)-1]
	s.live++
	s.used = true
	s.keys[i], s.lens[i] = k, int16(len(list))
	copy(c.item(n, i)[:len(list)], list)
	c.index[k] = ref(n<<10 | i)
}

// Drop forgets a page.
func (c *Cache) Drop(k Key) {
	r, ok := c.index[k]
	if !ok {
		return
	}
	delete(c.index, k)
	n, i := int(r>>10), int(r&1023)
	s := &c.slabs[n]
	s.lens[i] = -1
	s.free = append(s.free, uint16(i))
	s.live--
	switch {
	case s.live == 0:
		c.release(n)
	case !s.open:
		s.open = true
		c.open[s.class] = append(c.open[s.class], n)
	}
}

// DropIf forgets every page whose key the function names.
func (c *Cache) DropIf(match func(Key) bool) {
	var keys []Key
	for k := range c.index {
		if match(k) {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		c.Drop(k)
	}
}

// Len is the number of pages held.
func (c *Cache) Len() int { return len(c.index) }

func classFor(n int) int8 {
	for i, size := range classes {
		if n <= size {
			return int8(i)
		}
	}
	panic("mapcache: a page with more entries than blocks")
}

func (c *Cache) item(n, i int) []runs.Entry {
	size := classes[c.slabs[n].class]
	base := n*slabSize + i*size*entrySize
	return unsafe.Slice((*runs.Entry)(unsafe.Pointer(&c.mem[base])), size)
}

// slab returns a slab of the class with a free item, evicting another's pages if it must.
func (c *Cache) slab(class int8) int {
	for open := c.open[class]; len(open) > 0; open = c.open[class] {
		n := open[len(open)-1]
		s := &c.slabs[n]
		if s.class == class && len(s.free) > 0 {
			return n
		}
		c.open[class] = open[:len(open)-1]
		if s.class == class {
			s.open = false
		}
	}
	if len(c.spare) == 0 {
		c.evict()
	}
	n := c.spare[len(c.spare)-1]
	c.spare = c.spare[:len(c.spare)-1]
	count := slabSize / (classes[class] * entrySize)
	s := &c.slabs[n]
	*s = slab{class: class, used: true, open: true, keys: make([]Key, count), lens: make([]int16, count), free: make([]uint16, count)}
	for i := range count {
		s.lens[i], s.free[i] = -1, uint16(count-1-i)
	}
	c.open[class] = append(c.open[class], n)
	return n
}

func (c *Cache) evict() {
	for {
		c.hand = (c.hand + 1) % len(c.slabs)
		s := &c.slabs[c.hand]
		if s.class < 0 {
			continue
		}
		if s.used {
			s.used = false
			continue
		}
		for i, length := range s.lens {
			if length >= 0 {
				delete(c.index, s.keys[i])
				c.Evictions++
			}
		}
		c.release(c.hand)
		return
	}
}

func (c *Cache) release(n int) {
	c.slabs[n] = slab{class: -1}
	c.spare = append(c.spare, n)
}
