package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

const (
	// stepPages is how many pages one commit of a background pass covers at most, stepRuns how many runs it removes, about, and stepTime how long it
	// may keep the committer with pages that it must look at there. Pages whose blocks lie all over the pool change a thousand bitmaps with every
	// commit: fewer runs in each make the pass cost more.
	stepPages = 512
	stepRuns  = 8192
	stepTime  = 2 * time.Millisecond
	// restShare is how long a pass rests after each commit, as a multiple of the time that took, while guests are busy.
	restShare = 4
	// passSync is how often a pass sees to it that its commits are durable and the blocks it took away are free, if no other commit does meanwhile.
	// A sync of the log flushes the device, and whoever writes without flushes waits for what the device has cached: with one for each commit of a
	// pass, writers lost half of their rate, the processors half idle.
	passSync = time.Second
	// jobRetry is how long a pass that went wrong rests: what it met (a read error) may pass, and freed space is wanted.
	jobRetry = 10 * time.Second
)

func (p *Pool) kickJobs() {
	select {
	case p.jobKick <- struct{}{}:
	default:
	}
}

// runJobs works the queue off, oldest first.
func (p *Pool) runJobs() {
	for {
		select {
		case <-p.stop:
			return
		case <-p.jobKick:
		}
		for !p.stopping() && p.failure() == nil && !p.jobsHeld.Load() {
			id, job, ok := p.nextJob()
			if !ok {
				break
			}
			if err := p.runJob(id, job); err != nil {
				p.event("background pass went wrong; it is tried again", "job", id, "error", err, "after", jobRetry)
				time.AfterFunc(jobRetry, p.kickJobs)
				break
			}
			p.preparing.jobEnded()
		}
	}
}

func (p *Pool) nextJob() (id uint64, job format.Job, ok bool) {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	if len(p.catalogue.jobs) == 0 {
		return 0, job, false
	}
	id = slices.Min(slices.Collect(maps.Keys(p.catalogue.jobs)))
	return id, p.catalogue.jobs[id], true
}

// runJob works one job off. Interrupting it at any point loses nothing: what it has not done is found again by the same steps.
func (p *Pool) runJob(id uint64, job format.Job) error {
	gens := job.Gens
	// A round that was composed before the job's commit was durable went by the lineage from before it, and may not be applied yet: what it hides in
	// a page that it is the first to touch would be missed. A round that begins now knows.
	p.rounds.turn.Lock()
	//lint:ignore SA2001 the end of the round under way is what is waited for
	p.rounds.turn.Unlock()
	p.moves.turn.Lock()
	//lint:ignore SA2001 likewise, for moves that COW made by the lineage from before it
	p.moves.turn.Unlock()
	if job.Kind == format.JobFree {
		p.catalogue.mu.RLock()
		l := p.catalogue.layers[job.Layer]
		if l != nil {
			gens = l.rec.Gens
		}
		p.catalogue.mu.RUnlock()
		if l == nil {
			return fmt.Errorf("%w: layer %d to be freed is not there", ErrCorrupt, job.Layer)
		}
	}
	synced := time.Now()
	for _, gen := range gens {
		for next := uint32(0); ; {
			pages, err := touchedFrom(p.store.db, gen, next, stepPages)
			if err != nil {
				return err
			}
			if len(pages) == 0 {
				break
			}
			began, busy := time.Now(), p.guestRequests()
			done, err := p.step(id, pages)
			if err != nil {
				return err
			}
			if free, _, _ := p.alloc.Free(); free == 0 || time.Since(synced) > passSync {
				if err := p.store.commitOne(func(*batch) {}, nil); err != nil {
					return err
				}
				synced = time.Now()
			}
			p.rest(time.Since(began), p.guestRequests()-busy)
			if done == 0 { // the layer has gone, and its generations with it
				break
			}
			if p.stopping() {
				return nil
			}
			next = pages[done-1] + 1
		}
	}
	return p.endJob(id)
}

