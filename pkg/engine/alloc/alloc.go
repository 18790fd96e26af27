// Package alloc hands out pool blocks.
//
// The pool's blocks are numbered through its segments; 1,024 of them are a chunk, the unit of a stored bitmap, of an owner's extent and of writing
// ahead. A block is free to be handed out when its chunk was written ahead, its bit is clear in the last commit whose sync returned, and nobody can
// still touch it. The stored bitmap shows less than that (it is cleared with the commit that removes a run, before that commit's sync and before the
// last reader has gone), so a chunk in which a block is handed out but not committed, or committed away but not yet free, stays in memory here and
// the stored one is not asked.
//
// Life of a block: Alloc; then Undo (its run was never published), or Committed (its run is in a batch that was applied). Later Hold (before the batch
// that removes its run is applied); then Release (that batch's sync has returned and every pin older than that has ended).
//
// Memory: 16 bytes a segment (1 GiB), 200 bytes a chunk in use, 512 bytes for each of the segments last searched.
package alloc

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// ChunkBlocks is the number of blocks in a chunk.
	ChunkBlocks = 1024
	// SegmentChunks is the number of chunks in a segment.
	SegmentChunks = 256
	// SegmentBlocks is the number of blocks in a segment.
	SegmentBlocks = ChunkBlocks * SegmentChunks

	words = ChunkBlocks / 64
	// roomy is how many free blocks a chunk should have to be taken while there are others: streams stay contiguous.
	roomy = ChunkBlocks / 2
	// searched is how many segments' counts per chunk are kept.
	searched = 64
)

// ErrNone: no block can be handed out now.
var ErrNone = errors.New("no free block written ahead")

// Bitmap has a bit set for every block of a chunk that is in use.
type Bitmap [words]uint64

// Store shows the bitmaps as last applied.
type Store interface {
	// Bitmap returns a chunk's; a chunk without one is wholly free.
	Bitmap(chunk uint32) (Bitmap, error)
	// FreeInSegment counts the free blocks of each chunk of a segment.
	FreeInSegment(segment uint32) (*[SegmentChunks]uint16, error)
}

// Segment is what is known of a segment when the allocator is made.
type Segment struct {
	Ahead [SegmentChunks / 64]uint64 // bit set: the chunk is written ahead
	Used  int                        // blocks whose bit is set
}

type segment struct {
	ahead [SegmentChunks / 64]uint64
	free  int     // blocks that Alloc could hand out
	best  uint16  // no chunk of the segment has more free blocks than this
	count *counts // nil: not loaded
}

type counts struct {
	free    [SegmentChunks]uint16 // of chunks that are not in memory, whether or not they are written ahead
	segment uint32
}

// chunk is a chunk that is in memory.
type chunk struct {
	number  uint32
	used    Bitmap
	free    int
	next    int // where the owner's next block is looked for
	pending int // handed out, not committed
	held    int // committed away, not yet free
	owners  int // whose extent it is; two and more only where nothing else is free
}

// Extent is a stretch of pool blocks.
type Extent struct {
	Place uint64
	N     int
}

// Coalesce sorts extents and joins those that touch. It reuses the list's memory.
func Coalesce(list []Extent) []Extent {
	slices.SortFunc(list, func(a, b Extent) int { return cmp.Compare(a.Place, b.Place) })
	out := list[:0]
	for _, x := range list {
		if n := len(out); n > 0 && out[n-1].Place+uint64(out[n-1].N) == x.Place {
			out[n-1].N += x.N
		} else {
			out = append(out, x)
		}
	}
	return out
}

// Allocator is safe for concurrent use. What commits call takes lists, so that they take the lock once: it is the writers' lock, and where many writers
// share few processors each turn at it may cost a time slice.
type Allocator struct {
	store Store
	ready atomic.Int64 // free, for those who only want an idea of it

	mu       sync.Mutex
	segments []segment
	chunks   map[uint32]*chunk
	current  map[uint64]*chunk
	recent   []*counts // segments searched, oldest first
	free     int64
	pending  int64
	held     int64
	freed    chan struct{} // closed when blocks become free
}

