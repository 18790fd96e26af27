package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Tidy moves a volume's scattered blocks back into sequence: page by page, to new blocks side by side, whatever generation wrote them, snapshots'
// included, which follow. What a clone inherited stays: its layout is its source's. Guests go on meanwhile.
//
// It is ROW's answer to COW: the writes are redirected, and the reads get their sequence back when the disk has time for it. A page is worth it when
// a read of it goes to many places more than it would after the move; then all of its own blocks are copied, 4 MiB at most.

const (
	// DefaultTidyRate is how much Tidy copies a second, in bytes, where nothing else is said.
	DefaultTidyRate = 64 << 20
	// tidyTurn is how long one call of Tidy works at most, but for the page it is at.
	tidyTurn = time.Second
	// tidyGain is how many places fewer a page must lie in after the move.
	tidyGain = 8
	// tidyPiece is how many blocks are moved at once: guests' writes to them wait as long.
	tidyPiece = 128
	// tidyOwner marks, in an owner's number, the allocator's extents that tidied pages go to.
	tidyOwner = 1 << 62
)

// TidySpec says what to tidy.
type TidySpec struct {
	Volume string
	Start  int64 // bytes: what lies before is left out
	Rate   int64 // bytes copied a second at most; 0: DefaultTidyRate; negative: as fast as it goes
}

// TidyStep is what one call of Tidy did.
type TidyStep struct {
	Size    int64 // the volume's, in bytes
	Next    int64 // the Start that goes on after it; 0: the volume is done
	Pages   int64 // looked at
	Moved   int64 // bytes
	Skipped int64 // pages left as they are: there is no free space in one piece for them, or some of their blocks cannot be copied (an event says which)
}

// Tidy works on a volume, in use or not, for about a second; a caller goes on with Next until it is 0.
func (p *Pool) Tidy(ctx context.Context, spec TidySpec) (TidyStep, error) {
	t, err := p.newTidy(ctx, spec)
	if err == nil {
		err = t.run()
	}
	if err != nil {
		return TidyStep{}, fmt.Errorf("tidy volume %q: %w", spec.Volume, err)
	}
	return t.step, nil
}

// tidier is one call's work.
type tidier struct {
	p     *Pool
	ctx   context.Context
	v     *volume
	start int64
	rate  int64
	began time.Time
	step  TidyStep
	count volumeCounters // a volume's own counters are its guest's work
}

func (p *Pool) newTidy(ctx context.Context, spec TidySpec) (*tidier, error) {
	v, err := p.catalogue.volume(spec.Volume)
	if err != nil {
		return nil, err
	}
	if err := p.refusal(); err != nil {
		return nil, err
	}
	if spec.Start < 0 {
		return nil, fmt.Errorf("%w: start %d may not be negative", ErrInvalid, spec.Start)
	}
	return &tidier{p: p, ctx: ctx, v: v, start: spec.Start, rate: cmp.Or(spec.Rate, DefaultTidyRate), began: time.Now()}, nil
}

// run holds tidying from before it asks whether the pool is being closed: Close waits for who has it.
func (t *tidier) run() error {
	t.p.tidying.Lock()
	defer t.p.tidying.Unlock()
	if t.p.stopping() {
		return ErrClosed
	}
	if t.v.mapped.Load() > 0 {
		// What is pending is not moved: its run is in no commit.
		if err := t.p.flush(); err != nil {
			return err
		}
	}
	defer t.p.alloc.Forget(t.v.id | tidyOwner)
	page := uint32(t.start / pageBytes)
	for {
		if t.p.stopping() {
			return ErrClosed
		}
		if err := errors.Join(t.ctx.Err(), t.p.failure()); err != nil {
			return err
		}
		line, first, ok := t.moment()
		if !ok {
			return ErrNotFound // deleted meanwhile
		}
		next, any, err := t.nextPage(line, first, page)
		if err != nil || !any {
			t.step.Next = 0
			return err
		}
		if err := t.page(line, first, next); err != nil {
			return err
		}
		t.step.Pages++
		page = next + 1
		if t.step.Next = int64(page) * pageBytes; t.step.Next >= t.step.Size {
			t.step.Next = 0
			return nil
		}
		if time.Since(t.began) >= tidyTurn {
			return nil
		}
	}
}

// moment is the volume's ancestry as it is now, and the generation from which on it is the volume's own.
func (t *tidier) moment() (line *lineage, first uint64, ok bool) {
	c := t.p.catalogue
	c.mu.RLock()
	defer c.mu.RUnlock()
	t.step.Size = int64(t.v.rec.Size)
	if l := c.layers[t.v.rec.Layer]; l != nil && l.rec.Head == t.v.id {
		return c.lineageOf(l), t.v.rec.FirstGen, true
	}
	return nil, 0, false
}

