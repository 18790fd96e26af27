package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

const (
	blockSize  = 4 << 10
	streamSize = 1 << 20
	gib        = int64(1) << 30
	teraBlocks = int64(1) << 40 / blockSize
)

// load is what is done to a device.
type load struct {
	depth   int
	bytes   int                  // of one request
	at      func(i uint64) int64 // the offset of the i-th request
	write   bool                 // else read
	flush   bool                 // after every write
	limit   uint64               // requests; 0: until told to stop
	kept    [][]byte             // buffers of an earlier drive, from buffers; nil: make them
	latency *histogram           // where to count; nil: one of its own
}

// random visits all blocks of a device of size bytes, each once before any comes twice.
func random(size int64, bytes int, seed uint64) func(uint64) int64 {
	p := newPermutation(size/int64(bytes), seed)
	return func(i uint64) int64 { return p.at(i) * int64(bytes) }
}

func sequential(size int64, bytes int) func(uint64) int64 {
	n := uint64(size / int64(bytes))
	return func(i uint64) int64 { return int64(i%n) * int64(bytes) }
}

// driven is what a load came to.
type driven struct {
	requests uint64
	elapsed  time.Duration
	latency  *histogram
}

func (d driven) rate() float64 { return float64(d.requests) / d.elapsed.Seconds() }

// drive runs a load until ctx ends or its limit is reached. The first error ends it. Buffers are made and filled before the clock starts.
func (l load) drive(ctx context.Context, dev block.Device) (driven, error) {
	var next atomic.Uint64
	var first atomic.Pointer[error]
	h := l.latency
	if h == nil {
		h = &histogram{}
	}
	ready, start := make(chan struct{}, l.depth), make(chan struct{})
	var wg sync.WaitGroup
	for w := range l.depth {
		wg.Go(func() {
			b := l.buffer(w)
			ready <- struct{}{}
			<-start
			for ctx.Err() == nil && first.Load() == nil {
				i := next.Add(1) - 1
				if l.limit != 0 && i >= l.limit {
					return
				}
				began := time.Now()
				if err := l.one(dev, b, i); err != nil {
					err = fmt.Errorf("request %d: %w", i, err)
					first.CompareAndSwap(nil, &err)
					return
				}
				h.add(time.Since(began))
			}
		})
	}
	for range l.depth {
		<-ready
	}
	began := time.Now()
	close(start)
	wg.Wait()
	d := driven{requests: h.count(), elapsed: time.Since(began), latency: h}
	if err := first.Load(); err != nil {
		return d, *err
	}
	return d, nil
}

// buffers makes what a load that is driven again and again keeps.
func (l load) buffers() (kept [][]byte) {
	for w := range l.depth {
		kept = append(kept, l.buffer(w))
	}
	return kept
}

func (l load) buffer(w int) []byte {
	if l.kept != nil {
		return l.kept[w]
	}
	b := fsys.AlignedBuffer(l.bytes)
	fillRandom(b, uint64(w))
	return b
}

// driveFor is drive for a time.
func (l load) driveFor(ctx context.Context, dev block.Device, d time.Duration) (driven, error) {
	timed, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	r, err := l.drive(timed, dev)
	if err == nil {
		err = context.Cause(ctx)
	}
	return r, err
}

func (l load) one(dev block.Device, b []byte, i uint64) error {
	if !l.write {
		_, err := dev.ReadAt(b, l.at(i))
		return err
	}
	binary.LittleEndian.PutUint64(b, i) // no two writes alike
	if _, err := dev.WriteAt(b, l.at(i)); err != nil {
		return err
	}
	if l.flush {
		return dev.Flush()
	}
	return nil
}

func fillRandom(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0x726f77616e))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
}

// fill writes a device in full, in order.
func fill(ctx context.Context, dev block.Device) error {
	l := load{depth: 8, bytes: streamSize, at: sequential(dev.Size(), streamSize), write: true, limit: uint64(dev.Size() / streamSize)}
	if _, err := l.drive(ctx, dev); err != nil {
		return fmt.Errorf("fill device: %w", err)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return dev.Flush()
}
