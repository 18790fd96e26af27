package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// maxBatch is where a commit that need not be atomic is cut into several batches, in bytes.
const maxBatch = 1 << 20

// store is the pool's metadata: Pebble, and the one committer that changes it.
//
// Only the committer goroutine composes and applies batches; what is named "committer's" below is touched by it alone. Pebble shows a batch before its
// sync has returned, so whoever reads Pebble learns what will be, not what is durable: durability is told by a job's durable callback and its result.
type store struct {
	figures *Figures // set before the first commit

	db    *metadata
	jobs  chan *job
	syncs chan *unsynced
	wg    sync.WaitGroup
	fail  func(error)     // marks the pool failed
	dead  <-chan struct{} // closed when Pebble met an error that it cannot live with: who is inside it stays there
	alloc *alloc.Allocator
	// filled is told of chunks whose every block a batch that was applied has in use; nil while the ring is replayed.
	filled func(chunks []uint32)

	// the committer's
	pool     format.Pool
	changing sync.Mutex               // held from composing a batch to its having been applied; guards watch
	watch    map[familyPage]struct{}  // pages whose runs a batch has changed since somebody asked; nil: nobody has
	bitmaps  map[uint32]*alloc.Bitmap // as last applied; some of those lately used
	segments []format.Segment
	touched  touchedIndex

	useMu   sync.Mutex // guards segUsed, which the committer changes and others read
	segUsed []int

	filledPolicy bool // never changes

	nextID, nextGen atomic.Uint64
	nextFamily      atomic.Uint32

	sumBytes atomic.Uint64 // keys and values of checksums put into batches
}

// job is one change. compose runs on the committer, once for every batch until it says there is no more; durable runs after the last batch's sync has
// returned, in the order of the jobs, before done is told.
type job struct {
	compose func(b *batch) (more bool, err error)
	applied func() // of a mutation only; nil: the rules are kept
	durable func()
	handed  chan struct{} // closed when the last batch was applied, or the job has failed
	// lazy: done is told when the batches are applied, which no power cut and no death of the process need leave; durable runs when a later job that is not
	// lazy is durable, before that one's. What a lazy job does must be found again and done again by whoever finds it undone.
	lazy bool
	// alone is run instead of compose.
	alone func() (fatal bool, err error)
	done  chan error
}

func newJob(compose func(b *batch) (more bool, err error), durable func()) *job {
	return &job{compose: compose, durable: durable, handed: make(chan struct{}), done: make(chan error, 1)}
}

type unsynced struct {
	b     *pebble.Batch
	began time.Time
	last  *job // nil: more batches of the job follow
	lazy  bool

	barrier chan struct{} // closed when all before it has been synced; then there is nothing else
}

// errDead: the metadata store is beyond use. The pool has failed, and its failure says why.
var errDead = errors.New("the metadata store has failed")

func newStore(db *metadata, rec format.Pool, segments []poolSegment, fail func(error)) *store {
	s := &store{
		db: db, fail: fail, dead: db.dead, pool: rec,
		jobs: make(chan *job), syncs: make(chan *unsynced, 64),
		bitmaps: map[uint32]*alloc.Bitmap{}, touched: touchedIndex{}, filledPolicy: rec.Filled,
	}
	for _, seg := range segments {
		s.segUsed = append(s.segUsed, seg.Used)
		s.segments = append(s.segments, format.Segment{Written: seg.Has[alloc.Written], Reserved: seg.Has[alloc.Reserved], Member: seg.member})
	}
	s.nextID.Store(rec.NextID)
	s.nextGen.Store(rec.NextGen)
	s.nextFamily.Store(rec.NextFamily)
	s.wg.Go(s.commitLoop)
	s.wg.Go(s.syncLoop)
	return s
}

// close waits for the jobs under way and closes Pebble. No commit may be started after it.
func (s *store) close() error {
	select {
	case <-s.dead:
		return nil
	default:
	}
	close(s.jobs)
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return s.db.close()
	case <-s.dead:
		return errDead
	}
}

// commit applies one change and returns when it is durable.
func (s *store) commit(compose func(b *batch) (more bool, err error), durable func()) error {
	return s.run(newJob(compose, durable))
}

func (s *store) run(j *job) error {
	s.start(j)
	return s.wait(j)
}

// start returns when a job's batches have been applied, before they are durable, or when there is no hope; wait tells.
func (s *store) start(j *job) {
	select {
	case s.jobs <- j:
	case <-s.dead:
		return
	}
	select {
	case <-j.handed:
	case <-s.dead:
	}
}

// wait returns when a job that was started is durable.
func (s *store) wait(j *job) error {
	select {
	case err := <-j.done:
		return err
	case <-s.dead:
		return errDead
	}
}

