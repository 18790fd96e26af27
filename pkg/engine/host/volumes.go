package host

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// CreateVolume makes a volume: empty, or from a snapshot or volume of the same pool.
func (h *Host) CreateVolume(ctx context.Context, pool string, spec engine.VolumeSpec) (info engine.VolumeInfo, err error) {
	if err := checkLabels(spec.Labels); err != nil {
		return info, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	err = h.withVolume(ctx, pool, spec.Name, func(p Pool) error {
		info, err = p.CreateVolume(ctx, spec)
		return err
	})
	return info, err
}

// Volume tells of one volume.
func (h *Host) Volume(ctx context.Context, pool, name string) (info engine.VolumeInfo, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		info, err = p.Volume(name)
		return err
	})
	return info, err
}

// Volumes tells of all volumes of a pool.
func (h *Host) Volumes(ctx context.Context, pool string) (infos []engine.VolumeInfo, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		infos = p.Volumes()
		return nil
	})
	return infos, err
}

// SetVolumeLabels sets labels; an empty value removes its key.
func (h *Host) SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (info engine.VolumeInfo, err error) {
	if err := checkLabels(set); err != nil {
		return info, fmt.Errorf("label volume %q: %w", name, err)
	}
	err = h.withVolume(ctx, pool, name, func(p Pool) error {
		info, err = p.SetVolumeLabels(ctx, name, set)
		return err
	})
	return info, err
}

// ChangeVolume sets a volume's options, attached or not.
func (h *Host) ChangeVolume(ctx context.Context, pool, name string, change engine.VolumeChange) (info engine.VolumeInfo, err error) {
	err = h.withVolume(ctx, pool, name, func(p Pool) error {
		info, err = p.ChangeVolume(ctx, name, change)
		return err
	})
	return info, err
}

// Tidy moves a volume's scattered blocks back into sequence, for about a second. The volume's lock is not taken: it may be in any use meanwhile.
func (h *Host) Tidy(ctx context.Context, pool string, spec engine.TidySpec) (step engine.TidyStep, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		step, err = p.Tidy(ctx, spec)
		return err
	})
	return step, err
}

// GrowVolume grows a volume and the device that shows it. When the second half failed, asking again does just that half.
func (h *Host) GrowVolume(ctx context.Context, pool, name string, size int64) (info engine.VolumeInfo, err error) {
	err = h.withVolume(ctx, pool, name, func(p Pool) error {
		if info, err = p.Volume(name); err != nil {
			return err
		}
		if size != info.Size {
			if info, err = p.GrowVolume(ctx, name, size); err != nil {
				return err
			}
		}
		a, err := h.attachmentOf(pool, name)
		if a == nil || a.device == nil {
			return err
		}
		if err := a.device.Resize(ctx); err != nil {
			return fmt.Errorf("grow volume %q: it has grown, its device %s has not yet; ask again: %w", name, a.device.Path(), err)
		}
		return nil
	})
	return info, err
}

// DeleteVolume deletes a volume that is not attached. Its snapshots stay.
func (h *Host) DeleteVolume(ctx context.Context, pool, name string) error {
	return h.withDetached(ctx, "delete", pool, name, func(p Pool) error { return p.DeleteVolume(ctx, name) })
}

// RollbackVolume puts a volume that is not attached back to a snapshot of its own; holder is who holds it, "" for nobody.
func (h *Host) RollbackVolume(ctx context.Context, pool, volume, snapshot, holder string) (info engine.VolumeInfo, err error) {
	if err := CheckName("snapshot", snapshot); err != nil {
		return info, err
	}
	err = h.withDetached(ctx, "roll back", pool, volume, func(p Pool) error {
		info, err = p.RollbackVolume(ctx, volume, snapshot, holder)
		return err
	})
	return info, err
}

