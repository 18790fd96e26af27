package engine

import (
	"cmp"
	"container/heap"
	"fmt"
)

// touchedPages merges the index of several generations: the pages that any of them has runs in, ascending, from one on. It holds a few entries of
// each generation's index at a time, more of those that have much.
type touchedPages struct {
	r     reader
	queue touchedQueue
}

// touchedGen is one generation's part: the entries read and not given out yet, ascending.
type touchedGen struct {
	gen   uint64 // 0: of also
	pages []uint32
	batch int
}

const (
	touchedFirst = 8    // entries first read of a generation
	touchedMost  = 1024 // and at most at a time
)

func newTouchedPages(r reader, gens []uint64, from uint32) (*touchedPages, error) {
	t := &touchedPages{r: r}
	for _, gen := range gens {
		g := &touchedGen{gen: gen, batch: touchedFirst}
		if err := t.fill(g, from); err != nil {
			return nil, err
		}
		if len(g.pages) > 0 {
			t.queue = append(t.queue, g)
		}
	}
	heap.Init(&t.queue)
	return t, nil
}

// also has it list pages that no generation need have runs in, ascending.
func (t *touchedPages) also(pages []uint32) {
	if len(pages) > 0 {
		heap.Push(&t.queue, &touchedGen{pages: pages})
	}
}

func (t *touchedPages) fill(g *touchedGen, from uint32) error {
	if g.gen == 0 {
		return nil
	}
	pages, err := touchedFrom(t.r, g.gen, from, g.batch)
	if err != nil {
		return fmt.Errorf("list pages of generation %d: %w", g.gen, err)
	}
	g.pages, g.batch = pages, min(g.batch*4, touchedMost)
	return nil
}

// next returns the next page and those generations that have runs in it, descending.
func (t *touchedPages) next() (page uint32, gens []uint64, ok bool, err error) {
	if len(t.queue) == 0 {
		return 0, nil, false, nil
	}
	page = t.queue[0].pages[0]
	for len(t.queue) > 0 && t.queue[0].pages[0] == page {
		g := t.queue[0]
		if g.gen != 0 {
			gens = append(gens, g.gen)
		}
		if g.pages = g.pages[1:]; len(g.pages) == 0 {
			if err := t.fill(g, page+1); err != nil {
				return 0, nil, false, err
			}
		}
		if len(g.pages) == 0 {
			heap.Pop(&t.queue)
		} else {
			heap.Fix(&t.queue, 0)
		}
	}
	return page, gens, true, nil
}

// touchedQueue has the generation with the lowest page on top, the newest of several.
type touchedQueue []*touchedGen

func (q touchedQueue) Len() int { return len(q) }
func (q touchedQueue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].pages[0], q[j].pages[0]), cmp.Compare(q[j].gen, q[i].gen)) < 0
}
func (q touchedQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *touchedQueue) Push(x any)   { *q = append(*q, x.(*touchedGen)) }
func (q *touchedQueue) Pop() any {
	old := *q
	g := old[len(old)-1]
	*q = old[:len(old)-1]
	return g
}
