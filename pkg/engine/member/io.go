package member

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Counters count the I/O on segments since the member was opened. Requests are those given to the kernel.
type Counters struct {
	Reads, ReadBytes   uint64
	Writes, WriteBytes uint64
	PrewrittenBytes    uint64
	Flushes            uint64
}

type counters struct {
	reads, readBytes, writes, writeBytes, prewritten, flushes atomic.Int64
}

// Counters tells what was done.
func (m *Member) Counters() Counters {
	c := &m.counters
	return Counters{
		Reads: uint64(c.reads.Load()), ReadBytes: uint64(c.readBytes.Load()),
		Writes: uint64(c.writes.Load()), WriteBytes: uint64(c.writeBytes.Load()),
		PrewrittenBytes: uint64(c.prewritten.Load()), Flushes: uint64(c.flushes.Load()),
	}
}

// ReadAt fills p from off bytes into a pool block; the range may go on over the blocks and segments that follow. off and len(p) are multiples of
// Alignment.
func (m *Member) ReadAt(p []byte, block uint64, off int) error {
	return m.each(p, block, off, func(s *segment, p []byte, pos int64) error {
		if err := m.request(p, func(b []byte) error { _, err := s.file.ReadAt(b, pos); return err }, true); err != nil {
			return fmt.Errorf("read segment %d at byte %d, %d bytes: %w", s.index, pos, len(p), err)
		}
		m.counters.reads.Add(1)
		m.counters.readBytes.Add(int64(len(p)))
		return nil
	})
}

// WriteAt writes p at off bytes into a pool block, under ReadAt's rules. It does not keep p.
func (m *Member) WriteAt(p []byte, block uint64, off int) error {
	if m.readOnly {
		return ErrReadOnly
	}
	return m.each(p, block, off, func(s *segment, p []byte, pos int64) error {
		if err := m.request(p, func(b []byte) error { _, err := s.file.WriteAt(b, pos); return err }, false); err != nil {
			return fmt.Errorf("write segment %d at byte %d, %d bytes: %w", s.index, pos, len(p), wrap(err))
		}
		if !s.isWritten(uint32(pos/BlockSize), uint32((pos+int64(len(p))+BlockSize-1)/BlockSize)) {
			s.dirty.Add(1) // after the write, before the answer: a flush that sees it began when the write had ended
		}
		m.counters.writes.Add(1)
		m.counters.writeBytes.Add(int64(len(p)))
		return nil
	})
}

// each cuts a request at segments' ends, and at ioBytes where its memory is not aligned and must be copied.
func (m *Member) each(p []byte, block uint64, off int, do func(s *segment, p []byte, pos int64) error) error {
	if off < 0 || off%m.align != 0 || len(p)%m.align != 0 {
		return fmt.Errorf("%w: offset %d, %d bytes: want multiples of %d", ErrOutOfRange, off, len(p), m.align)
	}
	block += uint64(off / BlockSize)
	at := int64(block&(SegmentBlocks-1))*BlockSize + int64(off%BlockSize)
	limit := len(p)
	if !fsys.IsAligned(p, m.align) {
		limit = ioBytes
	}
	for index := block >> segmentShift; len(p) > 0; index, at = index+1, 0 {
		if index >= MaxSegments {
			return fmt.Errorf("%w: block %d", ErrOutOfRange, block)
		}
		s, err := m.segment(uint32(index))
		if err != nil {
			return err
		}
		for at < SegmentBytes && len(p) > 0 {
			n := int(min(int64(min(len(p), limit)), SegmentBytes-at))
			if err := do(s, p[:n], at); err != nil {
				return err
			}
			p, at = p[n:], at+int64(n)
		}
	}
	return nil
}

// request runs one read or write, through a buffer of its own where the kernel could not take p, or would take it in too many pieces.
func (m *Member) request(p []byte, do func([]byte) error, read bool) error {
	if !read && len(p) >= contiguousFrom && len(p) <= ioBytes {
		if b := takeContiguous(); b != nil {
			defer giveContiguous(b)
			copy(b, p)
			return do(b[:len(p)])
		}
	}
	if fsys.IsAligned(p, m.align) {
		return do(p)
	}
	b := getBuffer(len(p))
	defer putBuffer(b)
	if !read {
		copy(*b, p)
	}
	if err := do((*b)[:len(p)]); err != nil {
		return err
	}
	if read {
		copy(p, *b)
	}
	return nil
}

// buffers are aligned buffers of 4 KiB, 8 KiB … 1 MiB.
var buffers [9]sync.Pool

func getBuffer(n int) *[]byte {
	class := bits.Len(uint((max(n, 1) - 1) / BlockSize))
	if b, ok := buffers[class].Get().(*[]byte); ok {
		return b
	}
	b := fsys.AlignedBuffer(BlockSize << class)
	return &b
}

func putBuffer(b *[]byte) { buffers[bits.Len(uint(len(*b)/BlockSize))-1].Put(b) }

// zeroes is what Zero writes. Nobody writes to it.
var zeroes = sync.OnceValue(func() []byte {
	if b, err := fsys.NewContiguous(ioBytes); err == nil {
		return b
	}
	return fsys.AlignedBuffer(ioBytes)
})
