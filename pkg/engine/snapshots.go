package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// gatesShut is the longest a cut keeps writers out; then it gives up, retryable.
const gatesShut = time.Second

// cutVolume is one volume's part of a cut.
type cutVolume struct {
	v      *volume
	frozen *layer
	head   *layer
	name   uint64 // the snapshot that will name the frozen layer; 0: none
}

// cut freezes the heads of volumes and puts new ones on top, all in one commit. Called with ops held.
//
// Promise "the cut", in this order: a round, where much is pending - shut the gates of all its volumes, in order of their ids, and wait for admitted
// writes to end - flush the members and commit every pending run, the freeze and the new heads in one synced batch - only then let the new heads take
// writes - open the gates - answer. A write acknowledged before the request is in, one sent after the answer is out, and none changes the snapshot later.
func (p *Pool) cut(volumes []*volume, compose func(b *batch, cuts []*cutVolume), durable func()) error {
	if p.pages.pending.Load() > 4*p.preparing.many {
		if err := p.flush(); err != nil {
			return err
		}
	}
	volumes = slices.Clone(volumes)
	slices.SortFunc(volumes, func(a, b *volume) int { return int(int64(a.id) - int64(b.id)) })
	timeout := time.NewTimer(gatesShut)
	defer timeout.Stop()
	for _, v := range volumes {
		if v.open == nil {
			continue
		}
		if !v.open.gate.shut(timeout.C) {
			return fmt.Errorf("volume %q: %w: writes under way did not end within %v", v.rec.Name, ErrBusy, gatesShut)
		}
		defer v.open.gate.open()
	}
	var cuts []*cutVolume
	for _, v := range volumes {
		cuts = append(cuts, &cutVolume{v: v, frozen: p.catalogue.layers[v.rec.Layer]})
	}
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	return p.commitPending(func(b *batch) error {
		for _, c := range cuts {
			c.head = p.newHead(c.v.id, c.frozen)
		}
		compose(b, cuts)
		for _, c := range cuts {
			frozen, rec := c.frozen.rec, c.v.rec
			frozen.Head, frozen.Name, rec.Layer = 0, c.name, c.head.id
			b.put(format.LayerKey(c.frozen.id), frozen.Encode())
			b.put(format.LayerKey(c.head.id), c.head.rec.Encode())
			b.put(format.VolumeKey(c.v.id), rec.Encode())
		}
		return nil
	}, func() {
		p.catalogue.mu.Lock()
		for _, c := range cuts {
			c.frozen.rec.Head, c.frozen.rec.Name, c.v.rec.Layer = 0, c.name, c.head.id
			p.catalogue.addLayer(c.head)
			if c.v.open != nil {
				c.v.open.mapping.lineage.Store(p.catalogue.lineageOf(c.head))
			}
		}
		p.catalogue.mu.Unlock()
		durable()
	})
}

// CreateSnapshot takes a snapshot of a volume, in use or not. One commit, whatever the size.
func (p *Pool) CreateSnapshot(ctx context.Context, spec SnapshotSpec) (SnapshotInfo, error) {
	if err := errors.Join(checkName("snapshot", spec.Name), checkLabels(spec.Labels)); err != nil {
		return SnapshotInfo{}, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return SnapshotInfo{}, err
	}
	if _, err := p.catalogue.snapshot(spec.Name); err == nil {
		return SnapshotInfo{}, fmt.Errorf("snapshot %q in pool %q: %w", spec.Name, p.name(), ErrExists)
	}
	v, err := p.catalogue.volume(spec.Volume)
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot %q: %w", spec.Name, err)
	}
	s := &snapshot{id: p.store.newID()}
	err = p.cut([]*volume{v}, func(b *batch, cuts []*cutVolume) {
		c := cuts[0]
		c.name = s.id
		s.rec = format.Snapshot{
			Name: spec.Name, Layer: c.frozen.id, VolumeID: v.id, VolumeName: v.rec.Name, Size: v.rec.Size, Mapped: uint64(v.mapped.Load()),
			Created: time.Now().UnixNano(), Labels: maps.Clone(spec.Labels),
		}
		b.put(format.SnapshotKey(s.id), s.rec.Encode())
	}, func() {
		p.catalogue.mu.Lock()
		p.catalogue.snapshots[spec.Name] = s
		p.catalogue.mu.Unlock()
	})
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot %q of volume %q: %w", spec.Name, spec.Volume, err)
	}
	return p.snapshotInfo(s), nil
}

