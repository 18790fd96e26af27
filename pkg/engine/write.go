package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/rangelock"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// errNeedRing: a write must wait for room in the ring. Like alloc.ErrNone, it is met with no lock, pin or gate held, and the write starts over.
var errNeedRing = errors.New("the ring is full")

// WriteAt writes. Blocks that the head owns are overwritten in place; all others are redirected to new blocks.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if f := v.figures; f != nil {
		defer f.Write.since(time.Now())
	}
	v.count.writes.Add(1)
	v.count.writeBytes.Add(uint64(len(p)))
	for done := 0; done < len(p); {
		page, at := uint32((off+int64(done))/pageBytes), int((off+int64(done))%pageBytes)
		n := min(len(p)-done, pageBytes-at)
		if err := v.again(n, func(a *admission) error { return v.writePart(a, page, at, p[done:done+n]) }); err != nil {
			return 0, fmt.Errorf("write volume %q at %d: %w", v.name, off+int64(done), err)
		}
		done += n
	}
	return len(p), nil
}

// again runs a part of a write, of so many bytes, until it needs to wait no more.
func (v *Volume) again(n int, part func(a *admission) error) error {
	large := n >= largeWrite*BlockSize
	var w spaceWait
	for {
		if err := v.pool.failure(); err != nil {
			return err
		}
		if large {
			v.pool.flow.enter(n)
		}
		a := v.enter()
		a.scarce = w.freed != nil
		err := ErrClosed
		if !v.closed.Load() {
			err = part(&a)
		}
		a.leave()
		if large {
			v.pool.flow.leave(n)
		}
		switch {
		case errors.Is(err, errNeedRing):
			if f := v.pool.figures; f != nil {
				f.RingWaits.Add(1)
			}
			err = v.pool.waitForRing()
		case errors.Is(err, alloc.ErrNone):
			if f := v.pool.figures; f != nil {
				f.SpaceWaits.Add(1)
			}
			err = w.wait(v.pool, v.entry.id)
		default:
			return err
		}
		if err != nil {
			return err
		}
	}
}

// writePart writes b at byte at of a page, admitted and pinned.
func (v *Volume) writePart(a *admission, page uint32, at int, b []byte) error {
	g := v.mapping.lineage.Load()
	first, end := at/BlockSize, (at+len(b)+BlockSize-1)/BlockSize
	k := rangelock.Key{Family: g.family, Page: page}
	var buf [8]runs.Entry
	if at%BlockSize == 0 && len(b)%BlockSize == 0 {
		list, err := v.pool.pages.lookup(&v.mapping, page, first, end, buf[:0])
		if err != nil {
			return err
		}
		// In this order: what is marked after the lookup is not moved while this pin lasts.
		if ownsAll(g, list, first, end) && !scattered(g, list, first, end) && (v.pool.breaks(mutateMoveMark) || !v.pool.marks.has(k, first, end)) {
			if err := v.pool.failure(); err != nil { // asked after the mark: see moveMarks
				return err
			}
			return v.overwrite(list, at, b)
		}
	}
	a.lock(k, first, end)
	defer v.pool.locks.Unlock(k, first, end)
	// A join may have given the head more between the first look and the lock; g is what this write goes by from here on, and publish hands it on.
	list, err := v.pool.pages.lookup(&v.mapping, page, first, end, buf[:0])
	if err = errors.Join(err, v.pool.failure()); err != nil { // asked with the lock: see moveMarks
		return err
	}
	w := partWrite{v: v, a: a, g: g, page: page, at: at, b: b, list: list}
	if v.mode.Load() == uint32(RedirectOnWrite) && !a.scarce { // COW keeps blocks where they are
		w.gathers = at%BlockSize == 0 && len(b)%BlockSize == 0 && scattered(g, list, first, end)
	}
	if err := w.takeOver(first, end); err != nil {
		return err
	}
	return w.finish(first, end)
}

// scatteredRun: a large write over blocks of the head that lie in pieces of so many blocks on average, or less, gathers them.
const scatteredRun = 8

// scattered tells that a large write would go to many places, were it done in place.
func scattered(g *lineage, list []runs.Entry, first, end int) bool {
	if end-first < largeWrite {
		return false
	}
	pieces, blocks := owned(g, list)
	return pieces > 1 && pieces*scatteredRun >= blocks
}

// owned counts the pieces, and their blocks, that the head owns.
func owned(g *lineage, list []runs.Entry) (pieces, blocks int) {
	for _, e := range list {
		if !e.IsZero() && g.owns(e.Gen()) {
			pieces, blocks = pieces+1, blocks+e.Len()
		}
	}
	return pieces, blocks
}

func ownsAll(g *lineage, list []runs.Entry, first, end int) bool {
	for _, e := range list {
		if e.Off() != first || e.IsZero() || !g.owns(e.Gen()) {
			return false
		}
		first = e.End()
	}
	return first == end
}

