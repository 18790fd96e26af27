package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const (
	// DefaultScrubRate is how many bytes a second the periodic scrub reads.
	DefaultScrubRate = 64 << 20
	// scrubTell is how often a scrub tells how far it is.
	scrubTell = 500 * time.Millisecond
	// MaxScrubProblems is how many problems a scrub lists; all are counted.
	MaxScrubProblems = 1000
	// scrubTries is how often a page is begun anew because its blocks were moved or freed meanwhile.
	scrubTries = 3
)

// ScrubSpec says how to scrub. Its functions are called on the caller's goroutine; nil: nobody listens.
type ScrubSpec struct {
	Rate     int64 // bytes a second to read at most; 0: as fast as it goes
	Progress func(ScrubReport)
	Found    func(ScrubProblem) // of each problem, up to MaxScrubProblems
}

// ScrubReport tells how far a scrub is, or was at its end, in bytes.
type ScrubReport struct {
	Total      int64 // frozen blocks when it began
	Verified   int64 // that are what their checksums say
	Unverified int64 // without a checksum yet, freed meanwhile, or on a member that is missing
	Damaged    int64 // that differ from their checksums, or cannot be read
	Problems   int64 // stretches of damaged blocks
}

// ScrubProblem is a stretch of frozen blocks, side by side in a volume and in a segment, that are not what was written.
type ScrubProblem struct {
	Pool           string
	Snapshots      []ScrubSnapshot // that show some of it, oldest first
	Volumes        []string        // that show some of it now: the snapshots' own, restored ones, clones
	Offset, Length int64           // in the volume, in bytes
	Member, File   string          // where it lies: the member's folder, the segment's file
	FileOffset     int64
	Reason         string
}

// ScrubSnapshot names a snapshot and the volume it was taken of.
type ScrubSnapshot struct{ Name, Volume string }

// Scrub reads every frozen block that has a checksum, and compares. One scrub of a pool at a time; it goes on while the pool is in use, also while it is
// failed or open for looking only. Problems are no error: the report counts them.
//
// A problem is not reported of what changed while it was looked at: the run was at its place before the read and after it (readFrozen), and the checksum
// is still there when the difference is found. It goes, durably, before the block can be overwritten (sums.go).
func (p *Pool) Scrub(ctx context.Context, spec ScrubSpec) (ScrubReport, error) {
	if !p.scrubbing.TryLock() {
		return ScrubReport{}, fmt.Errorf("scrub pool %q: %w: another scrub is under way", p.name(), ErrBusy)
	}
	defer p.scrubbing.Unlock()
	s := scrubber{p: p, ctx: ctx, spec: spec, limit: newLimiter(spec.Rate), buf: fsys.AlignedBuffer(sumRead * BlockSize), told: time.Now()}
	gens := s.begin()
	s.tell(true)
	for _, g := range gens {
		if err := s.generation(g); err != nil {
			return s.report, fmt.Errorf("scrub pool %q: %w", p.name(), err)
		}
	}
	s.tell(true)
	return s.report, nil
}

type scrubber struct {
	p      *Pool
	ctx    context.Context
	spec   ScrubSpec
	limit  *limiter
	buf    []byte
	report ScrubReport
	told   time.Time
}

type scrubGen struct {
	gen    uint64
	family uint32
}

// begin lists what is frozen now.
func (s *scrubber) begin() (gens []scrubGen) {
	c := s.p.catalogue
	c.mu.RLock()
	defer c.mu.RUnlock()
	freed := c.freed()
	for _, l := range c.layers {
		if l.rec.Head != 0 || freed[l.id] {
			continue
		}
		s.report.Total += l.owned.Load() * BlockSize
		for _, gen := range l.rec.Gens {
			gens = append(gens, scrubGen{gen, l.rec.Family})
		}
	}
	slices.SortFunc(gens, func(a, b scrubGen) int { return int(int64(a.gen) - int64(b.gen)) })
	return gens
}