// Snapshot tells about one snapshot.
func (p *Pool) Snapshot(name string) (SnapshotInfo, error) {
	s, err := p.catalogue.snapshot(name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return p.snapshotInfo(s), nil
}

// Snapshots tells about all snapshots of a volume, or of the pool for "", oldest first.
func (p *Pool) Snapshots(volume string) []SnapshotInfo {
	p.catalogue.mu.RLock()
	list := p.catalogue.sortedSnapshots()
	p.catalogue.mu.RUnlock()
	infos := []SnapshotInfo{}
	for _, s := range list {
		if volume == "" || s.rec.VolumeName == volume {
			infos = append(infos, p.snapshotInfo(s))
		}
	}
	return infos
}

func (p *Pool) snapshotInfo(s *snapshot) SnapshotInfo {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	info := SnapshotInfo{
		Name: s.rec.Name, ID: fmt.Sprintf("%x", s.id), Volume: s.rec.VolumeName, VolumeID: fmt.Sprintf("%x", s.rec.VolumeID), Size: int64(s.rec.Size),
		CreatedAt: time.Unix(0, s.rec.Created).UTC(), Labels: maps.Clone(s.rec.Labels),
	}
	if l := p.catalogue.layers[s.rec.Layer]; l != nil {
		info.Owned = l.owned.Load() * BlockSize
	}
	return info
}

// DeleteSnapshot takes the name away at once; what only this snapshot needed is freed behind the scenes, when the last reader has closed. No data is
// copied, and no space is needed.
func (p *Pool) DeleteSnapshot(ctx context.Context, name string) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return err
	}
	s, err := p.catalogue.snapshot(name)
	if err != nil {
		return err
	}
	l := p.catalogue.layers[s.rec.Layer]
	var r *retirement
	err = p.store.commitOne(func(b *batch) {
		b.remove(format.SnapshotKey(s.id))
		r = p.retire(b, l, layerChange{name: true})
	}, func() {
		p.catalogue.mu.Lock()
		delete(p.catalogue.snapshots, name)
		r.apply()
		p.catalogue.mu.Unlock()
	})
	p.kickJobs()
	if err != nil {
		return fmt.Errorf("delete snapshot %q: %w", name, err)
	}
	return nil
}

// SnapshotUsage counts the bytes that deleting the snapshot would free now: all that its layer owns when nothing descends from it; what its one child has
// replaced when there is one; nothing when there are more.
func (p *Pool) SnapshotUsage(ctx context.Context, name string) (int64, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if p.closed.Load() {
		return 0, ErrClosed
	}
	s, err := p.catalogue.snapshot(name)
	if err != nil {
		return 0, err
	}
	if p.readOnly == nil {
		if err := p.flush(); err != nil {
			return 0, err
		}
	}
	l := p.catalogue.layers[s.rec.Layer]
	switch len(l.children) {
	case 0:
		return l.owned.Load() * BlockSize, nil
	case 1:
		for child := range l.children {
			n, err := p.hiddenBy(ctx, l, child)
			return n * BlockSize, err
		}
	}
	return 0, nil
}