// New makes an allocator over what the store holds.
func New(store Store, segments []Segment) *Allocator {
	a := &Allocator{store: store, chunks: map[uint32]*chunk{}, current: map[uint64]*chunk{}, freed: make(chan struct{})}
	for i, s := range segments {
		a.grow(uint32(i))
		n := 0
		for _, w := range s.Ahead {
			n += bits.OnesCount64(w)
		}
		a.segments[i].ahead = s.Ahead
		a.segments[i].free = n*ChunkBlocks - s.Used
		a.addFree(int64(a.segments[i].free))
	}
	return a
}

func (a *Allocator) grow(seg uint32) {
	for uint32(len(a.segments)) <= seg {
		a.segments = append(a.segments, segment{best: ChunkBlocks})
	}
}

// Free is the number of blocks that could be handed out now; Held, of those that will be free once syncs and pins allow; Pending, of those handed out
// and not committed.
func (a *Allocator) Free() (free, held, pending int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free, a.held, a.pending
}

// Ready is about how many blocks could be handed out now.
func (a *Allocator) Ready() int64 { return a.ready.Load() }

func (a *Allocator) addFree(n int64) {
	a.free += n
	a.ready.Store(a.free)
}

// Freed returns a channel that is closed when blocks become free after the call.
func (a *Allocator) Freed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.freed
}

// Alloc hands out up to want adjacent blocks to an owner, at least one, ascending from its last.
func (a *Allocator) Alloc(owner uint64, want int) (place uint64, n int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.current[owner]
	if c == nil || c.free == 0 {
		if c, err = a.pick(owner, c); err != nil {
			return 0, 0, err
		}
	}
	from, n := c.used.findFree(c.next, want)
	if n == 0 {
		from, n = c.used.findFree(0, want)
	}
	c.used.set(from, n)
	c.next = from + n
	c.free -= n
	c.pending += n
	a.segments[c.number/SegmentChunks].free -= n
	a.addFree(-int64(n))
	a.pending += int64(n)
	return uint64(c.number)*ChunkBlocks + uint64(from), n, nil
}

// pick finds the owner a new chunk, looking upwards from its last one: an unowned roomy one, else an unowned one, else any.
func (a *Allocator) pick(owner uint64, last *chunk) (*chunk, error) {
	if a.free == 0 {
		return nil, ErrNone
	}
	start := uint32(0)
	if last != nil {
		start = last.number
		a.leave(owner, last)
	}
	for _, pass := range []struct {
		least  int
		shared bool
	}{{roomy, false}, {1, false}, {1, true}} {
		n, ok, err := a.search(start, pass.least, pass.shared)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		c, err := a.load(n)
		if err != nil {
			return nil, err
		}
		c.next = 0
		c.owners++
		a.current[owner] = c
		return c, nil
	}
	return nil, ErrNone
}

// search looks for a chunk with at least so many free blocks, from start's segment upwards and around.
func (a *Allocator) search(start uint32, least int, shared bool) (uint32, bool, error) {
	segs := uint32(len(a.segments))
	for i := range segs {
		seg := (start/SegmentChunks + i) % segs
		s := &a.segments[seg]
		if s.free < least || int(s.best) < least {
			continue
		}
		if err := a.count(seg); err != nil {
			return 0, false, err
		}
		best := 0
		for j := range uint32(SegmentChunks) {
			k := j
			if i == 0 {
				k = (start + 1 + j) % SegmentChunks
			}
			n := seg*SegmentChunks + k
			if s.ahead[k/64]&(1<<(k%64)) == 0 {
				continue
			}
			free := int(s.count.free[k])
			c := a.chunks[n]
			if c != nil {
				free = c.free
			}
			best = max(best, free)
			if free >= least && (shared || c == nil || c.owners == 0) {
				return n, true, nil
			}
		}
		s.best = uint16(best)
	}
	return 0, false, nil
}

