package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// CheckReport is what Check found. No problems: the metadata is whole.
type CheckReport struct {
	Problems []string
	Volumes  int
	Layers   int
	Runs     int64
	Blocks   int64 // pool blocks in use
	Hidden   int64 // blocks of runs that a queued join will remove

	Checksums int64 // of frozen blocks
}

// Check reads all the metadata and verifies that every pool block in use belongs to exactly one run, that bitmaps, counts and the index of touched pages
// agree with the runs, that no runs of a generation overlap, and that no unnamed layer is forgotten. It looks at one moment, on a pool in use, and keeps
// operations on the catalogue waiting only while it takes that moment. It needs one bit of memory for every block of the segments in use.
func (p *Pool) Check(ctx context.Context) (CheckReport, error) {
	snap, read, err := p.checkMoment()
	if err != nil {
		return CheckReport{}, err
	}
	defer snap.Close()
	return checkMetadata(ctx, snap, func(layer uint64) bool { return read[layer] })
}

// checkMoment takes the moment, with the layers that have readers then: those wait for them, even unnamed.
func (p *Pool) checkMoment() (snap *moment, read map[uint64]bool, err error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if p.closed.Load() {
		return nil, nil, ErrClosed
	}
	if p.failure() == nil {
		if err := p.flush(); err != nil {
			return nil, nil, err
		}
	}
	// A pool that takes no changes queues what its readers leave when it is opened again.
	later := p.failure() != nil
	read = map[uint64]bool{}
	for id, l := range p.catalogue.layers {
		read[id] = l.readers > 0 || later
	}
	// Not in the middle of a round that takes several batches.
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	return p.store.db.NewSnapshot(), read, nil
}

// maxProblems is where Check stops listing.
const maxProblems = 100

type checker struct {
	CheckReport
	c       *catalogue
	read    func(layer uint64) bool
	joining map[*layer]bool // a queued join may leave hidden runs
	used    map[uint32]*alloc.Bitmap
	owned   map[*layer]int64
	pages   map[*layer]int64
	mapped  map[*volume]int64
	heads   map[uint32][]checkedHead // by family
	freed   map[uint64]bool          // layers queued for freeing
	summed  map[uint64]bool          // generations that are marked to have all their checksums
	twice   map[uint64]bool          // pool blocks that belong to more than one run, maxProblems of them
	unread  int                      // runs that do not decode
	hiding  map[*layer]bool          // layers with hidden blocks and no queued join
}

type checkedHead struct {
	v    *volume
	line *lineage
}

func (k *checker) problem(format string, args ...any) {
	if len(k.Problems) < maxProblems {
		k.Problems = append(k.Problems, fmt.Sprintf(format, args...))
	}
}

// checkMetadata does it. read tells whether a layer has readers.
func checkMetadata(ctx context.Context, r reader, read func(layer uint64) bool) (CheckReport, error) {
	k, err := newChecker(r, read)
	if err != nil {
		if damaged(err) {
			k.problem("%v", err)
			return k.CheckReport, nil
		}
		return k.CheckReport, err
	}
	k.checkTree()
	if err := k.readMarks(r); err != nil {
		return k.CheckReport, err
	}
	if err := errors.Join(k.checkRuns(ctx, r), k.checkTwice(ctx, r), k.checkIndex(ctx, r), k.checkSums(ctx, r), k.checkBitmaps(r)); err != nil {
		return k.CheckReport, err
	}
	k.checkCounts()
	return k.CheckReport, nil
}

// damaged tells an error of what is stored from one of reading it.
func damaged(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, format.ErrCorrupt) }

// newChecker reads the catalogue. After an error it can take problems, and no more.
func newChecker(r reader, read func(layer uint64) bool) (*checker, error) {
	k := &checker{
		read:    read,
		joining: map[*layer]bool{}, used: map[uint32]*alloc.Bitmap{}, owned: map[*layer]int64{}, pages: map[*layer]int64{}, mapped: map[*volume]int64{},
		heads: map[uint32][]checkedHead{}, summed: map[uint64]bool{}, twice: map[uint64]bool{}, hiding: map[*layer]bool{},
	}
	var err error
	if k.c, err = loadCatalogue(r); err != nil {
		return k, err
	}
	k.freed = k.c.freed()
	k.Volumes, k.Layers = len(k.c.volumes), len(k.c.layers)
	for _, v := range k.c.volumes {
		l := k.c.layers[v.rec.Layer]
		k.heads[l.rec.Family] = append(k.heads[l.rec.Family], checkedHead{v, k.c.lineageOf(l)})
	}
	return k, nil
}

