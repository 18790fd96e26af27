package engine

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// catalogue is the tree of layers and the names on it, in memory as it is in the store.
//
// It changes under Pool.ops alone, one operation at a time, when the operation's commit is durable; mu is for those who look while that happens.
type catalogue struct {
	mu        sync.RWMutex
	layers    map[uint64]*layer
	volumes   map[string]*volume
	snapshots map[string]*snapshot
	byGen     map[uint64]*layer
	jobs      map[uint64]format.Job
}

// layer is a set of generations with a parent. Fields of rec change under Pool.ops and catalogue.mu.
type layer struct {
	id       uint64
	rec      format.Layer
	children map[*layer]struct{}
	readers  int  // open snapshot readers; an unnamed layer waits for them
	gone     bool // joined or freed; the committer's and Pool.ops'

	owned, pages atomic.Int64 // the committer's to change
}

// volume is a catalogue entry; Volume is an open one.
type volume struct {
	id      uint64
	rec     format.Volume
	mapped  atomic.Int64 // blocks, pending runs included
	stored  int64        // the same without them: the committer's
	written atomic.Bool
	open    *Volume
	gain    int64 // of a thick volume: blocks that its head owns and that its promise does not count; Pool.ops'
}

// setMapped sets both counts of a volume that has no pending runs.
func (v *volume) setMapped(n int64) {
	v.mapped.Store(n)
	v.stored = n
}

type snapshot struct {
	id  uint64
	rec format.Snapshot
}

func newCatalogue() *catalogue {
	return &catalogue{
		layers: map[uint64]*layer{}, volumes: map[string]*volume{}, snapshots: map[string]*snapshot{},
		byGen: map[uint64]*layer{}, jobs: map[uint64]format.Job{},
	}
}

func newLayer(id uint64, rec format.Layer) *layer {
	return &layer{id: id, rec: rec, children: map[*layer]struct{}{}}
}

// records reads every record of one kind.
func records[T any](r reader, key []byte, parse func([]byte) (T, error), f func(id uint64, rec T) error) error {
	lower, upper := format.Kind(key)
	return scan(r, lower, upper, func(k, v []byte) error {
		id, err := format.ParseID(k)
		if err != nil {
			return err
		}
		rec, err := parse(v)
		if err != nil {
			return fmt.Errorf("record %d: %w", id, err)
		}
		return f(id, rec)
	})
}

// loadCatalogue reads it all and checks that what it names is there.
func loadCatalogue(r reader) (*catalogue, error) {
	c := newCatalogue()
	uses := map[uint64]format.LayerUse{}
	volumeUses := map[uint64]format.VolumeUse{}
	err := errors.Join(
		records(r, format.LayerUseKey(0), format.ParseLayerUse, func(id uint64, u format.LayerUse) error { uses[id] = u; return nil }),
		records(r, format.VolumeUseKey(0), format.ParseVolumeUse, func(id uint64, u format.VolumeUse) error { volumeUses[id] = u; return nil }),
		records(r, format.LayerKey(0), format.ParseLayer, func(id uint64, rec format.Layer) error {
			l := newLayer(id, rec)
			l.owned.Store(int64(uses[id].Owned))
			l.pages.Store(int64(uses[id].Pages))
			c.layers[id] = l
			for _, g := range rec.Gens {
				if other := c.byGen[g]; other != nil {
					return fmt.Errorf("%w: generation %d is in layers %d and %d", ErrCorrupt, g, other.id, id)
				}
				c.byGen[g] = l
			}
			return nil
		}),
		records(r, format.VolumeKey(0), format.ParseVolume, func(id uint64, rec format.Volume) error {
			v := &volume{id: id, rec: rec}
			v.setMapped(int64(volumeUses[id].Mapped))
			v.written.Store(volumeUses[id].Written)
			c.volumes[rec.Name] = v
			return nil
		}),
		records(r, format.SnapshotKey(0), format.ParseSnapshot, func(id uint64, rec format.Snapshot) error {
			c.snapshots[rec.Name] = &snapshot{id: id, rec: rec}
			return nil
		}),
		records(r, format.JobKey(0), format.ParseJob, func(id uint64, rec format.Job) error { c.jobs[id] = rec; return nil }),
	)
	if err != nil {
		return nil, fmt.Errorf("read catalogue: %w", err)
	}
	return c, c.link()
}

