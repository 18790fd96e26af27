package engine

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/mapcache"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const pageShards = 16

// mapping is what a flattened map belongs to: an open volume or an open snapshot.
type mapping struct {
	id      uint64 // never used again while the process lives
	lineage atomic.Pointer[lineage]
	closed  atomic.Bool // nobody may look anything up in it any more
}

func (m *mapping) key(page uint32) mapcache.Key { return mapcache.Key(m.id<<24 | uint64(page)) }

// pages is the flattened map of everything open: committed pages in a cache under one limit, and over them the pending runs, which the ring bounds.
//
// A run is pending from its publication to the moment its commit's sync has returned. Pending runs that a round has taken are "sealed"; those published
// since are "current". The next round may seal while the one before waits for its sync: so what a lookup sees is current over sealed, newest round
// first, over the cached page. A page that is not cached is read from Pebble, which may show runs whose commit is not durable yet; those are sealed as
// well, so nobody learns anything from Pebble that the overlay would not say.
type pages struct {
	figures *Figures
	db      reader
	seal    sync.RWMutex // held for reading from taking a sequence to the entry being in its page; for writing by the one who seals
	seq     atomic.Uint64
	shards  [pageShards]pageShard

	mu        sync.Mutex
	abandoned []extent     // blocks whose run was replaced while it was current
	pending   atomic.Int64 // weight of the runs published since the last seal
	replacing atomic.Int64 // those of them that replace runs of their own layer
}

type pageShard struct {
	mu      sync.Mutex
	cache   *mapcache.Cache
	current map[mapcache.Key]*pendingPage
	sealed  []map[mapcache.Key]*pendingPage // one for each round that is not settled, oldest first
	loading map[mapcache.Key]*pageLoad
}

// pendingPage holds the pending runs of one page of one volume.
type pendingPage struct {
	v    *Volume
	page uint32
	list []runs.Entry
	// own is what the writers took for the volume's own oldest generation. A join that came in between makes it differ from the volume's at commit, and
	// the page is then rewritten with care. mixed: writers differed among themselves.
	own    uint64
	mixed  bool
	mapped int64 // blocks that these runs made the volume map, less those they made it map no more
}

type pageLoad struct {
	done  chan struct{}
	stale bool // a commit became durable meanwhile: what was read may miss it
}

func newPages(db reader, limit int64) (*pages, error) {
	p := &pages{db: db}
	for i := range p.shards {
		c, err := mapcache.New(limit / pageShards)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.shards[i] = pageShard{cache: c, current: map[mapcache.Key]*pendingPage{}, loading: map[mapcache.Key]*pageLoad{}}
	}
	return p, nil
}

