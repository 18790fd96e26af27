package engine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/epoch"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// sectorSize is what volumes show. Writes smaller than a block are read, changed and written by the engine.
const sectorSize = block.SectorSize

const (
	pageBytes = PageBlocks * BlockSize
	maxPages  = MaxVolumeSize / pageBytes // of a volume: what a page's number in a key has room for
)

// Volume is an open volume: a block.Device. Close it when its last request has returned.
type Volume struct {
	pool    *Pool
	entry   *volume
	name    string
	mapping mapping
	gate    gate
	size    atomic.Int64
	closed  atomic.Bool
	mode    atomic.Uint32 // a Mode
	first   uint64        // generations from this one on were given to this volume; older ones it inherited
	count   volumeCounters
	figures *VolumeFigures // nil: nobody counts
}

var _ block.Device = (*Volume)(nil)

type volumeCounters struct {
	reads, readBytes, writes, writeBytes, discards, flushes atomic.Uint64
	dataReads, dataReadBytes, dataWrites, dataWriteBytes    atomic.Uint64
	firstWrites, firstWriteBytes, copies, copyBytes         atomic.Uint64
}

func (c *volumeCounters) snapshot() *Counters {
	return &Counters{
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(), Writes: c.writes.Load(), WriteBytes: c.writeBytes.Load(),
		Discards: c.discards.Load(), Flushes: c.flushes.Load(),
		DataReads: c.dataReads.Load(), DataReadBytes: c.dataReadBytes.Load(), DataWrites: c.dataWrites.Load(), DataWriteBytes: c.dataWriteBytes.Load(),
		FirstWrites: c.firstWrites.Load(), FirstWriteBytes: c.firstWriteBytes.Load(),
		Copies: c.copies.Load(), CopyBytes: c.copyBytes.Load(),
	}
}

// Size is the volume's size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// SectorSize is 512: smaller writes than a block are merged by the engine.
func (v *Volume) SectorSize() int { return sectorSize }

// Name is the volume's name.
func (v *Volume) Name() string { return v.name }

// Info tells about the volume, its counters included.
func (v *Volume) Info() VolumeInfo { return v.pool.volumeInfo(v.entry) }

// Flush makes every request that returned before it durable.
func (v *Volume) Flush() error {
	v.count.flushes.Add(1)
	if f := v.figures; f != nil {
		defer f.Flush.since(time.Now())
	}
	if v.closed.Load() {
		return ErrClosed
	}
	return v.pool.flushRound(false)
}

// Close runs one round and lets the volume go.
func (v *Volume) Close(ctx context.Context) error { return v.pool.closeVolume(ctx, v) }

func (v *Volume) check(off, length int64) error {
	if v.closed.Load() {
		return ErrClosed
	}
	if err := block.CheckRange(off, length, v.Size(), sectorSize); err != nil {
		return fmt.Errorf("volume %q, %d bytes at %d: %w", v.name, length, off, err)
	}
	return nil
}

// ReadAt reads. It goes on while the pool is failed: what can be read is not withheld.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if f := v.figures; f != nil {
		defer f.Read.since(time.Now())
	}
	v.count.reads.Add(1)
	v.count.readBytes.Add(uint64(len(p)))
	if err := readMapped(v.pool, &v.mapping, &v.count, p, off); err != nil {
		return 0, fmt.Errorf("read volume %q at %d: %w", v.name, off, err)
	}
	return len(p), nil
}

