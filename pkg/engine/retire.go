package engine

import (
	"maps"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// layerChange is what a layer loses.
type layerChange struct {
	head    bool   // it is no longer a volume's head
	name    bool   // it is no longer a snapshot's
	without *layer // this child, which goes in the same commit
}

// retirement is a change of the tree that a batch holds; apply makes it in memory, under catalogue.mu, when the batch is durable.
type retirement struct {
	steps []func()
}

func (r *retirement) apply() {
	for _, f := range r.steps {
		f()
	}
}

func (r *retirement) then(f func()) { r.steps = append(r.steps, f) }

// retire takes a layer's name or head away and composes what follows. A layer that nothing names and that is no head is freed when it has no child and
// joined with its child when it has one; with more it stays. The invariant it keeps: such a layer with fewer than two children is always queued for
// freeing, joined, or held by a reader or by a child that is being freed, whose end looks here again. Called on the committer, ops held.
func (p *Pool) retire(b *batch, l *layer, change layerChange) *retirement {
	r := &retirement{}
	rec := l.rec
	if change.head {
		rec.Head = 0
	}
	if change.name {
		rec.Name = 0
	}
	children := maps.Clone(l.children)
	delete(children, change.without)
	if rec.Head == 0 && rec.Name == 0 && l.readers == 0 && !p.beingFreed(l) {
		switch len(children) {
		case 0:
			if l.rec.Head == 0 {
				p.dropSums(b, l.rec.Gens)
			}
			p.queue(b, r, format.Job{Kind: format.JobFree, Layer: l.id})
		case 1:
			for child := range children {
				if !p.beingFreed(child) {
					p.join(b, r, l, child)
					return r
				}
			}
		}
	}
	b.put(format.LayerKey(l.id), rec.Encode())
	r.then(func() { l.rec = rec })
	return r
}

func (p *Pool) beingFreed(l *layer) bool {
	for _, j := range p.catalogue.jobs {
		if j.Kind == format.JobFree && j.Layer == l.id {
			return true
		}
	}
	return false
}

func (p *Pool) queue(b *batch, r *retirement, job format.Job) {
	id := b.s.newID()
	b.put(format.JobKey(id), job.Encode())
	r.then(func() { p.catalogue.jobs[id] = job })
}

// join gives a layer's generations to its one child. Where the child is a head, its volume overwrites those blocks in place from then on: not before
// this commit is durable, because lineages change in apply. A write under way that still took them for a parent's is told by its lineage's own mark when
// it is committed (plain). The checksums of those blocks go in this very commit (sums.go says why). The runs that are hidden now are removed by a pass over
// the pages that the smaller of the two has touched.
func (p *Pool) join(b *batch, r *retirement, l, child *layer) {
	rec := child.rec
	rec.Gens = slices.Concat(l.rec.Gens, child.rec.Gens)
	slices.Sort(rec.Gens)
	rec.Parent = l.rec.Parent
	smaller := l.rec.Gens
	if child.pages.Load() < l.pages.Load() {
		smaller = child.rec.Gens
	}
	if rec.Head != 0 && !p.breaks(mutateSumDrop) {
		p.dropSums(b, l.rec.Gens)
	}
	gain := l.owned.Load()
	b.use(child, gain, l.pages.Load())
	l.gone = true
	b.remove(format.LayerKey(l.id))
	b.remove(format.LayerUseKey(l.id))
	b.put(format.LayerKey(child.id), rec.Encode())
	for id, job := range p.catalogue.jobs {
		if job.Layer == l.id { // an earlier join's pass over the layer that goes
			job.Layer = child.id
			b.put(format.JobKey(id), job.Encode())
			r.then(func() { p.catalogue.jobs[id] = job })
		}
	}
	p.queue(b, r, format.Job{Kind: format.JobJoin, Layer: child.id, Gens: slices.Clone(smaller)})
	r.then(func() {
		c := p.catalogue
		c.dropLayer(l)
		child.rec = rec
		c.addLayer(child)
		p.gained(child, gain)
		if v := p.volumeOf(rec.Head); v != nil && v.open != nil {
			v.open.mapping.lineage.Store(c.lineageOf(child))
		}
	})
}

// volumeOf finds a volume by id; catalogue.mu is held, or ops.
func (p *Pool) volumeOf(id uint64) *volume {
	for _, v := range p.catalogue.volumes {
		if v.id == id {
			return v
		}
	}
	return nil
}

// queueUnnamed queues what an earlier process left: readers that died with it held layers that nothing names. Called before the pool serves.
func (p *Pool) queueUnnamed() error {
	for _, l := range slices.Collect(maps.Values(p.catalogue.layers)) {
		if l.rec.Head != 0 || l.rec.Name != 0 || len(l.children) > 1 || p.beingFreed(l) || p.catalogue.layers[l.id] != l {
			continue
		}
		var r *retirement
		if err := p.store.commitOne(func(b *batch) { r = p.retire(b, l, layerChange{}) }, nil); err != nil {
			return err
		}
		r.apply()
	}
	return nil
}