func (p *pages) close() (err error) {
	for i := range p.shards {
		if c := p.shards[i].cache; c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

func (p *pages) shard(k mapcache.Key) *pageShard {
	return &p.shards[uint64(k)*0x9e3779b97f4a7c15>>60]
}

// lookup appends to out what the mapping has in blocks [off, end) of a page, in order. Gaps map nothing.
func (p *pages) lookup(m *mapping, page uint32, off, end int, out []runs.Entry) ([]runs.Entry, error) {
	k := m.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	base, ok := s.cache.Get(k)
	if f := p.figures; f != nil {
		if ok {
			f.CacheHits.Add(1)
		} else {
			f.CacheMisses.Add(1)
		}
	}
	for !ok {
		if err := p.load(s, m, page, k); err != nil {
			return nil, err
		}
		base, ok = s.cache.Get(k)
	}
	out = runs.Slice(out, base, off, end)
	for overlay := range s.pending(k) {
		var buf [16]runs.Entry
		for _, e := range runs.Slice(buf[:0], overlay.list, off, end) {
			out = runs.Insert(out, e.Plain())
		}
	}
	return out, nil
}

// load reads a page into the cache. It is called with the shard's lock held and gives it up while it reads; one goroutine reads, others wait for it.
func (p *pages) load(s *pageShard, m *mapping, page uint32, k mapcache.Key) error {
	if l := s.loading[k]; l != nil {
		s.mu.Unlock()
		<-l.done
		s.mu.Lock()
		return nil
	}
	l := &pageLoad{done: make(chan struct{})}
	s.loading[k] = l
	defer func() {
		delete(s.loading, k)
		close(l.done)
	}()
	for {
		l.stale = false
		s.mu.Unlock()
		list, err := readPage(p.db, m.lineage.Load(), page, make([]runs.Entry, 0, 64))
		s.mu.Lock()
		if err != nil {
			return err
		}
		if !l.stale {
			s.cache.Put(k, list)
			return nil
		}
	}
}

// readPage flattens a page as the store has it: the keys come newest generation first, so each run fills what is still open.
func readPage(r reader, g *lineage, page uint32, list []runs.Entry) (_ []runs.Entry, err error) {
	prefix := format.RunPagePrefix(g.family, page)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: format.Upper(prefix)})
	if err != nil {
		return nil, fmt.Errorf("read map page %d: %w", page, err)
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("read map page %d: %w", page, cerr)
		}
	}()
	left := runs.Blocks
	for ok := it.First(); ok && left > 0; {
		_, gen, block, err := format.ParseRunKey(it.Key())
		if err != nil {
			return nil, err
		}
		if !g.contains(gen) {
			ok = it.SeekGE(format.RunKey(g.family, page, g.before(gen), 0))
			continue
		}
		e, err := entryOf(it.Value(), block, gen)
		if err != nil {
			return nil, err
		}
		before := runs.Covered(list)
		list = runs.Fill(list, e)
		left -= runs.Covered(list) - before
		ok = it.Next()
	}
	return list, it.Error()
}

func entryOf(val []byte, block int, gen uint64) (runs.Entry, error) {
	r, err := format.ParseRun(val, block)
	switch {
	case err != nil:
		return runs.Entry{}, err
	case r.Zero:
		return runs.Zero(block, r.Len, gen), nil
	default:
		return runs.Data(block, r.Len, r.Place, gen), nil
	}
}

// publish makes entries of one page pending: it numbers them, logs them in the ring, whose slots the caller has reserved, and puts them into the map.
// Promise "a dead process is not a power cut": the caller's data writes have returned, and the caller acknowledges only after this.
// mapped is by how many blocks they change what the volume maps.
func (p *pages) publish(r *ring.Ring, v *Volume, own uint64, page uint32, entries []runs.Entry, mapped int64) error {
	k := v.mapping.key(page)
	s := p.shard(k)
	p.seal.RLock()
	defer p.seal.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		place := uint64(ring.ZeroPlace)
		if !e.IsZero() {
			place = e.Place()
		}
		entry := ring.Entry{
			Sequence: p.seq.Add(1), Generation: e.Gen(), Block: uint64(page)*runs.Blocks + uint64(e.Off()), Place: place, Length: uint32(e.Len()),
		}
		if v.pool.breaks(mutateRing) {
			r.Release(1)
			continue
		}
		if err := r.Append(entry); err != nil {
			return err
		}
	}
	pp := s.current[k]
	if pp == nil {
		pp = &pendingPage{v: v, page: page, own: own}
		s.current[k] = pp
	}
	pp.mixed = pp.mixed || pp.own != own
	pp.mapped += mapped
	p.pending.Add(weigh(entries))
	v.entry.mapped.Add(mapped)
	v.entry.written.Store(true)
	for _, e := range entries {
		if e.Replaces() {
			p.replacing.Add(1)
		}
		var buf [16]runs.Entry
		for _, old := range runs.Slice(buf[:0], pp.list, e.Off(), e.End()) {
			if !old.IsZero() {
				// A zero run over a run that no commit has seen: its blocks will never be committed.
				p.mu.Lock()
				p.abandoned = append(p.abandoned, extent{Place: old.Place(), N: old.Len()})
				p.mu.Unlock()
				v.pool.alloc.Lost(v.entry.id, extent{Place: old.Place(), N: old.Len()})
			}
			e = e.Replacing()
		}
		pp.list = runs.Insert(pp.list, e)
	}
	return nil
}

