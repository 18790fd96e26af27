package hosttest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

type volume struct{ info engine.VolumeInfo }

// CreateVolume makes a volume.
func (p *Pool) CreateVolume(ctx context.Context, spec engine.VolumeSpec) (engine.VolumeInfo, error) {
	unlock, err := p.begin(ctx, "CreateVolume", spec.Name)
	defer unlock()
	if err != nil {
		return engine.VolumeInfo{}, err
	}
	if p.volumes[spec.Name] != nil {
		return engine.VolumeInfo{}, fmt.Errorf("volume %q: %w", spec.Name, engine.ErrExists)
	}
	size := spec.Size
	if spec.FromSnapshot != "" {
		s, err := p.snapshot(spec.FromSnapshot)
		if err != nil {
			return engine.VolumeInfo{}, err
		}
		size = max(size, s.Size)
	}
	if spec.FromVolume != "" {
		v, err := p.volume(spec.FromVolume)
		if err != nil {
			return engine.VolumeInfo{}, err
		}
		size = max(size, v.info.Size)
	}
	if size <= 0 || size%engine.SizeUnit != 0 {
		return engine.VolumeInfo{}, fmt.Errorf("volume %q: %w: size %d is not a positive multiple of 1 MiB", spec.Name, engine.ErrInvalid, size)
	}
	v := &volume{info: engine.VolumeInfo{
		Name: spec.Name, ID: p.e.nextID(), Size: size, HasParent: spec.FromSnapshot+spec.FromVolume != "",
		FromSnapshot: spec.FromSnapshot, FromVolume: spec.FromVolume, CreatedAt: Epoch, Labels: maps.Clone(spec.Labels),
		Provisioning: cmp.Or(spec.Provisioning, engine.ProvisionThin),
	}}
	if v.info.Provisioning == engine.ProvisionThick {
		v.info.Reserved = size
	}
	p.volumes[spec.Name] = v
	return v.info, nil
}

// Volume tells of one.
func (p *Pool) Volume(name string) (engine.VolumeInfo, error) {
	unlock, err := p.begin(context.Background(), "Volume", name)
	defer unlock()
	if err != nil {
		return engine.VolumeInfo{}, err
	}
	v, err := p.volume(name)
	if err != nil {
		return engine.VolumeInfo{}, err
	}
	return v.info, nil
}

