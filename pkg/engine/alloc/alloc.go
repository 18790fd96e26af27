// Package alloc hands out pool blocks.
//
// The pool's blocks are numbered through its segments; 1,024 of them are a chunk, the unit of a stored bitmap, of an owner's extent and of space in the
// file system. A block is free to be handed out when its chunk has its space, its bit is clear in the last commit whose sync returned, and nobody can
// still touch it. The stored bitmap shows less than that (it is cleared with the commit that removes a run, before that commit's sync and before the
// last reader has gone), so a chunk in which a block is handed out but not committed, or committed away but not yet free, stays in memory here and
// the stored one is not asked.
//
// A chunk that has its space is of one of two kinds: Written, or Reserved. An owner has an extent for each kind it asks for, and gets blocks of the other
// kind rather than none. Written chunks that are mostly free are roomy: small writes go there, and to holes in the others when no chunk is roomy.
//
// Life of a chunk: nothing; Add as Reserved; Written once all its blocks are (MarkWritten), or once zeroes were written where nothing is (Take, then
// PutBack as Written); and TakeBack, after which it is nothing again.
//
// Segments lie in lanes, one for each member. Volumes are striped over the open lanes, chunk by chunk, or fill one after the other. Of a closed lane
// nothing is handed out, taken or counted as free; what becomes free there stays known. One that is left is closed because its blocks are being moved.
//
// Life of a block: Alloc; then Undo (its run was never published), or Committed (its run is in a batch that was applied). Later Hold (before the batch
// that removes its run is applied); then Release (that batch's sync has returned and every pin older than that has ended).
//
// Memory: 120 bytes a segment (1 GiB), 200 bytes a chunk in use, 512 bytes for each of the segments last searched.
package alloc

import (
	"cmp"
	"errors"
	"fmt"
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
	// searched is how many segments' counts per chunk are kept.
	searched = 64
)

// ErrNone: no block can be handed out now.
var ErrNone = errors.New("no free block that has its space")

// Kind is what is known of the extents under a chunk. Both kinds have their space in the file system.
type Kind uint8

const (
	// Written: every block was written before, with zeroes or data, and its file synced since. A write there is durable with the device's flush.
	Written Kind = iota
	// Reserved: there may be blocks never written. A write there is durable with its file's sync.
	Reserved

	kinds
)

// Store shows the bitmaps as last applied.
type Store interface {
	// Bitmap returns a chunk's; a chunk without one is wholly free.
	Bitmap(chunk uint32) (Bitmap, error)
	// FreeInSegment counts the free blocks of each chunk of a segment.
	FreeInSegment(segment uint32) (*[SegmentChunks]uint16, error)
}

// Segment is what is known of a segment when the allocator is made.
type Segment struct {
	Has  [kinds]Chunks // the chunks of each kind; none is of both
	Used int           // blocks whose bit is set, all in Written or Reserved chunks
	Lane int
}

type segment struct {
	has     [kinds]Chunks
	free    [kinds]int    // blocks that Alloc could hand out
	roomy   int           // those of them in roomy Written chunks; of a segment that is not surveyed, in all
	best    [kinds]uint16 // no chunk of the segment and kind has more free blocks than this
	partial bool          // there may be Reserved chunks that are free in part
	rough   bool          // not surveyed
	lane    uint16
	count   *counts // nil: not loaded
}

type counts struct {
	free    [SegmentChunks]uint16 // of chunks that are not in memory, whether or not they have their space
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
	kind    Kind
	taken   bool // by Take: nothing is handed out of it
}

// claim names one of an owner's current chunks: the one for blocks of the kind it asks for.
type claim struct {
	owner  uint64
	prefer Kind
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
	store   Store
	surplus int64               // where more blocks than this are free in roomy Written chunks, those who prefer Reserved ones take them
	ready   [kinds]atomic.Int64 // what Ready answers
	handed  atomic.Uint64       // calls of Alloc that got something

	mu       sync.Mutex
	segments []segment
	lanes    []lane
	filled   bool
	last     map[extentOf]uint32 // an owner's last chunk in a lane, where there are several
	chunks   map[uint32]*chunk
	current  map[claim]*chunk
	recent   []*counts // segments searched, oldest first
	surveyed int       // segments below are surveyed
	free     [kinds]int64
	roomy    int64 // of free[Written], those in roomy chunks
	pending  int64
	held     int64
	taken    int64 // free blocks of chunks that are taken; not in free
	promises map[uint64]promise
	promised int64         // the sum of what is left of them, of those above zero
	away     int64         // the same of what is away
	left     int           // lanes that are left
	freed    chan struct{} // closed when blocks become free
}

