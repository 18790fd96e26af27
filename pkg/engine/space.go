package engine

import (
	"github.com/rowan-csi/rowan/pkg/engine/alloc"
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
	return p.member.Superblock().Size / (alloc.ChunkBlocks * BlockSize)
}

// reserveSpare reserves chunks until there are enough, or no more.
func (p *Pool) reserveSpare() error {
	for p.alloc.Ready(alloc.Reserved) < p.preparing.spare && !p.stopping() {
		more, err := p.reserve()
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// reserve takes the space of the next chunks that have none, and hands them to the allocator, in the order told above.
func (p *Pool) reserve() (more bool, err error) {
	p.preparing.space.Lock()
	defer p.preparing.space.Unlock()
	seg, from, to, ok := p.nextUnreserved(p.preparing.step)
	// It moves here and in punch alone. The last segment is looked at again when the pool has grown.
	p.preparing.lowest.Store(seg)
	if !ok {
		return false, nil
	}
	// Data takes no space while the metadata's reserve is spent.
	if !p.member.BallastHeld() {
		if err := p.member.RestoreBallast(); err != nil {
			return false, err
		}
		p.event("the file system has room again; the metadata's reserve is restored")
	}
	// Near the end of the file system large steps would leave much of it unused.
	usage, err := p.member.Usage()
	if err != nil {
		return false, err
	}
	if usage.Available < 4*int64(to-from)*alloc.ChunkBlocks*BlockSize {
		to = min(to, from+aheadStep)
	}
	if err := p.member.EnsureSegment(seg); err != nil {
		return false, err
	}
	if err := p.member.Reserve(seg, uint32(from*alloc.ChunkBlocks), uint32(to*alloc.ChunkBlocks)); err != nil {
		return false, err
	}
	if p.breaks(mutateSegmentSync) {
		if err := p.member.MarkWritten(seg, uint32(from*alloc.ChunkBlocks), uint32(to*alloc.ChunkBlocks)); err != nil {
			return false, err
		}
	}
	err = p.commitThen(func(b *batch) (bool, error) {
		for k := from; k < to; k++ {
			b.setChunk(seg*alloc.SegmentChunks+uint32(k), alloc.Reserved, true)
		}
		return false, nil
	}, step{mutateReserve, func() { p.alloc.Add(alloc.Reserved, seg, from, to) }})
	return err == nil, err
}

// nextUnreserved finds the lowest stretch of chunks, at most so many, that have no space. Without one, seg is the last segment.
func (p *Pool) nextUnreserved(most int) (seg uint32, from, to int, ok bool) {
	limit := p.chunkLimit()
	for first := int64(p.preparing.lowest.Load()) * alloc.SegmentChunks; first < limit; first += alloc.SegmentChunks {
		seg = uint32(first / alloc.SegmentChunks)
		spaced := p.alloc.Spaced(seg)
		last := int(min(alloc.SegmentChunks, limit-first))
		for from = 0; from < last && spaced.Has(from); from++ {
		}
		if from == last {
			continue
		}
		for to = from; to < last && to-from < most && !spaced.Has(to); to++ {
		}
		return seg, from, to, true
	}
	return seg, 0, 0, false
}

// writeZeroes makes some reserved chunks written, in the order told above. What was not free when they were taken was written, and its write had
// returned: the sync behind the zeroes covers it.
func (p *Pool) writeZeroes(partial bool) (more bool, err error) {
	taken, err := p.alloc.Take(aheadStep, partial)
	if err != nil || len(taken) == 0 {
		return false, err
	}
	kind := alloc.Reserved
	defer func() { p.alloc.PutBack(taken, kind) }()
	seg := taken[0].Chunk / alloc.SegmentChunks
	if err := p.member.Zero(seg, freeRanges(taken)); err != nil {
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
	for _, chunk := range chunks {
		from := chunk % alloc.SegmentChunks * alloc.ChunkBlocks
		if err := p.member.MarkWritten(chunk/alloc.SegmentChunks, from, from+alloc.ChunkBlocks); err != nil {
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
	keep := map[alloc.Kind]int64{alloc.Written: max(aheadKeep, r.window), alloc.Reserved: r.spare + int64(r.step)*alloc.ChunkBlocks}
	for kind, blocks := range keep {
		for n := 0; n < alloc.SegmentChunks && (n < giveBackBusy || idle()) && p.failure() == nil && !p.stopping(); n++ {
			seg, k, ok, err := p.alloc.TakeBack(kind, blocks)
			if err == nil && ok {
				err = p.punch(seg, k)
			}
			if err != nil {
				p.event("giving free space back to the file system went wrong", "segment", seg, "error", err)
			}
			if err != nil || !ok {
				break
			}
		}
	}
}

func (p *Pool) punch(seg uint32, k int) error {
	p.preparing.space.Lock()
	defer p.preparing.space.Unlock()
	err := p.store.commitOne(func(b *batch) { b.setChunk(seg*alloc.SegmentChunks+uint32(k), alloc.Reserved, false) }, nil)
	if err != nil {
		return err
	}
	err = p.member.Punch(seg, uint32(k*alloc.ChunkBlocks), alloc.ChunkBlocks)
	p.preparing.lowest.Store(min(p.preparing.lowest.Load(), seg))
	return err
}

// releaseBallast is the metadata store's call for space. It says whether there was any to give.
func (p *Pool) releaseBallast() bool {
	if !p.member.BallastHeld() || p.member.ReleaseBallast() != nil {
		return false
	}
	p.event("the file system is full; the metadata goes on with its reserve: free some space")
	return true
}
