package engine

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// CreateVolume makes a volume: blank, a restore of a snapshot, or a clone of a volume, which may be in use. One commit, whatever the size.
func (p *Pool) CreateVolume(ctx context.Context, spec VolumeSpec) (VolumeInfo, error) {
	if err := checkVolumeSpec(spec); err != nil {
		return VolumeInfo{}, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return VolumeInfo{}, err
	}
	if _, err := p.catalogue.volume(spec.Name); err == nil {
		return VolumeInfo{}, fmt.Errorf("volume %q in pool %q: %w", spec.Name, p.name(), ErrExists)
	}
	if err := p.admitNew(); err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	var v *volume
	var err error
	switch {
	case spec.FromVolume != "":
		v, err = p.cloneVolume(spec)
	case spec.FromSnapshot != "":
		v, err = p.restoreSnapshot(spec)
	default:
		v, err = p.blankVolume(spec)
	}
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	return p.volumeInfo(v), nil
}

func checkVolumeSpec(spec VolumeSpec) error {
	if err := checkName("volume", spec.Name); err != nil {
		return err
	}
	if err := spec.Mode.check(); err != nil {
		return fmt.Errorf("volume %q: %w", spec.Name, err)
	}
	if spec.FromSnapshot != "" && spec.FromVolume != "" {
		return fmt.Errorf("%w: volume %q cannot be made from a snapshot and a volume at once", ErrInvalid, spec.Name)
	}
	if spec.Size == 0 && (spec.FromSnapshot != "" || spec.FromVolume != "") {
		return checkLabels(spec.Labels)
	}
	if err := checkSize(spec.Size); err != nil {
		return fmt.Errorf("volume %q: %w", spec.Name, err)
	}
	return checkLabels(spec.Labels)
}

