package engine

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// pagePlan is what a background pass is to do to a page: runs to remove, and generations that have none left there then. Where more than that is
// needed (a run that is hidden in part, zero runs), slow is set, and the committer reads the page.
type pagePlan struct {
	page    uint32
	removed []runs.Entry
	gone    []uint64
	was     []runs.Entry // what the layer has there, and what it keeps: whose checksums go
	keeps   []runs.Entry
	slow    bool
}

// planPass plans the next pages, until there is enough for a commit. The plan of a page holds as long as nobody changes the page's runs and the
// layer's ancestry stays as it is.
func planPass(r reader, kind format.JobKind, g *lineage, pages []uint32) (plans []pagePlan, err error) {
	last := pages[len(pages)-1]
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: format.RunPagePrefix(g.family, pages[0]), UpperBound: format.Upper(format.RunPagePrefix(g.family, last)),
	})
	if err != nil {
		return nil, fmt.Errorf("plan background pass: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	pl := planner{it: it, kind: kind, g: g}
	for removed := 0; len(pages) > 0 && removed < stepRuns; pages = pages[1:] {
		plan, err := pl.page(pages[0])
		if err != nil {
			return nil, fmt.Errorf("plan background pass over page %d: %w", pages[0], err)
		}
		plans = append(plans, plan)
		if removed += len(plan.removed); plan.slow {
			removed += runs.Blocks / 4 // as much work, about
		}
	}
	return plans, nil
}

// planner plans pages one after the other. Their lists share memory: a page of a thousand runs would let each of its own grow eleven times.
type planner struct {
	it                  *iterator
	kind                format.JobKind
	g                   *lineage
	was, removed, keeps slab
}

// slab is memory for lists that grow one after the other.
type slab []runs.Entry

// begin makes room for a page's list, the next one.
func (s *slab) begin() {
	if cap(*s)-len(*s) < runs.Blocks {
		*s = make(slab, 0, 2*runs.Blocks)
	}
	*s = (*s)[len(*s):]
}

// list is what was appended since it began.
func (s *slab) list() []runs.Entry { return (*s)[:len(*s):len(*s)] }

// page reads the layer's own runs of a page, newest generation first. Of a layer to be freed all go, of a joined one those that newer ones cover.
func (pl *planner) page(page uint32) (plan pagePlan, err error) {
	it, g := pl.it, pl.g
	plan.page = page
	pl.was.begin()
	pl.removed.begin()
	pl.keeps.begin()
	var covered coverage
	last, left := uint64(0), 0 // the generation being read, and how many of its runs stay
	end := func() {
		if last != 0 && left == 0 {
			plan.gone = append(plan.gone, last)
		}
	}
	for ok := it.SeekGE(format.RunPagePrefix(g.family, page)); ok; {
		at, gen, block, err := format.ParseRunKey(it.Key())
		if err != nil {
			return plan, err
		}
		if at.Page != page || at.Family != g.family || gen < g.own {
			break
		}
		if !g.contains(gen) {
			ok = it.SeekGE(format.RunKey(g.family, page, g.before(gen), 0))
			continue
		}
		e, err := entryOf(it.Value(), block, gen)
		if err != nil {
			return plan, err
		}
		pl.was = append(pl.was, e)
		if gen != last {
			end()
			last, left = gen, 0
		}
		switch n := covered.count(e.Off(), e.End()); {
		case pl.kind == format.JobFree || n == e.Len():
			pl.removed = append(pl.removed, e)
		case n > 0 || e.IsZero():
			plan.slow = true
			return plan, nil
		default:
			pl.keeps = append(pl.keeps, e)
			left++
		}
		covered.add(e.Off(), e.End())
		ok = it.Next()
	}
	end()
	plan.was, plan.removed, plan.keeps = pl.was.list(), pl.removed.list(), pl.keeps.list()
	return plan, it.Error()
}

// coverage is a set of a page's blocks.
type coverage [runs.Blocks / 64]uint64

// each calls f with the bits of [off, end) in every word they touch.
func (c *coverage) each(off, end int, f func(word *uint64, mask uint64)) {
	for off < end {
		n := min(64-off%64, end-off)
		f(&c[off/64], ^uint64(0)>>(64-n)<<(off%64))
		off += n
	}
}

func (c *coverage) add(off, end int) { c.each(off, end, func(w *uint64, mask uint64) { *w |= mask }) }

func (c *coverage) count(off, end int) (n int) {
	c.each(off, end, func(w *uint64, mask uint64) { n += bits.OnesCount64(*w & mask) })
	return n
}

// passCommit does what was planned, on the committer, with ops held.
//
// Promise "a pool block changes hands only when nobody can still touch it": what it takes away is held before the batch is applied, and given back
// when the batch is durable and older pins have ended. Removing a run that a newer one of the same layer hides changes nothing that any map shows. A
// page that somebody changed since it was planned, or whose layer has another ancestry by now, is looked at anew: its plan may name runs that are
// gone.
type passCommit struct {
	p     *Pool
	job   format.Job
	line  *lineage
	plans []pagePlan
	stale bool
	done  int
	freed []extent
}

func (c *passCommit) compose(b *batch) (bool, error) {
	began := time.Now()
	for ; c.done < len(c.plans) && !b.full(); c.done++ {
		plan := &c.plans[c.done]
		look := plan.slow || c.stale || b.s.changed(c.line.family, plan.page)
		if look && c.done > 0 && time.Since(began) > stepTime {
			break
		}
		do := c.planned
		if look {
			do = c.looked
		}
		if err := do(b, plan); err != nil {
			return false, fmt.Errorf("page %d: %w", plan.page, err)
		}
	}
	return false, c.p.alloc.Hold(c.freed)
}

func (c *passCommit) planned(b *batch, plan *pagePlan) error {
	if len(plan.removed) == 0 {
		return nil
	}
	if c.keepsSums() {
		if err := b.trimSums(plan.page, plan.was, plan.keeps); err != nil {
			return err
		}
	}
	b.removeRuns(c.line.family, plan.page, plan.removed, plan.gone)
	for _, e := range plan.removed {
		if e.IsZero() {
			continue
		}
		if err := b.setBits(e.Place(), e.Len(), false); err != nil {
			return err
		}
		b.use(c.line.layer, -int64(e.Len()), 0)
		c.freed = append(c.freed, extent{Place: e.Place(), N: e.Len()})
	}
	for _, gen := range plan.gone {
		b.untouch(c.line.layer, gen, plan.page)
	}
	return nil
}

// keepsSums tells that blocks of the layer may have checksums: those of a head have none, and those of a layer to be freed went when it was queued.
func (c *passCommit) keepsSums() bool {
	return c.job.Kind == format.JobJoin && c.line.layer.rec.Head == 0
}

func (c *passCommit) looked(b *batch, plan *pagePlan) error {
	lp, err := readLayerPage(b.s.db, c.line, plan.page)
	if err != nil {
		return err
	}
	var want []runs.Entry // of a layer to be freed: nothing
	if c.job.Kind == format.JobJoin {
		want = lp.apply(lp.visible(), nil)
		if runs.Covered(want) == runs.Covered(lp.own) {
			return nil // nothing hidden here
		}
	}
	res, err := b.rewrite(c.line, plan.page, &lp, want)
	if err == nil && c.keepsSums() {
		err = b.trimSums(plan.page, lp.own, want)
	}
	c.freed = append(c.freed, res.freed...)
	return err
}

// guestRequests counts what guests asked of open volumes, for those who want to know whether it grows.
func (p *Pool) guestRequests() (n uint64) {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	for _, v := range p.catalogue.volumes {
		if v.open != nil {
			n += v.open.count.reads.Load() + v.open.count.writes.Load()
		}
	}
	return n
}

// busyRequests is how many requests of guests a millisecond make a pool busy.
const busyRequests = 1

// rest lets guests have the machine for a while: after a step that took so long, in which they made so many requests. While writes wait for space it
// does not: the pass is what they wait for.
func (p *Pool) rest(took time.Duration, requests uint64) {
	if float64(requests) < busyRequests*float64(took.Milliseconds()) || requests == 0 {
		return
	}
	if free, _, _ := p.alloc.Free(); free == 0 {
		return
	}
	timer := time.NewTimer(restShare * took)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.stop:
	}
}
