package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Range is a stretch of a volume, in bytes, whole blocks.
type Range struct{ Offset, Length int64 }

func (r Range) end() int64 { return r.Offset + r.Length }

// DiffSpec asks for ranges of a target: a snapshot, or a volume as it is now; exactly one of the two is named.
type DiffSpec struct {
	From     string // list what changed since this snapshot, of the target's family, older or newer; empty: list what the target has allocated
	Snapshot string
	Volume   string
	Start    int64 // bytes, rounded down to whole blocks: what lies before is left out
	Max      int   // ranges to answer at most; 0 or more than MaxRanges: MaxRanges
}

// DiffPage is one answer: ranges in ascending order, no two of which overlap or touch.
type DiffPage struct {
	Size   int64 // the target's, in bytes
	Ranges []Range
	Next   int64 // the Start that goes on after them; 0: these were the last
}

// Diff lists the ranges of a target that are allocated, or that may differ from another snapshot of its family: all blocks that a generation on
// either path to the common ancestor wrote or discarded, and everything beyond the end of the smaller of the two. A block that is not in it is the
// same in both.
//
// It reads the index of touched pages and the runs in those pages: its cost goes with what was written on the two paths (of allocated ranges: with
// what the target maps), not with sizes. A page of an answer is of one moment; of a volume that is being written to, each is of its own.
func (p *Pool) Diff(ctx context.Context, spec DiffSpec) (DiffPage, error) {
	if (spec.Snapshot == "") == (spec.Volume == "") {
		return DiffPage{}, fmt.Errorf("list ranges: %w: name a snapshot or a volume, one of the two", ErrInvalid)
	}
	if spec.Start < 0 || spec.Max < 0 {
		return DiffPage{}, fmt.Errorf("list ranges: %w: start %d, at most %d ranges: neither may be negative", ErrInvalid, spec.Start, spec.Max)
	}
	if spec.Max == 0 || spec.Max > MaxRanges {
		spec.Max = MaxRanges
	}
	d, err := p.diffMoment(spec)
	if err != nil {
		return DiffPage{}, fmt.Errorf("list ranges of %s%s: %w", spec.Snapshot, spec.Volume, err)
	}
	defer d.snap.Close()
	page, err := d.list(ctx)
	if err != nil {
		return DiffPage{}, fmt.Errorf("list ranges of %s%s: %w", spec.Snapshot, spec.Volume, err)
	}
	return page, nil
}

// differ lists ranges at one moment.
type differ struct {
	spec   DiffSpec
	snap   *moment
	target *lineage
	size   int64    // the target's
	gens   []uint64 // whose runs count
	start  int64    // what lies before is left out
	end    int64    // runs count up to here; from here to
	tail   int64    // here only the larger of the two has anything

	// looked, by page and in order, is what flushes made durable and nobody has committed: the pool is open for looking.
	looked map[uint32][]runs.Entry

	page  DiffPage
	marks [runs.Blocks]bool
}

// diffMoment takes the moment: the two lineages and the store, at once. The catalogue stands still under ops, and what is pending of a volume is
// committed.
func (p *Pool) diffMoment(spec DiffSpec) (*differ, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if p.closed.Load() {
		return nil, ErrClosed
	}
	d := &differ{spec: spec, start: spec.Start / BlockSize * BlockSize}
	if err := p.diffTarget(d); err != nil {
		return nil, err
	}
	if spec.From == "" {
		d.gens, d.end, d.tail = d.target.gens, d.size, d.size
	} else {
		s, err := p.catalogue.snapshot(spec.From)
		if err != nil {
			return nil, err
		}
		from := p.catalogue.lineageOf(p.catalogue.layers[s.rec.Layer])
		if from.family != d.target.family {
			return nil, fmt.Errorf("%w: snapshot %q, of volume %q, has no common ancestor with it", ErrUnrelated, spec.From, s.rec.VolumeName)
		}
		d.gens = eitherPath(d.target.gens, from.gens)
		d.end, d.tail = min(d.size, int64(s.rec.Size)), max(d.size, int64(s.rec.Size))
	}
	d.snap = p.store.db.NewSnapshot()
	return d, nil
}