// New makes an allocator over what the store holds. surplus is how many free Written blocks are kept for those who prefer them.
func New(store Store, segments []Segment, surplus int64) (*Allocator, error) {
	a := &Allocator{
		store: store, surplus: surplus, chunks: map[uint32]*chunk{}, current: map[claim]*chunk{}, freed: make(chan struct{}),
		promises: map[uint64]promise{}, lanes: make([]lane, 1), last: map[extentOf]uint32{},
	}
	for i, s := range segments {
		a.assign(uint32(i), s.Lane)
		if err := a.open(uint32(i), s); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// open counts a segment's free blocks by kind. How many blocks are in use is known for the segment as a whole, so where it has chunks of both kinds the
// store's bitmaps are counted: such segments are few, for a chunk becomes Written when it fills up.
func (a *Allocator) open(seg uint32, known Segment) error {
	s := &a.segments[seg]
	s.has = known.Has
	a.lanes[s.lane].spaced += int64(known.Has[Written].Count() + known.Has[Reserved].Count())
	s.partial = known.Used > 0 && known.Has[Reserved] != Chunks{}
	if s.partial && known.Has[Written] != (Chunks{}) {
		if err := a.count(seg); err != nil {
			return err
		}
		for k := range SegmentChunks {
			if kind, ok := s.kind(k); ok {
				s.free[kind] += int(s.count.free[k])
			}
		}
	} else {
		kind := Written
		if s.partial {
			kind = Reserved
		}
		s.free[Written], s.free[Reserved] = s.has[Written].Count()*ChunkBlocks, s.has[Reserved].Count()*ChunkBlocks
		s.free[kind] -= known.Used
	}
	s.rough = known.Used > 0 && s.free[Written] > 0
	a.addFree(s, Written, int64(s.free[Written]))
	a.addFree(s, Reserved, int64(s.free[Reserved]))
	a.addRoomy(s, s.free[Written])
	return nil
}

// kind tells of which kind a chunk is, if of any.
func (s *segment) kind(k int) (Kind, bool) {
	switch {
	case s.has[Written].Has(k):
		return Written, true
	case s.has[Reserved].Has(k):
		return Reserved, true
	}
	return 0, false
}

func (a *Allocator) grow(seg uint32) {
	for uint32(len(a.segments)) <= seg {
		a.segments = append(a.segments, segment{best: [kinds]uint16{ChunkBlocks, ChunkBlocks}})
	}
}

// Free is the number of blocks that could be handed out now; Held, of those that will be free once syncs and pins allow, or once what took them puts
// them back; Pending, of those handed out and not committed.
func (a *Allocator) Free() (free, held, pending int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free[Written] + a.free[Reserved], a.held + a.taken, a.pending
}

// Space is what the allocator has at one moment. Read one by one, chunks that get their space in between would be missing from all figures.
type Space struct {
	Free     int64   // blocks that can be handed out now or are held
	SetAside int64   // what SetAside answers
	Spaced   []int64 // by lane, the chunks that have their space
}

// SpacedIn is the number of a lane's chunks that have their space.
func (s Space) SpacedIn(lane int) int64 {
	if lane >= len(s.Spaced) {
		return 0
	}
	return s.Spaced[lane]
}

// Space tells what there is now.
func (a *Allocator) Space() Space {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Space{Free: a.free[Written] + a.free[Reserved] + a.held + a.taken, SetAside: a.setAside(), Spaced: make([]int64, len(a.lanes))}
	for i := range a.lanes {
		s.Spaced[i] = a.lanes[i].spaced
	}
	return s
}

// SpaceIn is the number of a lane's chunks that have their space.
func (a *Allocator) SpaceIn(n int) int64 { return a.Space().SpacedIn(n) }

// Ready is about how many blocks of a kind could be handed out now; of Written ones, in roomy chunks; of Reserved ones, to somebody to whom none are
// promised. Where volumes are striped it is the shortest lane's times the number of lanes, those that are dry left out.
func (a *Allocator) Ready(kind Kind) int64 { return a.ready[kind].Load() }

// Handed counts the calls of Alloc that got something.
func (a *Allocator) Handed() uint64 { return a.handed.Load() }

// Freed returns a channel that is closed when blocks become free after the call.
func (a *Allocator) Freed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.freed
}

// Alloc hands out up to want adjacent blocks to an owner, at least one, ascending from its last of those it asked for with the same preference.
func (a *Allocator) Alloc(owner uint64, want int, prefer Kind) (place uint64, n int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.admits(owner, int64(want)) {
		if want = 1; !a.admits(owner, 1) {
			return 0, 0, ErrNone
		}
	}
	x, err := a.alloc(owner, want, prefer)
	if err == nil {
		a.given(owner, int64(x.N))
	}
	return x.Place, x.N, err
}

// AllocAll hands out blocks for each of the wants, in order, or none at all: of two writers who share what is left and each get a part, neither would get
// the rest. It appends them to out; a want may come in several extents, an extent is of one want.
func (a *Allocator) AllocAll(owner uint64, wants []int, prefer Kind, out []Extent) ([]Extent, error) {
	total, had := 0, len(out)
	for _, want := range wants {
		total += want
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.admits(owner, int64(total)) {
		return out, ErrNone
	}
	for _, want := range wants {
		for want > 0 {
			x, err := a.alloc(owner, want, prefer)
			if err != nil { // what is free may be in chunks that are taken
				a.undo(out[had:])
				return out[:had], err
			}
			out = append(out, x)
			want -= x.N
		}
	}
	a.given(owner, int64(total))
	return out, nil
}

func (a *Allocator) alloc(owner uint64, want int, prefer Kind) (_ Extent, err error) {
	x := claim{owner, prefer}
	c := a.current[x]
	// Who prefers Written blocks and had to take others goes back when there is a chunk of them again.
	if c == nil || c.free == 0 || (prefer == Written && c.kind == Reserved && a.free[Written] >= ChunkBlocks) {
		if c, err = a.pick(x, c); err != nil {
			return Extent{}, err
		}
	}
	from, n := c.used.findFree(c.next, want)
	if n == 0 {
		from, n = c.used.findFree(0, want)
	}
	c.used.set(from, n)
	c.next = from + n
	a.fits(&a.segments[c.number/SegmentChunks], c.kind, c.free, c.free-n)
	c.free -= n
	c.pending += n
	a.pending += int64(n)
	a.handed.Add(1)
	return Extent{uint64(c.number)*ChunkBlocks + uint64(from), n}, nil
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
	c.kind, _ = a.segments[n/SegmentChunks].kind(int(n % SegmentChunks))
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
	s.best[c.kind] = max(s.best[c.kind], uint16(c.free))
	s.partial = s.partial || (c.kind == Reserved && c.free > 0 && c.free < ChunkBlocks)
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
func (a *Allocator) Undo(list ...Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.undo(list)
	a.wake()
}

func (a *Allocator) undo(list []Extent) {
	for _, x := range list {
		a.mustEach(x.Place, x.N, func(c *chunk, from, n int) {
			c.pending -= n
			a.pending -= int64(n)
			a.giveBack(c, from, n)
		})
	}
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
			a.holdIn(c, n)
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
			a.pending -= int64(n)
			a.holdIn(c, n)
		})
	}
}

