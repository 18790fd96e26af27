package alloc

// choice is a way to look for a chunk.
type choice struct {
	kind   Kind
	least  int // free blocks that it should have
	shared bool
}

// Who prefers Written blocks writes small pieces: a roomy chunk that nobody has, else one that nobody has, the emptier the better, else any; and of the
// other kind alike, before it waits.
var small = []choice{
	{Written, roomy, false}, {Written, ChunkBlocks / 2, false}, {Written, ChunkBlocks / 4, false}, {Written, 1, false}, {Written, 1, true},
	{Reserved, roomy, false}, {Reserved, 1, false}, {Reserved, 1, true},
}

// Who prefers Reserved ones writes large pieces, and what matters to it most is that they stay in one: a chunk half of whose blocks are free may have
// them one by one, after a snapshot of a scattered volume was deleted.
var (
	large = []choice{
		{Reserved, ChunkBlocks, false}, {Written, ChunkBlocks, false}, {Reserved, roomy, false}, {Written, roomy, false}, {Reserved, 1, false},
		{Written, 1, false}, {Reserved, 1, true}, {Written, 1, true},
	}
	largeOfSurplus = append([]choice{{Written, ChunkBlocks, false}}, large...)
)

// pick finds a claim a new chunk, looking upwards from its last one.
func (a *Allocator) pick(x claim, last *chunk) (*chunk, error) {
	if a.free[Written]+a.free[Reserved] == 0 {
		return nil, ErrNone
	}
	if last != nil {
		a.leave(x, last)
	}
	choices := small
	if x.prefer == Reserved {
		if choices = large; a.roomy > a.surplus {
			choices = largeOfSurplus
		}
	}
	var buf [8]turn
	turns := a.turns(buf[:0], x, last)
	for i := range len(choices) * len(turns) {
		how, turn := choices[i/len(turns)], turns[i%len(turns)]
		n, ok, err := a.search(turn, how)
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
		a.current[x] = c
		if len(a.lanes) > 1 {
			a.last[extentOf{x, turn.lane}] = n
		}
		return c, nil
	}
	return nil, ErrNone
}

// search looks for a chunk of a lane from start's segment upwards and around.
func (a *Allocator) search(turn turn, how choice) (uint32, bool, error) {
	segs, start := uint32(len(a.segments)), turn.start
	if a.lanes[turn.lane].free[how.kind] < int64(how.least) {
		return 0, false, nil
	}
	for i := range segs {
		seg := (start/SegmentChunks + i) % segs
		s := &a.segments[seg]
		if s.lane != turn.lane || s.free[how.kind] < how.least || int(s.best[how.kind]) < how.least {
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
			if !s.has[how.kind].Has(int(k)) {
				continue
			}
			free := int(s.count.free[k])
			c := a.chunks[n]
			if c != nil {
				free = c.free
			}
			best = max(best, free)
			if free >= how.least && (c == nil || (!c.taken && (how.shared || c.owners == 0))) {
				return n, true, nil
			}
		}
		s.best[how.kind] = uint16(best)
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