// checkTree looks for layers that nothing names and nobody will free, and for generations out of order.
func (k *checker) checkTree() {
	queued := map[uint64]bool{}
	for id, j := range k.c.jobs {
		l := k.c.layers[j.Layer]
		if l == nil {
			k.problem("job %d is for layer %d, which is not there", id, j.Layer)
			continue
		}
		queued[j.Layer] = queued[j.Layer] || j.Kind == format.JobFree
		k.joining[l] = k.joining[l] || j.Kind == format.JobJoin
	}
	for _, l := range k.c.layers {
		if parent := k.c.layers[l.rec.Parent]; parent != nil {
			if parent.rec.Family != l.rec.Family {
				k.problem("layer %d is of family %d, its parent %d of %d", l.id, l.rec.Family, parent.id, parent.rec.Family)
			}
			if slices.Max(parent.rec.Gens) >= slices.Min(l.rec.Gens) {
				k.problem("layer %d has generations %v, its parent %d has newer ones: %v", l.id, l.rec.Gens, parent.id, parent.rec.Gens)
			}
		}
		if l.rec.Head != 0 && len(l.children) > 0 {
			k.problem("layer %d is the head of volume %d and has children", l.id, l.rec.Head)
		}
		if l.rec.Head != 0 || l.rec.Name != 0 || queued[l.id] || len(l.children) > 1 || k.read(l.id) {
			continue
		}
		waits := false
		for child := range l.children {
			waits = queued[child.id]
		}
		if !waits {
			k.problem("layer %d has no name, %d children, and is not queued for freeing", l.id, len(l.children))
		}
	}
}