// Volumes tells of all.
func (p *Pool) Volumes() []engine.VolumeInfo {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	var l []engine.VolumeInfo
	for _, v := range p.volumes {
		l = append(l, v.info)
	}
	slices.SortFunc(l, func(a, b engine.VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return l
}

// change runs f on a volume's info.
func (p *Pool) change(ctx context.Context, op, name string, f func(*engine.VolumeInfo) error) (engine.VolumeInfo, error) {
	unlock, err := p.begin(ctx, op, name)
	defer unlock()
	if err != nil {
		return engine.VolumeInfo{}, err
	}
	v, err := p.volume(name)
	if err != nil {
		return engine.VolumeInfo{}, err
	}
	if err := f(&v.info); err != nil {
		return engine.VolumeInfo{}, fmt.Errorf("volume %q: %w", name, err)
	}
	return v.info, nil
}

// SetVolumeLabels sets labels.
func (p *Pool) SetVolumeLabels(ctx context.Context, name string, set map[string]string) (engine.VolumeInfo, error) {
	return p.change(ctx, "SetVolumeLabels", name, func(i *engine.VolumeInfo) error {
		labels := maps.Clone(i.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, set)
		maps.DeleteFunc(labels, func(_, v string) bool { return v == "" })
		i.Labels = labels
		return nil
	})
}

// ChangeVolume sets a volume's options.
func (p *Pool) ChangeVolume(ctx context.Context, name string, change engine.VolumeChange) (engine.VolumeInfo, error) {
	return p.change(ctx, "ChangeVolume", name, func(i *engine.VolumeInfo) error {
		if change.Mode != nil {
			i.Mode = *change.Mode
		}
		if change.Tidy != nil {
			i.Tidy = *change.Tidy
		}
		return nil
	})
}

// Tidy says that half of the volume was done, or the rest.
func (p *Pool) Tidy(ctx context.Context, spec engine.TidySpec) (engine.TidyStep, error) {
	info, err := p.change(ctx, "Tidy", spec.Volume, func(*engine.VolumeInfo) error { return nil })
	step := engine.TidyStep{Size: info.Size, Pages: 1, Moved: 4 << 20}
	if spec.Start == 0 {
		step.Next = info.Size / 2
	}
	return step, err
}

// GrowVolume grows a volume.
func (p *Pool) GrowVolume(ctx context.Context, name string, size int64) (engine.VolumeInfo, error) {
	return p.change(ctx, "GrowVolume", name, func(i *engine.VolumeInfo) error {
		if size < i.Size {
			return engine.ErrShrink
		}
		i.Size = size
		return nil
	})
}

// DeleteVolume deletes a closed volume.
func (p *Pool) DeleteVolume(ctx context.Context, name string) error {
	_, err := p.change(ctx, "DeleteVolume", name, func(i *engine.VolumeInfo) error {
		if i.Open {
			return engine.ErrInUse
		}
		delete(p.volumes, name)
		return nil
	})
	return err
}

// RollbackVolume notes that it was done.
func (p *Pool) RollbackVolume(ctx context.Context, name, snapshot, _ string) (engine.VolumeInfo, error) {
	return p.change(ctx, "RollbackVolume", name, func(i *engine.VolumeInfo) error {
		s, err := p.snapshot(snapshot)
		switch {
		case err != nil:
			return err
		case s.Volume != name:
			return engine.ErrNotDescendant
		case i.Open:
			return engine.ErrInUse
		}
		i.HasParent, i.Owned = true, 0
		return nil
	})
}

// HoldVolume notes the holder.
func (p *Pool) HoldVolume(ctx context.Context, name, holder string) (engine.VolumeInfo, error) {
	return p.change(ctx, "HoldVolume", name, func(i *engine.VolumeInfo) error {
		if i.Open {
			return engine.ErrInUse
		}
		i.Labels = maps.Clone(i.Labels)
		if i.Labels == nil {
			i.Labels = map[string]string{}
		}
		maps.Copy(i.Labels, engine.Holding(holder, time.Now()))
		return nil
	})
}

// ReleaseVolume forgets the holder.
func (p *Pool) ReleaseVolume(ctx context.Context, name, holder string) (engine.VolumeInfo, error) {
	return p.change(ctx, "ReleaseVolume", name, func(i *engine.VolumeInfo) error {
		i.Labels = maps.Clone(i.Labels)
		for k := range engine.Holding(holder, time.Now()) {
			delete(i.Labels, k)
		}
		return nil
	})
}

// Wrote makes the volume look as if so many blocks had been written to it, a quarter of them for the first time.
func (p *Pool) Wrote(name string, blocks uint64) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	i := &p.volumes[name].info
	first := blocks / 4
	i.Written, i.Owned, i.Mapped = true, i.Owned+int64(first)*engine.BlockSize, i.Mapped+int64(first)*engine.BlockSize
	if i.Counters == nil {
		i.Counters = &engine.Counters{}
	}
	c := *i.Counters
	c.Writes, c.WriteBytes = c.Writes+blocks, c.WriteBytes+blocks*engine.BlockSize
	c.DataWrites, c.DataWriteBytes = c.DataWrites+blocks, c.DataWriteBytes+blocks*engine.BlockSize
	c.FirstWrites, c.FirstWriteBytes = c.FirstWrites+first, c.FirstWriteBytes+first*engine.BlockSize
	c.Flushes++
	p.metadata.LogPayload += 30 * first
	p.metadata.Flush += 20 * first
	p.metadata.Compaction += 30 * first
	p.metadata.LogPadding += 4096
	p.metadata.LogWrites++
	i.Counters = &c
}

// OpenVolume opens a volume once.
func (p *Pool) OpenVolume(ctx context.Context, name string) (host.Volume, error) {
	_, err := p.change(ctx, "OpenVolume", name, func(i *engine.VolumeInfo) error {
		if i.Open {
			return engine.ErrInUse
		}
		i.Open = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &openVolume{p: p, name: name}, nil
}

type openVolume struct {
	p    *Pool
	name string
}

func (v *openVolume) Close(ctx context.Context) error {
	_, err := v.p.change(ctx, "CloseVolume", v.name, func(i *engine.VolumeInfo) error {
		i.Open, i.Counters = false, nil
		return nil
	})
	return err
}

func (v *openVolume) Size() int64 {
	v.p.e.mu.Lock()
	defer v.p.e.mu.Unlock()
	return v.p.volumes[v.name].info.Size
}

func (v *openVolume) io(op string, off, length int64) (int, error) {
	if err := v.p.e.before(context.Background(), op, v.name); err != nil {
		return 0, err
	}
	return int(length), block.CheckRange(off, length, v.Size(), v.SectorSize())
}

func (v *openVolume) SectorSize() int { return block.SectorSize }
func (v *openVolume) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return v.io("ReadAt", off, int64(len(p)))
}
func (v *openVolume) WriteAt(p []byte, off int64) (int, error) {
	return v.io("WriteAt", off, int64(len(p)))
}
func (v *openVolume) Discard(off, length int64) error {
	_, err := v.io("Discard", off, length)
	return err
}
func (v *openVolume) WriteZeroes(off, length int64) error {
	_, err := v.io("WriteZeroes", off, length)
	return err
}
func (v *openVolume) Flush() error {
	_, err := v.io("Flush", 0, 0)
	return err
}