func checkSize(size int64) error {
	if size <= 0 || size > MaxVolumeSize || size%SizeUnit != 0 {
		return fmt.Errorf("%w: size of %d bytes: want a multiple of 1 MiB from 1 MiB to 64 TiB", ErrInvalid, size)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	n := 0
	for k, v := range labels {
		n += len(k) + len(v)
		if k == "" {
			return fmt.Errorf("%w: a label with an empty key", ErrInvalid)
		}
	}
	if n > MaxLabelsLen {
		return fmt.Errorf("%w: %d bytes of labels, at most %d are kept", ErrInvalid, n, MaxLabelsLen)
	}
	return nil
}

// newHead makes a head layer on a parent (nil: a family of its own), not yet in the catalogue.
func (p *Pool) newHead(volumeID uint64, parent *layer) *layer {
	rec := format.Layer{Head: volumeID, Gens: []uint64{p.store.nextGen.Add(1) - 1}}
	if parent == nil {
		rec.Family = p.store.nextFamily.Add(1) - 1
	} else {
		rec.Family, rec.Parent = parent.rec.Family, parent.id
	}
	return newLayer(p.store.newID(), rec)
}

func (s *store) newID() uint64 { return s.nextID.Add(1) - 1 }

func (p *Pool) newVolume(spec VolumeSpec, size int64, parent *layer, mapped int64, thick bool) (*volume, *layer) {
	v := &volume{id: p.store.newID()}
	head := p.newHead(v.id, parent)
	v.rec = format.Volume{
		Name: spec.Name, Size: uint64(size), Layer: head.id, Created: time.Now().UnixNano(), HasParent: parent != nil,
		FromSnapshot: spec.FromSnapshot, FromVolume: spec.FromVolume, Labels: maps.Clone(spec.Labels),
		Mode: byte(spec.Mode), Tidy: spec.Tidy, Thick: thick, FirstGen: head.rec.Gens[0],
	}
	v.setMapped(mapped)
	return v, head
}

func putVolume(b *batch, v *volume, head *layer) {
	b.put(format.LayerKey(head.id), head.rec.Encode())
	b.put(format.VolumeKey(v.id), v.rec.Encode())
	b.put(format.VolumeUseKey(v.id), format.VolumeUse{Mapped: uint64(v.stored), Written: v.written.Load()}.Encode())
}

func (p *Pool) addVolume(v *volume, head *layer) {
	p.catalogue.mu.Lock()
	defer p.catalogue.mu.Unlock()
	p.catalogue.addLayer(head)
	p.catalogue.volumes[v.rec.Name] = v
}

func (p *Pool) blankVolume(spec VolumeSpec) (*volume, error) {
	thick, err := provision(spec.Provisioning, false)
	if err != nil {
		return nil, err
	}
	v, head := p.newVolume(spec, spec.Size, nil, 0, thick)
	return v, p.commitVolume(v, head)
}

func (p *Pool) restoreSnapshot(spec VolumeSpec) (*volume, error) {
	s, err := p.catalogue.snapshot(spec.FromSnapshot)
	if err != nil {
		return nil, err
	}
	size, err := sizeFrom(spec, int64(s.rec.Size), "snapshot", spec.FromSnapshot)
	if err != nil {
		return nil, err
	}
	thick, err := provision(spec.Provisioning, s.rec.Thick)
	if err != nil {
		return nil, err
	}
	v, head := p.newVolume(spec, size, p.catalogue.layers[s.rec.Layer], int64(s.rec.Mapped), thick)
	return v, p.commitVolume(v, head)
}

// commitVolume makes a volume whose head is new.
func (p *Pool) commitVolume(v *volume, head *layer) error {
	undo, err := p.promiseNew(v)
	if err != nil {
		return err
	}
	if err := p.store.commitOne(func(b *batch) { putVolume(b, v, head) }, func() { p.addVolume(v, head) }); err != nil {
		undo()
		return err
	}
	return nil
}

func sizeFrom(spec VolumeSpec, source int64, kind, name string) (int64, error) {
	if spec.Size == 0 {
		return source, nil
	}
	if spec.Size < source {
		return 0, fmt.Errorf("%w: size of %d bytes is smaller than %s %q, which has %d", ErrInvalid, spec.Size, kind, name, source)
	}
	return spec.Size, nil
}

// cloneVolume cuts the source and puts two heads on the frozen layer, its own and the clone's. The layer has no name; it lives while both do.
func (p *Pool) cloneVolume(spec VolumeSpec) (*volume, error) {
	source, err := p.catalogue.volume(spec.FromVolume)
	if err != nil {
		return nil, err
	}
	size, err := sizeFrom(spec, int64(source.rec.Size), "volume", spec.FromVolume)
	if err != nil {
		return nil, err
	}
	thick, err := provision(spec.Provisioning, source.rec.Thick)
	if err != nil {
		return nil, err
	}
	frozen := p.catalogue.layers[source.rec.Layer]
	// Only when the gates are shut it is known how much it maps.
	v, head := p.newVolume(spec, size, frozen, 0, thick)
	undo, err := p.promiseNew(v)
	if err != nil {
		return nil, err
	}
	err = p.cut([]*volume{source}, func(b *batch, _ []*cutVolume) {
		head = p.newHead(v.id, frozen)
		v.rec.Layer, v.rec.FirstGen = head.id, head.rec.Gens[0]
		v.setMapped(source.mapped.Load())
		putVolume(b, v, head)
	}, func() { p.addVolume(v, head) })
	if err != nil {
		undo()
	}
	return v, err
}

// Volume tells about one volume.
func (p *Pool) Volume(name string) (VolumeInfo, error) {
	v, err := p.catalogue.volume(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	return p.volumeInfo(v), nil
}

// Volumes tells about all, by name.
func (p *Pool) Volumes() []VolumeInfo {
	p.catalogue.mu.RLock()
	list := p.catalogue.sortedVolumes()
	p.catalogue.mu.RUnlock()
	infos := make([]VolumeInfo, len(list))
	for i, v := range list {
		infos[i] = p.volumeInfo(v)
	}
	return infos
}

func (p *Pool) volumeInfo(v *volume) VolumeInfo {
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	info := VolumeInfo{
		Name: v.rec.Name, ID: fmt.Sprintf("%x", v.id), Size: int64(v.rec.Size), Mapped: v.mapped.Load() * BlockSize, Written: v.written.Load(),
		HasParent: v.rec.HasParent, FromSnapshot: v.rec.FromSnapshot, FromVolume: v.rec.FromVolume, Open: v.open != nil,
		CreatedAt: time.Unix(0, v.rec.Created).UTC(), Labels: maps.Clone(v.rec.Labels), Mode: Mode(v.rec.Mode), Tidy: v.rec.Tidy,
		Provisioning: provisioningOf(v.rec.Thick),
	}
	if n, ok := p.alloc.PromiseOf(v.id); ok {
		info.Reserved = max(n, 0) * BlockSize
	}
	if l := p.catalogue.layers[v.rec.Layer]; l != nil {
		info.Owned = l.owned.Load() * BlockSize
	}
	if v.open != nil {
		info.Counters = v.open.count.snapshot()
	}
	return info
}

// changeVolume commits a change of a volume's record.
func (p *Pool) changeVolume(name string, change func(rec *format.Volume) error, then func(v *volume)) (VolumeInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.catalogue.volume(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	if err := p.refusal(); err != nil {
		return VolumeInfo{}, err
	}
	return p.commitChange(v, change, then)
}

// commitChange is changeVolume of a volume in hand, with ops held.
func (p *Pool) commitChange(v *volume, change func(rec *format.Volume) error, then func(v *volume)) (VolumeInfo, error) {
	rec := v.rec
	rec.Labels = maps.Clone(rec.Labels)
	if err := change(&rec); err != nil {
		return VolumeInfo{}, fmt.Errorf("volume %q: %w", rec.Name, err)
	}
	err := p.store.commitOne(func(b *batch) { b.put(format.VolumeKey(v.id), rec.Encode()) }, func() {
		p.catalogue.mu.Lock()
		v.rec = rec
		p.catalogue.mu.Unlock()
		if then != nil {
			then(v)
		}
	})
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("change volume %q: %w", rec.Name, err)
	}
	return p.volumeInfo(v), nil
}

// SetVolumeLabels sets labels; an empty value removes one.
func (p *Pool) SetVolumeLabels(ctx context.Context, name string, set map[string]string) (VolumeInfo, error) {
	return p.changeVolume(name, func(rec *format.Volume) error { return setLabels(rec, set) }, nil)
}

// GrowVolume makes a volume larger, open or not. The new size is durable before the device shows it.
func (p *Pool) GrowVolume(ctx context.Context, name string, size int64) (VolumeInfo, error) {
	if err := checkSize(size); err != nil {
		return VolumeInfo{}, err
	}
	return p.changeVolume(name, func(rec *format.Volume) error {
		if size < int64(rec.Size) {
			return fmt.Errorf("%w: it has %d bytes, asked for %d", ErrShrink, rec.Size, size)
		}
		if rec.Thick {
			v, err := p.catalogue.volume(name)
			if err == nil {
				err = p.promise(v.id, blocksOf(uint64(size)-rec.Size))
			}
			if err != nil {
				return err
			}
		}
		rec.Size = uint64(size)
		return nil
	}, func(v *volume) {
		if v.open != nil {
			v.open.size.Store(size)
		}
	})
}

// OpenVolume opens a volume for reading and writing. One opening at a time.
func (p *Pool) OpenVolume(ctx context.Context, name string) (*Volume, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.catalogue.volume(name)
	if err != nil {
		return nil, err
	}
	if p.closed.Load() {
		return nil, ErrClosed
	}
	if v.open != nil {
		return nil, fmt.Errorf("volume %q: %w: it is open already", name, ErrInUse)
	}
	if err := heldBy(v, ""); err != nil {
		return nil, err
	}
	line := p.catalogue.lineageOf(p.catalogue.layers[v.rec.Layer])
	if err := p.whole(ctx, line); err != nil {
		return nil, fmt.Errorf("volume %q is not whole: %w", name, err)
	}
	open := &Volume{pool: p, entry: v, name: name}
	open.mapping.id = p.nextMap.Add(1)
	open.mapping.lineage.Store(line)
	open.size.Store(int64(v.rec.Size))
	open.mode.Store(uint32(v.rec.Mode))
	open.first = v.rec.FirstGen
	if err := p.showFlushes(open); err != nil {
		return nil, err
	}
	p.maps.add(&open.mapping)
	p.catalogue.mu.Lock()
	defer p.catalogue.mu.Unlock()
	v.open = open
	open.figures = p.figures.opened(name)
	return open, nil
}

// closeVolume lets an open volume go, after a round. Pending runs never outlive it: a volume that is not open has none.
func (p *Pool) closeVolume(ctx context.Context, v *Volume) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	if !v.closed.CompareAndSwap(false, true) {
		return ErrClosed
	}
	v.mapping.closed.Store(true)
	<-v.gate.shut() // requests under way end first; those that come later find it closed
	v.gate.open()
	err := p.failure()
	if err == nil {
		err = p.flush()
	}
	p.alloc.Forget(v.entry.id)
	p.alloc.Forget(v.entry.id | copyOwner)
	p.maps.remove(&v.mapping)
	p.catalogue.mu.Lock()
	defer p.catalogue.mu.Unlock()
	v.entry.open = nil
	p.figures.closed(v.name)
	if err != nil {
		return fmt.Errorf("close volume %q: %w", v.name, err)
	}
	return nil
}

// DeleteVolume removes a volume that is not open. Its snapshots stay. Its blocks are freed behind the scenes.
func (p *Pool) DeleteVolume(ctx context.Context, name string) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.closedVolume(name)
	if err != nil {
		return err
	}
	head := p.catalogue.layers[v.rec.Layer]
	var r *retirement
	err = p.store.commitOne(func(b *batch) {
		b.remove(format.VolumeKey(v.id))
		b.remove(format.VolumeUseKey(v.id))
		r = p.retire(b, head, layerChange{head: true})
	}, func() {
		p.catalogue.mu.Lock()
		delete(p.catalogue.volumes, name)
		r.apply()
		p.catalogue.mu.Unlock()
		p.alloc.DropPromise(v.id)
	})
	p.kickJobs()
	if err != nil {
		return fmt.Errorf("delete volume %q: %w", name, err)
	}
	return nil
}

