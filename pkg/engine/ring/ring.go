package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is an open ring. All methods may be called concurrently.
type Ring struct {
	path    string
	warning error
	wrote   func(off int64, p []byte) // Config's

	// mu guards what follows, and every access to mem, so that Close cannot unmap under one. It is held for some tens of nanoseconds.
	mu       sync.Mutex
	mem      []byte // nil once closed
	header   header
	ready    bool   // Replay has set the window
	retired  uint64 // sequences up to this one are committed
	last     uint64 // highest sequence appended, at least retired
	reserved uint64 // slots promised and not yet appended
	freed    chan struct{}
	waiting  bool // somebody has taken freed
}

// Warning is what did not work when the ring was opened and does not keep it from working: locking it in memory.
func (r *Ring) Warning() error { return r.warning }

// Path is the ring's file.
func (r *Ring) Path() string { return r.path }

// Cap is the number of slots.
func (r *Ring) Cap() int { return 1 << r.header.log2 }

// Used is the number of slots taken: from the oldest entry not retired to the newest, and those reserved.
func (r *Ring) Used() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int(r.last - r.retired + r.reserved)
}

// TryReserve takes n slots for appends to come, if there is room. It never waits.
func (r *Ring) TryReserve(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready || r.mem == nil || !r.fits(n) {
		return false
	}
	r.reserved += uint64(n)
	return true
}

// fits counts a sequence that is handed out and not yet appended twice when a later one was appended: for a moment, and on the safe side.
func (r *Ring) fits(n int) bool {
	return n >= 0 && r.last-r.retired+r.reserved+uint64(n) <= 1<<r.header.log2
}

// Release gives back slots that were reserved and will not be appended.
func (r *Ring) Release(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reserved -= min(uint64(max(n, 0)), r.reserved)
	r.wake()
}

// Wait returns when n slots could be reserved, without reserving them: the caller starts its write over. It fails when ctx ends or the ring is closed.
func (r *Ring) Wait(ctx context.Context, n int) error {
	if n > r.Cap() {
		return fmt.Errorf("wait for %d slots of a ring of %d: %w", n, r.Cap(), ErrUse)
	}
	for {
		r.mu.Lock()
		if r.mem == nil {
			r.mu.Unlock()
			return ErrClosed
		}
		if r.fits(n) {
			r.mu.Unlock()
			return nil
		}
		freed := r.freed
		r.waiting = true
		r.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("wait for room in ring %s: %w", r.path, context.Cause(ctx))
		}
	}
}

func (r *Ring) wake() {
	if r.waiting {
		close(r.freed)
		r.freed, r.waiting = make(chan struct{}), false
	}
}

// Append records one entry in a slot reserved before. When it returned, the entry survives this process. Epoch is filled in.
func (r *Ring) Append(e Entry) error {
	var p [entrySize]byte
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return ErrClosed
	}
	e.Epoch = uint32(r.header.epoch)
	if err := e.validate(); err != nil {
		return fmt.Errorf("append %+v to ring: %w: %w", e, err, ErrUse)
	}
	if !r.ready || r.reserved == 0 {
		return fmt.Errorf("append %+v to ring without a reservation: %w", e, ErrUse)
	}
	slots := uint64(1) << r.header.log2
	if e.Sequence <= r.retired || e.Sequence-r.retired > slots {
		return fmt.Errorf("append sequence %d to a ring of %d slots retired up to %d: %w", e.Sequence, slots, r.retired, ErrUse)
	}
	e.encode(&p)
	slot := r.slot(e.Sequence & (slots - 1))
	// The CRC's word goes to zero first and gets its value last. Atomic stores keep the compiler and the processor from moving the body's out of between.
	word := (*uint64)(unsafe.Pointer(&slot[entrySize-8]))
	atomic.StoreUint64(word, 0)
	copy(slot[:entrySize-8], p[:])
	r.tellSlot(slot, e.Sequence)
	atomic.StoreUint64(word, binary.NativeEndian.Uint64(p[entrySize-8:]))
	r.tellSlot(slot, e.Sequence)
	r.reserved--
	r.last = max(r.last, e.Sequence)
	return nil
}

func (r *Ring) tell(off int64, p []byte) {
	if r.wrote != nil {
		r.wrote(off, p)
	}
}

func (r *Ring) tellSlot(slot *[entrySize]byte, sequence uint64) {
	if r.wrote != nil {
		r.wrote(int64(pageSize+sequence%(1<<r.header.log2)*entrySize), slot[:])
	}
}

