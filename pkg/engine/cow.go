package engine

import (
	"errors"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// mover is who moves when a guest writes.
type mover uint8

const (
	nobodyMoves mover = iota // the head owns the block: overwritten in place
	newMoves                 // ROW: the new data goes to a new block
	oldMoves                 // COW: the old data goes to a new block, and the new takes its place
)

// whoMoves decides it, for one entry of a write's range: the one place where the modes differ. COW takes blocks only from layers that this volume
// wrote: what it inherited as a clone is another tenant's layout, and one head at most may take blocks from a layer.
func (w *partWrite) whoMoves(e runs.Entry) mover {
	switch {
	case e.IsZero():
		return newMoves
	case w.g.owns(e.Gen()):
		return nobodyMoves
	case w.v.mode.Load() == uint32(CopyOnWrite) && e.Gen() >= w.v.first:
		return oldMoves
	}
	return newMoves
}

const (
	// pinPatience is how long COW waits for readers of the old place, before it goes on as ROW.
	pinPatience = 10 * time.Millisecond
	// copyOwner marks, in an owner's number, the allocator's extents that copies go to: apart from where the volume's own new blocks go.
	copyOwner = 1 << 63
)

// takeOver moves what COW moves out of the write's way: when it returns nil, the head owns those blocks, or they stay another layer's, for ROW. The
// order is move.go's; the last step, overwriting, is the write's own. Called with the range's lock.
//
// COW becomes ROW where no block is free for the copy, where the old block cannot be read, and where readers of the old place take too long. In the
// last case the head owns the old place and must not touch it: the write gets new blocks (away), and its round frees the old ones after their
// readers.
func (w *partWrite) takeOver(first, end int) error {
	if !w.copies() {
		return nil
	}
	p := w.v.pool
	k := rangelock.Key{Family: w.g.family, Page: w.page}
	p.marks.set(k, first, end)
	defer func() {
		if len(w.away) == 0 { // else the write's end does
			p.marks.clear(k, first, end)
		}
	}()
	// Loaded after the mark: whoever's lineage owns these blocks by a join that this one does not know has not written in place, or sees the mark.
	w.g = w.v.mapping.lineage.Load()
	var list []*move
	var g *moveGroup
	var err error
	var ended bool
	// The copy needs no pin either: the lock keeps what is copied where it is. With one, every copy would wait for those that are being made.
	w.a.unpinned(func() {
		if list, err = w.copyOld(first, end); err != nil || len(list) == 0 {
			return
		}
		g, ended, err = p.commitAway(list...)
	})
	if err != nil || len(list) == 0 {
		return err
	}
	w.g, w.moved, w.ended = w.v.mapping.lineage.Load(), list, g.ended // a join may have come: moveOwned
	for _, m := range list {
		switch {
		case m.rest != moveDone:
		case !ended:
			w.away = append(w.away, m.run)
		default:
			w.own(m)
		}
	}
	return nil
}

// own notes that the head owns the old place now.
func (w *partWrite) own(m *move) {
	w.list = runs.Insert(w.list, runs.Data(m.run.Off(), m.run.Len(), m.run.Place(), m.top))
}

// copies tells whether COW moves any of the write's blocks.
func (w *partWrite) copies() bool {
	for _, e := range w.list {
		if w.whoMoves(e) == oldMoves {
			return true
		}
	}
	return false
}

// copyOld writes copies of what COW moves. It returns nothing, and no error, where the write is to go on as ROW.
func (w *partWrite) copyOld(first, end int) ([]*move, error) {
	p := w.v.pool
	prefer := alloc.Written
	if end-first >= largeWrite {
		prefer = alloc.Reserved
	}
	var old []runs.Entry
	var wants []int
	for _, e := range w.list {
		if w.whoMoves(e) != oldMoves {
			continue
		}
		for off := e.Off(); off < e.End(); off += copyBytes / BlockSize {
			part := e.Sub(off, off+copyBytes/BlockSize)
			old, wants = append(old, part), append(wants, part.Len())
		}
	}
	got, err := p.alloc.AllocAll(w.v.entry.id|copyOwner, wants, prefer, nil)
	if errors.Is(err, alloc.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*move
	for _, e := range old {
		for off := e.Off(); off < e.End(); got = got[1:] {
			m := &move{family: w.g.family, page: w.page, run: e.Sub(off, off+got[0].N), to: got[0].Place, heir: w.v}
			if m.run == e {
				m.hint = p.pages.hintOf(&w.v.mapping, w.g, w.page, e)
			}
			list = append(list, m)
			off += got[0].N
		}
	}
	p.preparing.wake(p, prefer)
	if err = p.copyMoves(&w.v.count, list); err != nil {
		p.wholeDropped(list)
		p.event("copying what a snapshot keeps went wrong; the write is redirected", "volume", w.v.Name(), "error", err)
		return nil, nil
	}
	for _, m := range list {
		w.v.count.copies.Add(1)
		w.v.count.copyBytes.Add(uint64(m.run.Len()) * BlockSize)
	}
	return list, nil
}

// wholeDropped gives the blocks of copies back that are not needed after all.
func (p *Pool) wholeDropped(list []*move) {
	for _, m := range p.wholeCopies(list) {
		p.alloc.Undo(extent{Place: m.to, N: m.run.Len()})
	}
}

// finish runs the write when what COW moves is out of its way. Where that goes on as ROW although the head owns the old place, neither the lock nor
// the mark may go before the older readers have ended, or maps show the new place: the next writer would take the old one for the head's to
// overwrite.
func (w *partWrite) finish(first, end int) error {
	if len(w.moved) > 0 && len(w.away) == 0 && ownsAll(w.g, w.list, first, end) {
		return w.take(first, end)
	}
	err := w.run(first, end)
	if len(w.away) > 0 {
		p, k := w.v.pool, rangelock.Key{Family: w.g.family, Page: w.page}
		defer p.epochs.Defer(func() { p.marks.clear(k, first, end) })
		if err != nil {
			w.a.unpinned(func() { <-w.ended })
		}
		if errors.Is(err, errNeedRing) || errors.Is(err, alloc.ErrNone) {
			w.away, w.news = nil, nil
			for _, m := range w.moved {
				if m.rest == moveDone {
					w.own(m)
				}
			}
			err = w.run(first, end)
		}
	}
	return err
}

// take overwrites what the head owns by now, all of it. It is pinned among the takers, for whom nobody waits who is to overwrite what he has moved: every
// group would wait for the writes of the groups before it, a tenth of a first write's time at depth 32. Their promise holds without: those writes look
// nothing up any more, and go where this head's runs are, under the lock of their range, while the gate keeps cuts from freezing them; so they are not
// at a place that another one has moved away from a snapshot. Whoever gives blocks to somebody else waits for the takers, too (release).
func (w *partWrite) take(first, end int) (err error) {
	p := w.v.pool
	pin := p.takers.Pin()
	defer p.takers.Unpin(pin)
	w.a.unpinned(func() { err = w.run(first, end) })
	return err
}

// replaces tells whether new blocks take the place of what the head owns and COW could not overwrite.
func (w *partWrite) replaces(off, end int) bool { return runs.Overlaps(w.away, off, end) }
