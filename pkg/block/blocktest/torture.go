package blocktest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
)

// TortureOptions say what traffic Torture makes.
type TortureOptions struct {
	Workers  int    // requests at once; each worker has a part of the range of its own
	Off, Len int64  // the range; Len 0: to the end of the device
	MaxIO    int64  // bytes of the largest request; 0: 256 KiB
	Seed     uint64 // 0 takes the time
	Min      int64  // requests to do at least, even when ctx is done before
}

// TortureStats is what was done.
type TortureStats struct{ Reads, Writes, Discards, Flushes int64 }

// Torture does verified traffic until ctx is done: every sector is stamped with its number and version, each worker knows what its sectors must hold
// and checks it at every read, and at the end everything is read once more. The first error or difference ends it and is returned. The range must
// read as zeroes at the start.
func Torture(ctx context.Context, dev block.Device, o TortureOptions) (TortureStats, error) {
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.Len == 0 {
		o.Len = dev.Size() - o.Off
	}
	if o.MaxIO == 0 {
		o.MaxIO = 256 << 10
	}
	sector := int64(dev.SectorSize())
	each := o.Len / int64(o.Workers) / sector // sectors of a worker
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var total [4]atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	for i := range o.Workers {
		w := &stamper{dev: dev, sector: sector, base: o.Off + int64(i)*each*sector, versions: make([]uint32, each), max: max(1, o.MaxIO/sector),
			rng: rand.New(rand.NewPCG(o.Seed, uint64(i))), total: &total, least: o.Min}
		wg.Go(func() {
			if err := w.run(ctx); err != nil {
				err = fmt.Errorf("worker %d, seed %d: %w", i, o.Seed, err)
				first.CompareAndSwap(nil, &err)
				cancel(err)
			}
		})
	}
	wg.Wait()
	stats := TortureStats{total[0].Load(), total[1].Load(), total[2].Load(), total[3].Load()}
	if err := first.Load(); err != nil {
		return stats, *err
	}
	return stats, nil
}

func (s TortureStats) sum() int64 { return s.Reads + s.Writes + s.Discards + s.Flushes }

type stamper struct {
	dev      block.Device
	rng      *rand.Rand
	sector   int64
	base     int64    // offset of its first sector
	versions []uint32 // what each sector holds; 0: zeroes
	next     uint32
	max      int64 // sectors of the largest request
	least    int64
	total    *[4]atomic.Int64
}

func (s *stamper) done() int64 {
	return s.total[0].Load() + s.total[1].Load() + s.total[2].Load() + s.total[3].Load()
}

func (s *stamper) run(ctx context.Context) error {
	for ctx.Err() == nil || (s.done() < s.least && context.Cause(ctx) == ctx.Err()) {
		n := 1 + s.rng.Int64N(min(s.max, int64(len(s.versions))))
		if s.rng.IntN(2) == 0 {
			n = min(n, 4096/s.sector)
		}
		at := s.rng.Int64N(int64(len(s.versions)) - n + 1)
		var err error
		var kind int
		switch k := s.rng.IntN(100); {
		case k < 45:
			kind, err = 0, s.read(at, n)
		case k < 94:
			kind, err = 1, s.write(at, n)
		case k < 97:
			kind, err = 2, s.drop(at, n)
		default:
			kind, err = 3, s.dev.Flush()
		}
		s.total[kind].Add(1)
		if err != nil {
			return err
		}
	}
	for at := int64(0); at < int64(len(s.versions)); at += s.max {
		if err := s.read(at, min(s.max, int64(len(s.versions))-at)); err != nil {
			return fmt.Errorf("final check: %w", err)
		}
	}
	return nil
}

func (s *stamper) write(at, n int64) error {
	p := Aligned(int(n * s.sector))
	for i := range n {
		s.next++
		s.versions[at+i] = s.next
		stamp(p[i*s.sector:(i+1)*s.sector], s.base/s.sector+at+i, s.next)
	}
	_, err := s.dev.WriteAt(p, s.base+at*s.sector)
	return err
}

func (s *stamper) drop(at, n int64) error {
	clear(s.versions[at : at+n])
	if s.rng.IntN(2) == 0 {
		return s.dev.Discard(s.base+at*s.sector, n*s.sector)
	}
	return s.dev.WriteZeroes(s.base+at*s.sector, n*s.sector)
}

func (s *stamper) read(at, n int64) error {
	p := Aligned(int(n * s.sector))
	if _, err := s.dev.ReadAt(p, s.base+at*s.sector); err != nil {
		return err
	}
	for i := range n {
		if err := checkStamp(p[i*s.sector:(i+1)*s.sector], s.base/s.sector+at+i, s.versions[at+i]); err != nil {
			return err
		}
	}
	return nil
}

// stamp fills a sector with words made of its number and version; each word differs, so that shifted content is found, too.
func stamp(p []byte, number int64, version uint32) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], word(number, version, i))
	}
}

func word(number int64, version uint32, i int) uint64 {
	if version == 0 {
		return 0
	}
	return uint64(number)<<32 ^ uint64(version) ^ uint64(i)<<56
}

func checkStamp(p []byte, number int64, version uint32) error {
	for i := 0; i < len(p); i += 8 {
		if got, want := binary.LittleEndian.Uint64(p[i:]), word(number, version, i); got != want {
			return fmt.Errorf("sector %d, byte %d is %#x; want %#x (version %d)", number, i, got, want, version)
		}
	}
	return nil
}

func testTorture(t *testing.T, c Config) {
	dev := c.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stats, err := Torture(ctx, dev, TortureOptions{Workers: 8, Len: MinSize, Seed: c.Seed, Min: 500})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", stats)
	if stats.sum() < 500 {
		t.Errorf("only %d requests were done", stats.sum())
	}
}
