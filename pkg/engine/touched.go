package engine

import (
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

const (
	// leafPages is how many pages one leaf of a pageSet covers: 128 GiB of a volume in 4 KiB of memory.
	leafPages = 1 << 15
	// touchedGens is how many generations' sets are kept. Only heads' newest generations are written to, so it is about how many volumes are busy.
	touchedGens = 1024
)

// pageSet is a set of page numbers.
type pageSet map[uint32]*[leafPages / 64]uint64

func (s pageSet) add(page uint32) {
	leaf := s[page/leafPages]
	if leaf == nil {
		leaf = new([leafPages / 64]uint64)
		s[page/leafPages] = leaf
	}
	leaf[page%leafPages/64] |= 1 << (page % 64)
}

func (s pageSet) has(page uint32) bool {
	leaf := s[page/leafPages]
	return leaf != nil && leaf[page%leafPages/64]&(1<<(page%64)) != 0
}

func (s pageSet) remove(page uint32) {
	if leaf := s[page/leafPages]; leaf != nil {
		leaf[page%leafPages/64] &^= 1 << (page % 64)
	}
}

// touchedIndex is the committer's knowledge of the index (generation, page): for the generations it has, all of it. Asking the store for each pair instead
// took 43 % of the processor with random writes after a snapshot: a pair that is not there is looked for in every table.
type touchedIndex map[uint64]pageSet

// of returns the pages a generation has runs in, as of the last batch applied and the touches since.
func (t touchedIndex) of(r reader, gen uint64) (pageSet, error) {
	if set := t[gen]; set != nil {
		return set, nil
	}
	set := pageSet{}
	prefix := format.TouchedPrefix(gen)
	err := scan(r, prefix, format.Upper(prefix), func(key, _ []byte) error {
		_, page, err := format.ParseTouchedKey(key)
		set.add(page)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list pages of generation %d: %w", gen, err)
	}
	t[gen] = set
	return set, nil
}

// trim forgets all when it has become much, and the sets of the generations that the last batch took pages from before it knew their sets. It is called
// between batches: a set forgotten within one would be read again without what the batch adds.
func (t touchedIndex) trim(untouched []uint64) {
	for _, gen := range untouched {
		delete(t, gen)
	}
	if len(t) > touchedGens {
		clear(t)
	}
}

// touch makes sure that the store says gen has runs in page.
func (b *batch) touch(l *layer, gen uint64, page uint32) error {
	set, err := b.s.touched.of(b.s.db, gen)
	if err != nil || set.has(page) {
		return err
	}
	set.add(page)
	b.put(format.TouchedKey(gen, page), nil)
	b.use(l, 0, 1)
	return nil
}

func (b *batch) untouch(l *layer, gen uint64, page uint32) {
	if set := b.s.touched[gen]; set != nil {
		set.remove(page)
	} else {
		// A set that a touch of this batch reads would have the page in it still.
		b.untouched = append(b.untouched, gen)
	}
	b.remove(format.TouchedKey(gen, page))
	b.use(l, 0, -1)
}