// commitOne is commit for a change of one batch that cannot fail.
func (s *store) commitOne(compose func(b *batch), durable func()) error {
	return s.commit(func(b *batch) (bool, error) { compose(b); return false, nil }, durable)
}

func (s *store) commitLoop() {
	asCommitter()
	defer close(s.syncs)
	var broken error
	for j := range s.jobs {
		if broken != nil {
			close(j.handed)
			j.done <- broken
			continue
		}
		if j.alone != nil {
			broken = s.performAlone(j)
			continue
		}
		err := s.perform(j)
		close(j.handed)
		if err != nil {
			// What the committer keeps in memory may now be ahead of what was applied: nothing more may be composed from it.
			broken = fmt.Errorf("commit: %w", err)
			s.fail(broken)
			j.done <- broken
		}
	}
}

func (s *store) perform(j *job) error {
	for more := true; more; {
		began := time.Now()
		b := &batch{Batch: s.db.newBatch(), s: s}
		var err error
		if more, err = s.apply(j, b); err != nil {
			return err
		}
		s.touched.trim(b.untouched)
		if len(b.committed) > 0 {
			s.alloc.Committed(b.committed)
		}
		if len(b.filled) > 0 && s.filled != nil {
			s.filled(b.filled)
		}
		u := &unsynced{b: b.Batch, began: began, lazy: j.lazy}
		if f := s.figures; f != nil {
			f.CommitBytes.Add(uint64(b.Len()))
		}
		if !more {
			u.last = j
			if j.applied != nil {
				j.applied()
			}
		}
		s.syncs <- u
	}
	return nil
}

// apply composes the job's next batch and applies it.
func (s *store) apply(j *job, b *batch) (more bool, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if more, err = j.compose(b); err != nil {
		return more, err
	}
	if err := b.finish(); err != nil {
		return more, err
	}
	if j.lazy {
		err = s.db.at.db.Apply(b.Batch, pebble.NoSync)
	} else {
		err = s.db.at.db.ApplyNoSyncWait(b.Batch, pebble.Sync)
	}
	if err != nil {
		return more, fmt.Errorf("apply batch: %w", err)
	}
	return more, nil
}

// familyPage names a page of a family.
type familyPage struct{ family, page uint32 }

// watchPages begins to note which pages' runs are changed, anew. What is read from the store after it returned is what a page has, unless the page is
// noted by the time of composing a batch. One at a time watches.
func (s *store) watchPages() {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.watch = map[familyPage]struct{}{}
}

// unwatchPages ends it.
func (s *store) unwatchPages() {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.watch = nil
}

// changed is asked while a batch is composed.
func (s *store) changed(family, page uint32) bool {
	_, ok := s.watch[familyPage{family, page}]
	return ok || s.watch == nil
}

func (s *store) note(family, page uint32) {
	if s.watch != nil {
		s.watch[familyPage{family, page}] = struct{}{}
	}
}

func (s *store) syncLoop() {
	asCommitter()
	var broken error
	var lazy []*job // applied, and no later batch synced yet
	for u := range s.syncs {
		if u.barrier != nil {
			close(u.barrier)
			continue
		}
		var err error
		if !u.lazy {
			err = u.b.SyncWait()
			if f := s.figures; f != nil {
				f.CommitTime.since(u.began)
			}
		}
		if err == nil {
			err = u.b.Close()
		}
		if err != nil && broken == nil {
			broken = fmt.Errorf("sync metadata log: %w", err)
			s.fail(broken)
		}
		if u.lazy {
			if u.last != nil {
				lazy = append(lazy, u.last)
				u.last.done <- broken
			}
			continue
		}
		// The log is synced up to this batch, and so what came before it. After one failed sync no later one can vouch for that.
		for _, j := range lazy {
			if broken == nil && j.durable != nil {
				j.durable()
			}
		}
		lazy = nil
		if u.last == nil {
			continue
		}
		if broken == nil && u.last.durable != nil {
			u.last.durable()
		}
		u.last.done <- broken
	}
}

type extent = alloc.Extent

// batch is a Pebble batch with what the engine counts beside it.
type batch struct {
	*pebble.Batch
	s         *store
	committed []extent            // handed out by the allocator and taken into use by this batch; finish joins them
	unmarked  []extent            // those of them whose bits finish sets
	chunks    map[uint32]struct{} // bitmaps changed
	segments  map[uint32]struct{} // what they have changed
	filled    []uint32            // chunks that became written because they are full
	layers    map[*layer]struct{} // uses changed
	untouched []uint64            // generations that lost a page while their sets of pages were not known
}

func (b *batch) put(key, value []byte) {
	// A batch in memory cannot fail to grow.
	if err := b.Set(key, value, nil); err != nil {
		panic(err)
	}
}

func (b *batch) remove(key []byte) {
	if err := b.Delete(key, nil); err != nil {
		panic(err)
	}
}

