package group

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// Load is writers on several volumes, each in slots of its own.
type Load struct {
	layout   Layout
	run      uint64
	devices  []block.Device
	sent     [writers]atomic.Uint64 // records
	returned [writers]atomic.Uint64
}

// offset is where a writer's slot is on its volume.
func (l Layout) offset(writer, slot int) int64 { return int64(writer*l.Slots+slot) * recordSize }

// NewLoad prepares writers on devices that read as zeroes. run is not 0.
func NewLoad(run uint64, slots int, devices []block.Device) *Load {
	return &Load{layout: Layout{Volumes: len(devices), Slots: slots}, run: run, devices: devices}
}

// Run writes until ctx ends; the first error ends all writers.
func (l *Load) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			if errs[w] = l.write(ctx, w); errs[w] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *Load) write(ctx context.Context, w int) error {
	p := blocktest.Aligned(recordSize)
	for ctx.Err() == nil {
		r := Record{Run: l.run, Writer: uint64(w), N: l.returned[w].Load() + 1, Known: l.Returned()}
		r.encode(p)
		v, slot := l.layout.At(r.N)
		l.sent[w].Store(r.N)
		if _, err := l.devices[v].WriteAt(p, l.layout.offset(w, slot)); err != nil {
			return fmt.Errorf("write record %d of writer %d to volume %d: %w", r.N, w, v, err)
		}
		l.returned[w].Store(r.N)
	}
	return nil
}

// Returned is how many records of each writer have returned.
func (l *Load) Returned() (n [writers]uint64) {
	for w := range writers {
		n[w] = l.returned[w].Load()
	}
	return n
}

// Sent is how many records of each writer were sent.
func (l *Load) Sent() (n [writers]uint64) {
	for w := range writers {
		n[w] = l.sent[w].Load()
	}
	return n
}

// Bounds is what a cut may hold of each writer: at least what had returned before it was asked for, at most what was sent before its answer.
type Bounds struct{ Least, Most [writers]uint64 }

// Judge reads what devices hold that were restored of one cut, and says whether it is one moment of the load within bounds.
func (l *Load) Judge(restored []block.Device, b Bounds) error {
	var last [writers]Record
	for w := range writers {
		held := make([][]uint64, len(restored))
		for v, dev := range restored {
			records, err := l.read(dev, w)
			if err != nil {
				return fmt.Errorf("volume %d: %w", v, err)
			}
			for _, r := range records {
				held[v] = append(held[v], r.N)
				if r.N > last[w].N {
					last[w] = r
				}
			}
		}
		n, err := l.layout.Prefix(held)
		if err != nil {
			return fmt.Errorf("writer %d: %w", w, err)
		}
		if n < b.Least[w] || n > b.Most[w] {
			return fmt.Errorf("writer %d: the cut has %d records; %d had returned when it was asked for, %d were sent when it was answered", w, n, b.Least[w],
				b.Most[w])
		}
	}
	for w, r := range last {
		for other, known := range r.Known {
			if known > last[other].N {
				return fmt.Errorf("the cut has record %d of writer %d, sent when record %d of writer %d had returned, of which it has %d", r.N, w, known, other,
					last[other].N)
			}
		}
	}
	return nil
}

// read answers a writer's slots of a device.
func (l *Load) read(dev block.Device, w int) ([]Record, error) {
	p := blocktest.Aligned(l.layout.Slots * recordSize)
	if _, err := dev.ReadAt(p, l.layout.offset(w, 0)); err != nil {
		return nil, fmt.Errorf("read slots of writer %d: %w", w, err)
	}
	var records []Record
	for slot, at := range slices.Collect(slices.Chunk(p, recordSize)) {
		r, ok := decode(at)
		if !ok || r != (Record{}) && (r.Run != l.run || r.Writer != uint64(w)) {
			return nil, fmt.Errorf("slot %d of writer %d holds no record of it: %+v (whole: %t)", slot, w, r, ok)
		}
		records = append(records, r)
	}
	return records, nil
}
