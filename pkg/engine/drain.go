package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const (
	// drainRate is how many bytes a second a drain copies.
	drainRate = 128 << 20
	// drainPiece is how many blocks are moved at once: as long, guests' writes to them wait.
	drainPiece = 128
	// drainRetry is when a drain that could not go on looks again, if nothing becomes free before.
	drainRetry = time.Second
	// drainRetryBad is the same where all that is left cannot be copied.
	drainRetryBad = 10 * time.Second
	// drainOwner marks the allocator's extents that drains fill, one for each family.
	drainOwner = 1 << 62
)

// DrainMember begins to move everything off a member, in the background, while it is in use; with cancel it ends that and uses the member again. Nothing
// new is put there from the call on. Info tells how much is left. It survives the process: what was moved is moved, and the next opening goes on. Asking
// again is no error.
func (p *Pool) DrainMember(ctx context.Context, which string, cancel bool) (PoolInfo, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	if err := p.setDraining(which, !cancel); err != nil {
		return PoolInfo{}, fmt.Errorf("drain a member of pool %q: %w", p.name(), err)
	}
	return p.Info(), nil
}

func (p *Pool) setDraining(which string, drain bool) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return err
	}
	t := p.members.table.Load()
	m, err := t.member(which)
	if err != nil {
		return err
	}
	next := *m
	if next.rec.State = format.MemberInUse; drain {
		next.rec.State = format.MemberDraining
	}
	if next.rec.State == m.rec.State {
		return nil
	}
	// What is committed as drained, or not, is what the next opening does. While the allocator keeps away from a member whose record says that it is in
	// use, nothing is amiss; so it does first, and what thick volumes were promised there is set aside elsewhere.
	if drain {
		if err := p.mayDrain(t, m); err != nil {
			return err
		}
		err = p.leave(m)
	}
	if err == nil {
		err = p.putMember(&next)
	}
	if err != nil || !drain {
		p.alloc.OpenLane(m.lane)
	}
	if err != nil {
		return err
	}
	p.preparing.kick()
	p.kickDrain()
	return nil
}

// mayDrain refuses a drain that cannot succeed as things are.
func (p *Pool) mayDrain(t *memberTable, m *poolMember) error {
	if m.dev == nil {
		return m.missingError()
	}
	room, others := -p.alloc.Promised(), 0
	for _, other := range t.list {
		switch {
		case other.index == m.index || other.dev == nil:
		case other.rec.State == format.MemberInUse:
			others++
			room += other.chunks()*alloc.ChunkBlocks - int64(p.usedOn(t, other))
		default: // what is left there must go somewhere, too
			room -= int64(p.usedOn(t, other))
		}
	}
	used := int64(p.usedOn(t, m))
	if others == 0 {
		return fmt.Errorf("%w: member %v is the only one in use; add another first", ErrInvalid, m)
	}
	if used > room {
		return fmt.Errorf("%w: member %v holds %d MiB, and the others have room for %d MiB; add a member, grow one, or delete snapshots", ErrNoSpace, m,
			used*BlockSize>>20, room*BlockSize>>20)
	}
	return nil
}

// usedOn counts a member's blocks in use.
func (p *Pool) usedOn(t *memberTable, m *poolMember) int { return t.usedOn(m, p.store.usedBySegment()) }

// usedOn goes by the blocks in use of each segment.
func (t *memberTable) usedOn(m *poolMember, used []int) (blocks int) {
	for _, seg := range t.segments(m) {
		if int(seg) < len(used) {
			blocks += used[seg]
		}
	}
	return blocks
}

func (p *Pool) kickDrain() {
	select {
	case p.drainKick <- struct{}{}:
	default:
	}
}

// runDrains moves what lies on members that are being drained.
func (p *Pool) runDrains() {
	told := ""
	for {
		select {
		case <-p.stop:
			return
		case <-p.drainKick:
		}
		for p.failure() == nil && !p.stopping() {
			freed := p.alloc.Freed()
			left, err := p.drainPass()
			if left == 0 && err == nil {
				err = p.moveMetadata()
			}
			p.drainWhy.Store(&err)
			if err == nil {
				told = ""
			} else if told != err.Error() && !p.stopping() {
				told = err.Error()
				p.event("draining a member went wrong; it is tried again", "error", err)
			}
			if left == 0 && err == nil {
				break
			}
			// What is left is pending, held by pins, or has nowhere to go; or nobody can copy it, and then each pass is in vain until its owner has gone.
			patience := drainRetry
			if errors.Is(err, errUncopied) {
				patience, freed = drainRetryBad, nil
			}
			timer := time.NewTimer(patience)
			select {
			case <-p.stop:
			case <-freed:
			case <-p.drainKick: // it was called off, perhaps
			case <-timer.C:
			}
			timer.Stop()
		}
	}
}