func (b *batch) removeRange(from, to []byte) {
	if err := b.DeleteRange(from, to, nil); err != nil {
		panic(err)
	}
}

func (b *batch) full() bool { return b.Len() >= maxBatch }

// putRun writes one run; its blocks' bits are the caller's to set.
func (b *batch) putRun(family, page uint32, gen uint64, block int, r format.Run) {
	var key [format.RunKeyLen]byte
	var val [16]byte
	b.s.note(family, page)
	b.put(format.AppendRunKey(key[:0], family, page, gen, block), format.AppendRun(val[:0], r))
}

func (b *batch) removeRun(family, page uint32, gen uint64, block int) {
	var key [format.RunKeyLen]byte
	b.s.note(family, page)
	b.remove(format.AppendRunKey(key[:0], family, page, gen, block))
}

// rangeRuns is from how many runs on a generation's are removed from a page by range: that costs a reader more than one key's removal does, and
// the log, the memory and the compactions less than many.
const rangeRuns = 8

// removeRuns removes runs of a page, those of a generation side by side. Of the generations gone they are all that the page has.
func (b *batch) removeRuns(family, page uint32, list []runs.Entry, gone []uint64) {
	for len(list) > 0 {
		gen, n := list[0].Gen(), 1
		for n < len(list) && list[n].Gen() == gen {
			n++
		}
		if n >= rangeRuns && slices.Contains(gone, gen) {
			b.s.note(family, page)
			b.removeRange(format.RunKey(family, page, gen, 0), format.RunKey(family, page, gen, runs.Blocks))
		} else {
			for _, e := range list[:n] {
				b.removeRun(family, page, gen, e.Off())
			}
		}
		list = list[n:]
	}
}

// use changes what a layer owns (blocks) and touches (pages).
func (b *batch) use(l *layer, owned, pages int64) {
	if owned == 0 && pages == 0 {
		return
	}
	l.owned.Add(owned)
	l.pages.Add(pages)
	if b.layers == nil {
		b.layers = map[*layer]struct{}{}
	}
	b.layers[l] = struct{}{}
}

// setBits marks pool blocks in use, or free, in the stored bitmaps.
func (b *batch) setBits(place uint64, n int, used bool) error {
	for n > 0 {
		chunk, from := uint32(place/alloc.ChunkBlocks), int(place%alloc.ChunkBlocks)
		m := min(n, alloc.ChunkBlocks-from)
		bits, err := b.s.bitmap(chunk)
		if err != nil {
			return err
		}
		before := bits.Count()
		if used {
			bits.Set(from, m)
		} else {
			bits.Clear(from, m)
		}
		if moved := bits.Count() - before; moved != m && moved != -m {
			return fmt.Errorf("%w: blocks %d+%d of the pool were %s already", ErrCorrupt, place, m, map[bool]string{true: "in use", false: "free"}[used])
		} else {
			b.s.addUsed(chunk/alloc.SegmentChunks, moved)
		}
		if b.chunks == nil {
			b.chunks = map[uint32]struct{}{}
		}
		b.chunks[chunk] = struct{}{}
		place += uint64(m)
		n -= m
	}
	return nil
}

func (s *store) addUsed(seg uint32, n int) {
	s.useMu.Lock()
	defer s.useMu.Unlock()
	for len(s.segUsed) <= int(seg) {
		s.segUsed = append(s.segUsed, 0)
	}
	s.segUsed[seg] += n
}

// usedBySegment is how many blocks of each segment are in use.
func (s *store) usedBySegment() []int {
	s.useMu.Lock()
	defer s.useMu.Unlock()
	return slices.Clone(s.segUsed)
}

// bitmap returns the committer's copy of a chunk's bitmap.
func (s *store) bitmap(chunk uint32) (*alloc.Bitmap, error) {
	if bits, ok := s.bitmaps[chunk]; ok {
		return bits, nil
	}
	bits, err := readBitmap(s.db, chunk)
	if err != nil {
		return nil, err
	}
	s.bitmaps[chunk] = &bits
	return &bits, nil
}

