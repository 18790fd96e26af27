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

// copyBytes is the size of a copy's buffers: what one read and one write of a move carry at most.
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
		copies, err := p.copyRun(r, e)
		list = append(list, copies...)
		if err != nil {
			return list, err
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

// copyRun copies a stretch of a run to new blocks, in as many pieces as these come in. After an error it returns the moves whose copies are whole;
// the blocks of one that was not written stay taken until the pool is opened again, because the device may be at them still.
func (p *Pool) copyRun(r relocation, e runs.Entry) (list []*move, err error) {
	for e.Len() > 0 {
		place, n, err := r.where(e.Len())
		if err != nil {
			return list, err
		}
		part := e.Sub(e.Off(), e.Off()+n)
		if err := p.copyBlocks(r.count, part, place); err != nil {
			if errors.Is(err, errCopyRead) {
				p.alloc.Undo(extent{Place: place, N: n})
			}
			return list, err
		}
		list = append(list, &move{family: r.family, page: r.page, run: part, to: place})
		if part.End() == e.End() {
			break
		}
		e = e.Sub(part.End(), e.End())
	}
	return list, nil
}

// errCopyRead: what was to be copied cannot be read; nothing was written.
var errCopyRead = errors.New("read what is to be copied")

// copyBlocks copies a stretch of a run to new blocks.
func (p *Pool) copyBlocks(count *volumeCounters, e runs.Entry, to uint64) error {
	if e.Len() == 1 {
		b := getBlock()
		defer putBlock(b)
		return p.copyPiece(count, e, to, *b)
	}
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	for off := e.Off(); off < e.End(); off += copyBytes / BlockSize {
		piece := e.Sub(off, off+copyBytes/BlockSize)
		if err := p.copyPiece(count, piece, to+uint64(off-e.Off()), (*b)[:piece.Len()*BlockSize]); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) copyPiece(count *volumeCounters, e runs.Entry, to uint64, b []byte) error {
	if err := p.readData(count, b, e.Place(), 0); err != nil {
		return errors.Join(errCopyRead, err)
	}
	return p.writeData(count, b, to, 0)
}