// diffTarget finds the target. Of a volume everything written so far must be in the store; a pool that cannot commit it any more cannot tell.
func (p *Pool) diffTarget(d *differ) error {
	layerID := uint64(0)
	if d.spec.Snapshot != "" {
		s, err := p.catalogue.snapshot(d.spec.Snapshot)
		if err != nil {
			return err
		}
		layerID, d.size = s.rec.Layer, int64(s.rec.Size)
	} else {
		v, err := p.catalogue.volume(d.spec.Volume)
		if err != nil {
			return err
		}
		layerID, d.size = v.rec.Layer, int64(v.rec.Size)
		if p.readOnly == nil {
			err = p.flush()
		} else {
			d.looked = map[uint32][]runs.Entry{}
			err = p.lookedAt(v.id, func(page uint32, run runs.Entry) { d.looked[page] = append(d.looked[page], run) })
		}
		if err != nil {
			return err
		}
	}
	d.target = p.catalogue.lineageOf(p.catalogue.layers[layerID])
	return nil
}

// eitherPath returns what is in just one of two ascending lists: the generations on both paths to the common ancestor. A join moves generations
// along a path and never off it, so the common ones are the common ancestor's, whatever was deleted since.
func eitherPath(a, b []uint64) (out []uint64) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return out
}

func (d *differ) list(ctx context.Context) (DiffPage, error) {
	d.page.Size = d.size
	first := uint32(min(d.start, MaxVolumeSize-1) / pageBytes)
	touched, err := newTouchedPages(d.snap, d.gens, first)
	if err != nil {
		return DiffPage{}, err
	}
	looked := slices.Sorted(maps.Keys(d.looked))
	at, _ := slices.BinarySearch(looked, first)
	touched.also(looked[at:])
	for {
		page, gens, ok, err := touched.next()
		if err != nil {
			return DiffPage{}, err
		}
		if !ok || int64(page)*pageBytes >= d.end {
			break
		}
		if err := errors.Join(ctx.Err(), d.markPage(page, gens)); err != nil {
			return DiffPage{}, err
		}
		if !d.addMarks(page) {
			return d.page, nil
		}
	}
	d.add(Range{d.end, d.tail - d.end})
	return d.page, nil
}

// markPage marks the blocks of a page that count.
func (d *differ) markPage(page uint32, gens []uint64) error {
	clear(d.marks[:])
	mark := func(e runs.Entry) {
		for i := e.Off(); i < e.End(); i++ {
			d.marks[i] = d.spec.From != "" || !e.IsZero()
		}
	}
	if d.spec.From == "" {
		gens = nil
		list, err := readPage(d.snap, d.target, page, nil)
		if err != nil {
			return err
		}
		for _, e := range list {
			mark(e)
		}
	}
	for _, gen := range gens {
		err := scan(d.snap, format.RunKey(d.target.family, page, gen, 0), format.RunKey(d.target.family, page, gen-1, 0), func(key, val []byte) error {
			_, _, block, err := format.ParseRunKey(key)
			if err != nil {
				return err
			}
			e, err := entryOf(val, block, gen)
			if err == nil {
				mark(e)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("read runs of generation %d in page %d: %w", gen, page, err)
		}
	}
	for _, e := range d.looked[page] {
		mark(e)
	}
	return nil
}

// addMarks adds a page's marked stretches; false when the answer is full.
func (d *differ) addMarks(page uint32) bool {
	for at := 0; at < runs.Blocks; {
		if !d.marks[at] {
			at++
			continue
		}
		end := at
		for end < runs.Blocks && d.marks[end] {
			end++
		}
		off := int64(page)*pageBytes + int64(at)*BlockSize
		if !d.add(Range{off, min(int64(end-at)*BlockSize, d.end-off)}) {
			return false
		}
		at = end
	}
	return true
}

// add takes the next stretch, joined to the one before where it continues it. It returns false when the answer is full; Next then says where the
// stretch that did not fit begins.
func (d *differ) add(r Range) bool {
	if off := max(r.Offset, d.start); off > r.Offset {
		r = Range{off, r.end() - off}
	}
	if r.Length <= 0 {
		return true
	}
	n := len(d.page.Ranges)
	switch {
	case n > 0 && d.page.Ranges[n-1].end() == r.Offset:
		d.page.Ranges[n-1].Length += r.Length
	case n == d.spec.Max:
		d.page.Next = r.Offset
		return false
	default:
		d.page.Ranges = append(d.page.Ranges, r)
	}
	return true
}
