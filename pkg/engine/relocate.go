package engine

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// copyBytes is the size of a copy's buffers, and of a move, at most.
const copyBytes = 256 << 10

var copyBuffers = sync.Pool{New: func() any { b := fsys.AlignedBuffer(copyBytes); return &b }}

// relocation says what relocate moves: stretches of runs in one page of a family, of any layers, whether heads or frozen.
type relocation struct {
	family, page uint32
	list         []runs.Entry
	// where hands out up to n adjacent new blocks, like Allocator.Alloc.
	where func(n int) (place uint64, got int, err error)
	count *volumeCounters // the reads and writes are counted here
}

// relocate moves runs to new blocks, whoever uses them meanwhile, and returns how many blocks it moved. Those whose run is not where the list says
// any more, or is not committed yet, it leaves. Guests' reads go on; their writes to these blocks wait: so the list should be short. The old places
// are free when it is durable and pins older than that have ended. The caller holds no lock and no pin.
func (p *Pool) relocate(r relocation) (moved int, err error) {
	if len(r.list) == 0 {
		return 0, nil
	}
	k := rangelock.Key{Family: r.family, Page: r.page}
	off, end := spanOf(r.list)
	p.locks.Lock(k, off, end)
	defer p.locks.Unlock(k, off, end)
	p.marks.set(k, off, end)
	defer p.epochs.Defer(func() { p.marks.clear(k, off, end) })
	if !p.breaks(mutateMovePins) {
		p.epochs.Wait() // for those who write in place and looked up before the mark
	}
	list, err := p.copyRuns(r)
	if len(list) == 0 {
		return 0, err
	}
	if _, cerr := p.commitMoves(list...); cerr != nil {
		return 0, errors.Join(err, cerr)
	}
	for _, m := range list {
		if m.rest == moveDone {
			moved += m.run.Len()
		}
	}
	return moved, err
}

// copyRuns copies what is still where the list says. It is pinned from asking to the last read: what is read is the run's.
func (p *Pool) copyRuns(r relocation) (list []*move, err error) {
	pin := p.epochs.Pin()
	defer p.epochs.Unpin(pin)
	list, err = p.planMoves(r)
	cerr := p.copyMoves(r.count, list)
	return p.wholeCopies(list), errors.Join(err, cerr)
}

// planMoves finds new blocks for what is still where the list says. After an error it returns what it found until then.
func (p *Pool) planMoves(r relocation) (list []*move, err error) {
	it, err := p.store.db.NewIter(&pebble.IterOptions{LowerBound: format.RunPrefix(), UpperBound: format.Upper(format.RunPrefix())})
	if err != nil {
		return nil, fmt.Errorf("read runs to move: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for _, e := range r.list {
		stored, err := readGen(it, r.family, r.page, e.Gen(), e.Off(), e.End())
		if err != nil {
			return list, err
		}
		if !has(stored, e) || p.pendingRun(r.family, r.page, e) {
			continue
		}
		for off := e.Off(); off < e.End(); {
			place, n, err := r.where(min(e.End()-off, copyBytes/BlockSize))
			if err != nil {
				return list, err
			}
			list = append(list, &move{family: r.family, page: r.page, run: e.Sub(off, off+n), to: place})
			off += n
		}
	}
	return list, nil
}

func spanOf(list []runs.Entry) (off, end int) {
	off = runs.Blocks
	for _, e := range list {
		off, end = min(off, e.Off()), max(end, e.End())
	}
	return off, end
}

// pendingRun tells whether a map shows part of a run as pending: its commit is not durable, or its map does not know that it is.
func (p *Pool) pendingRun(family, page uint32, e runs.Entry) bool {
	for _, m := range p.maps.of(family) {
		if p.pages.pendingOf(m, page, e) {
			return true
		}
	}
	return false
}

// pendingOf tells whether a map has pending runs of e's generation over e's blocks.
func (p *pages) pendingOf(m *mapping, page uint32, e runs.Entry) bool {
	k := m.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	for overlay := range s.pending(k) {
		var buf [16]runs.Entry
		for _, x := range runs.Slice(buf[:0], overlay.list, e.Off(), e.End()) {
			if x.Gen() == e.Gen() {
				return true
			}
		}
	}
	return false
}

// copyState is how far a move's copy has come.
type copyState uint8

const (
	copyNone  copyState = iota // nothing was written
	copyWhole                  // written
	copyTorn                   // its write went wrong, and the device may be at its blocks still
)

// copyMoves writes the moves' copies: what goes to blocks side by side in one write, however scattered it was.
func (p *Pool) copyMoves(count *volumeCounters, list []*move) error {
	for len(list) > 0 {
		n, blocks := 1, list[0].run.Len()
		for n < len(list) && list[n].to == list[0].to+uint64(blocks) && (blocks+list[n].run.Len())*BlockSize <= copyBytes {
			blocks += list[n].run.Len()
			n++
		}
		if err := p.copyTogether(count, list[:n], blocks); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// copyTogether copies moves whose copies lie side by side, of so many blocks in all, copyBytes at most.
func (p *Pool) copyTogether(count *volumeCounters, list []*move, blocks int) error {
	var b []byte
	if blocks == 1 {
		buffer := getBlock()
		defer putBlock(buffer)
		b = *buffer
	} else {
		buffer := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buffer)
		b = (*buffer)[:blocks*BlockSize]
	}
	err := sideBySide(len(list), func(from, to int) error {
		for _, m := range list[from:to] {
			part := b[(m.to-list[0].to)*BlockSize:][:m.run.Len()*BlockSize]
			if err := p.readData(count, part, m.run.Place(), 0); err != nil {
				return err
			}
			if err := p.verifyCopy(m.page, m.run, part); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errCopyRead, err)
	}
	state := copyWhole
	if err = p.writeData(count, b, list[0].to, 0); err != nil {
		state, err = copyTorn, fmt.Errorf("write copy: %w", err)
	}
	for _, m := range list {
		m.copied = state
	}
	return err
}

// wholeCopies returns the moves whose copies are whole, in order, and gives the others' blocks back. Those of a write that went wrong stay taken
// until the pool is opened again.
func (p *Pool) wholeCopies(list []*move) (whole []*move) {
	for _, m := range list {
		switch m.copied {
		case copyWhole:
			whole = append(whole, m)
		case copyNone:
			p.alloc.Undo(extent{Place: m.to, N: m.run.Len()})
		}
	}
	return whole
}
