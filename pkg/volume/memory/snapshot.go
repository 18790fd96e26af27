package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateSnapshot implements volume.Controller.
func (s *Service) CreateSnapshot(ctx context.Context, r volume.SnapshotRequest) (snap volume.Snapshot, err error) {
	err = s.change(ctx, r.Source, func(v *record) error {
		if _, taken := s.snapshots[r.ID()]; taken {
			return fmt.Errorf("snapshot %q: %w", r.Name, volume.ErrExists)
		}
		if err := s.cfg.Admission.AdmitSnapshot(s.space()); err != nil {
			return err
		}
		snap = cut(r, v, s.cfg.Now())
		s.snapshots[snap.ID] = snap
		return nil
	})
	return snap, asSource(err)
}

func cut(r volume.SnapshotRequest, v *record, at time.Time) volume.Snapshot {
	return volume.Snapshot{
		ID: r.ID(), Name: r.Name, Source: v.ID, Sizing: v.Sizing, FSType: v.FSType, Node: v.Node, Pool: v.Pool, CreatedAt: at,
	}
}

// DeleteSnapshot implements volume.Controller.
func (s *Service) DeleteSnapshot(ctx context.Context, id volume.SnapshotID) error {
	snap, err := s.GetSnapshot(ctx, id)
	if err != nil {
		return err
	}
	if !snap.Group.IsZero() {
		return volume.RefuseMember(id, snap.Group)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.snapshots, id)
	return nil
}

// GetSnapshot implements volume.Controller.
func (s *Service) GetSnapshot(ctx context.Context, id volume.SnapshotID) (volume.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return volume.Snapshot{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snap, ok := s.snapshots[id]
	if !ok {
		return snap, fmt.Errorf("snapshot %s: %w", id, volume.ErrNotFound)
	}
	return snap, nil
}

// ListSnapshots implements volume.Controller.
func (s *Service) ListSnapshots(ctx context.Context, f volume.SnapshotFilter, p volume.Page[volume.SnapshotID]) ([]volume.Snapshot, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []volume.Snapshot
	for _, id := range slices.SortedFunc(maps.Keys(s.snapshots), volume.SnapshotID.Compare) {
		if snap := s.snapshots[id]; f.Accepts(snap) {
			all = append(all, snap)
		}
	}
	page, more := volume.Paginate(all, p, func(v volume.Snapshot, id volume.SnapshotID) int { return v.ID.Compare(id) })
	return page, more, nil
}
