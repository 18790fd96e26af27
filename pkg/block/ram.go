package block

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// ramChunk is the unit of a RAM device's allocation and of its locking, in bytes.
const ramChunk = 64 << 10

// ramShards spreads chunks over locks, so that requests to different places seldom meet.
const ramShards = 64

// Op names a kind of request, for RAM's fault knobs and counters.
type Op int

// The kinds of request.
const (
	OpRead Op = iota
	OpWrite
	OpDiscard
	OpWriteZeroes
	OpFlush
	opCount
)

func (o Op) String() string {
	names := [opCount]string{"read", "write", "discard", "write zeroes", "flush"}
	if o < 0 || o >= opCount {
		return fmt.Sprintf("op %d", int(o))
	}
	return names[o]
}

// RAM is a Device in memory, for tests and measurements. It is sparse (memory goes to 64 KiB chunks that were written) and safe for concurrent use.
// Its knobs make it fail, fill up and stall. Nothing of it survives the process, so Flush only counts.
type RAM struct {
	sector int
	size   atomic.Int64
	limit  atomic.Int64 // bytes of chunks it may hold; 0: no limit
	held   atomic.Int64 // bytes of chunks it holds
	ro     atomic.Bool
	closed atomic.Bool
	counts [opCount]atomic.Int64
	bytes  [opCount]atomic.Int64
	shards [ramShards]ramShard

	knobs atomic.Bool // some fault below is set: without it the hot path takes no lock
	mu    sync.Mutex
	fails [opCount][]error
	gates [opCount]chan struct{}
	stuck [opCount]int // requests waiting at the gate
	moved chan struct{}
}

type ramShard struct {
	mu     sync.RWMutex
	chunks map[int64]*[ramChunk]byte
}

var _ Device = (*RAM)(nil)

// NewRAM makes an empty device of size bytes with sectors of sector bytes (512 or 4096). It panics on a size that is no multiple of the sector.
func NewRAM(size int64, sector int) *RAM {
	if (sector != SectorSize && sector != 4096) || size < 0 || size%int64(sector) != 0 {
		panic(fmt.Sprintf("block.NewRAM: size %d is no multiple of sector %d, or the sector is neither 512 nor 4096", size, sector))
	}
	r := &RAM{sector: sector, moved: make(chan struct{})}
	r.size.Store(size)
	for i := range r.shards {
		r.shards[i].chunks = make(map[int64]*[ramChunk]byte)
	}
	return r
}

// Size implements Device.
func (r *RAM) Size() int64 { return r.size.Load() }

// SectorSize implements Device.
func (r *RAM) SectorSize() int { return r.sector }

// Allocated is the memory its content takes, in bytes.
func (r *RAM) Allocated() int64 { return r.held.Load() }

// Grow makes the device size bytes long; it panics if that is smaller than it is.
func (r *RAM) Grow(size int64) {
	if size < r.size.Load() || size%int64(r.sector) != 0 {
		panic(fmt.Sprintf("RAM.Grow: %d is smaller than %d or no multiple of the sector", size, r.size.Load()))
	}
	r.size.Store(size)
}

func (r *RAM) shard(chunk int64) *ramShard { return &r.shards[chunk%ramShards] }

// each calls f for every piece of the range that lies in one chunk; done is the piece's offset in the range.
func (r *RAM) each(off, length int64, f func(chunk, in, n, done int64) error) error {
	for done := int64(0); done < length; {
		chunk, in := (off+done)/ramChunk, (off+done)%ramChunk
		n := min(length-done, ramChunk-in)
		if err := f(chunk, in, n, done); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// ReadAt implements Device.
func (r *RAM) ReadAt(p []byte, off int64) (int, error) {
	if err := r.begin(OpRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	err := r.each(off, int64(len(p)), func(chunk, in, n, done int64) error {
		s := r.shard(chunk)
		s.mu.RLock()
		defer s.mu.RUnlock()
		if c := s.chunks[chunk]; c != nil {
			copy(p[done:done+n], c[in:in+n])
		} else {
			clear(p[done : done+n])
		}
		return nil
	})
	return len(p), err
}

// WriteAt implements Device.
func (r *RAM) WriteAt(p []byte, off int64) (int, error) {
	if err := r.begin(OpWrite, off, int64(len(p))); err != nil {
		return 0, err
	}
	err := r.each(off, int64(len(p)), func(chunk, in, n, done int64) error {
		s := r.shard(chunk)
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.chunks[chunk]
		if c == nil {
			if limit := r.limit.Load(); r.held.Add(ramChunk) > limit && limit > 0 {
				r.held.Add(-ramChunk)
				return fmt.Errorf("write at %d: %w", off, ErrNoSpace)
			}
			c = new([ramChunk]byte)
			s.chunks[chunk] = c
		}
		copy(c[in:in+n], p[done:done+n])
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Discard implements Device; whole chunks give their memory back.
func (r *RAM) Discard(off, length int64) error { return r.zero(OpDiscard, off, length) }

// WriteZeroes implements Device.
func (r *RAM) WriteZeroes(off, length int64) error { return r.zero(OpWriteZeroes, off, length) }

func (r *RAM) zero(op Op, off, length int64) error {
	if err := r.begin(op, off, length); err != nil {
		return err
	}
	return r.each(off, length, func(chunk, in, n, _ int64) error {
		s := r.shard(chunk)
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.chunks[chunk]
		switch {
		case c == nil:
		case n == ramChunk:
			delete(s.chunks, chunk)
			r.held.Add(-ramChunk)
		default:
			clear(c[in : in+n])
		}
		return nil
	})
}

// Flush implements Device.
func (r *RAM) Flush() error { return r.begin(OpFlush, 0, 0) }

// begin counts a request, validates it, and applies the fault knobs.
func (r *RAM) begin(op Op, off, length int64) error {
	r.counts[op].Add(1)
	r.bytes[op].Add(length)
	if r.closed.Load() {
		return fmt.Errorf("%v: %w", op, ErrClosed)
	}
	if err := CheckRange(off, length, r.size.Load(), r.sector); err != nil {
		return fmt.Errorf("%v %d bytes at %d of %d: %w", op, length, off, r.size.Load(), err)
	}
	if r.ro.Load() && op != OpRead && op != OpFlush {
		return fmt.Errorf("%v at %d: %w", op, off, ErrReadOnly)
	}
	if r.knobs.Load() {
		return r.fault(op)
	}
	return nil
}
