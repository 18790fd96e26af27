package engine

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

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
		Name: s.rec.Name, ID: fmt.Sprintf("%x", s.id), Volume: s.rec.VolumeName, VolumeID: fmt.Sprintf("%x", s.rec.VolumeID), Group: s.rec.Group,
		Size: int64(s.rec.Size), CreatedAt: time.Unix(0, s.rec.Created).UTC(), Labels: maps.Clone(s.rec.Labels),
		Provisioning: provisioningOf(s.rec.Thick),
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
	err = p.commitThen(func(b *batch) (bool, error) {
		b.remove(format.SnapshotKey(s.id))
		r = p.retire(b, l, layerChange{name: true})
		return false, nil
	}, step{mutateJoin, func() {
		p.catalogue.mu.Lock()
		delete(p.catalogue.snapshots, name)
		r.apply()
		p.catalogue.mu.Unlock()
	}})
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
	line := p.catalogue.lineageOf(l)
	if err := p.whole(ctx, line); err != nil {
		return nil, fmt.Errorf("snapshot %q is not whole: %w", name, err)
	}
	r := &SnapshotReader{pool: p, layer: l, name: name, size: int64(s.rec.Size)}
	r.mapping.id = p.nextMap.Add(1)
	r.mapping.lineage.Store(line)
	p.maps.add(&r.mapping)
	l.readers++
	return r, nil
}

// Close lets the snapshot go. It must not be called twice.
func (r *SnapshotReader) Close() error {
	p := r.pool
	p.ops.Lock()
	defer p.ops.Unlock()
	r.mapping.closed.Store(true)
	p.maps.remove(&r.mapping)
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
