package local

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// What may be asked for is what the engine cuts at once: this does not compile where it cuts less.
const _ = uint(engine.MaxGroup - volume.MaxGroup)

// CreateGroup implements volume.Controller.
func (s *Service) CreateGroup(ctx context.Context, r volume.GroupRequest) (volume.Group, error) {
	spec := engine.SnapshotGroupSpec{Name: r.ID().String()}
	var places []volume.Place
	for _, m := range r.Members() {
		source, err := s.Get(ctx, m.Source)
		if errors.Is(err, volume.ErrNotFound) {
			return volume.Group{}, fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, err)
		}
		if err == nil && r.Consistency == volume.ConsistencyFreeze {
			err = s.freezable(source)
		}
		if err != nil {
			return volume.Group{}, err
		}
		spec.Snapshots = append(spec.Snapshots, SnapshotSpec(m, source.Sizing, source.FSType, ""))
		places = append(places, volume.Place{Volume: source.Name, Pool: source.Pool, Node: string(source.Node)})
	}
	if err := volume.CheckTogether(places); err != nil {
		return volume.Group{}, err
	}
	pool := places[0].Pool
	space, err := s.space(ctx, pool, false)
	if err != nil {
		return volume.Group{}, err
	}
	if err := s.cfg.Admission.AdmitSnapshot(space); err != nil {
		return volume.Group{}, err
	}
	var infos []engine.SnapshotInfo
	if r.Consistency == volume.ConsistencyFreeze {
		infos, _, err = FrozenGroupCut(ctx, s.engine, s.cfg.Freeze, pool, spec)
	} else {
		infos, err = s.engine.CreateSnapshotGroup(ctx, pool, spec)
	}
	if errors.Is(err, engine.ErrNotFound) {
		return volume.Group{}, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	if err != nil {
		return volume.Group{}, translate(err)
	}
	return s.toGroup(pool, r.ID(), infos), nil
}

// DeleteGroup implements volume.Controller. What it did not come to when the process died is deleted by the repeated call. A snapshot that somebody
// deleted in the engine is none that the caller is wrong about.
func (s *Service) DeleteGroup(ctx context.Context, id volume.GroupID, said []volume.SnapshotID) error {
	pool, infos, err := s.findGroup(ctx, id)
	if err != nil {
		return err
	}
	have := s.toGroup(pool, id, infos).Handles()
	var there []volume.SnapshotID
	for _, snap := range said {
		if !slices.Contains(have, snap) {
			if _, _, err := s.findSnapshot(ctx, snap); errors.Is(err, volume.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
		}
		there = append(there, snap)
	}
	if len(said) > 0 && len(there) == 0 {
		return fmt.Errorf("%w: group %s has none of the %d snapshots named", volume.ErrInvalid, id, len(said))
	}
	if err := volume.MatchMembers(id, have, there); err != nil {
		return err
	}
	for _, snap := range have {
		if err := s.engine.DeleteSnapshot(ctx, pool, snap.String()); err != nil && !errors.Is(err, engine.ErrNotFound) {
			return translate(err)
		}
	}
	return nil
}

// GetGroup implements volume.Controller.
func (s *Service) GetGroup(ctx context.Context, id volume.GroupID) (volume.Group, error) {
	pool, infos, err := s.findGroup(ctx, id)
	if err != nil {
		return volume.Group{}, err
	}
	return s.toGroup(pool, id, infos), nil
}

// findGroup is what the pool that has a group has of it.
func (s *Service) findGroup(ctx context.Context, id volume.GroupID) (pool string, infos []engine.SnapshotInfo, err error) {
	return find(ctx, s, "snapshot group", id.String(), func(ctx context.Context, pool, name string) ([]engine.SnapshotInfo, error) {
		all, err := s.engine.Snapshots(ctx, pool, "")
		if err != nil {
			return nil, err
		}
		infos := slices.DeleteFunc(all, func(i engine.SnapshotInfo) bool { return i.Group != name })
		if len(infos) == 0 {
			return nil, fmt.Errorf("snapshot group %q in pool %q: %w", name, pool, engine.ErrNotFound)
		}
		return infos, nil
	})
}

func (s *Service) toGroup(pool string, id volume.GroupID, infos []engine.SnapshotInfo) volume.Group {
	g := volume.Group{ID: id, CreatedAt: infos[0].CreatedAt}
	for _, info := range infos {
		g.Snapshots = append(g.Snapshots, s.toSnapshot(pool, info))
	}
	slices.SortFunc(g.Snapshots, func(a, b volume.Snapshot) int { return a.Source.Compare(b.Source) })
	return g
}