func (s *scrubber) tell(now bool) {
	if s.spec.Progress != nil && (now || time.Since(s.told) >= scrubTell) {
		s.told = time.Now()
		s.spec.Progress(s.report)
	}
}

// pinned runs f while the pool cannot be closed.
func (p *Pool) pinned(f func() error) error {
	pin := p.epochs.Pin()
	defer p.epochs.Unpin(pin)
	if p.closed.Load() {
		return ErrClosed
	}
	return f()
}

func (s *scrubber) generation(g scrubGen) error {
	for next := uint32(0); ; {
		var pages []uint32
		err := s.p.pinned(func() (err error) {
			pages, err = touchedFrom(s.p.store.db, g.gen, next, sumPages)
			return err
		})
		if err != nil {
			return err
		}
		for _, page := range pages {
			if err := errors.Join(s.ctx.Err(), s.page(g, page)); err != nil {
				return err
			}
			s.tell(false)
		}
		if len(pages) < sumPages {
			return nil
		}
		next = pages[len(pages)-1] + 1
	}
}

// scrubPage is one look at a generation's blocks in a page.
type scrubPage struct {
	*scrubber
	scrubGen
	page  uint32
	list  []runs.Entry
	sums  *format.Sums
	good  int64
	bad   []badBlocks
	moved bool // something was moved or freed: look again
}

type badBlocks struct {
	off, n int // of the page
	place  uint64
	reason string
}

func (s *scrubber) page(g scrubGen, page uint32) error {
	var look scrubPage
	for range scrubTries {
		look = scrubPage{scrubber: s, scrubGen: g, page: page}
		if err := look.verify(); err != nil {
			return err
		}
		if !look.moved {
			break
		}
	}
	damaged := int64(0)
	for _, b := range look.bad {
		damaged += int64(b.n) * BlockSize
		if err := s.found(g, page, b); err != nil {
			return err
		}
	}
	s.report.Verified += look.good
	s.report.Damaged += damaged
	s.report.Unverified += int64(runs.Mapped(look.list))*BlockSize - look.good - damaged
	return nil
}

func (s *scrubPage) verify() error {
	err := s.p.pinned(func() (err error) {
		if s.list, err = readGeneration(s.p.store.db, s.family, s.page, s.gen); err == nil {
			s.sums, err = readSums(s.p.store.db, s.gen, s.page)
		}
		return err
	})
	if err != nil || s.sums == nil {
		return err
	}
	for _, e := range s.list {
		for at := e.Off(); at < e.End() && !e.IsZero(); at += sumRead {
			if !s.limit.wait(s.p.stop, s.ctx.Done(), min(e.End()-at, sumRead)*BlockSize) {
				return errors.Join(s.ctx.Err(), s.p.stopped())
			}
			if err := s.piece(e, at, min(e.End()-at, sumRead)); err != nil || s.moved {
				return err
			}
		}
	}
	return nil
}

func (p *Pool) stopped() error {
	if p.stopping() {
		return ErrClosed
	}
	return nil
}

// piece verifies n blocks of a run. Blocks that cannot be read together are read one by one, to tell which it is.
func (s *scrubPage) piece(e runs.Entry, at, n int) error {
	b := s.buf[:n*BlockSize]
	there, err := s.p.readFrozen(format.RunPage{Family: s.family, Page: s.page}, e, at, b)
	switch {
	case errors.Is(err, ErrClosed):
		return err
	case errors.Is(err, ErrMemberMissing): // the pool says so; nothing is damaged
		return nil
	case err != nil && n > 1:
		for i := range n {
			if err := s.piece(e, at+i, 1); err != nil || s.moved {
				return err
			}
		}
		return nil
	case err != nil:
		s.addBad(e, at, fmt.Sprintf("it cannot be read: %v", err))
		return nil
	case !there:
		s.moved = true
		return nil
	}
	for i := range n {
		want, ok := s.sums.Get(at + i)
		got := checksum(b[i*BlockSize : (i+1)*BlockSize])
		switch {
		case !ok:
		case got == want:
			s.good += BlockSize
		default:
			if err := s.differs(e, at+i, want, got); err != nil || s.moved {
				return err
			}
		}
	}
	return nil
}