// overwrite writes in place what the head owns; list covers the range.
func (v *Volume) overwrite(list []runs.Entry, at int, b []byte) error {
	if list = runs.ByPlace(list); len(list) > 1 {
		return v.overwriteScattered(slices.Clone(list), at, b)
	}
	return v.overwriteOne(list[0], at, b)
}

func (v *Volume) overwriteOne(e runs.Entry, at int, b []byte) error {
	from, to := max(e.Off()*BlockSize, at), min(e.End()*BlockSize, at+len(b))
	return v.pool.writeData(&v.count, b[from-at:to-at], e.Place(), from-e.Off()*BlockSize)
}

// partWrite is a write to one page that needs new blocks, or that is smaller than a block; it holds the lock of its range.
type partWrite struct {
	v    *Volume
	a    *admission
	g    *lineage
	page uint32
	at   int
	b    []byte
	list []runs.Entry // what the volume has there now
	news []runs.Entry // new runs
	// gathers: the head's own blocks get new places as well, in one piece with the rest, for they are scattered: one request to the device instead of
	// hundreds, and reads in order from then on. Whole blocks only. The old places are freed as those under a discard are: held before the batch that
	// removes their runs, released when it is durable and older pins have ended. So a write in place that looked the old place up before, and ends
	// after, hurts nobody: it and this one were under way together, and either may have been the first.
	gathers bool

	// of COW
	moved []*move
	ended <-chan struct{} // closed when readers of the old places have ended
	away  []runs.Entry    // what the head owns by these moves and must not overwrite, because they have not
}

// run keeps "a run enters the map, the pending set and the ring only after its data write returned, and before the acknowledgement": blocks and ring
// slots first, so that nothing is waited for later; then the data; then publish.
func (w *partWrite) run(first, end int) error {
	err := w.allocate(first, end)
	if w.gathers && !w.worthGathering(err) {
		// What the head owns can always be overwritten in place.
		w.undo()
		w.gathers, w.news = false, nil
		err = w.allocate(first, end)
	}
	if err != nil {
		return err
	}
	p := w.v.pool
	if len(w.news) > 0 && !p.ring.TryReserve(len(w.news)) {
		w.undo()
		return errNeedRing
	}
	if p.breaks(mutatePublish) {
		return errors.Join(w.publish(), w.writeAll())
	}
	if err := w.writeAll(); err != nil {
		// The new blocks stay taken until the pool is opened again: their content is unknown, and so is whether the device is still at them.
		if len(w.news) > 0 {
			p.ring.Release(len(w.news))
			for _, e := range w.news {
				p.alloc.Lost(w.v.entry.id, extent{Place: e.Place(), N: e.Len()}) // it needs others
			}
			p.event("data write went wrong; its new blocks are set aside until the pool is opened again", "volume", w.v.Name(), "error", err)
		}
		return err
	}
	return w.publish()
}

func (w *partWrite) publish() error {
	p := w.v.pool
	if len(w.news) == 0 {
		return nil
	}
	if err := p.pages.publish(p.ring, w.v, w.g.own, w.page, w.news, w.account()); err != nil {
		p.fail(fmt.Errorf("log write: %w", err))
		return p.failure()
	}
	return nil
}

// worthGathering tells whether the new places are better than the old ones: free space may be in pieces as well, or all gone.
func (w *partWrite) worthGathering(err error) bool {
	pieces, _ := owned(w.g, w.list)
	return err == nil && len(w.news) <= pieces/2
}

// largeWrite is from how many blocks on a write takes reserved ones: it does not wait for zeroes to be written before it, and loses little to the
// unwritten extents under them. docs/benchmarks.md has the measurement.
const largeWrite = 256 << 10 / BlockSize

// allocate finds new blocks for all that the head does not own in [first, end), or none.
func (w *partWrite) allocate(first, end int) error {
	prefer := alloc.Written
	if end-first >= largeWrite {
		prefer = alloc.Reserved
	}
	var offs, wants [8]int
	at, want := offs[:0], wants[:0]
	for pos := first; pos < end; {
		stop, owned := w.stretch(pos, end)
		if !owned {
			at, want = append(at, pos), append(want, stop-pos)
		}
		pos = stop
	}
	if len(want) == 0 {
		return nil
	}
	var extents [8]alloc.Extent
	got, err := w.v.pool.alloc.AllocAll(w.v.entry.id, want, prefer, extents[:0])
	if err != nil {
		return err
	}
	for i, pos := range at {
		for stop := pos + want[i]; pos < stop; got = got[1:] {
			e := runs.Data(pos, got[0].N, got[0].Place, w.g.top)
			if w.hidesOwn(pos, pos+got[0].N) || w.replaces(pos, pos+got[0].N) {
				e = e.Replacing()
			}
			w.news = append(w.news, e)
			pos += got[0].N
		}
	}
	w.v.pool.preparing.wake(w.v.pool, prefer)
	return nil
}

// stretch returns the end of the blocks from pos on that are alike: owned by the head, or not.
func (w *partWrite) stretch(pos, end int) (stop int, owned bool) {
	for _, e := range w.list {
		if e.End() <= pos || !w.owns(e) {
			continue
		}
		if e.Off() <= pos {
			return min(e.End(), end), true
		}
		return min(e.Off(), end), false
	}
	return end, false
}

