package member

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// segment is an open segment file.
type segment struct {
	index uint32
	file  fsys.File
	// written has a bit for every chunk that is known to lie in extents written before and synced. A flush of the device alone makes writes there
	// durable; a write elsewhere changes the file's extents too, and needs a sync of this file.
	written [SegmentBlocks / ChunkBlocks / 64]atomic.Uint64
	// dirty counts the writes elsewhere that have returned, synced those that a good sync covers. A sync vouches for what had returned when it began:
	// it moves synced to the dirty it saw then, and only when it succeeded.
	dirty, synced atomic.Uint64
}

// eachChunk visits the chunks that blocks [from, to) touch, or with whole those that they cover.
func eachChunk(from, to uint32, whole bool, visit func(word int, bit uint64)) {
	first, end := from/ChunkBlocks, (to+ChunkBlocks-1)/ChunkBlocks
	if whole {
		first, end = (from+ChunkBlocks-1)/ChunkBlocks, to/ChunkBlocks
	}
	for c := first; c < end; c++ {
		visit(int(c/64), 1<<(c%64))
	}
}

func (s *segment) isWritten(from, to uint32) bool {
	all := true
	eachChunk(from, to, false, func(word int, bit uint64) { all = all && s.written[word].Load()&bit != 0 })
	return all
}

// segment finds an open segment.
func (m *Member) segment(index uint32) (*segment, error) {
	segs := *m.segs.Load()
	if int64(index) >= int64(len(segs)) || segs[index] == nil {
		return nil, fmt.Errorf("%w: %s has no segment %d", ErrOutOfRange, m.dir, index)
	}
	return segs[index], nil
}

// Segments lists the segments that exist, ascending.
func (m *Member) Segments() []uint32 {
	var list []uint32
	for _, s := range *m.segs.Load() {
		if s != nil {
			list = append(list, s.index)
		}
	}
	return list
}

// EnsureSegment makes a segment's file, which takes no space yet, unless it is there.
func (m *Member) EnsureSegment(index uint32) error {
	if index >= MaxSegments {
		return fmt.Errorf("make segment %d: %w: a member has at most %d", index, ErrOutOfRange, MaxSegments)
	}
	if m.readOnly {
		return ErrReadOnly
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.segment(index); err == nil {
		return nil
	}
	// Who holds the flush file's lock holds all: nobody else can have this file locked.
	f, err := openLocked(m.fs, segmentName(m.dir, index), fsys.Create|fsys.Write|fsys.Direct, time.Now())
	if err != nil {
		return fmt.Errorf("make segment %d: %w", index, err)
	}
	// The full size from the start: no later write changes it, so none needs the file's metadata synced for it.
	err = f.Truncate(SegmentBytes)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = m.fs.SyncDir(filepath.Join(m.dir, segmentsName))
	}
	if err != nil {
		return fmt.Errorf("make segment %d: %w", index, errors.Join(wrap(err), f.Close()))
	}
	m.add(&segment{index: index, file: f})
	return nil
}

// add publishes a segment.
func (m *Member) add(s *segment) {
	old := *m.segs.Load()
	segs := make([]*segment, max(len(old), int(s.index)+1))
	copy(segs, old)
	segs[s.index] = s
	m.segs.Store(&segs)
}

// openSegments opens and locks every segment there is.
func (m *Member) openSegments(flags fsys.OpenFlags, deadline time.Time) error {
	names, err := m.fs.ReadDir(filepath.Join(m.dir, segmentsName))
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	for _, name := range names {
		index, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		f, err := openLocked(m.fs, segmentName(m.dir, index), flags, deadline)
		if err != nil {
			return fmt.Errorf("segment %d: %w", index, err)
		}
		m.add(&segment{index: index, file: f})
		size, err := f.Size()
		if err == nil && size < SegmentBytes && !m.readOnly {
			err = f.Truncate(SegmentBytes) // the process that made it died in between; the next write there syncs the file
		}
		if err != nil {
			return fmt.Errorf("segment %d: %w", index, wrap(err))
		}
		if size > SegmentBytes {
			return fmt.Errorf("%w: segment %d has %d bytes, more than %d", ErrCorrupt, index, size, int64(SegmentBytes))
		}
	}
	return nil
}

// Prewrite writes zeroes over blocks [from, to) of a segment, ahead of the allocator, and makes that durable. No block of the range may be in use. The
// space is reserved first, so that a full file system is noticed before anything is written.
func (m *Member) Prewrite(index, from, to uint32) error {
	s, err := m.freeRange(index, from, to)
	if err != nil {
		return fmt.Errorf("write ahead: %w", err)
	}
	off, end := int64(from)*BlockSize, int64(to)*BlockSize
	if err := s.file.Allocate(off, end-off); err != nil {
		return fmt.Errorf("write ahead in segment %d: %w", index, wrap(err))
	}
	for off < end {
		n := min(end-off, ioBytes)
		if _, err := s.file.WriteAt(zeroes()[:n], off); err != nil {
			return fmt.Errorf("write ahead in segment %d at byte %d: %w", index, off, wrap(err))
		}
		m.counters.prewritten.Add(n)
		off += n
	}
	if err := s.file.Sync(); err != nil {
		return m.fail(fmt.Errorf("%w: segment %d: %w", ErrFlush, index, err))
	}
	s.setWritten(from, to)
	return nil
}

// MarkPrewritten tells the member what the caller's records say of blocks [from, to) of a segment: a Prewrite of them has returned nil.
func (m *Member) MarkPrewritten(index, from, to uint32) error {
	s, err := m.freeRange(index, from, to)
	if err != nil {
		return fmt.Errorf("mark as written ahead: %w", err)
	}
	s.setWritten(from, to)
	return nil
}

func (s *segment) setWritten(from, to uint32) {
	eachChunk(from, to, true, func(word int, bit uint64) { s.written[word].Or(bit) })
}

// Punch gives the space of n blocks of a segment back to the file system. They read as zeroes, and must be written ahead again before they are used.
func (m *Member) Punch(index, from, n uint32) error {
	if n > SegmentBlocks {
		return fmt.Errorf("punch: %w: %d blocks of a segment", ErrOutOfRange, n)
	}
	s, err := m.freeRange(index, from, from+n)
	if err != nil {
		return fmt.Errorf("punch: %w", err)
	}
	eachChunk(from, from+n, false, func(word int, bit uint64) { s.written[word].And(^bit) })
	if err := s.file.Punch(int64(from)*BlockSize, int64(n)*BlockSize); err != nil {
		return fmt.Errorf("punch segment %d at block %d, %d blocks: %w", index, from, n, err)
	}
	return nil
}

// freeRange finds the segment of a range that is to be changed as a whole.
func (m *Member) freeRange(index, from, to uint32) (*segment, error) {
	if m.readOnly {
		return nil, ErrReadOnly
	}
	if from > to || to > SegmentBlocks {
		return nil, fmt.Errorf("%w: blocks %d to %d of a segment", ErrOutOfRange, from, to)
	}
	return m.segment(index)
}
