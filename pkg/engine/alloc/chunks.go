package alloc

import "fmt"

// Add says that chunks [from, to) of a segment, which had no space, have it now, durably.
func (a *Allocator) Add(kind Kind, seg uint32, from, to int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grow(seg)
	s := &a.segments[seg]
	for k := from; k < to; k++ {
		if _, ok := s.kind(k); ok {
			panic(fmt.Sprintf("alloc: chunk %d of segment %d has its space already", k, seg))
		}
		s.has[kind].Add(k)
		a.fits(s, kind, 0, ChunkBlocks)
		a.lanes[s.lane].spaced++
		if s.count != nil {
			s.count.free[k] = ChunkBlocks
		}
	}
	s.best[kind] = ChunkBlocks
	a.wake()
}

// Spaced returns which chunks of a segment have their space.
func (a *Allocator) Spaced(seg uint32) (c Chunks) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(seg) < len(a.segments) {
		s := &a.segments[seg]
		for i := range c {
			c[i] = s.has[Written][i] | s.has[Reserved][i]
		}
	}
	return c
}

// TakeBack finds a chunk of a kind that is wholly free and that nobody has, takes it out of what can be handed out and returns it, so that its space can
// be given back to the file system. It leaves keep free blocks of the kind alone.
func (a *Allocator) TakeBack(kind Kind, keep int64) (seg uint32, index int, ok bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	has := a.free[kind]
	if kind == Written {
		has = a.roomy // what is left in pieces is no use to those for whom it is kept
	}
	if has-ChunkBlocks < keep || a.spare()-ChunkBlocks < keep {
		return 0, 0, false, nil
	}
	// From the top: low segments stay in use, high ones empty out.
	for i := len(a.segments) - 1; i >= 0; i-- {
		s := &a.segments[i]
		if a.lanes[s.lane].closed || s.free[kind] < ChunkBlocks || s.best[kind] < ChunkBlocks {
			continue
		}
		if err := a.count(uint32(i)); err != nil {
			return 0, 0, false, err
		}
		for k := SegmentChunks - 1; k >= 0; k-- {
			n := uint32(i*SegmentChunks + k)
			if !s.has[kind].Has(k) || a.chunks[n] != nil || s.count.free[k] != ChunkBlocks {
				continue
			}
			s.has[kind].Remove(k)
			a.fits(s, kind, ChunkBlocks, 0)
			a.lanes[s.lane].spaced--
			return uint32(i), k, true, nil
		}
	}
	return 0, 0, false, nil
}

// Taken is a Reserved chunk that was taken, and its free blocks then.
type Taken struct {
	Chunk uint32
	Free  []Extent
}

// Take takes up to most Reserved chunks of one segment of a lane, the lowest that have free blocks, so that these can be written: nothing is handed out of them
// until PutBack. With partial, only those that have blocks in use, too. It takes none that somebody has, and none with a block that is handed out and
// not committed, or committed away and not free: so every block that it does not name was written, and by now a sync of its file may follow that write.
func (a *Allocator) Take(lane, most int, partial bool) (list []Taken, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.segments {
		s := &a.segments[i]
		if int(s.lane) != lane || a.lanes[lane].closed || s.free[Reserved] == 0 || (partial && !s.partial) {
			continue
		}
		if err := a.count(uint32(i)); err != nil {
			return nil, err
		}
		for k := 0; k < SegmentChunks && len(list) < most; k++ {
			n := uint32(i*SegmentChunks + k)
			if free := s.count.free[k]; !s.has[Reserved].Has(k) || a.chunks[n] != nil || free == 0 || (partial && free == ChunkBlocks) {
				continue
			}
			c, err := a.load(n)
			if err != nil {
				a.putBack(list, Reserved)
				return nil, err
			}
			list = append(list, a.take(c))
		}
		if len(list) > 0 {
			return list, nil
		}
		if partial {
			s.partial = false // until settle sees one
		}
	}
	return nil, nil
}

func (a *Allocator) take(c *chunk) Taken {
	t := Taken{Chunk: c.number}
	for at, n := c.used.findFree(0, ChunkBlocks); n > 0; at, n = c.used.findFree(at+n, ChunkBlocks) {
		t.Free = append(t.Free, Extent{uint64(c.number)*ChunkBlocks + uint64(at), n})
	}
	c.taken = true
	c.owners++ // keeps it in memory
	s := &a.segments[c.number/SegmentChunks]
	a.fits(s, Reserved, c.free, 0)
	a.taken += int64(c.free)
	a.lanes[s.lane].coming += int64(c.free)
	return t
}

// PutBack hands taken chunks back: as Written, when zeroes were written to all that was free and the file was synced; or as they were.
func (a *Allocator) PutBack(list []Taken, kind Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.putBack(list, kind)
	a.wake()
}

func (a *Allocator) putBack(list []Taken, kind Kind) {
	for _, t := range list {
		c := a.chunks[t.Chunk]
		// Blocks that became free meanwhile were counted as free at once.
		free := 0
		for _, x := range t.Free {
			free += x.N
		}
		c.taken = false
		s := &a.segments[c.number/SegmentChunks]
		a.taken -= int64(free)
		a.lanes[s.lane].coming -= int64(free)
		a.fits(s, c.kind, c.free-free, c.free)
		a.setKind(c.number, kind)
		c.owners--
		a.settle(c)
	}
}

// MarkWritten says that every block of these chunks was written and their files synced since. Those that are Written already stay so.
func (a *Allocator) MarkWritten(chunks []uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range chunks {
		a.setKind(n, Written)
	}
}

// setKind makes a chunk that has its space one of a kind.
func (a *Allocator) setKind(n uint32, kind Kind) {
	s, k := &a.segments[n/SegmentChunks], int(n%SegmentChunks)
	was, ok := s.kind(k)
	if !ok || was == kind {
		return
	}
	s.has[was].Remove(k)
	s.has[kind].Add(k)
	free := 0 // a chunk that changes its kind while it is not in memory is full
	if c := a.chunks[n]; c != nil {
		c.kind, free = kind, c.free
	}
	a.fits(s, was, free, 0)
	a.fits(s, kind, 0, free)
	s.best[kind] = max(s.best[kind], uint16(free))
}

// LeaveReserved takes every owner off the Reserved chunk it has: after a while without writes, so that such chunks can be made Written.
func (a *Allocator) LeaveReserved() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for x, c := range a.current {
		if c.kind == Reserved {
			a.leave(x, c)
		}
	}
}
