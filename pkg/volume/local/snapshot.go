package local

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateSnapshot implements volume.Controller.
func (s *Service) CreateSnapshot(ctx context.Context, r volume.SnapshotRequest) (volume.Snapshot, error) {
	source, err := s.Get(ctx, r.Source)
	if errors.Is(err, volume.ErrNotFound) {
		return volume.Snapshot{}, fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, err)
	}
	if err != nil {
		return volume.Snapshot{}, err
	}
	space, err := s.space(ctx, source.Pool, false)
	if err != nil {
		return volume.Snapshot{}, err
	}
	if err := s.cfg.Admission.AdmitSnapshot(space); err != nil {
		return volume.Snapshot{}, err
	}
	info, err := s.cut(ctx, r, source)
	if errors.Is(err, engine.ErrNotFound) {
		return volume.Snapshot{}, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	if err != nil {
		return volume.Snapshot{}, translate(err)
	}
	return s.toSnapshot(source.Pool, info), nil
}

// cut asks the engine for the snapshot, with the file system frozen where that is wanted.
func (s *Service) cut(ctx context.Context, r volume.SnapshotRequest, source volume.Volume) (info engine.SnapshotInfo, err error) {
	spec := SnapshotSpec(r, source.Sizing, source.FSType, "")
	if r.Consistency != volume.ConsistencyFreeze {
		return s.engine.CreateSnapshot(ctx, source.Pool, spec)
	}
	if err := s.freezable(source); err != nil {
		return info, err
	}
	info, _, err = FrozenCut(ctx, s.engine, s.cfg.Freeze, source.Pool, spec)
	return info, err
}

// freezable says why a volume's file system cannot be frozen.
func (s *Service) freezable(source volume.Volume) error {
	if err := volume.CheckFreeze(source.FSType); err != nil {
		return fmt.Errorf("volume %s: %w", source.Name, err)
	}
	if s.cfg.Freeze == nil {
		return fmt.Errorf("%w: consistency %s: this driver freezes no file systems", volume.ErrInvalid, volume.ConsistencyFreeze)
	}
	return nil
}

// DeleteSnapshot implements volume.Controller.
func (s *Service) DeleteSnapshot(ctx context.Context, id volume.SnapshotID) error {
	pool, info, err := s.findSnapshot(ctx, id)
	if err != nil {
		return err
	}
	if group := s.toSnapshot(pool, info).Group; !group.IsZero() {
		return volume.RefuseMember(id, group)
	}
	return translate(s.engine.DeleteSnapshot(ctx, pool, id.String()))
}

// GetSnapshot implements volume.Controller.
func (s *Service) GetSnapshot(ctx context.Context, id volume.SnapshotID) (volume.Snapshot, error) {
	pool, info, err := s.findSnapshot(ctx, id)
	if err != nil {
		return volume.Snapshot{}, err
	}
	return s.toSnapshot(pool, info), nil
}

// ListSnapshots implements volume.Controller.
func (s *Service) ListSnapshots(ctx context.Context, f volume.SnapshotFilter, p volume.Page[volume.SnapshotID]) ([]volume.Snapshot, bool, error) {
	all, err := s.choose(ctx, f)
	if err != nil {
		return nil, false, err
	}
	slices.SortFunc(all, func(a, b volume.Snapshot) int { return a.ID.Compare(b.ID) })
	page, more := volume.Paginate(all, p, func(v volume.Snapshot, id volume.SnapshotID) int { return v.ID.Compare(id) })
	return page, more, nil
}

func (s *Service) choose(ctx context.Context, f volume.SnapshotFilter) (all []volume.Snapshot, err error) {
	if !f.ID.IsZero() {
		snap, err := s.GetSnapshot(ctx, f.ID)
		switch {
		case errors.Is(err, volume.ErrNotFound):
			return nil, nil
		case err != nil:
			return nil, err
		case f.Accepts(snap):
			return []volume.Snapshot{snap}, nil
		}
		return nil, nil
	}
	pools, err := s.pools(ctx)
	if err != nil {
		return nil, err
	}
	for _, pool := range pools {
		infos, err := s.engine.Snapshots(ctx, pool, f.Source.String())
		if err != nil {
			return nil, fmt.Errorf("list snapshots of pool %s: %w", pool, translate(err))
		}
		for _, info := range infos {
			if snap := s.toSnapshot(pool, info); !snap.ID.IsZero() && !snap.Source.IsZero() && f.Accepts(snap) {
				all = append(all, snap)
			}
		}
	}
	return all, nil
}