func (a *Allocator) holdIn(c *chunk, n int) {
	c.held += n
	a.held += int64(n)
	a.lanes[a.segments[c.number/SegmentChunks].lane].coming += int64(n)
}

// Release makes held blocks free.
func (a *Allocator) Release(list []Extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range list {
		a.mustEach(x.Place, x.N, func(c *chunk, from, n int) {
			a.holdIn(c, -n)
			a.giveBack(c, from, n)
		})
	}
	a.wake()
}

// giveBack clears bits; the caller has already taken the blocks out of pending or held.
func (a *Allocator) giveBack(c *chunk, from, n int) {
	c.used.clear(from, n)
	s := &a.segments[c.number/SegmentChunks]
	a.fits(s, c.kind, c.free, c.free+n)
	c.free += n
	s.best[c.kind] = max(s.best[c.kind], uint16(c.free))
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

// Forget gives up an owner's extents.
func (a *Allocator) Forget(owner uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range [...]claim{{owner, Written}, {owner, Reserved}} {
		if c := a.current[x]; c != nil {
			a.leave(x, c)
		}
		for l := range a.lanes {
			delete(a.last, extentOf{x, uint16(l)})
		}
	}
}

// leave takes an owner off its chunk, which may be another's extent still: while it is, it stays in memory.
func (a *Allocator) leave(x claim, c *chunk) {
	delete(a.current, x)
	c.owners--
	a.settle(c)
}