// show puts a run that is durable and not committed over a page, of a pool that is open for looking only: nobody commits it.
func (p *pages) show(v *Volume, page uint32, e runs.Entry) {
	k := v.mapping.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current[k] == nil {
		s.current[k] = &pendingPage{v: v, page: page}
	}
	s.current[k].list = runs.Insert(s.current[k].list, e)
}

// weighBlocks of data weigh as much as a run.
const weighBlocks = 32

// weigh tells how much runs add to a round: one each for the commit, and what the member flush before it has to wait for. The device writes out all that its
// cache holds, and who writes meanwhile waits behind it: after 512 MiB of streams that took 30 ms.
func weigh(entries []runs.Entry) (n int64) {
	for _, e := range entries {
		n++
		if !e.IsZero() {
			n += int64(e.Len() / weighBlocks)
		}
	}
	return n
}

// published is a sequence up to which every run is in the ring, the newest there is.
func (p *pages) published() uint64 {
	p.seal.Lock()
	defer p.seal.Unlock()
	return p.seq.Load()
}

// sealed is what a round commits: every run pending when it was made.
type sealedRuns struct {
	seq       uint64         // the highest sequence among them; all up to it are in
	pages     []*pendingPage // those of a shard side by side
	abandoned []extent
}

// sealAll takes everything current. What it returns is settled in the order in which it was sealed.
func (p *pages) sealAll() sealedRuns {
	p.seal.Lock()
	defer p.seal.Unlock()
	out := sealedRuns{seq: p.seq.Load(), abandoned: p.abandoned}
	p.abandoned = nil
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		if len(s.current) > 0 {
			for _, pp := range s.current {
				out.pages = append(out.pages, pp)
			}
			s.sealed, s.current = append(s.sealed, s.current), map[mapcache.Key]*pendingPage{}
		}
		s.mu.Unlock()
	}
	p.pending.Store(0)
	p.replacing.Store(0)
	return out
}

// settle moves sealed runs whose commit is durable into the cached pages. Pages that were rewritten are dropped: their runs may have been cut anew.
func (p *pages) settle(sealed sealedRuns, rewritten map[*pendingPage]struct{}) {
	var held *pageShard
	for i, pp := range sealed.pages {
		k := pp.v.mapping.key(pp.page)
		// A shard's pages are settled under one turn of its lock, in portions that do not keep lookups waiting for long.
		if s := p.shard(k); s != held || i%64 == 0 {
			if held != nil {
				held.mu.Unlock()
			}
			held = s
			held.mu.Lock()
		}
		_, redone := rewritten[pp]
		held.settle(k, pp, redone)
	}
	if held != nil {
		held.mu.Unlock()
	}
}

func (s *pageShard) settle(k mapcache.Key, pp *pendingPage, rewritten bool) {
	if l := s.loading[k]; l != nil {
		l.stale = true
	}
	if rewritten {
		s.cache.Drop(k)
	} else if s.cache.Has(k) {
		list, _ := s.cache.Get(k)
		for _, e := range pp.list {
			list = runs.Insert(list, e.Plain())
		}
		s.cache.Put(k, list)
	}
	// Settled in order: the oldest round that has the page is this one.
	delete(s.sealed[0], k)
	if len(s.sealed[0]) == 0 {
		s.sealed = slices.Delete(s.sealed, 0, 1)
	}
}

// careful counts the pages whose pending runs cannot be put beside what is there.
func (p *pages) careful() (n int) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for _, pp := range s.current {
			if !plain(pp, pp.v.mapping.lineage.Load()) {
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}

// pendingIn tells whether the mapping has pending runs in a page.
func (p *pages) pendingIn(m *mapping, page uint32) bool {
	k := m.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	for range s.pending(k) {
		return true
	}
	return false
}

// pending goes over a page's pending runs, oldest first. The shard's lock is held.
func (s *pageShard) pending(k mapcache.Key) iter.Seq[*pendingPage] {
	return func(yield func(*pendingPage) bool) {
		for _, sealed := range s.sealed {
			if pp := sealed[k]; pp != nil && !yield(pp) {
				return
			}
		}
		if pp := s.current[k]; pp != nil {
			yield(pp)
		}
	}
}