func (r *Ring) slot(i uint64) *[entrySize]byte {
	return (*[entrySize]byte)(r.mem[pageSize+i*entrySize:])
}

// Retire lets the slots of all sequences up to this one go. Call it when the commit that holds them, and says so, is durable.
func (r *Ring) Retire(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sequence > r.retired {
		r.retired = sequence
		r.last = max(r.last, sequence)
		r.wake()
	}
}

// Replay returns the entries with a sequence above after, in ascending order, gaps skipped, and opens the ring for appends above after. It is called
// once after Open and after Create. With ErrDamaged it returns what is whole, for a caller that accepts the loss.
func (r *Ring) Replay(after uint64) ([]Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return nil, ErrClosed
	}
	if r.ready {
		return nil, fmt.Errorf("replay ring %s twice: %w", r.path, ErrUse)
	}
	slots := uint64(1) << r.header.log2
	var entries []Entry
	var damaged error
	for i := range slots {
		e, err := decodeEntry(r.slot(i))
		if err == nil && (e.Sequence&(slots-1) != i || int32(e.Epoch-uint32(r.header.epoch)) > 0) {
			err = errBadBody
		}
		switch {
		case err == errEmpty:
		case err != nil:
			damaged = fmt.Errorf("replay ring %s: slot %d: %w: %w", r.path, i, err, ErrDamaged)
		case e.Sequence > after:
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if a.Sequence < b.Sequence {
			return -1
		}
		return 1 // two slots never hold one sequence
	})
	r.retired, r.last = after, after
	if n := len(entries); n > 0 {
		r.last = entries[n-1].Sequence
	}
	if r.last-r.retired > slots {
		return entries, fmt.Errorf("replay ring %s: it holds sequence %d, and the metadata only up to %d: the metadata lost commits that were synced: %w",
			r.path, r.last, after, ErrDamaged)
	}
	r.ready = true
	return entries, damaged
}

// Tail returns the entries above after and above what is retired, whichever is more, up to a sequence, in order; retired tells the latter. Sequences that
// nobody appended are left out. ok is false where there could be more than most.
func (r *Ring) Tail(after, to uint64, most int) (entries []Entry, retired uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	after = max(after, r.retired)
	if r.mem == nil || to > after+uint64(most) {
		return nil, r.retired, false
	}
	slots := uint64(1) << r.header.log2
	for s := after + 1; s <= to; s++ {
		if e, err := decodeEntry(r.slot(s & (slots - 1))); err == nil && e.Sequence == s {
			entries = append(entries, e)
		}
	}
	return entries, r.retired, true
}

// Epoch is the open epoch in the header.
func (r *Ring) Epoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header.epoch
}

// SetEpoch stores the epoch that is about to be committed.
func (r *Ring) SetEpoch(epoch uint64) error {
	return r.update(func(h *header) { h.epoch = epoch })
}

// Failed tells whether the pool was marked failed in this boot, and why.
func (r *Ring) Failed() (reason string, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header.reason, r.header.failed
}

// SetFailed marks the pool failed for the rest of this boot. The first reason stays; it is cut to 256 bytes.
func (r *Ring) SetFailed(reason string) error {
	return r.update(func(h *header) {
		if !h.failed {
			h.failed, h.reason = true, clip(reason)
		}
	})
}

func (r *Ring) update(change func(*header)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return ErrClosed
	}
	change(&r.header)
	r.storeHeader()
	return nil
}

// storeHeader writes the copy that is not the newest.
func (r *Ring) storeHeader() {
	r.header.serial++
	var p [headerSize]byte
	r.header.encode(&p)
	at := r.header.serial % 2 * copyStride
	copy(r.mem[at:], p[:])
	r.tell(int64(at), p[:])
}

// Close lets the memory go; the file stays for the next process. Waiters are woken with ErrClosed.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return ErrClosed
	}
	mem := r.mem
	r.mem = nil
	r.wake()
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("unmap ring %s: %w", r.path, err)
	}
	return nil
}

// Remove closes the ring and removes its file: for a pool that was closed with nothing pending, or destroyed.
func (r *Ring) Remove() error {
	err := r.Close()
	if errors.Is(err, ErrClosed) {
		err = nil
	}
	r.tell(0, nil)
	if rm := os.Remove(r.path); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("remove ring: %w", rm))
	}
	return err
}