// count loads the counts of a segment's chunks.
func (a *Allocator) count(seg uint32) error {
	s := &a.segments[seg]
	if s.count != nil {
		return nil
	}
	free, err := a.store.FreeInSegment(seg)
	if err != nil {
		return err
	}
	s.count = &counts{*free, seg}
	a.recent = append(a.recent, s.count)
	if len(a.recent) > searched {
		a.segments[a.recent[0].segment].count = nil
		a.recent = a.recent[1:]
	}
	return nil
}

// load brings a chunk into memory.
func (a *Allocator) load(n uint32) (*chunk, error) {
	if c := a.chunks[n]; c != nil {
		return c, nil
	}
	b, err := a.store.Bitmap(n)
	if err != nil {
		return nil, err
	}
	c := &chunk{number: n, used: b, free: ChunkBlocks - b.count()}
	a.chunks[n] = c
	return c, nil
}

// settle lets a chunk go from memory when the stored bitmap tells all there is to know of it.
func (a *Allocator) settle(c *chunk) {
	if c.pending != 0 || c.held != 0 || c.owners != 0 {
		return
	}
	delete(a.chunks, c.number)
	s := &a.segments[c.number/SegmentChunks]
	if s.count != nil {
		s.count.free[c.number%SegmentChunks] = uint16(c.free)
	}
	s.best = max(s.best, uint16(c.free))
}

// each calls f for the part of [place, place+n) in every chunk.
func (a *Allocator) each(place uint64, n int, f func(c *chunk, from, n int)) error {
	for n > 0 {
		from := int(place % ChunkBlocks)
		m := min(n, ChunkBlocks-from)
		c, err := a.load(uint32(place / ChunkBlocks))
		if err != nil {
			return err
		}
		f(c, from, m)
		a.settle(c)
		place += uint64(m)
		n -= m
	}
	return nil
}

// Undo takes back blocks that were handed out and never published.
func (a *Allocator) Undo(place uint64, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mustEach(place, n, func(c *chunk, from, n int) {
		c.pending -= n
		a.pending -= int64(n)
		a.giveBack(c, from, n)
	})
}

// Committed says that a batch which sets the blocks' bits was applied.
func (a *Allocator) Committed(list []Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range list {
		a.mustEach(x.Place, x.N, func(c *chunk, _, n int) {
			c.pending -= n
			a.pending -= int64(n)
		})
	}
}

