package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Discard makes the range read as zeroes and gives the space of what the head owns there back.
func (v *Volume) Discard(off, length int64) error { return v.zero("discard", off, length) }

// WriteZeroes does the same: the engine has no use for a block of zeroes.
func (v *Volume) WriteZeroes(off, length int64) error { return v.zero("zero", off, length) }

func (v *Volume) zero(verb string, off, length int64) error {
	if err := v.check(off, length); err != nil {
		return err
	}
	if f := v.figures; f != nil {
		defer f.Zero.since(time.Now())
	}
	v.count.discards.Add(1)
	for length > 0 {
		next, err := v.nextMapped(off, off+length)
		if err != nil {
			return fmt.Errorf("%s volume %q at %d: %w", verb, v.name, off, err)
		}
		if length -= next - off; length == 0 {
			return nil
		}
		off = next
		page, at := uint32(off/pageBytes), int(off%pageBytes)
		n := int(min(length, int64(pageBytes-at)))
		if err := v.zeroInPage(page, at, n); err != nil {
			return fmt.Errorf("%s volume %q at %d: %w", verb, v.name, off, err)
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

// nextMapped returns the first byte from off on that is in a page where the family has any run, or end: what makes a discard of a whole new volume one
// seek. It may return a page that maps nothing.
func (v *Volume) nextMapped(off, end int64) (int64, error) {
	page := uint32(off / pageBytes)
	last := uint32((end - 1) / pageBytes)
	// Pinned, so that a pool that is being closed waits.
	pin := v.pool.epochs.Pin()
	defer v.pool.epochs.Unpin(pin)
	if v.pool.closed.Load() {
		return 0, ErrClosed
	}
	stored, err := v.nextStored(page, last)
	if err != nil {
		return 0, err
	}
	found := page
	for found < stored && !v.pool.pages.pendingIn(&v.mapping, found) {
		found++
	}
	if found > page {
		// A round may have taken runs from pending to stored after the store was asked: what is in neither now was in neither all the time.
		if stored, err = v.nextStored(page, last); err != nil {
			return 0, err
		}
	}
	return min(max(off, int64(min(found, stored))*pageBytes), end), nil
}

// nextStored returns the first page from page to last where the store has any run of the family, or last + 1.
func (v *Volume) nextStored(page, last uint32) (_ uint32, err error) {
	family := v.mapping.lineage.Load().family
	lower, upper := format.RunPagePrefix(family, page), format.Upper(format.RunPagePrefix(family, last))
	it, err := v.pool.store.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return last + 1, it.Error()
	}
	at, _, _, err := format.ParseRunKey(it.Key())
	return at.Page, err
}

// zeroInPage zeroes n bytes from byte at of a page: whole blocks in the map, the edges by writing zeroes where something is mapped.
func (v *Volume) zeroInPage(page uint32, at, n int) error {
	first, end := (at+BlockSize-1)/BlockSize, (at+n)/BlockSize
	edges := [][2]int{{at, min(at+n, first*BlockSize)}, {max(end, first) * BlockSize, at + n}}
	if first > end {
		edges = [][2]int{{at, at + n}} // within one block
	}
	for _, e := range edges {
		if e[0] >= e[1] {
			continue
		}
		if err := v.again(0, func(a *admission) error { return v.zeroEdge(a, page, e[0], e[1]-e[0]) }); err != nil {
			return err
		}
	}
	if first >= end {
		return nil
	}
	return v.again(0, func(a *admission) error { return v.zeroBlocks(a, page, first, end) })
}

var zeroBlock [BlockSize]byte

func (v *Volume) zeroEdge(a *admission, page uint32, at, n int) error {
	var buf [1]runs.Entry
	list, err := v.pool.pages.lookup(&v.mapping, page, at/BlockSize, at/BlockSize+1, buf[:0])
	if err != nil || runs.Mapped(list) == 0 {
		return err
	}
	return v.writePart(a, page, at, zeroBlock[:n])
}

// zeroBlocks publishes a zero run over whole blocks. What it hides is dropped, and whether a zero run must stay in the store is found, when it is
// committed.
func (v *Volume) zeroBlocks(a *admission, page uint32, first, end int) error {
	p := v.pool
	g := v.mapping.lineage.Load()
	k := rangelock.Key{Family: g.family, Page: page}
	a.lock(k, first, end)
	defer p.locks.Unlock(k, first, end)
	var buf [8]runs.Entry
	list, err := p.pages.lookup(&v.mapping, page, first, end, buf[:0])
	if err != nil {
		return err
	}
	mapped := runs.Mapped(list)
	if mapped == 0 {
		return nil
	}
	if !p.ring.TryReserve(1) {
		return errNeedRing
	}
	if err := p.pages.publish(p.ring, v, g.own, page, []runs.Entry{runs.Zero(first, end-first, g.top)}, -int64(mapped)); err != nil {
		p.fail(fmt.Errorf("log discard: %w", err))
		return p.failure()
	}
	return nil
}
