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

// HasSegment tells whether one exists.
func (m *Member) HasSegment(index uint32) bool {
	_, err := m.segment(index)
	return err == nil
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

// Reserve takes the file system's space for blocks [from, to) of a segment, durably, and writes nothing: they lie in unwritten extents then, and a write
// there makes the next Flush sync the file. No block of the range may be in use. Where there is not enough space for all, none stays taken.
//
// A later write there needs no space for data. Turning an unwritten extent into a written one may need a block for the file's extent tree; ext4 and XFS
// both take that from reserves of their own that no writer of data can use up.
func (m *Member) Reserve(index, from, to uint32) error {
	s, err := m.freeRange(index, from, to)
	if err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	off, n := int64(from)*BlockSize, int64(to-from)*BlockSize
	if n == 0 {
		return nil
	}
	if err := s.file.Allocate(off, n); err != nil {
		// ext4 keeps what it found before there was no more, and the metadata would have none left.
		err = fmt.Errorf("reserve in segment %d: %w", index, wrap(err))
		if perr := s.file.Punch(off, n); perr != nil {
			err = errors.Join(err, perr)
		}
		return err
	}
	if err := s.file.Sync(); err != nil {
		return m.fail(fmt.Errorf("%w: segment %d: %w", ErrFlush, index, err))
	}
	return nil
}

// Range is a stretch of a segment's blocks.
type Range struct{ From, To uint32 }

// Zero writes zeroes over ranges of a segment that were reserved, and makes that durable. No block of them may be in use. The file's sync covers every
// write to the segment that returned before the call, too.
func (m *Member) Zero(index uint32, ranges []Range) error {
	var s *segment
	for _, r := range ranges {
		var err error
		if s, err = m.freeRange(index, r.From, r.To); err != nil {
			return fmt.Errorf("write zeroes: %w", err)
		}
		for off, end := int64(r.From)*BlockSize, int64(r.To)*BlockSize; off < end; {
			n := min(end-off, ioBytes)
			if _, err := s.file.WriteAt(zeroes()[:n], off); err != nil {
				return fmt.Errorf("write zeroes to segment %d at byte %d: %w", index, off, wrap(err))
			}
			m.counters.prewritten.Add(n)
			off += n
		}
	}
	if s == nil {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return m.fail(fmt.Errorf("%w: segment %d: %w", ErrFlush, index, err))
	}
	return nil
}

// MarkWritten tells the member what its caller knows of blocks [from, to) of a segment: each was written by a WriteAt or Zero that had returned before a
// sync of the file, by a Flush or Zero, began, and that returned nil. A flush of the device alone makes later writes there durable.
//
// A write to such a block may be under way meanwhile, and then not count as one to an unwritten extent: it is none, as the block was written before.
func (m *Member) MarkWritten(index, from, to uint32) error {
	s, err := m.freeRange(index, from, to)
	if err != nil {
		return fmt.Errorf("mark as written: %w", err)
	}
	eachChunk(from, to, true, func(word int, bit uint64) { s.written[word].Or(bit) })
	return nil
}

// MarkUnsynced makes the next Flush sync a segment's file: an earlier process may have written to unwritten extents and died before a sync of them.
func (m *Member) MarkUnsynced(index uint32) error {
	s, err := m.freeRange(index, 0, 0)
	if err != nil {
		return fmt.Errorf("mark as unsynced: %w", err)
	}
	s.dirty.Add(1)
	return nil
}

// Punch gives the space of n blocks of a segment back to the file system. They read as zeroes, and must be reserved again before they are used.
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