func (c *catalogue) link() error {
	for _, l := range c.layers {
		if l.rec.Parent != 0 {
			parent := c.layers[l.rec.Parent]
			if parent == nil {
				return fmt.Errorf("%w: layer %d has parent %d, which is not there", ErrCorrupt, l.id, l.rec.Parent)
			}
			parent.children[l] = struct{}{}
		}
		if len(l.rec.Gens) == 0 {
			return fmt.Errorf("%w: layer %d has no generation", ErrCorrupt, l.id)
		}
	}
	for name, v := range c.volumes {
		if l := c.layers[v.rec.Layer]; l == nil || l.rec.Head != v.id {
			return fmt.Errorf("%w: volume %q has head %d, which is not its own", ErrCorrupt, name, v.rec.Layer)
		}
	}
	for name, s := range c.snapshots {
		if l := c.layers[s.rec.Layer]; l == nil || l.rec.Name != s.id {
			return fmt.Errorf("%w: snapshot %q has layer %d, which is not its own", ErrCorrupt, name, s.rec.Layer)
		}
	}
	return nil
}

// lineage is what a map of one layer needs to know of its ancestry. It never changes; a snapshot or a join makes a new one.
type lineage struct {
	layer  *layer
	family uint32
	top    uint64   // the newest generation: what a head's new runs carry
	own    uint64   // generations from this one on are the layer's own; those below are its parents'
	gens   []uint64 // all of the ancestry, ascending
}

// lineageOf walks from a layer to the root. A layer's generations were all given before it was frozen and its children's all after, so ages order the
// ancestry.
func (c *catalogue) lineageOf(l *layer) *lineage {
	line := &lineage{layer: l, family: l.rec.Family, top: l.rec.Gens[len(l.rec.Gens)-1], own: l.rec.Gens[0]}
	for at := l; at != nil; at = c.layers[at.rec.Parent] {
		line.gens = append(line.gens, at.rec.Gens...)
	}
	slices.Sort(line.gens)
	return line
}

func (g *lineage) contains(gen uint64) bool {
	_, ok := slices.BinarySearch(g.gens, gen)
	return ok
}

// before returns the ancestry's newest generation older than gen, or 0: where a scan goes on that met one of another branch.
func (g *lineage) before(gen uint64) uint64 {
	if i, _ := slices.BinarySearch(g.gens, gen); i > 0 {
		return g.gens[i-1]
	}
	return 0
}

func (g *lineage) owns(gen uint64) bool { return gen >= g.own }

// find functions return ErrNotFound with the name.
func (c *catalogue) volume(name string) (*volume, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if v := c.volumes[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("volume %q: %w", name, ErrNotFound)
}

func (c *catalogue) snapshot(name string) (*snapshot, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if s := c.snapshots[name]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("snapshot %q: %w", name, ErrNotFound)
}

func (c *catalogue) sortedVolumes() []*volume {
	return slices.SortedFunc(maps.Values(c.volumes), func(a, b *volume) int { return cmp.Compare(a.rec.Name, b.rec.Name) })
}

func (c *catalogue) sortedSnapshots() []*snapshot {
	return slices.SortedFunc(maps.Values(c.snapshots), func(a, b *snapshot) int {
		if a.rec.Created != b.rec.Created {
			return cmp.Compare(a.rec.Created, b.rec.Created)
		}
		return cmp.Compare(a.id, b.id)
	})
}

// addLayer and dropLayer keep the tree and the index of generations.
func (c *catalogue) addLayer(l *layer) {
	c.layers[l.id] = l
	for _, g := range l.rec.Gens {
		c.byGen[g] = l
	}
	if p := c.layers[l.rec.Parent]; p != nil {
		p.children[l] = struct{}{}
	}
}

func (c *catalogue) dropLayer(l *layer) {
	delete(c.layers, l.id)
	for _, g := range l.rec.Gens {
		if c.byGen[g] == l {
			delete(c.byGen, g)
		}
	}
	if p := c.layers[l.rec.Parent]; p != nil {
		delete(p.children, l)
	}
}