// touchedFrom lists the pages that a generation has runs in, from one on, so many at most.
func touchedFrom(r reader, gen uint64, page uint32, most int) (pages []uint32, err error) {
	if page >= maxPages {
		return nil, nil // its key would be another page's
	}
	err = scan(r, format.TouchedKey(gen, page), format.Upper(format.TouchedPrefix(gen)), func(key, _ []byte) error {
		_, page, err := format.ParseTouchedKey(key)
		if err != nil {
			return err
		}
		if pages = append(pages, page); len(pages) == most {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return pages, err
}

var errEnough = errors.New("enough")

// step rewrites some of the pages, as many as fit a commit, and returns how many. What is to be done is found beforehand, beside the commits of
// others; the committer then does it where the page is as it was.
func (p *Pool) step(id uint64, pages []uint32) (done int, err error) {
	job, line := p.jobNow(id)
	if line == nil {
		return 0, nil
	}
	p.store.watchPages()
	defer p.store.unwatchPages()
	plans, err := planPass(p.store.db, job.Kind, line, pages)
	if err != nil {
		return 0, err
	}
	if !slices.ContainsFunc(plans, func(n pagePlan) bool { return n.slow || len(n.removed) > 0 }) {
		return len(plans), nil
	}
	// The job may have been handed to another layer by a join, and the layer's ancestry may have changed: ops keeps both still from here on.
	p.ops.Lock()
	defer p.ops.Unlock()
	again, now := p.jobNow(id)
	if now == nil {
		return 0, nil
	}
	c := passCommit{p: p, job: again, line: now, plans: plans}
	c.stale = now.layer != line.layer || now.own != line.own || !slices.Equal(now.gens, line.gens)
	err = p.commitLazily(c.compose, step{mutateReuseSynced, func() { p.release(c.freed) }})
	p.gained(now.layer, -blocksIn(c.freed))
	if f := p.figures; f != nil && err == nil {
		f.JoinPages.Add(uint64(c.done))
		f.FreedBlocks.Add(uint64(blocksIn(c.freed)))
	}
	return c.done, err
}

// jobNow is a job, and the ancestry of its layer; nil where it has gone.
func (p *Pool) jobNow(id uint64) (format.Job, *lineage) {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	job := p.catalogue.jobs[id]
	if l := p.catalogue.layers[job.Layer]; l != nil {
		return job, p.catalogue.lineageOf(l)
	}
	return job, nil
}

// endJob removes a job that is done; a freed layer goes with it, and its parent is looked at again.
func (p *Pool) endJob(id uint64) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	job := p.catalogue.jobs[id]
	l := p.catalogue.layers[job.Layer]
	if l == nil {
		return fmt.Errorf("%w: layer %d of a job is not there", ErrCorrupt, job.Layer)
	}
	r := &retirement{}
	r.then(func() {
		delete(p.catalogue.jobs, id)
		p.passEnded(l)
	})
	err := p.store.commitOne(func(b *batch) {
		b.remove(format.JobKey(id))
		if job.Kind == format.JobJoin {
			if l.rec.Head != 0 && p.breaks(mutateSumDrop) {
				p.dropSums(b, l.rec.Gens)
			}
			p.dropEmptyGens(b, r, l)
			return
		}
		l.gone = true
		b.remove(format.LayerKey(l.id))
		b.remove(format.LayerUseKey(l.id))
		r.then(func() { p.catalogue.dropLayer(l) })
		if parent := p.catalogue.layers[l.rec.Parent]; parent != nil && parent.rec.Head == 0 && parent.rec.Name == 0 {
			again := p.retire(b, parent, layerChange{without: l})
			r.steps = append(r.steps, again.steps...)
		}
	}, func() {
		p.catalogue.mu.Lock()
		r.apply()
		p.catalogue.mu.Unlock()
	})
	p.kickJobs()
	return err
}

// dropEmptyGens forgets generations of a joined layer that have no runs left, but for the newest, which a head's writes carry.
func (p *Pool) dropEmptyGens(b *batch, r *retirement, l *layer) {
	rec := l.rec
	rec.Gens = nil
	for i, gen := range l.rec.Gens {
		pages, err := touchedFrom(p.store.db, gen, 0, 1)
		if err != nil || len(pages) > 0 || i == len(l.rec.Gens)-1 {
			rec.Gens = append(rec.Gens, gen)
		} else {
			b.remove(format.SummedKey(gen))
			p.summing.forget(gen)
		}
	}
	if len(rec.Gens) == len(l.rec.Gens) {
		return
	}
	b.put(format.LayerKey(l.id), rec.Encode())
	r.then(func() {
		p.catalogue.dropLayer(l)
		l.rec = rec
		p.catalogue.addLayer(l)
	})
}