func (p *Pool) closedVolume(name string) (*volume, error) {
	v, err := p.catalogue.volume(name)
	if err != nil {
		return nil, err
	}
	if err := p.refusal(); err != nil {
		return nil, err
	}
	if v.open != nil {
		return nil, fmt.Errorf("volume %q: %w: detach it first", name, ErrInUse)
	}
	return v, nil
}

// RollbackVolume puts a volume that is not open back to one of its snapshots. Newer snapshots survive; the volume keeps its present size: what lies
// beyond the snapshot's is zero.
//
// holder is "", or who holds the volume. For a holder it is done once: the commit that rolls back says who asked and lets the volume go, so that asking
// again, after the answer was lost, changes nothing and never takes back what was written since.
func (p *Pool) RollbackVolume(ctx context.Context, name, snapshotName, holder string) (VolumeInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.catalogue.volume(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	if holder != "" && v.rec.Labels[labelRollbackBy] == holder {
		return p.volumeInfo(v), nil // open or not: it was done before
	}
	if v, err = p.closedVolume(name); err == nil {
		err = heldBy(v, holder)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	if holder != "" && v.rec.Labels[labelHoldBy] == "" {
		return VolumeInfo{}, fmt.Errorf("roll back volume %q: %w: %s does not hold it any more", name, ErrBusy, holder)
	}
	s, err := p.catalogue.snapshot(snapshotName)
	if err != nil {
		return VolumeInfo{}, err
	}
	if s.rec.VolumeID != v.id {
		return VolumeInfo{}, fmt.Errorf("roll back volume %q: %w: %q is of volume %q; restore it to a new volume instead", name, ErrNotDescendant, snapshotName,
			s.rec.VolumeName)
	}
	old := p.catalogue.layers[v.rec.Layer]
	head := p.newHead(v.id, p.catalogue.layers[s.rec.Layer])
	rec := v.rec
	rec.Layer, rec.HasParent = head.id, true
	if holder != "" {
		if err := setLabels(&rec, rolled(holder, snapshotName, time.Now())); err != nil {
			return VolumeInfo{}, fmt.Errorf("roll back volume %q: %w", name, err)
		}
		if p.breaks(mutateRollbackHeld) {
			if _, err := p.commitChange(v, func(early *format.Volume) error { early.Labels = rec.Labels; return nil }, nil); err != nil {
				return VolumeInfo{}, err
			}
		}
	}
	var r *retirement
	err = p.store.commitOne(func(b *batch) {
		b.put(format.LayerKey(head.id), head.rec.Encode())
		b.put(format.VolumeKey(v.id), rec.Encode())
		b.put(format.VolumeUseKey(v.id), format.VolumeUse{Mapped: s.rec.Mapped, Written: v.written.Load()}.Encode())
		r = p.retire(b, old, layerChange{head: true})
	}, func() {
		p.catalogue.mu.Lock()
		v.rec = rec
		v.setMapped(int64(s.rec.Mapped))
		p.catalogue.addLayer(head)
		r.apply()
		p.catalogue.mu.Unlock()
		p.promiseWhole(v)
	})
	p.kickJobs()
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("roll back volume %q: %w", name, err)
	}
	return p.volumeInfo(v), nil
}

// VolumeChange says what ChangeVolume sets; nil: it stays as it is.
type VolumeChange struct {
	Mode *Mode // writes under way end as they began
	Tidy *bool
}

// ChangeVolume sets a volume's options, open or not.
func (p *Pool) ChangeVolume(ctx context.Context, name string, change VolumeChange) (VolumeInfo, error) {
	if change.Mode != nil {
		if err := change.Mode.check(); err != nil {
			return VolumeInfo{}, fmt.Errorf("volume %q: %w", name, err)
		}
	}
	return p.changeVolume(name, func(rec *format.Volume) error {
		if change.Mode != nil {
			rec.Mode = byte(*change.Mode)
		}
		if change.Tidy != nil {
			rec.Tidy = *change.Tidy
		}
		return nil
	}, func(v *volume) {
		if v.open != nil {
			v.open.mode.Store(uint32(v.rec.Mode))
		}
	})
}
