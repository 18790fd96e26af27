package engine

import (
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Checksums of frozen blocks. They are keyed by what they are of, (generation, page, block), not by where it lies: a move of a block (COW, drain, tidy)
// changes nothing here, and a join of two frozen layers neither.
//
// Promise: a checksum is of what its frozen block shows, always. It is kept so:
//
//  1. Only what is frozen has any. A layer's data was flushed before the commit that froze it, and nobody writes to it while it is frozen.
//  2. Generations become writable in one way, by a join with a head. The batch of the join deletes their checksums (dropSums), and heads learn of the
//     join when that batch is durable and not before (join): so they are gone, for good, before the first overwrite in place can reach a disk. Whatever
//     a power cut leaves, it leaves the join and no checksum, or the checksums and a layer that was never overwritten.
//  3. Checksums that were being made meanwhile are not stored: who makes them registers the generation while it is frozen, under ops; dropSums voids it;
//     both that and their batch are composed on the committer, one after the other. Stored before the join's batch, they are deleted by it; after it,
//     they are void.
//  4. What is read is the run's: a run that is at its place before the read and after it, under one pin, was there all the while (readFrozen).
//  5. Blocks that a frozen layer loses (hidden runs that a join's pass removes) lose their checksums in the same batch (trimSums), and a batch of
//     checksums leaves out what was lost since they were read. A layer that is queued for freeing loses all of them as it is queued.
//
// That a checksum is missing is always allowed. Which are missing is known without a list: generations without the mark, pages without a record.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is what is kept of a block.
func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// dropSums takes generations' checksums away, in the batch that makes them writable or queues them for freeing: steps 2 and 3 above. On the committer,
// with ops held.
func (p *Pool) dropSums(b *batch, gens []uint64) {
	s := &p.summing
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, gen := range gens {
		prefix := format.SumsPrefix(gen)
		b.removeRange(prefix, format.Upper(prefix))
		b.remove(format.SummedKey(gen))
		delete(s.done, gen)
		if s.gen == gen && !p.breaks(mutateSumVoid) {
			s.void = true
		}
	}
}

// keepOnly removes the checksums of blocks that the runs, of one generation, have no data in. It tells whether there were any.
func keepOnly(sums *format.Sums, list []runs.Entry) (removed bool) {
	at := 0
	remove := func(end int) {
		for ; at < end; at++ {
			if _, ok := sums.Get(at); ok {
				sums.Remove(at)
				removed = true
			}
		}
	}
	for _, e := range list {
		if !e.IsZero() {
			remove(e.Off())
			at = e.End()
		}
	}
	remove(runs.Blocks)
	return removed
}

// trimSums removes the checksums of blocks that a page of a frozen layer loses in this batch: step 5 above. was and will are its runs before and after.
func (b *batch) trimSums(page uint32, was, will []runs.Entry) error {
	had, has := byGen(was), byGen(will)
	for gen, list := range had {
		left := has[gen]
		if runs.Mapped(list) == runs.Mapped(left) {
			continue
		}
		sums, err := readSums(b.s.db, gen, page)
		if err != nil {
			return err
		}
		switch {
		case sums == nil || !keepOnly(sums, left):
		case sums.Count() == 0:
			b.remove(format.SumsKey(gen, page))
		default:
			b.put(format.SumsKey(gen, page), sums.Encode())
		}
	}
	return nil
}

// byGen parts a list by generation. Of each the runs stay in order.
func byGen(list []runs.Entry) map[uint64][]runs.Entry {
	m := map[uint64][]runs.Entry{}
	for _, e := range list {
		m[e.Gen()] = append(m[e.Gen()], e)
	}
	return m
}

// readSums reads a generation's checksums in a page; nil: it has none.
func readSums(r reader, gen uint64, page uint32) (*format.Sums, error) {
	v, closer, err := r.Get(format.SumsKey(gen, page))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checksums of generation %d in page %d: %w", gen, page, err)
	}
	defer closer.Close()
	return format.ParseSums(v)
}

func hasKey(r reader, key []byte) (bool, error) {
	_, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, closer.Close()
}

// readGeneration reads the runs that a generation has in a page, in order.
func readGeneration(r reader, family, page uint32, gen uint64) (list []runs.Entry, err error) {
	err = scan(r, format.RunKey(family, page, gen, 0), format.RunKey(family, page, gen-1, 0), func(key, val []byte) error {
		_, _, block, err := format.ParseRunKey(key)
		if err != nil {
			return err
		}
		e, err := entryOf(val, block, gen)
		list = append(list, e)
		return err
	})
	return list, err
}

// readFrozen reads part of a run of a frozen layer, from a block of the page on, and tells whether the run was there all the while. Promise "pins": a
// place is reused only after the commit that took it away and when older pins have ended, and overwritten (COW) only after the commit that moved the
// run away. So who finds the run in the store before the read and after it, under one pin, has read its blocks and no others.
func (p *Pool) readFrozen(at format.RunPage, e runs.Entry, block int, b []byte) (there bool, err error) {
	pin := p.epochs.Pin()
	defer p.epochs.Unpin(pin)
	if p.closed.Load() {
		return false, ErrClosed
	}
	if there, err = p.hasRun(at, e); !there || err != nil {
		return false, err
	}
	if err := p.data.ReadAt(b, e.Place()+uint64(block-e.Off()), 0); err != nil {
		return false, err
	}
	return p.hasRun(at, e)
}

// hasRun tells whether the store has just this run.
func (p *Pool) hasRun(at format.RunPage, e runs.Entry) (bool, error) {
	v, closer, err := p.store.db.Get(format.RunKey(at.Family, at.Page, e.Gen(), e.Off()))
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read run of generation %d in page %d: %w", e.Gen(), at.Page, err)
	}
	defer closer.Close()
	now, err := entryOf(v, e.Off(), e.Gen())
	return now == e, err
}

// errDamagedCopy: what was to be copied is not what its checksum says.
var errDamagedCopy = errors.New("its checksum says that it is damaged; a scrub tells whose it is")

// verifyCopy compares what was read of a run, to be copied, with its checksums, if it has any: what a disk or a cable garbled must not become the only
// copy. Called after the read, while nobody writes these blocks in place: a checksum that is there now is of what was read.
func (p *Pool) verifyCopy(page uint32, e runs.Entry, b []byte) error {
	v, closer, err := p.store.db.Get(format.SumsKey(e.Gen(), page))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read checksums of generation %d in page %d: %w", e.Gen(), page, err)
	}
	defer closer.Close()
	var bad error
	err = format.FindSums(v, e.Off(), e.Len(), func(block int, want uint32) {
		at := block - e.Off()
		if got := checksum(b[at*BlockSize : (at+1)*BlockSize]); got != want && bad == nil {
			_, file, off := p.where(e.Place() + uint64(at))
			bad = fmt.Errorf("block at %d of %s: its checksum is %08x, the data's %08x: %w", off, file, want, got, errDamagedCopy)
		}
	})
	return errors.Join(err, bad)
}