// hidesOwn: the head has something there already, a zero run or what is gathered.
func (w *partWrite) hidesOwn(off, end int) bool {
	return slices.ContainsFunc(w.list, func(e runs.Entry) bool { return w.g.owns(e.Gen()) && e.Off() < end && off < e.End() })
}

func (w *partWrite) undo() {
	var list []extent
	for _, e := range w.news {
		list = append(list, extent{Place: e.Place(), N: e.Len()})
	}
	w.v.pool.unwritten(w.v.entry, list)
}

// writeAll writes the data: new blocks whole, owned ones in place.
func (w *partWrite) writeAll() error {
	owned := 0
	for _, e := range w.list {
		if w.owns(e) {
			owned++
		}
	}
	if len(w.news)+owned > 1 {
		return w.writeScattered()
	}
	for _, e := range w.news {
		if err := w.writeNew(e); err != nil {
			return err
		}
	}
	for _, e := range w.list {
		if err := w.writeOld(e); err != nil {
			return err
		}
	}
	return nil
}

// owns tells whether an entry is overwritten in place.
func (w *partWrite) owns(e runs.Entry) bool { return !w.gathers && !e.IsZero() && w.g.owns(e.Gen()) }

// writeOld writes in place what the head owns of an entry of the list.
func (w *partWrite) writeOld(e runs.Entry) error {
	if !w.owns(e) {
		return nil
	}
	from, to := max(e.Off()*BlockSize, w.at), min(e.End()*BlockSize, w.at+len(w.b))
	return w.v.writeOwned(e, from, w.b[from-w.at:to-w.at])
}

// writeNew writes the blocks of a new run. Where the guest's bytes cover a block in part, the rest is what the block showed before: a new block is
// always written whole.
func (w *partWrite) writeNew(e runs.Entry) error {
	from, to := e.Off()*BlockSize, e.End()*BlockSize // of the page
	for from < to {
		end, err := from+BlockSize, error(nil)
		if from >= w.at && end <= w.at+len(w.b) {
			end = min(to, (w.at+len(w.b))/BlockSize*BlockSize)
			err = w.v.pool.writeNewBlocks(&w.v.count, w.b[from-w.at:end-w.at], e.Place()+uint64(from/BlockSize-e.Off()))
		} else {
			err = w.writeMerged(e, from)
		}
		if err != nil {
			return err
		}
		from = end
	}
	return nil
}

// writeMerged writes one new block that the guest's bytes cover in part.
func (w *partWrite) writeMerged(e runs.Entry, from int) error {
	b := getBlock()
	defer putBlock(b)
	var buf [1]runs.Entry
	old := runs.Slice(buf[:0], w.list, from/BlockSize, from/BlockSize+1)
	if w.v.pool.breaks(mutateNewBlockInParts) {
		from, to := max(from, w.at), min(from+BlockSize, w.at+len(w.b))
		return w.v.pool.writeData(&w.v.count, w.b[from-w.at:to-w.at], e.Place(), from-e.Off()*BlockSize)
	}
	if err := readEntries(w.v.pool, &w.v.count, old, from, *b); err != nil {
		return err
	}
	lo, hi := max(from, w.at), min(from+BlockSize, w.at+len(w.b))
	copy((*b)[lo-from:hi-from], w.b[lo-w.at:hi-w.at])
	return w.v.pool.writeData(&w.v.count, *b, e.Place(), from-e.Off()*BlockSize)
}

// writeOwned overwrites part of an owned run, from byte from of the page. Where the member takes only larger pieces than the guest writes, the edges are
// read first; the range's lock keeps others out meanwhile.
func (v *Volume) writeOwned(e runs.Entry, from int, b []byte) error {
	align := v.pool.data.Alignment()
	off := from - e.Off()*BlockSize
	if off%align == 0 && len(b)%align == 0 {
		return v.pool.writeData(&v.count, b, e.Place(), off)
	}
	for len(b) > 0 {
		in := off % BlockSize
		n := min(len(b), BlockSize-in)
		whole := getBlock()
		err := v.pool.readData(&v.count, *whole, e.Place(), off-in)
		if err == nil {
			copy((*whole)[in:], b[:n])
			err = v.pool.writeData(&v.count, *whole, e.Place(), off-in)
		}
		putBlock(whole)
		if err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// account counts what the write takes into use, and returns how many blocks the volume had not mapped.
func (w *partWrite) account() (fresh int64) {
	blocks := 0
	for _, e := range w.news {
		var buf [8]runs.Entry
		fresh += int64(e.Len() - runs.Mapped(runs.Slice(buf[:0], w.list, e.Off(), e.End())))
		blocks += e.Len()
	}
	w.v.count.firstWrites.Add(1)
	w.v.count.firstWriteBytes.Add(uint64(blocks) * BlockSize)
	return fresh
}
