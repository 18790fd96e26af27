package engine

import (
	"cmp"
	"errors"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// A chunk's space, step by step. Each step is durable before the next, so that a power cut between any two leaves a state that an earlier or later step
// describes.
//
//	nothing   the file may have space there or not; nobody uses it
//	reserved  space taken by fallocate and the file synced, then the record committed and synced, then handed out. So "an allocated block never needs
//	          file-system space" holds across power cuts. Extents may be unwritten: a member flush syncs the file (member.WriteAt counts such writes)
//	written   every block was written and the file synced since, then the record committed. Two ways lead here: a batch that has every block of the
//	          chunk in use (batch.finish), or zeroes written where nothing is, when the pool is idle (writeZeroes)
//	nothing   taken out of the allocator when wholly free, then the record committed and synced, then punched
//
// The record may say reserved of a chunk that is written: after a power cut, or where its blocks were never all in use at once. That costs syncs, no data.
// It never says written of one that may not be. What was free and unwritten reads as zeroes, but nobody reads it: a run names only blocks that were
// written whole.

// giveBackBusy is how many chunks of a kind go back at once while the pool is in use.
const giveBackBusy = 4

// chunkLimit is how many chunks the pool's size allows.
func (p *Pool) chunkLimit() int64 {
	return p.members.table.Load().size() / (alloc.ChunkBlocks * BlockSize)
}

// reserveSpare reserves chunks until there are enough, or no more: on each member its share where volumes are striped, else on the first that has more.
// An error keeps nobody from the others; it is returned where no member got its share.
func (p *Pool) reserveSpare() (err error) {
	list := p.members.table.Load().inUse()
	share := p.preparing.spare.Load()
	if !p.store.filledPolicy && len(list) > 1 {
		share /= int64(len(list))
	}
	good := false
	for _, m := range list {
		enough, merr := p.reserveOn(m, share, int64(len(list)))
		if errors.Is(merr, member.ErrFlush) {
			return merr
		}
		if err == nil {
			err = merr
		}
		good = good || enough
		if p.store.filledPolicy && enough {
			break
		}
	}
	if good {
		return nil
	}
	return err
}

// reserveOn reserves a member's share, one of so many, beyond what is set aside, and tells whether there is so much.
func (p *Pool) reserveOn(m *poolMember, share, lanes int64) (enough bool, err error) {
	free := func() int64 {
		if p.store.filledPolicy {
			return p.alloc.Ready(alloc.Reserved)
		}
		return p.alloc.ReadyIn(m.lane, alloc.Reserved) - p.alloc.SetAside()/lanes
	}
	for free() < share && !p.stopping() {
		more, err := p.reserve(m)
		p.alloc.SetDry(m.lane, !more)
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// reserve takes the space of a member's next chunks that have none, and hands them to the allocator, in the order told above.
func (p *Pool) reserve(m *poolMember) (more bool, err error) {
	p.preparing.space.Lock()
	defer p.preparing.space.Unlock()
	x, ok := p.nextUnreserved(m, int(p.preparing.step.Load()))
	// It moves here and in punch alone. The last segment is looked at again when the member has grown.
	m.space.lowest.Store(uint32(x.turn))
	if !ok {
		return false, nil
	}
	seg, from, to := x.seg, x.from, x.to
	// Data takes no space while the metadata's reserve is spent.
	if meta := p.metaMember(); !meta.BallastHeld() {
		if err := meta.RestoreBallast(); err != nil {
			return false, err
		}
		p.event("the file system has room again; the metadata's reserve is restored")
	}
	if m.dev.Superblock().StopAt > 0 && !p.breaks(mutateGrowthLimit) {
		room, err := m.dev.Room()
		if err != nil {
			return false, err
		}
		if to = min(to, from+int(min(room/(alloc.ChunkBlocks*BlockSize), alloc.SegmentChunks))); to == from {
			return false, cmp.Or(m.dev.GrowthStopped(), member.ErrNoSpace)
		}
	}
	// Near the end of the file system large steps would leave much of it unused.
	usage, err := m.dev.Usage()
	if err != nil {
		return false, err
	}
	if usage.Available < 4*int64(to-from)*alloc.ChunkBlocks*BlockSize {
		to = min(to, from+aheadStep)
	}
	if err := m.dev.EnsureSegment(seg); err != nil {
		return false, err
	}
	if err := m.dev.Reserve(seg, uint32(from*alloc.ChunkBlocks), uint32(to*alloc.ChunkBlocks)); err != nil {
		return false, err
	}
	if p.breaks(mutateSegmentSync) {
		if err := m.dev.MarkWritten(seg, uint32(from*alloc.ChunkBlocks), uint32(to*alloc.ChunkBlocks)); err != nil {
			return false, err
		}
	}
	p.give(m, seg)
	err = p.commitThen(func(b *batch) (bool, error) {
		for k := from; k < to; k++ {
			b.setChunk(seg*alloc.SegmentChunks+uint32(k), alloc.Reserved, true)
		}
		rec, _ := b.segment(seg * alloc.SegmentChunks)
		rec.Member = m.index
		return false, nil
	}, step{mutateReserve, func() { p.alloc.Add(alloc.Reserved, seg, from, to) }})
	return err == nil, err
}

// reserveMore reserves chunks for somebody to whom they are to be promised, on any member in use but one that is about to be drained; nil: none is.
func (p *Pool) reserveMore(leaving *poolMember) (more bool, err error) {
	for _, m := range p.poorestFirst(alloc.Reserved) {
		if leaving != nil && m.index == leaving.index {
			continue
		}
		more, merr := p.reserve(m)
		if more || errors.Is(merr, member.ErrFlush) {
			return more, merr
		}
		if err == nil {
			err = merr
		}
	}
	return false, err
}

// give makes a segment a member's before anything is handed out of it. Its record follows with the first chunk.
func (p *Pool) give(m *poolMember, seg uint32) {
	if p.members.table.Load().at(uint64(seg)) != nil {
		return
	}
	p.members.change(func(t *memberTable) {
		for uint32(len(t.bySegment)) <= seg {
			t.bySegment = append(t.bySegment, nil)
		}
		t.bySegment[seg] = t.find(m.index)
	})
	p.alloc.Assign(seg, m.lane)
}

// nextUnreserved finds a member's lowest stretch of chunks, at most so many, that have no space: in its segments, in turn, or else in a new one.
func (p *Pool) nextUnreserved(m *poolMember, most int) (x unreserved, ok bool) {
	t, limit := p.members.table.Load(), m.chunks()
	segments := t.segments(m)
	for i := int64(m.space.lowest.Load()); i*alloc.SegmentChunks < limit; i++ {
		x = unreserved{turn: int(i)}
		if x.turn < len(segments) {
			x.seg = segments[i]
		} else if x.seg, ok = t.unusedSegment(m); !ok {
			return x, false
		}
		spaced := p.alloc.Spaced(x.seg)
		last := int(min(alloc.SegmentChunks, limit-i*alloc.SegmentChunks))
		for x.from < last && spaced.Has(x.from) {
			x.from++
		}
		if x.from == last {
			continue
		}
		for x.to = x.from; x.to < last && x.to-x.from < most && !spaced.Has(x.to); x.to++ {
		}
		return x, true
	}
	return x, false
}

// unreserved is a stretch of chunks without space, in the so manyth segment of a member.
type unreserved struct {
	seg      uint32
	from, to int
	turn     int
}

// unusedSegment is the number of a member's next segment: the lowest that nobody has. Files of that number on other members, which interrupted
// reservations left, are nobody's; one on this member comes first, so that what it holds is used.
func (t *memberTable) unusedSegment(m *poolMember) (uint32, bool) {
	for _, seg := range m.dev.Segments() {
		if t.at(uint64(seg)) == nil {
			return seg, true
		}
	}
	for seg := uint32(0); seg < member.MaxSegments; seg++ {
		if t.at(uint64(seg)) == nil && !t.hasFile(seg) {
			return seg, true
		}
	}
	return 0, false
}

func (t *memberTable) hasFile(seg uint32) bool {
	for _, m := range t.present() {
		if m.HasSegment(seg) {
			return true
		}
	}
	return false
}

// inUse lists the members on which blocks are handed out.
func (t *memberTable) inUse() (list []*poolMember) {
	for _, m := range t.list {
		if m.dev != nil && m.rec.State == format.MemberInUse {
			list = append(list, m)
		}
	}
	return list
}

// poorestFirst lists the members in use: where volumes are striped, those with the fewest free blocks of a kind first.
func (p *Pool) poorestFirst(kind alloc.Kind) []*poolMember {
	list := p.members.table.Load().inUse()
	if !p.store.filledPolicy && len(list) > 1 {
		slices.SortStableFunc(list, func(a, b *poolMember) int {
			return cmp.Compare(p.alloc.ReadyIn(a.lane, kind), p.alloc.ReadyIn(b.lane, kind))
		})
	}
	return list
}

// mayReserve tells whether there is space that nobody has reserved yet.
func (p *Pool) mayReserve() bool {
	for _, m := range p.members.table.Load().inUse() {
		if _, ok := p.nextUnreserved(m, 1); ok {
			return true
		}
	}
	return false
}

// takeReserved takes reserved chunks to be written, of the member that has the fewest written ones where volumes are striped.
func (p *Pool) takeReserved(partial bool) (taken []alloc.Taken, err error) {
	for _, m := range p.poorestFirst(alloc.Written) {
		if taken, err = p.alloc.Take(m.lane, aheadStep, partial); err != nil || len(taken) > 0 {
			return taken, err
		}
	}
	return nil, nil
}

// writeZeroes makes some reserved chunks written, in the order told above. What was not free when they were taken was written, and its write had
// returned: the sync behind the zeroes covers it.
func (p *Pool) writeZeroes(partial bool) (more bool, err error) {
	taken, err := p.takeReserved(partial)
	if err != nil || len(taken) == 0 {
		return false, err
	}
	kind := alloc.Reserved
	defer func() { p.alloc.PutBack(taken, kind) }()
	seg := taken[0].Chunk / alloc.SegmentChunks
	if err := p.members.table.Load().at(uint64(seg)).dev.Zero(seg, freeRanges(taken)); err != nil {
		return false, err
	}
	var chunks []uint32
	for _, t := range taken {
		chunks = append(chunks, t.Chunk)
	}
	err = p.store.commitOne(func(b *batch) {
		for _, chunk := range chunks {
			b.setChunk(chunk, alloc.Written, true)
		}
	}, nil)
	if err != nil {
		return false, err
	}
	kind = alloc.Written
	return true, p.tellWritten(chunks)
}

// freeRanges are the free blocks of chunks of one segment, joined.
func freeRanges(taken []alloc.Taken) (ranges []member.Range) {
	for _, t := range taken {
		for _, x := range t.Free {
			from := uint32(x.Place % alloc.SegmentBlocks)
			if n := len(ranges); n > 0 && ranges[n-1].To == from {
				ranges[n-1].To += uint32(x.N)
			} else {
				ranges = append(ranges, member.Range{From: from, To: from + uint32(x.N)})
			}
		}
	}
	return ranges
}

func (p *Pool) tellWritten(chunks []uint32) error {
	t := p.members.table.Load()
	for _, chunk := range chunks {
		seg, from := chunk/alloc.SegmentChunks, chunk%alloc.SegmentChunks*alloc.ChunkBlocks
		m := t.at(uint64(seg))
		if m == nil || m.dev == nil {
			continue
		}
		if err := m.dev.MarkWritten(seg, from, from+alloc.ChunkBlocks); err != nil {
			return err
		}
	}
	return nil
}

// chunksFilled is told by the committer which chunks became written because all their blocks are in use.
func (p *Pool) chunksFilled(chunks []uint32) {
	p.alloc.MarkWritten(chunks)
	if err := p.tellWritten(chunks); err != nil {
		p.event("flushes go on syncing segments that need it no more", "error", err)
	}
}

// giveBack punches chunks that have been free for a while, beyond what is kept, in the order told above: punched ranges leave the allocator until they
// are reserved again. While the pool is busy these are few: ext4 admits no write to a file while it punches there, and waits for those under way, and
// where it discards what it frees, its journal's next commit, which the next flush may need, waits for that.
func (p *Pool) giveBack(idle func() bool) {
	r := &p.preparing
	keep := map[alloc.Kind]int64{alloc.Written: max(aheadKeep, r.window.Load()), alloc.Reserved: r.spare.Load() + r.step.Load()*alloc.ChunkBlocks}
	for kind, blocks := range keep {
		for n := 0; n < alloc.SegmentChunks && (n < giveBackBusy || idle()) && p.failure() == nil && !p.stopping(); n++ {
			seg, ok, err := p.giveBackOne(kind, blocks)
			if err != nil {
				p.event("giving free space back to the file system went wrong", "segment", seg, "error", err)
			}
			if err != nil || !ok {
				break
			}
		}
	}
}

func (p *Pool) giveBackOne(kind alloc.Kind, keep int64) (seg uint32, ok bool, err error) {
	p.preparing.turn.Lock()
	defer p.preparing.turn.Unlock()
	seg, k, ok, err := p.alloc.TakeBack(kind, keep)
	if err == nil && ok {
		err = p.punch(seg, k)
	}
	return seg, ok, err
}

func (p *Pool) punch(seg uint32, k int) error {
	p.preparing.space.Lock()
	defer p.preparing.space.Unlock()
	err := p.store.commitOne(func(b *batch) { b.setChunk(seg*alloc.SegmentChunks+uint32(k), alloc.Reserved, false) }, nil)
	if err != nil {
		return err
	}
	t := p.members.table.Load()
	m := t.at(uint64(seg))
	err = m.dev.Punch(seg, uint32(k*alloc.ChunkBlocks), alloc.ChunkBlocks)
	turn, _ := slices.BinarySearch(t.segments(m), seg)
	m.space.lowest.Store(min(m.space.lowest.Load(), uint32(turn)))
	return err
}

// releaseBallast is the metadata store's call for space. It says whether there was any to give.
func (p *Pool) releaseBallast(meta *member.Member) bool {
	if !meta.BallastHeld() || meta.ReleaseBallast() != nil {
		return false
	}
	p.event("the file system is full; the metadata goes on with its reserve: free some space")
	return true
}