// differs is told of a block that is not what its checksum says. The checksum must still be there.
func (s *scrubPage) differs(e runs.Entry, block int, want, got uint32) error {
	return s.p.pinned(func() error {
		sums, err := readSums(s.p.store.db, s.gen, s.page)
		if err != nil {
			return err
		}
		if sums == nil {
			s.moved = true
			return nil
		}
		if now, ok := sums.Get(block); !ok || now != want {
			s.moved = true
			return nil
		}
		if f := s.p.figures; f != nil {
			f.ChecksumErrors.Add(1)
		}
		s.addBad(e, block, fmt.Sprintf("its checksum is %08x, the data's %08x", want, got))
		return nil
	})
}

// addBad notes a block, beside the one before it where it continues that.
func (s *scrubPage) addBad(e runs.Entry, block int, reason string) {
	place := e.Place() + uint64(block-e.Off())
	if n := len(s.bad); n > 0 {
		if last := &s.bad[n-1]; last.off+last.n == block && last.place+uint64(last.n) == place {
			last.n++
			return
		}
	}
	s.bad = append(s.bad, badBlocks{off: block, n: 1, place: place, reason: reason})
}

// found reports a problem.
func (s *scrubber) found(g scrubGen, page uint32, b badBlocks) error {
	s.report.Problems++
	if s.spec.Found == nil || s.report.Problems > MaxScrubProblems {
		return nil
	}
	problem := ScrubProblem{
		Pool: s.p.name(), Offset: int64(page)*pageBytes + int64(b.off)*BlockSize, Length: int64(b.n) * BlockSize, Reason: b.reason,
	}
	problem.Member, problem.File, problem.FileOffset = s.p.where(b.place)
	if err := s.p.pinned(func() error { return s.p.shownBy(&problem, g, page, b) }); err != nil {
		return err
	}
	s.spec.Found(problem)
	return nil
}

// where tells where a pool block lies.
func (p *Pool) where(place uint64) (member, file string, off int64) {
	m := p.members.table.Load().at(place / alloc.SegmentBlocks)
	if m == nil || m.dev == nil {
		return "", "", 0
	}
	file, off = m.dev.Where(place)
	return m.dev.Dir(), file, off
}

// shownBy finds the snapshots and volumes that show some of a generation's blocks: those that have it in their ancestry and nothing newer there.
func (p *Pool) shownBy(problem *ScrubProblem, g scrubGen, page uint32, b badBlocks) error {
	p.catalogue.mu.RLock()
	names := p.catalogue.namesIn(g.family)
	p.catalogue.mu.RUnlock()
	for _, a := range names {
		shows, err := a.shows(p.store.db, g.gen, page, b.off, b.n)
		switch {
		case err != nil:
			return err
		case !shows:
		case a.volume != "":
			problem.Volumes = append(problem.Volumes, a.volume)
		default:
			problem.Snapshots = append(problem.Snapshots, a.snapshot)
		}
	}
	return nil
}

// scrubTimer scrubs again and again, and tells the observer what it finds.
func (p *Pool) scrubTimer() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(p.options.ScrubEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		r, err := p.Scrub(ctx, ScrubSpec{Rate: p.options.ScrubRate, Found: func(f ScrubProblem) {
			p.event("scrub found frozen blocks that are not what was written; restore them from a copy", "snapshots", f.Snapshots, "volumes", f.Volumes,
				"offset", f.Offset, "length", f.Length, "file", f.File, "fileOffset", f.FileOffset, "reason", f.Reason)
		}})
		switch {
		case errors.Is(err, ErrClosed):
			return
		case err != nil:
			p.event("scrub ended early", "error", err)
		default:
			p.event("scrub ended", "verified", r.Verified, "unverified", r.Unverified, "damaged", r.Damaged)
		}
	}
}
