package engine

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// moveCommit composes the batches of a group of moves on the committer, page by page.
type moveCommit struct {
	p     *Pool
	list  []*move // in order of compareMoves
	at    int     // moves composed
	it    *iterator
	freed []extent
}

func compareMoves(a, b *move) int {
	return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.page, b.page), cmp.Compare(a.run.Off(), b.run.Off()))
}

func (c *moveCommit) compose(b *batch) (more bool, err error) {
	defer func() {
		if c.it != nil {
			err = errors.Join(err, c.it.Close())
			c.it = nil
		}
	}()
	for c.at < len(c.list) {
		if b.full() {
			return true, nil
		}
		first := c.list[c.at]
		end := c.at + 1
		for end < len(c.list) && c.list[end].family == first.family && c.list[end].page == first.page {
			end++
		}
		if err := c.page(b, c.list[c.at:end]); err != nil {
			return false, fmt.Errorf("move runs of family %d page %d: %w", first.family, first.page, err)
		}
		c.at = end
	}
	return false, nil
}

// genRuns is what the store has of one generation around the blocks that are moved, and what it is to have.
type genRuns struct {
	gen      uint64
	was, now []runs.Entry
}

// page moves runs of one page. What it goes by is the store as the batches before this one left it.
func (c *moveCommit) page(b *batch, list []*move) error {
	family, page := list[0].family, list[0].page
	gens, err := c.foreseen(b, list)
	if err != nil {
		return err
	}
	of := func(gen uint64) (*genRuns, error) {
		for _, g := range gens {
			if g.gen == gen {
				return g, nil
			}
		}
		// The neighbours, too: what a run continues is joined to it.
		it, err := c.iterator(b)
		if err != nil {
			return nil, err
		}
		was, err := readGen(it, family, page, gen, list[0].run.Off()-1, lastEnd(list)+1)
		g := &genRuns{gen: gen, was: was, now: append([]runs.Entry(nil), was...)}
		gens = append(gens, g)
		return g, err
	}
	for _, m := range list {
		if err := c.one(b, m, of); err != nil {
			return err
		}
	}
	for _, g := range gens {
		b.replaceRuns(family, page, g)
	}
	return nil
}

// foreseen is what the store has where the moves' hints are right: the run, found under its key, and nothing of the heir's near it. Reading around in
// order costs five times as much, and the whole group waits for the committer.
func (c *moveCommit) foreseen(b *batch, list []*move) ([]*genRuns, error) {
	m := list[0]
	if len(list) > 1 || m.heir == nil || !m.hint.ok {
		return nil, nil
	}
	gen := m.run.Gen()
	v, closer, err := b.s.db.Get(format.RunKey(m.family, m.page, gen, m.hint.start))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read run to move: %w", err)
	}
	defer closer.Close()
	e, err := entryOf(v, m.hint.start, gen)
	if err != nil || !has([]runs.Entry{e}, m.run) {
		return nil, err
	}
	return []*genRuns{{gen: gen, was: []runs.Entry{e}, now: []runs.Entry{e}}, {gen: m.heir.mapping.lineage.Load().top}}, nil
}

// iterator is for the batch that is being composed.
func (c *moveCommit) iterator(b *batch) (_ *iterator, err error) {
	if c.it == nil {
		if c.it, err = b.s.db.NewIter(&pebble.IterOptions{LowerBound: format.RunPrefix(), UpperBound: format.Upper(format.RunPrefix())}); err != nil {
			return nil, fmt.Errorf("read runs to move: %w", err)
		}
	}
	return c.it, nil
}

func lastEnd(list []*move) (end int) {
	for _, m := range list {
		end = max(end, m.run.End())
	}
	return end
}

