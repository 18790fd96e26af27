package alloc

// roomy is how many free blocks a chunk has at least that is good for a burst of small writes: those who write at once share requests to the device where
// their blocks lie side by side. What is left over at random lies in stretches of four on average when three blocks in four are free, of two when half are,
// of one and a bit below. Holes do not count as Ready, and are handed out when no chunk is roomy.
const roomy = ChunkBlocks * 3 / 4

// fits says that a chunk of a kind has is blocks that could be handed out, and had was.
func (a *Allocator) fits(s *segment, kind Kind, was, is int) {
	s.free[kind] += is - was
	a.addFree(s, kind, int64(is-was))
	if kind != Written {
		return
	}
	if !s.rough {
		was, is = roomyPart(was), roomyPart(is)
	}
	a.addRoomy(s, is-was)
}

// roomyPart is what a chunk with n free blocks counts as.
func roomyPart(n int) int {
	if n < roomy {
		return 0
	}
	return n
}

func (a *Allocator) addRoomy(s *segment, n int) {
	if n == 0 {
		return
	}
	s.roomy += n
	l := &a.lanes[s.lane]
	if l.roomy += int64(n); l.closed {
		return
	}
	a.roomy += int64(n)
	a.tell(Written)
}

// Survey looks which chunks are roomy in one more segment of which only the free blocks as a whole are known since the allocator was made, and tells
// whether there was one. Until then all its free blocks count as if they were.
func (a *Allocator) Survey() (more bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ; a.surveyed < len(a.segments); a.surveyed++ {
		s := &a.segments[a.surveyed]
		if !s.rough {
			continue
		}
		free, err := a.store.FreeInSegment(uint32(a.surveyed))
		if err != nil {
			return false, err
		}
		n := 0
		for k := range SegmentChunks {
			if !s.has[Written].Has(k) {
				continue
			}
			if c := a.chunks[uint32(a.surveyed*SegmentChunks+k)]; c != nil {
				n += roomyPart(c.free)
			} else {
				n += roomyPart(int(free[k]))
			}
		}
		s.rough = false
		a.addRoomy(s, n-s.roomy)
		return true, nil
	}
	return false, nil
}