// checkRuns walks all runs, a page at a time.
func (k *checker) checkRuns(ctx context.Context, r reader) error {
	var at format.RunPage
	var page []runs.Entry
	prefix := format.RunPrefix()
	err := scan(r, prefix, format.Upper(prefix), func(key, val []byte) error {
		p, gen, block, err := format.ParseRunKey(key)
		if err != nil {
			k.unread++
			k.problem("%v", err)
			return nil
		}
		e, err := entryOf(val, block, gen)
		if err != nil {
			k.unread++
			k.problem("run of generation %d, page %d: %v", gen, p.Page, err)
			return nil
		}
		if p != at && len(page) > 0 {
			k.checkPage(at, page)
			page = page[:0]
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		at = p
		page = append(page, e)
		return nil
	})
	if len(page) > 0 {
		k.checkPage(at, page)
	}
	return err
}

// checkPage checks the runs of one page of one family, newest generation first.
func (k *checker) checkPage(at format.RunPage, page []runs.Entry) {
	byGen := map[uint64][]runs.Entry{}
	byLayer := map[*layer][]runs.Entry{}
	for _, e := range page {
		k.Runs++
		l := k.c.byGen[e.Gen()]
		if l == nil || l.rec.Family != at.Family {
			k.problem("family %d page %d: run %v is of a generation that no layer of the family has", at.Family, at.Page, e)
			k.use(e) // its blocks may be all that is left of something
			continue
		}
		if runs.Overlaps(byGen[e.Gen()], e.Off(), e.End()) {
			k.problem("family %d page %d: run %v overlaps another of its generation: %v", at.Family, at.Page, e, byGen[e.Gen()])
		}
		if len(byGen[e.Gen()]) == 0 {
			k.pages[l]++
		}
		byGen[e.Gen()] = runs.Insert(byGen[e.Gen()], e)
		byLayer[l] = append(byLayer[l], e)
		if !e.IsZero() {
			k.own(l, e)
		}
	}
	for l, list := range byLayer {
		lp := layerPage{own: list}
		if hidden := runs.Covered(list) - runs.Covered(lp.visible()); hidden > 0 {
			k.Hidden += int64(hidden)
			if !k.joining[l] {
				k.hiding[l] = true
				k.problem("family %d page %d: layer %d has %d hidden blocks and no queued join: %v", at.Family, at.Page, l.id, hidden, list)
			}
		}
	}
	for _, h := range k.heads[at.Family] {
		var flat []runs.Entry
		for _, e := range page {
			if h.line.contains(e.Gen()) {
				flat = runs.Fill(flat, e)
			}
		}
		k.mapped[h.v] += int64(runs.Mapped(flat))
		for _, e := range flat {
			if (int64(at.Page)*runs.Blocks+int64(e.End()))*BlockSize > int64(h.v.rec.Size) && !e.IsZero() {
				k.problem("volume %q of %d bytes maps page %d run %v, beyond its end", h.v.rec.Name, h.v.rec.Size, at.Page, e)
			}
		}
	}
}

// own takes note of a run's pool blocks.
func (k *checker) own(l *layer, e runs.Entry) {
	k.owned[l] += int64(e.Len())
	k.Blocks += int64(e.Len())
	k.use(e)
}

func (k *checker) use(e runs.Entry) {
	for i := range uint64(e.Len()) {
		if e.IsZero() {
			return
		}
		place := e.Place() + i
		chunk := uint32(place / alloc.ChunkBlocks)
		bits := k.used[chunk]
		if bits == nil {
			bits = &alloc.Bitmap{}
			k.used[chunk] = bits
		}
		if bits.Has(int(place%alloc.ChunkBlocks)) && len(k.twice) < maxProblems*alloc.ChunkBlocks {
			k.twice[place] = true
		}
		bits.Set(int(place%alloc.ChunkBlocks), 1)
	}
}

// checkIndex counts the index of touched pages; with checkCounts it shows that index and runs name the same pairs.
func (k *checker) checkIndex(ctx context.Context, r reader) error {
	counted := map[*layer]int64{}
	prefix := format.TouchedAll()
	err := scan(r, prefix, format.Upper(prefix), func(key, _ []byte) error {
		gen, page, err := format.ParseTouchedKey(key)
		if err != nil {
			k.problem("%v", err)
			return nil
		}
		l := k.c.byGen[gen]
		if l == nil {
			k.problem("the index says that generation %d touched page %d, and no layer has it", gen, page)
			return nil
		}
		counted[l]++
		list, err := readGeneration(r, l.rec.Family, page, gen)
		if err != nil && !errors.Is(err, format.ErrCorrupt) { // what does not decode is told with the runs
			return err
		}
		if len(list) == 0 && err == nil {
			k.problem("the index says that generation %d touched page %d, where it has no run", gen, page)
		}
		return errors.Join(ctx.Err(), k.checkPageSums(r, l, gen, page, list))
	})
	for _, l := range k.c.layers {
		if counted[l] != k.pages[l] {
			k.problem("layer %d has runs in %d pages, the index lists %d", l.id, k.pages[l], counted[l])
		}
	}
	return err
}

// checkBitmaps compares the stored bitmaps with the runs, and blocks in use with the space that was reserved.
func (k *checker) checkBitmaps(r reader) error {
	segments, serr := readSegments(r)
	if serr != nil && damaged(serr) {
		k.problem("%v", serr)
		segments, serr = nil, nil
	}
	within := k.checkMembers(r, segments)
	inSegment := map[uint32]int{}
	for chunk, bits := range k.used {
		seg, i := chunk/alloc.SegmentChunks, int(chunk%alloc.SegmentChunks)
		inSegment[seg] += bits.Count()
		if int(seg) >= len(segments) || !(segments[seg].Has[alloc.Written].Has(i) || segments[seg].Has[alloc.Reserved].Has(i)) {
			k.problem("chunk %d is in use, and its space in the file system is not reserved", chunk)
		}
		if !within(chunk) {
			k.problem("chunk %d is in use, beyond the size of the member that has it", chunk)
		}
	}
	lower, upper := format.Kind(format.BitmapKey(0))
	err := scan(r, lower, upper, func(key, val []byte) error {
		chunk, err := format.ParseNumber(key)
		if err != nil {
			k.problem("%v", err)
			return nil
		}
		bits, err := decodeBitmap(val)
		want := k.used[chunk]
		if want == nil {
			want = &alloc.Bitmap{}
		}
		if err != nil || bits != *want {
			k.problem("bitmap of chunk %d shows %d blocks in use, its runs %d (%v)", chunk, bits.Count(), want.Count(), err)
		}
		delete(k.used, chunk)
		return nil
	})
	for chunk := range k.used {
		k.problem("chunk %d is in use and has no bitmap", chunk)
	}
	for i, s := range segments {
		if s.Used != inSegment[uint32(i)] {
			k.problem("segment %d: %d blocks are counted in use, %d are", i, s.Used, inSegment[uint32(i)])
		}
	}
	return errors.Join(err, serr)
}

// checkMembers looks for segments of no member, and returns which chunks the members' sizes allow.
func (k *checker) checkMembers(r reader, segments []poolSegment) func(chunk uint32) bool {
	recs, err := readMembers(r)
	if err != nil {
		k.problem("%v", err)
		return func(uint32) bool { return true }
	}
	t, err := tableOf(recs, segments)
	if err != nil {
		k.problem("%v", err)
		return func(uint32) bool { return true }
	}
	return t.within()
}

func (k *checker) checkCounts() {
	for _, l := range k.c.layers {
		if l.owned.Load() != k.owned[l] || l.pages.Load() != k.pages[l] {
			k.problem("layer %d is counted to own %d blocks in %d pages; it owns %d in %d", l.id, l.owned.Load(), l.pages.Load(), k.owned[l], k.pages[l])
		}
	}
	for name, v := range k.c.volumes {
		if v.mapped.Load() != k.mapped[v] {
			k.problem("volume %q is counted to map %d blocks; it maps %d", name, v.mapped.Load(), k.mapped[v])
		}
	}
}
