package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// versionBits are the low bits of a version, which count; above them is the worker's number.
const versionBits = 40

// maxIO is the largest request, in sectors.
const maxIO = 256 << 10 / sectorSize

// Options say what a Load is.
type Options struct {
	Run     uint64 // not 0
	Volume  uint32
	Seed    uint64 // of the choices
	Workers int
	Size    int64 // bytes from the device's beginning to work on
}

// Load is traffic on one device.
type Load struct {
	dev     block.Device
	options Options
	workers []*worker
	began   time.Time

	bytesWritten atomic.Int64
	ioErrors     atomic.Int64
	wrong        atomic.Int64 // sectors
}

// Stats are a Load's figures.
type Stats struct{ Ops, BytesWritten, IOErrors, WrongSectors int64 }

// NewLoad prepares traffic on a device that reads as zeroes.
func NewLoad(dev block.Device, o Options) *Load {
	l := &Load{dev: dev, options: o, began: time.Now()}
	each := o.Size / sectorSize / int64(o.Workers)
	each -= 1 - each%2 // odd: ranges do not keep to blocks
	for i := range o.Workers {
		l.workers = append(l.workers, &worker{
			load: l, number: uint64(i), first: int64(i) * each, state: make([]uint64, each), records: map[*record]bool{},
			rng: rand.New(rand.NewPCG(o.Seed, uint64(o.Volume)<<32|uint64(i))), buffer: blocktest.Aligned(maxIO * sectorSize),
		})
	}
	return l
}

// SetDevice goes on with another device of the same content, while the load does not run.
func (l *Load) SetDevice(dev block.Device) { l.dev = dev }

// Stats tells what was done.
func (l *Load) Stats() Stats {
	s := Stats{BytesWritten: l.bytesWritten.Load(), IOErrors: l.ioErrors.Load(), WrongSectors: l.wrong.Load()}
	for _, w := range l.workers {
		s.Ops += w.ops.Load()
	}
	return s
}

// Run works until ctx is done, or something is wrong: the first failure ends it.
func (l *Load) Run(ctx context.Context) error {
	return l.each(ctx, (*worker).run)
}

// Verify reads everything while the load does not run.
func (l *Load) Verify(ctx context.Context) error {
	return l.each(ctx, (*worker).verify)
}

func (l *Load) each(ctx context.Context, f func(*worker, context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(l.workers))
	var wg sync.WaitGroup
	for i, w := range l.workers {
		wg.Go(func() {
			if err := f(w, ctx); err != nil {
				errs[i] = fmt.Errorf("volume %d, worker %d: %w", l.options.Volume, i, err)
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *Load) now() time.Duration { return time.Since(l.began) }

// worker does one request at a time in its own range. Sectors are counted from the range's beginning.
type worker struct {
	load   *Load
	number uint64
	first  int64 // the range's first sector on the device
	rng    *rand.Rand
	buffer []byte
	count  uint64       // writes sent
	ops    atomic.Int64 // answered requests

	mu      sync.Mutex
	state   []uint64 // version that each sector holds; 0: zeroes
	current *op      // sent and not answered
	records map[*record]bool
}

// op is a request that changes sectors.
type op struct {
	version    uint64 // 0: discard, write zeroes
	at, n      int64
	sent, done time.Duration // done 0: not answered
}

func (w *worker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := w.request(); err != nil {
			return err
		}
		w.ops.Add(1)
	}
	return nil
}

// request does one request of a random kind.
func (w *worker) request() error {
	at, n := w.place()
	switch k := w.rng.IntN(100); {
	case k < 25:
		return w.read(at, n)
	case k < 88:
		w.count++
		return w.change(op{version: w.number<<versionBits | w.count, at: at, n: n}, w.write)
	case k < 94:
		return w.change(op{at: at, n: n}, w.load.dev.Discard)
	case k < 97:
		return w.change(op{at: at, n: n}, w.load.dev.WriteZeroes)
	}
	return w.failed("flush", 0, 0, w.load.dev.Flush())
}

// place chooses sectors: half of the time a block, else a few sectors or a long run.
func (w *worker) place() (at, n int64) {
	const perBlock = 4096 / sectorSize
	size := int64(len(w.state))
	switch k := w.rng.IntN(8); {
	case k < 4:
		if first := (perBlock - w.first%perBlock) % perBlock; size-first >= perBlock {
			return first + w.rng.Int64N((size-first)/perBlock)*perBlock, perBlock
		}
		n = 1
	case k < 6:
		n = 1 + w.rng.Int64N(2*perBlock)
	default:
		n = 1 + w.rng.Int64N(maxIO)
	}
	n = min(n, size)
	return w.rng.Int64N(size - n + 1), n
}

func (w *worker) offset(at int64) int64 { return (w.first + at) * sectorSize }

func (w *worker) write(off, length int64) error {
	first := off/sectorSize - w.first
	for i := range length / sectorSize {
		Stamp{w.load.options.Run, w.load.options.Volume, w.first + first + i, w.current.version}.encode(w.buffer[i*sectorSize:])
	}
	_, err := w.load.dev.WriteAt(w.buffer[:length], off)
	w.load.bytesWritten.Add(length)
	return err
}

// change sends a request that changes sectors, and notes it in every cut that is being recorded.
func (w *worker) change(o op, send func(off, length int64) error) error {
	w.mu.Lock()
	o.sent = w.load.now()
	w.current = &o
	for r := range w.records {
		r.ops = append(r.ops, &o)
	}
	w.mu.Unlock()
	err := w.failed("change", o.at, o.n, send(w.offset(o.at), o.n*sectorSize))
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	o.done = w.load.now()
	for i := range o.n {
		w.state[o.at+i] = o.version
	}
	w.current = nil
	return nil
}

func (w *worker) failed(what string, at, n int64, err error) error {
	if err == nil {
		return nil
	}
	w.load.ioErrors.Add(1)
	return fmt.Errorf("%s of %d sectors at %d: %w", what, n, w.first+at, err)
}

func (w *worker) read(at, n int64) error {
	p := w.buffer[:n*sectorSize]
	if _, err := w.load.dev.ReadAt(p, w.offset(at)); err != nil {
		return w.failed("read", at, n, err)
	}
	var bad int64
	var first error
	for i := range n {
		want := w.stamp(at+i, w.state[at+i])
		got, ok := decode(p[i*sectorSize:])
		if ok && got == want {
			continue
		}
		if bad++; first == nil {
			first = fmt.Errorf("sector %d holds %v (whole: %t), and should %v", w.first+at+i, got, ok, want)
		}
	}
	if bad > 0 {
		w.load.wrong.Add(bad)
		return fmt.Errorf("%d wrong sectors of %d read; the first: %w", bad, n, first)
	}
	return nil
}

// stamp is what sector at holds after the write of that version.
func (w *worker) stamp(at int64, version uint64) Stamp {
	if version == 0 {
		return Stamp{}
	}
	return Stamp{w.load.options.Run, w.load.options.Volume, w.first + at, version}
}

func (w *worker) verify(ctx context.Context) error {
	size := int64(len(w.state))
	for at := int64(0); at < size && ctx.Err() == nil; at += maxIO {
		if err := w.read(at, min(maxIO, size-at)); err != nil {
			return err
		}
	}
	return ctx.Err()
}