// Hold keeps blocks from being handed out although a batch, which must not have been applied yet, clears their bits.
func (a *Allocator) Hold(list []Extent) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range list {
		err := a.each(x.Place, x.N, func(c *chunk, _, n int) {
			c.held += n
			a.held += int64(n)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Abandon turns blocks that were handed out, and whose run was replaced before any commit, into held ones.
func (a *Allocator) Abandon(list []Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range list {
		a.mustEach(x.Place, x.N, func(c *chunk, _, n int) {
			c.pending -= n
			c.held += n
			a.pending -= int64(n)
			a.held += int64(n)
		})
	}
}

// Release makes held blocks free.
func (a *Allocator) Release(list []Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range list {
		a.mustEach(x.Place, x.N, func(c *chunk, from, n int) {
			c.held -= n
			a.held -= int64(n)
			a.giveBack(c, from, n)
		})
	}
	a.wake()
}

// giveBack clears bits; the caller has already taken the blocks out of pending or held.
func (a *Allocator) giveBack(c *chunk, from, n int) {
	c.used.clear(from, n)
	c.free += n
	s := &a.segments[c.number/SegmentChunks]
	s.free += n
	s.best = max(s.best, uint16(c.free))
	a.addFree(int64(n))
}

func (a *Allocator) mustEach(place uint64, n int, f func(c *chunk, from, n int)) {
	// Every block named here is pending or held, so its chunk is in memory and nothing is read.
	if err := a.each(place, n, f); err != nil {
		panic(fmt.Sprintf("alloc: chunk of block %d is not in memory: %v", place, err))
	}
}

func (a *Allocator) wake() {
	close(a.freed)
	a.freed = make(chan struct{})
}

// AddAhead says that chunks [from, to) of a segment are written ahead, durably.
func (a *Allocator) AddAhead(seg uint32, from, to int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grow(seg)
	s := &a.segments[seg]
	for k := from; k < to; k++ {
		if s.ahead[k/64]&(1<<(k%64)) != 0 {
			panic(fmt.Sprintf("alloc: chunk %d of segment %d was written ahead already", k, seg))
		}
		s.ahead[k/64] |= 1 << (k % 64)
		s.free += ChunkBlocks
		a.addFree(ChunkBlocks)
		if s.count != nil {
			s.count.free[k] = ChunkBlocks
		}
	}
	s.best = ChunkBlocks
	a.wake()
}

// TakeBack finds a chunk that is wholly free and that nobody has, takes it out of what can be handed out and returns it, so that its space can be given
// back to the file system. It leaves keep free blocks alone.
func (a *Allocator) TakeBack(keep int64) (seg uint32, index int, ok bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.free-ChunkBlocks < keep {
		return 0, 0, false, nil
	}
	// From the top: low segments stay in use, high ones empty out.
	for i := len(a.segments) - 1; i >= 0; i-- {
		s := &a.segments[i]
		if s.free < ChunkBlocks || s.best < ChunkBlocks {
			continue
		}
		if err := a.count(uint32(i)); err != nil {
			return 0, 0, false, err
		}
		for k := SegmentChunks - 1; k >= 0; k-- {
			n := uint32(i*SegmentChunks + k)
			if s.ahead[k/64]&(1<<(k%64)) == 0 || a.chunks[n] != nil || s.count.free[k] != ChunkBlocks {
				continue
			}
			s.ahead[k/64] &^= 1 << (k % 64)
			s.free -= ChunkBlocks
			a.addFree(-ChunkBlocks)
			return uint32(i), k, true, nil
		}
	}
	return 0, 0, false, nil
}

// Ahead returns which chunks of a segment are written ahead.
func (a *Allocator) Ahead(seg uint32) (ahead [SegmentChunks / 64]uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(seg) < len(a.segments) {
		ahead = a.segments[seg].ahead
	}
	return ahead
}

// Forget gives up an owner's extent.
func (a *Allocator) Forget(owner uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.current[owner]; c != nil {
		a.leave(owner, c)
	}
}

// leave takes an owner off its chunk, which may be another's extent still: while it is, it stays in memory.
func (a *Allocator) leave(owner uint64, c *chunk) {
	delete(a.current, owner)
	c.owners--
	a.settle(c)
}

func (b *Bitmap) set(from, n int) {
	for i := from; i < from+n; {
		m := min(64-i%64, from+n-i)
		b[i/64] |= mask(i%64, m)
		i += m
	}
}

func (b *Bitmap) clear(from, n int) {
	for i := from; i < from+n; {
		m := min(64-i%64, from+n-i)
		b[i/64] &^= mask(i%64, m)
		i += m
	}
}

func mask(off, n int) uint64 { return (^uint64(0) >> (64 - n)) << off }

// Set marks blocks in use, Clear marks them free, Has asks for one.
func (b *Bitmap) Set(from, n int)   { b.set(from, n) }
func (b *Bitmap) Clear(from, n int) { b.clear(from, n) }
func (b *Bitmap) Has(i int) bool    { return b[i/64]&(1<<(i%64)) != 0 }

// Count returns how many blocks are in use.
func (b *Bitmap) Count() int { return b.count() }

func (b *Bitmap) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// findFree returns the first stretch of clear bits at or after from, at most want long.
func (b *Bitmap) findFree(from, want int) (at, n int) {
	i := from
	for i < ChunkBlocks {
		rest := ^b[i/64] >> (i % 64)
		if rest == 0 {
			i = (i/64 + 1) * 64
			continue
		}
		at = i + bits.TrailingZeros64(rest)
		for i = at; i < ChunkBlocks && i-at < want && !b.Has(i); i++ {
		}
		return at, i - at
	}
	return 0, 0
}