func (c *moveCommit) one(b *batch, m *move, of func(gen uint64) (*genRuns, error)) error {
	var line *lineage
	if m.heir != nil {
		// A join that is durable made the heir's head the run's owner: it may write there in place, and there is nothing to keep.
		if line = m.heir.mapping.lineage.Load(); line.owns(m.run.Gen()) {
			m.rest = moveOwned
			return nil
		}
	}
	g, err := of(m.run.Gen())
	if err != nil {
		return err
	}
	if !has(g.now, m.run) {
		m.rest = moveGone
		return nil
	}
	off, n := m.run.Off(), m.run.Len()
	g.now = runs.Insert(g.now, runs.Data(off, n, m.to, m.run.Gen()))
	b.unmarked = append(b.unmarked, extent{Place: m.to, N: n})
	m.rest = moveDone
	if m.heir == nil {
		freed := []extent{{Place: m.run.Place(), N: n}}
		if err := b.setBits(m.run.Place(), n, false); err != nil {
			return err
		}
		c.freed = append(c.freed, freed...)
		return c.p.alloc.Hold(freed)
	}
	m.top = line.top
	h, err := of(line.top)
	if err != nil {
		return err
	}
	if runs.Overlaps(h.now, off, off+n) {
		return fmt.Errorf("%w: volume %q owns a part of blocks %d+%d already, which its map did not show", ErrCorrupt, m.heir.name, off, n)
	}
	h.now = runs.Insert(h.now, runs.Data(off, n, m.run.Place(), line.top))
	b.use(line.layer, int64(n), 0)
	c.p.alloc.Got(m.heir.entry.id, extent{Place: m.run.Place(), N: n}) // the copy was nobody's promise
	return b.touch(line.layer, line.top, m.page)
}

// has tells whether a list, of one generation, holds all of e's blocks at e's places.
func has(list []runs.Entry, e runs.Entry) bool {
	var buf [16]runs.Entry
	at := e.Off()
	for _, x := range runs.Slice(buf[:0], list, e.Off(), e.End()) {
		if x.IsZero() || x.Off() != at || x.Place() != e.Place()+uint64(at-e.Off()) {
			return false
		}
		at = x.End()
	}
	return at == e.End()
}

// readGen returns a generation's runs in a page that touch [off, end), in order.
func readGen(it *iterator, family, page uint32, gen uint64, off, end int) (list []runs.Entry, err error) {
	off, end = max(off, 0), min(end, runs.Blocks)
	prefix := format.RunPage{Family: family, Page: page}
	read := func() (e runs.Entry, same bool, err error) {
		at, g, block, err := format.ParseRunKey(it.Key())
		if err != nil || at != prefix || g != gen {
			return e, false, err
		}
		e, err = entryOf(it.Value(), block, gen)
		return e, true, err
	}
	// The last run that begins before off may reach into the range.
	ok := it.SeekLT(format.RunKey(family, page, gen, off))
	if ok {
		e, same, err := read()
		if err != nil {
			return nil, err
		}
		if same && e.End() > off {
			list = append(list, e)
		}
		ok = it.Next()
	} else {
		ok = it.SeekGE(format.RunKey(family, page, gen, off))
	}
	for ; ok; ok = it.Next() {
		e, same, err := read()
		if err != nil {
			return nil, err
		}
		if !same || e.Off() >= end {
			break
		}
		list = append(list, e)
	}
	return list, it.Error()
}

// replaceRuns stores what has changed of a generation's runs.
func (b *batch) replaceRuns(family, page uint32, g *genRuns) {
	i := 0
	for _, e := range g.now {
		for ; i < len(g.was) && g.was[i].Off() < e.Off(); i++ {
			b.removeRun(family, page, g.gen, g.was[i].Off())
		}
		same := false
		if i < len(g.was) && g.was[i].Off() == e.Off() {
			same = g.was[i] == e
			i++
		}
		if !same {
			b.putRun(family, page, g.gen, e.Off(), format.Run{Len: e.Len(), Zero: e.IsZero(), Place: e.Place()})
		}
	}
	for ; i < len(g.was); i++ {
		b.removeRun(family, page, g.gen, g.was[i].Off())
	}
}
