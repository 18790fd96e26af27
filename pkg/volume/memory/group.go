package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateGroup implements volume.Controller. There is one pool, so volumes are never apart.
func (s *Service) CreateGroup(ctx context.Context, r volume.GroupRequest) (volume.Group, error) {
	if err := ctx.Err(); err != nil {
		return volume.Group{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.group(r.ID())) > 0 {
		return volume.Group{}, fmt.Errorf("snapshot group %q: %w", r.Name, volume.ErrExists)
	}
	g := volume.Group{ID: r.ID(), CreatedAt: s.cfg.Now()}
	for _, m := range r.Members() {
		v, ok := s.volumes[m.Source]
		if !ok {
			return volume.Group{}, fmt.Errorf("volume %s: %w", m.Source, volume.ErrSourceNotFound)
		}
		snap := cut(m, v, g.CreatedAt)
		snap.Group = g.ID
		g.Snapshots = append(g.Snapshots, snap)
	}
	if err := s.cfg.Admission.AdmitSnapshot(s.space()); err != nil {
		return volume.Group{}, err
	}
	for _, snap := range g.Snapshots {
		s.snapshots[snap.ID] = snap
	}
	return g, nil
}

// DeleteGroup implements volume.Controller.
func (s *Service) DeleteGroup(ctx context.Context, id volume.GroupID, said []volume.SnapshotID) error {
	g, err := s.GetGroup(ctx, id)
	if err != nil {
		return err
	}
	if err := volume.MatchMembers(id, g.Handles(), said); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snap := range g.Handles() {
		delete(s.snapshots, snap)
	}
	return nil
}

// GetGroup implements volume.Controller.
func (s *Service) GetGroup(ctx context.Context, id volume.GroupID) (volume.Group, error) {
	if err := ctx.Err(); err != nil {
		return volume.Group{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snaps := s.group(id)
	if len(snaps) == 0 {
		return volume.Group{}, fmt.Errorf("snapshot group %s: %w", id, volume.ErrNotFound)
	}
	return volume.Group{ID: id, Snapshots: snaps, CreatedAt: snaps[0].CreatedAt}, nil
}

// group are the snapshots of a group. The caller holds mu.
func (s *Service) group(id volume.GroupID) (snaps []volume.Snapshot) {
	for _, snap := range s.snapshots {
		if snap.Group == id {
			snaps = append(snaps, snap)
		}
	}
	slices.SortFunc(snaps, func(a, b volume.Snapshot) int { return a.Source.Compare(b.Source) })
	return snaps
}