// nextPage finds the first page, from one on, in which the volume's own generations have runs.
func (t *tidier) nextPage(line *lineage, first uint64, page uint32) (uint32, bool, error) {
	var own []uint64
	for _, gen := range line.gens {
		if gen >= first {
			own = append(own, gen)
		}
	}
	pages, err := newTouchedPages(t.p.store.db, own, page)
	if err != nil {
		return 0, false, err
	}
	next, _, ok, err := pages.next()
	return next, ok, err
}

// page moves one page, if it is worth it.
func (t *tidier) page(line *lineage, first uint64, page uint32) error {
	list, err := readPage(t.p.store.db, line, page, nil)
	if err != nil {
		return err
	}
	var own []runs.Entry
	for _, e := range list {
		if !e.IsZero() && e.Gen() >= first {
			own = append(own, e)
		}
	}
	if places(list, 0)-places(list, first) < tidyGain {
		return nil
	}
	room, err := t.room(runs.Covered(own), places(list, 0)/2)
	if err != nil || room == nil {
		return err
	}
	defer func() { t.p.alloc.Undo(room.left...) }()
	var bad []runs.Entry
	defer func() {
		if len(bad) > 0 {
			t.step.Skipped++
			t.p.tellUncopied("tidy left blocks where they are that cannot be copied", unmoved{line.family, page, bad})
		}
	}()
	for len(own) > 0 {
		n, blocks := 0, 0
		for n < len(own) && (n == 0 || blocks+own[n].Len() <= tidyPiece) {
			blocks += own[n].Len()
			n++
		}
		left, err := t.piece(relocation{line.family, page, own[:n], func(n int) (uint64, int, error) { return t.take(room, n) }, &t.count}, blocks)
		if bad = append(bad, left...); err != nil {
			return err
		}
		own = own[n:]
	}
	return nil
}

// piece moves some runs, at the pace that the rate allows, and like a large write in the queue of the device. It returns those that cannot be copied.
func (t *tidier) piece(r relocation, blocks int) (bad []runs.Entry, err error) {
	t.p.flow.enter(blocks * BlockSize)
	moved, bad, err := t.p.relocateAround(r)
	t.p.flow.leave(blocks * BlockSize)
	t.step.Moved += int64(moved) * BlockSize
	if err != nil || t.rate < 0 {
		return bad, err
	}
	due := time.NewTimer(time.Until(t.began.Add(time.Duration(float64(t.step.Moved) / float64(t.rate) * float64(time.Second)))))
	defer due.Stop()
	select {
	case <-due.C:
	case <-t.ctx.Done():
	case <-t.p.stop:
	}
	return bad, nil
}

// take is from the page's room, and from elsewhere when copies that went wrong have given some of it back.
func (t *tidier) take(room *tidyRoom, n int) (place uint64, got int, err error) {
	if len(room.left) > 0 {
		return room.take(n)
	}
	return t.p.alloc.Alloc(t.v.id|tidyOwner, n, alloc.Reserved)
}

// places counts the places that a read of the whole page goes to: now, or with runs of generations from one on in sequence.
func places(list []runs.Entry, inSequence uint64) (n int) {
	var last runs.Entry
	lastMoved := false
	for i, e := range list {
		moved := inSequence > 0 && e.Gen() >= inSequence
		follows := i > 0 && last.End() == e.Off() && !last.IsZero() && moved == lastMoved && (moved || last.Place()+uint64(last.Len()) == e.Place())
		if !e.IsZero() && !follows {
			n++
		}
		last, lastMoved = e, moved
	}
	return n
}

// tidyRoom is new blocks for one page.
type tidyRoom struct{ left []extent }

// room finds blocks in few pieces. None: there is no such space.
func (t *tidier) room(blocks, most int) (*tidyRoom, error) {
	got, err := t.p.alloc.AllocAll(t.v.id|tidyOwner, []int{blocks}, alloc.Reserved, nil)
	if errors.Is(err, alloc.ErrNone) {
		t.step.Skipped++
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(got) > most {
		t.p.alloc.Undo(got...)
		t.step.Skipped++
		return nil, nil
	}
	t.p.preparing.wake(t.p, alloc.Reserved)
	return &tidyRoom{left: got}, nil
}

func (r *tidyRoom) take(n int) (place uint64, got int, err error) {
	x := &r.left[0]
	place, got = x.Place, min(n, x.N)
	if x.Place, x.N = x.Place+uint64(got), x.N-got; x.N == 0 {
		r.left = r.left[1:]
	}
	return place, got, nil
}
