package engine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// layerPage is what the store has in one page of one layer, and below it.
type layerPage struct {
	own   []storedRun  // the layer's runs, newest generation first; runs of different generations may overlap
	below []runs.Entry // what its ancestors show, flattened
}

type storedRun = runs.Entry

// readLayerPage reads a page as a rewrite needs it.
func readLayerPage(r reader, g *lineage, page uint32) (lp layerPage, err error) {
	prefix := format.RunPagePrefix(g.family, page)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: format.Upper(prefix)})
	if err != nil {
		return lp, fmt.Errorf("read layer page %d: %w", page, err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		_, gen, block, err := format.ParseRunKey(it.Key())
		if err != nil {
			return lp, err
		}
		if !g.contains(gen) {
			ok = it.SeekGE(format.RunKey(g.family, page, g.before(gen), 0))
			continue
		}
		e, err := entryOf(it.Value(), block, gen)
		if err != nil {
			return lp, err
		}
		if g.owns(gen) {
			lp.own = append(lp.own, e)
		} else {
			lp.below = runs.Fill(lp.below, e)
		}
		ok = it.Next()
	}
	return lp, it.Error()
}

// visible flattens the layer's own runs.
func (lp *layerPage) visible() []runs.Entry { return runs.Flatten(lp.own) }

// apply puts changes over a flattened list and leaves zero runs only where something below would show through.
func (lp *layerPage) apply(list, changes []runs.Entry) []runs.Entry {
	for _, e := range changes {
		list = runs.Insert(list, e.Plain())
	}
	var out []runs.Entry
	for _, e := range list {
		if !e.IsZero() {
			out = runs.Insert(out, e)
			continue
		}
		var buf [16]runs.Entry
		for _, b := range runs.Slice(buf[:0], lp.below, e.Off(), e.End()) {
			if !b.IsZero() {
				out = runs.Insert(out, runs.Zero(b.Off(), b.Len(), e.Gen()))
			}
		}
	}
	return out
}

// rewriteResult says what a rewrite changed, for those who keep count.
type rewriteResult struct {
	mapped int64    // change of blocks that the flattened page maps
	taken  []extent // pool blocks newly in use
	freed  []extent // pool blocks no longer in use: to be held before the batch is applied, released when it is durable
}

// rewrite makes a page of a layer hold just these runs (flattened, of the layer's own generations) and nothing hidden: it changes runs, the index of
// touched pages, the bitmaps and the counts. It is how anything but a plain first write changes a page: discards, writes over zero runs, joins, frees,
// and what the ring replays.
func (b *batch) rewrite(g *lineage, page uint32, lp *layerPage, want []runs.Entry) (res rewriteResult, err error) {
	removed, added := changed(lp.own, want)
	for _, e := range removed {
		b.removeRun(g.family, page, e.Gen(), e.Off())
	}
	for _, e := range added {
		b.putRun(g.family, page, e.Gen(), e.Off(), format.Run{Len: e.Len(), Zero: e.IsZero(), Place: e.Place()})
	}
	had, has := gensOf(lp.own), gensOf(want)
	for gen := range has {
		if _, ok := had[gen]; !ok {
			if err := b.touch(g.layer, gen, page); err != nil {
				return res, err
			}
		}
	}
	for gen := range had {
		if _, ok := has[gen]; !ok {
			b.untouch(g.layer, gen, page)
		}
	}
	res.taken, res.freed = difference(added, removed), difference(removed, added)
	for _, x := range res.freed {
		if err := b.setBits(x.Place, x.N, false); err != nil {
			return res, err
		}
		b.use(g.layer, -int64(x.N), 0)
	}
	for _, x := range res.taken {
		if err := b.setBits(x.Place, x.N, true); err != nil {
			return res, err
		}
		b.use(g.layer, int64(x.N), 0)
	}
	res.mapped = int64(runs.MappedOver(want, lp.below) - runs.MappedOver(lp.visible(), lp.below))
	return res, nil
}

// changed returns the runs that only one of two lists has. The first may overlap in itself and has any order; the second is flattened.
func changed(own, want []runs.Entry) (removed, added []runs.Entry) {
	var at [runs.Blocks]int // in want, by offset; 1 is the first
	for i, e := range want {
		at[e.Off()] = i + 1
	}
	kept := make([]bool, len(want))
	for _, e := range own {
		if i := at[e.Off()] - 1; i >= 0 && want[i] == e {
			kept[i] = true
		} else {
			removed = append(removed, e)
		}
	}
	for i, e := range want {
		if !kept[i] {
			added = append(added, e)
		}
	}
	return removed, added
}

func gensOf(list []runs.Entry) map[uint64]struct{} {
	m := map[uint64]struct{}{}
	last := uint64(0)
	for _, e := range list {
		if e.Gen() != last {
			last = e.Gen()
			m[last] = struct{}{}
		}
	}
	return m
}

// difference returns the pool blocks that a's runs have and b's have not. Every block belongs to one run of a list at most.
func difference(a, b []runs.Entry) (out []extent) {
	places := func(list []runs.Entry) (x []extent) {
		for _, e := range list {
			if !e.IsZero() {
				x = append(x, extent{Place: e.Place(), N: e.Len()})
			}
		}
		slices.SortFunc(x, func(p, q extent) int { return cmp.Compare(p.Place, q.Place) })
		return x
	}
	taken := places(b)
	for _, x := range places(a) {
		for len(taken) > 0 && taken[0].Place+uint64(taken[0].N) <= x.Place {
			taken = taken[1:]
		}
		for i := 0; x.N > 0; i++ {
			if i == len(taken) || taken[i].Place >= x.Place+uint64(x.N) {
				out = append(out, x)
				break
			}
			if t := taken[i]; t.Place > x.Place {
				out = append(out, extent{Place: x.Place, N: int(t.Place - x.Place)})
			}
			end := taken[i].Place + uint64(taken[i].N)
			if end >= x.Place+uint64(x.N) {
				break
			}
			x = extent{Place: end, N: int(x.Place + uint64(x.N) - end)}
		}
	}
	return out
}