// HoldVolume keeps a volume that is not attached from being attached. Attaching takes the volume's lock, too: it is either before, and the volume in use,
// or after, and refused.
func (h *Host) HoldVolume(ctx context.Context, pool, volume, holder string) (info engine.VolumeInfo, err error) {
	err = h.withDetached(ctx, "hold", pool, volume, func(p Pool) error {
		info, err = p.HoldVolume(ctx, volume, holder)
		return err
	})
	return info, err
}

// ReleaseVolume lets a volume be attached again.
func (h *Host) ReleaseVolume(ctx context.Context, pool, volume, holder string) (info engine.VolumeInfo, err error) {
	err = h.withVolume(ctx, pool, volume, func(p Pool) error {
		info, err = p.ReleaseVolume(ctx, volume, holder)
		return err
	})
	return info, err
}

// withDetached is withVolume for what an attached volume does not allow.
func (h *Host) withDetached(ctx context.Context, doing, pool, volume string, f func(Pool) error) error {
	return h.withVolume(ctx, pool, volume, func(p Pool) error {
		a, err := h.attachmentOf(pool, volume)
		if err != nil {
			return err
		}
		if a != nil {
			return fmt.Errorf("%s volume %q: %w: it is attached as %s; detach it first", doing, volume, engine.ErrInUse, a.path())
		}
		return f(p)
	})
}

// CreateSnapshot takes a snapshot of a volume, attached or not.
func (h *Host) CreateSnapshot(ctx context.Context, pool string, spec engine.SnapshotSpec) (info engine.SnapshotInfo, err error) {
	if err := checkSnapshotSpec(spec); err != nil {
		return info, err
	}
	// The volume's lock is not taken: a snapshot may be cut while the device is being grown or detached; the engine orders those.
	err = h.with(ctx, pool, func(p Pool) error {
		info, err = p.CreateSnapshot(ctx, spec)
		return err
	})
	return info, err
}

// CreateSnapshotGroup takes snapshots of several volumes of a pool, attached or not, in one cut: all of them or none.
func (h *Host) CreateSnapshotGroup(ctx context.Context, pool string, spec engine.SnapshotGroupSpec) (infos []engine.SnapshotInfo, err error) {
	if err := CheckName("snapshot group", spec.Name); err != nil {
		return nil, err
	}
	for _, s := range spec.Snapshots {
		if err := checkSnapshotSpec(s); err != nil {
			return nil, fmt.Errorf("create snapshot group %q: %w", spec.Name, err)
		}
	}
	err = h.with(ctx, pool, func(p Pool) error {
		infos, err = p.CreateSnapshotGroup(ctx, spec)
		return err
	})
	return infos, err
}

// Snapshot tells of one snapshot.
func (h *Host) Snapshot(ctx context.Context, pool, name string) (info engine.SnapshotInfo, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		info, err = p.Snapshot(name)
		return err
	})
	return info, err
}

// Snapshots tells of all snapshots of a pool, or of one volume.
func (h *Host) Snapshots(ctx context.Context, pool, volume string) (infos []engine.SnapshotInfo, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		infos = p.Snapshots(volume)
		return nil
	})
	return infos, err
}

// SnapshotUsage works out how many bytes deleting the snapshot would free now.
func (h *Host) SnapshotUsage(ctx context.Context, pool, name string) (freed int64, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		freed, err = p.SnapshotUsage(ctx, name)
		return err
	})
	return freed, err
}

// Diff lists ranges that are allocated, or changed since a snapshot.
func (h *Host) Diff(ctx context.Context, pool string, spec engine.DiffSpec) (page engine.DiffPage, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		page, err = p.Diff(ctx, spec)
		return err
	})
	return page, err
}

// DeleteSnapshot deletes a snapshot. Volumes made from it stay.
func (h *Host) DeleteSnapshot(ctx context.Context, pool, name string) error {
	if err := CheckName("snapshot", name); err != nil {
		return err
	}
	return h.with(ctx, pool, func(p Pool) error { return p.DeleteSnapshot(ctx, name) })
}
