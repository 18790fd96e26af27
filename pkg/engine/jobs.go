package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

const (
	// stepPages is how many pages one commit of a background pass covers at most, and stepTime how long it may keep the committer.
	stepPages = 512
	stepTime  = 2 * time.Millisecond
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
		for !p.stopping() && p.failure() == nil {
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
	// A round that was composed before the job's commit was durable went by the lineage from before it, and may not be applied yet: what it hides in a
	// page that it is the first to touch would be missed. A round that begins now knows.
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
	for _, gen := range gens {
		for next := uint32(0); ; {
			pages, err := touchedFrom(p.store.db, gen, next, stepPages)
			if err != nil {
				return err
			}
			if len(pages) == 0 {
				break
			}
			done, err := p.step(id, pages)
			if err != nil {
				return err
			}
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
func touchedFrom(r pebble.Reader, gen uint64, page uint32, most int) (pages []uint32, err error) {
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

// step rewrites some of the pages, as many as fit a commit, and returns how many.
func (p *Pool) step(id uint64, pages []uint32) (done int, err error) {
	// The job may have been handed to another layer by a join, and the layer's ancestry may have changed: ops keeps both still meanwhile.
	p.ops.Lock()
	defer p.ops.Unlock()
	job := p.catalogue.jobs[id]
	l := p.catalogue.layers[job.Layer]
	if l == nil {
		return 0, nil
	}
	line := p.catalogue.lineageOf(l)
	var freed []extent
	err = p.commitThen(func(b *batch) (bool, error) {
		for began := time.Now(); done < len(pages) && !b.full() && (done == 0 || time.Since(began) < stepTime); done++ {
			lp, err := readLayerPage(b.s.db, line, pages[done])
			if err != nil {
				return false, err
			}
			var want []runs.Entry // of a layer to be freed: nothing
			if job.Kind == format.JobJoin {
				want = lp.apply(lp.visible(), nil)
				if runs.Covered(want) == runs.Covered(lp.own) {
					continue // nothing hidden here
				}
			}
			res, err := b.rewrite(line, pages[done], &lp, want)
			if err == nil && job.Kind == format.JobJoin && l.rec.Head == 0 {
				err = b.trimSums(pages[done], lp.own, want)
			}
			if err != nil {
				return false, fmt.Errorf("page %d: %w", pages[done], err)
			}
			if err := p.alloc.Hold(res.freed); err != nil {
				return false, err
			}
			freed = append(freed, res.freed...)
		}
		return false, nil
	}, step{mutateReuseSynced, func() { p.release(freed) }})
	if f := p.figures; f != nil && err == nil {
		f.JoinPages.Add(uint64(done))
		for _, x := range freed {
			f.FreedBlocks.Add(uint64(x.N))
		}
	}
	return done, err
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
	r.then(func() { delete(p.catalogue.jobs, id) })
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