// readMapped reads through a mapping, page by page. Every part is pinned from its lookup to the end of its last I/O.
func readMapped(p *Pool, m *mapping, count *volumeCounters, b []byte, off int64) error {
	for len(b) > 0 {
		page, at := uint32(off/pageBytes), int(off%pageBytes)
		n := min(len(b), pageBytes-at)
		if err := readPart(p, m, count, page, at, b[:n]); err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func readPart(p *Pool, m *mapping, count *volumeCounters, page uint32, at int, b []byte) error {
	if !p.breaks(mutateReadPin) {
		pin := p.epochs.Pin()
		defer p.epochs.Unpin(pin)
	}
	// Asked for under the pin: what a closed map names may be another volume's by now, and a closed pool's maps are no more.
	if m.closed.Load() || p.closed.Load() {
		return ErrClosed
	}
	var buf [8]runs.Entry
	list, err := p.pages.lookup(m, page, at/BlockSize, (at+len(b)+BlockSize-1)/BlockSize, buf[:0])
	if err != nil {
		return err
	}
	if list = runs.ByPlace(list); len(list) > 1 { // what COW took over lies among what it has not
		return readScattered(p, count, list, at, b)
	}
	return readEntries(p, count, list, at, b)
}

// readEntries reads one entry after the other; gaps and zero runs are zeroes.
func readEntries(p *Pool, count *volumeCounters, list []runs.Entry, at int, b []byte) error {
	pos, end := at, at+len(b)
	for _, e := range list {
		from, to := max(e.Off()*BlockSize, at), min(e.End()*BlockSize, end)
		if e.IsZero() {
			continue
		}
		clear(b[pos-at : from-at])
		if err := p.readData(count, b[from-at:to-at], e.Place(), from-e.Off()*BlockSize); err != nil {
			return err
		}
		pos = to
	}
	clear(b[pos-at:])
	return nil
}

// readScattered reads the entries of a fragmented range side by side.
func readScattered(p *Pool, count *volumeCounters, list []runs.Entry, at int, b []byte) error {
	return sideBySide(len(list), func(lo, hi int) error {
		from, to := at, at+len(b)
		if lo > 0 {
			from = max(at, list[lo].Off()*BlockSize)
		}
		if hi < len(list) {
			to = list[hi].Off() * BlockSize
		}
		return readEntries(p, count, list[lo:hi], from, b[from-at:to-at])
	})
}

func (p *Pool) readData(count *volumeCounters, b []byte, place uint64, off int) error {
	if align := p.data.Alignment(); off%align != 0 || len(b)%align != 0 {
		return p.readUnaligned(count, b, place, off)
	}
	count.dataReads.Add(1)
	count.dataReadBytes.Add(uint64(len(b)))
	return p.data.ReadAt(b, place, off)
}

// readUnaligned reads sectors where the member gives only larger pieces: whole blocks, of which a part is taken at the edges.
func (p *Pool) readUnaligned(count *volumeCounters, b []byte, place uint64, off int) error {
	whole := getBlock()
	defer putBlock(whole)
	for len(b) > 0 {
		in := off % BlockSize
		n := len(b) / BlockSize * BlockSize
		if in == 0 && n > 0 {
			if err := p.readData(count, b[:n], place, off); err != nil {
				return err
			}
		} else {
			n = min(len(b), BlockSize-in)
			if err := p.readData(count, *whole, place, off-in); err != nil {
				return err
			}
			copy(b[:n], (*whole)[in:])
		}
		b, off = b[n:], off+n
	}
	return nil
}

func (p *Pool) writeData(count *volumeCounters, b []byte, place uint64, off int) error {
	count.wrote(b)
	return p.data.WriteAt(b, place, off)
}

// wrote counts a data write.
func (c *volumeCounters) wrote(b []byte) {
	c.dataWrites.Add(1)
	c.dataWriteBytes.Add(uint64(len(b)))
}

// admission is what one part of a write holds: the gate, and a pin.
type admission struct {
	v   *Volume
	pin epoch.Pin
	// scarce: the write waits for space. It takes no block that it can do without: what it gave back again would wake it, for ever.
	scarce bool
}

// enter admits one part of a write: through the gate, then pinned. leave undoes it.
func (v *Volume) enter() admission {
	v.gate.enter()
	return admission{v: v, pin: v.pool.epochs.Pin()}
}

func (a *admission) leave() {
	a.v.pool.epochs.Unpin(a.pin)
	a.v.gate.leave()
}

// unpinned does something that may wait for others, or for their pins. What was looked up before holds after it only where a lock says so.
func (a *admission) unpinned(f func()) {
	a.v.pool.epochs.Unpin(a.pin)
	f()
	a.pin = a.v.pool.epochs.Pin()
}

// lock takes a range of blocks. Who has it may be waiting for pins, so this one must not be among them.
func (a *admission) lock(k rangelock.Key, off, end int) {
	a.unpinned(func() { a.v.pool.locks.Lock(k, off, end) })
}