// hiddenBy counts the blocks of a layer that its child's runs hide, over the pages that the smaller of the two has touched.
func (p *Pool) hiddenBy(ctx context.Context, l, child *layer) (hidden int64, err error) {
	smaller := l
	if child.pages.Load() < l.pages.Load() {
		smaller = child
	}
	both := p.catalogue.lineageOf(child)
	both.own = l.rec.Gens[0]
	seen := map[uint32]struct{}{}
	for _, gen := range smaller.rec.Gens {
		prefix := format.TouchedPrefix(gen)
		err := scan(p.store.db, prefix, format.Upper(prefix), func(key, _ []byte) error {
			_, page, err := format.ParseTouchedKey(key)
			if err != nil {
				return err
			}
			if _, ok := seen[page]; ok {
				return ctx.Err()
			}
			seen[page] = struct{}{}
			lp, err := readLayerPage(p.store.db, both, page)
			if err != nil {
				return err
			}
			hidden += int64(runs.Mapped(lp.own) - runs.Mapped(lp.visible()))
			return ctx.Err()
		})
		if err != nil {
			return 0, err
		}
	}
	return hidden, nil
}

// SnapshotReader reads a snapshot: a read-only block.Device. While one is open, its snapshot can be deleted by name; its blocks are freed when the last
// reader closes.
type SnapshotReader struct {
	pool    *Pool
	layer   *layer
	name    string
	size    int64
	mapping mapping
	count   volumeCounters
}

var _ block.Device = (*SnapshotReader)(nil)

// OpenSnapshot opens a snapshot for reading.
func (p *Pool) OpenSnapshot(ctx context.Context, name string) (*SnapshotReader, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if p.closed.Load() {
		return nil, ErrClosed
	}
	s, err := p.catalogue.snapshot(name)
	if err != nil {
		return nil, err
	}
	l := p.catalogue.layers[s.rec.Layer]
	r := &SnapshotReader{pool: p, layer: l, name: name, size: int64(s.rec.Size)}
	r.mapping.id = p.nextMap.Add(1)
	r.mapping.lineage.Store(p.catalogue.lineageOf(l))
	l.readers++
	return r, nil
}

// Close lets the snapshot go. It must not be called twice.
func (r *SnapshotReader) Close() error {
	p := r.pool
	p.ops.Lock()
	defer p.ops.Unlock()
	r.mapping.closed.Store(true)
	r.layer.readers--
	// What a closed or failed pool does not free now is queued when it is opened again.
	if l := r.layer; l.readers > 0 || l.rec.Name != 0 || l.rec.Head != 0 || p.refusal() != nil {
		return nil
	}
	var re *retirement
	err := p.store.commitOne(func(b *batch) { re = p.retire(b, r.layer, layerChange{}) }, func() {
		p.catalogue.mu.Lock()
		re.apply()
		p.catalogue.mu.Unlock()
	})
	p.kickJobs()
	return err
}

// ReadAt reads.
func (r *SnapshotReader) ReadAt(b []byte, off int64) (int, error) {
	if err := block.CheckRange(off, int64(len(b)), r.size, sectorSize); err != nil {
		return 0, fmt.Errorf("snapshot %q, %d bytes at %d: %w", r.name, len(b), off, err)
	}
	if err := readMapped(r.pool, &r.mapping, &r.count, b, off); err != nil {
		return 0, fmt.Errorf("read snapshot %q at %d: %w", r.name, off, err)
	}
	return len(b), nil
}

// WriteAt, Discard and WriteZeroes are refused.
func (r *SnapshotReader) WriteAt([]byte, int64) (int, error)  { return 0, r.refuse() }
func (r *SnapshotReader) Discard(off, length int64) error     { return r.refuse() }
func (r *SnapshotReader) WriteZeroes(off, length int64) error { return r.refuse() }
func (r *SnapshotReader) Flush() error                        { return nil }
func (r *SnapshotReader) Size() int64                         { return r.size }
func (r *SnapshotReader) SectorSize() int                     { return sectorSize }
func (r *SnapshotReader) refuse() error {
	return fmt.Errorf("snapshot %q: %w", r.name, block.ErrReadOnly)
}