// finish adds what the batch's runs changed beside them: bitmaps, counts and the pool's record.
func (b *batch) finish() error {
	b.unmarked = alloc.Coalesce(b.unmarked)
	for _, x := range b.unmarked {
		if err := b.setBits(x.Place, x.N, true); err != nil {
			return err
		}
	}
	b.committed = alloc.Coalesce(append(b.committed, b.unmarked...))
	segs := map[uint32]struct{}{}
	for chunk := range b.chunks {
		bits := b.s.bitmaps[chunk]
		b.put(format.BitmapKey(chunk), encodeBitmap(bits))
		segs[chunk/alloc.SegmentChunks] = struct{}{}
		// A run's batch comes after a member flush that began when its data had been written, and that synced the segment if it is reserved. So every
		// block of a chunk that is full was written and synced: no flush need sync the segment for it any more.
		if seg, k := b.segment(chunk); bits.Count() == alloc.ChunkBlocks && hasChunk(&seg.Reserved, k) {
			b.setChunk(chunk, alloc.Written, true)
			b.filled = append(b.filled, chunk)
		}
	}
	for seg := range b.segments {
		b.put(format.SegmentKey(seg), b.s.segments[seg].Encode())
	}
	for seg := range segs {
		b.put(format.SegmentUseKey(seg), binary.AppendUvarint(nil, uint64(b.s.segUsed[seg])))
	}
	for l := range b.layers {
		if l.owned.Load() < 0 || l.pages.Load() < 0 {
			return fmt.Errorf("%w: layer %d would own %d blocks in %d pages", ErrCorrupt, l.id, l.owned.Load(), l.pages.Load())
		}
		if !l.gone {
			b.put(format.LayerUseKey(l.id), format.LayerUse{Owned: uint64(l.owned.Load()), Pages: uint64(l.pages.Load())}.Encode())
		}
	}
	b.s.pool.NextID, b.s.pool.NextGen, b.s.pool.NextFamily = b.s.nextID.Load(), b.s.nextGen.Load(), b.s.nextFamily.Load()
	b.put(format.PoolKey(), b.s.pool.Encode())
	if len(b.s.bitmaps) > 4096 {
		clear(b.s.bitmaps)
	}
	return nil
}

// segment returns the committer's record of a chunk's segment, and the chunk's index in it.
func (b *batch) segment(chunk uint32) (*format.Segment, int) {
	seg := chunk / alloc.SegmentChunks
	for uint32(len(b.s.segments)) <= seg {
		b.s.segments = append(b.s.segments, format.Segment{})
	}
	return &b.s.segments[seg], int(chunk % alloc.SegmentChunks)
}

func hasChunk(set *[4]uint64, k int) bool { return (*alloc.Chunks)(set).Has(k) }

// setChunk records that a chunk has its space and is of a kind, or that it has none.
func (b *batch) setChunk(chunk uint32, kind alloc.Kind, has bool) {
	seg, k := b.segment(chunk)
	written, reserved := (*alloc.Chunks)(&seg.Written), (*alloc.Chunks)(&seg.Reserved)
	written.Remove(k)
	reserved.Remove(k)
	switch {
	case has && kind == alloc.Written:
		written.Add(k)
	case has:
		reserved.Add(k)
	}
	if b.segments == nil {
		b.segments = map[uint32]struct{}{}
	}
	b.segments[chunk/alloc.SegmentChunks] = struct{}{}
}

func encodeBitmap(bits *alloc.Bitmap) []byte {
	v := make([]byte, 0, format.BitmapLen)
	for _, w := range bits {
		v = binary.LittleEndian.AppendUint64(v, w)
	}
	return v
}

func decodeBitmap(v []byte) (bits alloc.Bitmap, err error) {
	if len(v) != format.BitmapLen {
		return bits, fmt.Errorf("%w: bitmap of %d bytes", ErrCorrupt, len(v))
	}
	for i := range bits {
		bits[i] = binary.LittleEndian.Uint64(v[i*8:])
	}
	return bits, nil
}

func readBitmap(r reader, chunk uint32) (bits alloc.Bitmap, err error) {
	v, closer, err := r.Get(format.BitmapKey(chunk))
	if errors.Is(err, pebble.ErrNotFound) {
		return bits, nil
	}
	if err != nil {
		return bits, fmt.Errorf("read bitmap of chunk %d: %w", chunk, err)
	}
	defer closer.Close()
	return decodeBitmap(v)
}

// storeView shows the allocator the stored bitmaps.
type storeView struct{ db reader }

func (v storeView) Bitmap(chunk uint32) (alloc.Bitmap, error) { return readBitmap(v.db, chunk) }

func (v storeView) FreeInSegment(seg uint32) (*[alloc.SegmentChunks]uint16, error) {
	var free [alloc.SegmentChunks]uint16
	for i := range free {
		free[i] = alloc.ChunkBlocks
	}
	first := seg * alloc.SegmentChunks
	err := scan(v.db, format.BitmapKey(first), format.BitmapKey(first+alloc.SegmentChunks), func(key, val []byte) error {
		chunk, err := format.ParseNumber(key)
		if err != nil {
			return err
		}
		bits, err := decodeBitmap(val)
		if err != nil {
			return err
		}
		free[chunk-first] -= uint16(bits.Count())
		return nil
	})
	return &free, err
}

// scan calls f for every key in [lower, upper).
func scan(r reader, lower, upper []byte, f func(key, val []byte) error) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}