// drainPass goes once through all runs and moves those on members that are being drained. It returns how many blocks are left there. What cannot be copied
// stays, and is errUncopied when nothing else was to be done.
func (p *Pool) drainPass() (left int, err error) {
	t := p.members.table.Load()
	var list []*poolMember
	for _, m := range t.list {
		if m.rec.State == format.MemberDraining && m.dev != nil {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return 0, nil
	}
	count := func() (n int) {
		for _, m := range list {
			n += p.usedOn(t, m) + p.alloc.Unsettled(m.lane)
		}
		return n
	}
	if count() == 0 {
		return 0, nil
	}
	if err := p.flush(); err != nil { // what is pending can be moved when it is committed
		return count(), err
	}
	d := drainer{p: p, limit: newLimiter(drainRate), families: map[uint32]struct{}{}}
	err = d.pass()
	for f := range d.families {
		p.alloc.Forget(drainOwner | uint64(f))
	}
	if err == nil && d.moved == 0 {
		err = p.uncopied(d.bad)
	}
	return count(), err
}

type drainer struct {
	p        *Pool
	limit    *limiter
	count    volumeCounters
	families map[uint32]struct{}
	moved    int       // blocks
	bad      []unmoved // what cannot be copied
}

var errStopped = errors.New("stopped")

// pass reads the runs a page at a time, each from the store as it is then.
func (d *drainer) pass() error {
	lower, upper := format.RunPrefix(), format.Upper(format.RunPrefix())
	for {
		var at format.RunPage
		var list []runs.Entry
		err := scan(d.p.store.db, lower, upper, func(key, val []byte) error {
			page, gen, block, err := format.ParseRunKey(key)
			if err != nil {
				return err
			}
			if page != at && len(list) > 0 {
				return errEnough
			}
			at = page
			lower = append(lower[:0], key...)
			lower = append(lower, 0)
			e, err := entryOf(val, block, gen)
			if err == nil {
				list = append(list, d.onDraining(e)...)
			}
			return err
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		if err := d.move(at, list); err != nil {
			return err
		}
	}
}

// onDraining cuts out of a run what lies on members that are being drained.
func (d *drainer) onDraining(e runs.Entry) (list []runs.Entry) {
	if e.IsZero() {
		return nil
	}
	t := d.p.members.table.Load()
	for off := e.Off(); off < e.End(); {
		place := e.Place() + uint64(off-e.Off())
		end := min(e.End(), off+int(alloc.SegmentBlocks-place%alloc.SegmentBlocks))
		if m := t.at(place / alloc.SegmentBlocks); m != nil && m.dev != nil && m.rec.State == format.MemberDraining {
			for ; off < end; off += drainPiece {
				list = append(list, e.Sub(off, min(off+drainPiece, end)))
			}
		}
		off = end
	}
	return list
}

// move relocates runs of a page, piece by piece.
func (d *drainer) move(at format.RunPage, list []runs.Entry) error {
	owner := drainOwner | uint64(at.Family)
	d.families[at.Family] = struct{}{}
	for _, e := range list {
		if !d.limit.wait(d.p.stop, nil, e.Len()*BlockSize) {
			return errStopped
		}
		for off := e.Off(); off < e.End(); {
			if err := d.p.failure(); err != nil {
				return err
			}
			n, err := d.moveRun(owner, at, e.Sub(off, e.End()))
			if err != nil {
				return fmt.Errorf("move family %d page %d: %w", at.Family, at.Page, err)
			}
			off += n
		}
	}
	return nil
}

// moveRun relocates a run, or so many blocks from its beginning as there is space for, and says how many. The copies are promised first: they may take what
// is held back for what they move, and nothing that thick volumes need.
func (d *drainer) moveRun(owner uint64, at format.RunPage, e runs.Entry) (int, error) {
	n := int(d.p.alloc.PromiseMoved(owner, int64(e.Len())))
	if n == 0 {
		d.p.preparing.kick()
		return 0, alloc.ErrNone
	}
	defer d.p.alloc.DropPromise(owner)
	r := relocation{family: at.Family, page: at.Page, list: []runs.Entry{e.Sub(e.Off(), e.Off()+n)}, count: &d.count}
	r.where = func(n int) (uint64, int, error) {
		prefer := alloc.Written
		if n >= largeWrite {
			prefer = alloc.Reserved
		}
		place, got, err := d.p.alloc.Alloc(owner, n, prefer)
		d.p.preparing.wake(d.p, prefer)
		return place, got, err
	}
	moved, bad, err := d.p.relocateAround(r)
	if d.moved += moved; len(bad) > 0 {
		d.bad = append(d.bad, unmoved{at.Family, at.Page, bad})
	}
	return n, err
}

// RemoveMember takes a member that was drained out of the pool, and removes its files.
func (p *Pool) RemoveMember(ctx context.Context, which string) (PoolInfo, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	m, err := p.takeOut(which)
	if err == nil {
		// Nobody flushes it any more, and readers that looked a place up before it was moved have ended.
		p.waitForPins()
		p.members.flushing.Lock()
		//lint:ignore SA2001 the end of a flush under way is what is waited for
		p.members.flushing.Unlock()
		if !p.breaks(mutateRemoveSynced) {
			err = m.dev.Destroy()
		}
	}
	if err != nil {
		return PoolInfo{}, fmt.Errorf("remove a member of pool %q: %w", p.name(), err)
	}
	return p.Info(), nil
}

// takeOut commits a member's removal: its record says that it was, and its segments' numbers are nobody's. Only then the table is without it. A power cut
// before that leaves a drained member, and one after it a folder that is known for what it is.
func (p *Pool) takeOut(which string) (*poolMember, error) {
	p.preparing.turn.Lock()
	defer p.preparing.turn.Unlock()
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return nil, err
	}
	t := p.members.table.Load()
	m, err := t.member(which)
	if err != nil {
		return nil, err
	}
	if m.dev == nil {
		return nil, m.missingError()
	}
	if m.rec.State != format.MemberDraining {
		return nil, fmt.Errorf("%w: member %v is in use; drain it first (rowanctl pool drain-member)", ErrInvalid, m)
	}
	if left := p.usedOn(t, m) + p.alloc.Unsettled(m.lane); left > 0 && !p.breaks(mutateRemoveMoved) {
		return nil, fmt.Errorf("%w: member %v still holds %d MiB", ErrBusy, m, (left*BlockSize+1<<20-1)>>20)
	}
	if m == t.meta {
		return nil, fmt.Errorf("%w: member %v holds the metadata, which is being moved to another member; wait for that (rowanctl pool show)", ErrBusy, m)
	}
	rec := m.rec
	rec.State = format.MemberRemoved
	segments := t.segments(m)
	return m, p.dropMember(m, rec, segments)
}

// dropMember commits it.
func (p *Pool) dropMember(m *poolMember, rec format.Member, segments []uint32) error {
	return p.commitThen(func(b *batch) (bool, error) {
		b.put(format.MemberKey(m.index), rec.Encode())
		for _, seg := range segments {
			if err := b.dropSegment(seg); err != nil {
				return false, err
			}
		}
		return false, nil
	}, step{mutateRemoveSynced, func() {
		for _, seg := range segments {
			p.alloc.Drop(seg)
		}
		p.members.change(func(t *memberTable) { t.drop(m, rec) })
		if p.breaks(mutateRemoveSynced) {
			_ = m.dev.Destroy()
		}
	}})
}

// drop takes a member out of the table.
func (t *memberTable) drop(m *poolMember, rec format.Member) {
	list := t.list[:0]
	for _, other := range t.list {
		if other.index != m.index {
			list = append(list, other)
		}
	}
	t.list = list
	for seg, owner := range t.bySegment {
		if owner != nil && owner.index == m.index {
			t.bySegment[seg] = nil
		}
	}
	removed := map[uint32]format.Member{m.index: rec}
	for index, rec := range t.removed {
		removed[index] = rec
	}
	t.removed = removed
}

// dropSegment forgets a segment in which no block is in use.
func (b *batch) dropSegment(seg uint32) error {
	first := seg * alloc.SegmentChunks
	if int(seg) < len(b.s.segUsed) && b.s.segUsed[seg] != 0 {
		return fmt.Errorf("%w: segment %d of a drained member has %d blocks in use", ErrCorrupt, seg, b.s.segUsed[seg])
	}
	b.remove(format.SegmentKey(seg))
	b.remove(format.SegmentUseKey(seg))
	for chunk := first; chunk < first+alloc.SegmentChunks; chunk++ {
		delete(b.s.bitmaps, chunk)
	}
	if int(seg) < len(b.s.segments) {
		b.s.segments[seg] = format.Segment{}
	}
	b.removeRange(format.BitmapKey(first), format.BitmapKey(first+alloc.SegmentChunks))
	return nil
}
