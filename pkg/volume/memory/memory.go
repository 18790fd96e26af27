// Package memory is a volume.Service that keeps nothing but what it is told: sizes, names, sources and states, no content. It behaves as a node with
// one pool does, so that everything above it can be tested as plain `go test`, without root, devices or an engine.
//
// Limits: its devices are paths to nothing; who "writes" to one says so with SetWritten.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// Config describes the node and its pool. Zero fields take the defaults.
type Config struct {
	Node      volume.NodeID    // default "node"
	Pool      string           // default "pool"
	Size      int64            // of the pool, in bytes; default 100 GiB
	Admission volume.Admission // default volume.DefaultAdmission
	Now       func() time.Time // default time.Now
}

// Service is the node.
type Service struct {
	cfg Config

	mu        sync.Mutex
	volumes   map[volume.VolumeID]*record           // guarded by mu, as all below
	snapshots map[volume.SnapshotID]volume.Snapshot // those of a group are the group
	health    error
}

type record struct {
	volume.Volume
	readOnly bool // how it is attached
}

var _ volume.Service = (*Service)(nil)

// New makes a node without volumes.
func New(cfg Config) *Service {
	cfg.Node = cmp.Or(cfg.Node, "node")
	cfg.Pool = cmp.Or(cfg.Pool, "pool")
	cfg.Size = cmp.Or(cfg.Size, 100<<30)
	cfg.Admission = cmp.Or(cfg.Admission, volume.DefaultAdmission)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, volumes: map[volume.VolumeID]*record{}, snapshots: map[volume.SnapshotID]volume.Snapshot{}}
}

// SetWritten makes the volume one that was written to: its content takes mapped bytes.
func (s *Service) SetWritten(id volume.VolumeID, mapped int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.volumes[id]; ok {
		v.Written, v.Mapped = true, mapped
	}
}

// SetHealth chooses what Health answers.
func (s *Service) SetHealth(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = err
}

// Create implements volume.Controller.
func (s *Service) Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	if err := ctx.Err(); err != nil {
		return volume.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.volumes[r.ID()]; taken {
		return volume.Volume{}, fmt.Errorf("volume %q: %w", r.Name, volume.ErrExists)
	}
	if p := r.Parameters.Pool; p != "" && p != s.cfg.Pool {
		return volume.Volume{}, fmt.Errorf("%w: pool %q: node %s has %q", volume.ErrInvalid, p, s.cfg.Node, s.cfg.Pool)
	}
	if !r.Placement.Allows(s.cfg.Node) {
		return volume.Volume{}, fmt.Errorf("%w: the pool is on node %s", volume.ErrPlacement, s.cfg.Node)
	}
	origin, mapped, err := s.origin(r)
	if err != nil {
		return volume.Volume{}, err
	}
	sizing, err := volume.Fit(r.Capacity, r.FSType, origin.Sizing)
	if err != nil {
		return volume.Volume{}, err
	}
	if err := s.cfg.Admission.Admit(s.space(), sizing.Size, r.Parameters.Provisioning); err != nil {
		return volume.Volume{}, err
	}
	v := volume.Volume{
		ID: r.ID(), Name: r.Name, Sizing: sizing, FSType: r.FSType, Parameters: r.Parameters.Normal(), Source: r.Source, Node: s.cfg.Node,
		Pool: s.cfg.Pool, CreatedAt: s.cfg.Now(), HasParent: !r.Source.IsZero(), Mapped: mapped,
	}
	s.volumes[v.ID] = &record{Volume: v}
	return v, nil
}

// origin is what the request copies. Zero without a source.
func (s *Service) origin(r volume.CreateRequest) (o volume.Origin, mapped int64, err error) {
	switch {
	case !r.Source.Snapshot.IsZero():
		snap, ok := s.snapshots[r.Source.Snapshot]
		if !ok {
			return o, 0, fmt.Errorf("%s: %w", r.Source, volume.ErrSourceNotFound)
		}
		o = volume.Origin{Sizing: snap.Sizing, FSType: snap.FSType, Node: snap.Node, Pool: snap.Pool}
	case !r.Source.Volume.IsZero():
		v, ok := s.volumes[r.Source.Volume]
		if !ok {
			return o, 0, fmt.Errorf("%s: %w", r.Source, volume.ErrSourceNotFound)
		}
		o, mapped = volume.Origin{Sizing: v.Sizing, FSType: v.FSType, Node: v.Node, Pool: v.Pool}, v.Mapped
	default:
		return o, 0, nil
	}
	return o, mapped, r.CheckCopy(o)
}

// Delete implements volume.Controller.
func (s *Service) Delete(ctx context.Context, id volume.VolumeID) error {
	return s.change(ctx, id, func(v *record) error {
		if v.Attached {
			return fmt.Errorf("volume %s is attached: %w", id, volume.ErrInUse)
		}
		delete(s.volumes, id)
		return nil
	})
}

// Get implements volume.Controller and volume.Node.
func (s *Service) Get(ctx context.Context, id volume.VolumeID) (v volume.Volume, err error) {
	err = s.change(ctx, id, func(r *record) error {
		v = r.Volume
		return nil
	})
	return v, err
}

// List implements volume.Controller.
func (s *Service) List(ctx context.Context, p volume.Page[volume.VolumeID]) ([]volume.Volume, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []volume.Volume
	for _, id := range slices.SortedFunc(maps.Keys(s.volumes), volume.VolumeID.Compare) {
		all = append(all, s.volumes[id].Volume)
	}
	page, more := volume.Paginate(all, p, func(v volume.Volume, id volume.VolumeID) int { return v.ID.Compare(id) })
	return page, more, nil
}

// Expand implements volume.Controller.
func (s *Service) Expand(ctx context.Context, id volume.VolumeID, r volume.Range) (v volume.Volume, err error) {
	err = s.change(ctx, id, func(rec *record) error {
		sizing, err := volume.FitGrowth(r, rec.FSType, rec.Sizing)
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if by := sizing.Size - rec.Sizing.Size; by > 0 {
			if err := s.cfg.Admission.Admit(s.space(), by, rec.Parameters.Provisioning); err != nil {
				return err
			}
		}
		rec.Sizing = sizing
		v = rec.Volume
		return nil
	})
	return v, err
}

// Modify implements volume.Controller.
func (s *Service) Modify(ctx context.Context, id volume.VolumeID, m volume.Mutable) (v volume.Volume, err error) {
	if err := m.Check(); err != nil {
		return v, fmt.Errorf("volume %s: %w", id, err)
	}
	err = s.change(ctx, id, func(rec *record) error {
		rec.Parameters = rec.Parameters.With(m).Normal()
		v = rec.Volume
		return nil
	})
	return v, err
}

// Capacity implements volume.Controller.
func (s *Service) Capacity(ctx context.Context, r volume.CapacityRequest) (volume.Capacity, error) {
	if err := ctx.Err(); err != nil {
		return volume.Capacity{}, err
	}
	if r.Parameters.Pool != "" && r.Parameters.Pool != s.cfg.Pool {
		return volume.Capacity{}, fmt.Errorf("%w: pool %q: there is %s", volume.ErrInvalid, r.Parameters.Pool, s.cfg.Pool)
	}
	if r.Node != "" && r.Node != s.cfg.Node {
		return volume.Capacity{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Admission.Capacity(s.space(), r.FSType, r.Parameters.Provisioning), nil
}

// Health implements volume.Controller and volume.Node.
func (s *Service) Health(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// refuseAt is the part of the pool in use from which on it takes nothing new.
const refuseAt = 0.95

// space is the pool's space. The caller holds mu.
func (s *Service) space() (sp volume.Space) {
	sp = volume.Space{Pool: s.cfg.Pool, Size: s.cfg.Size}
	defer func() {
		sp.Available = max(sp.Size-max(sp.Used, sp.Thick), 0)
		sp.Scarce = float64(sp.Used) >= refuseAt*float64(sp.Size)
	}()
	for _, v := range s.volumes {
		sp.Provisioned += v.Sizing.Size
		if v.Parameters.Provisioning == volume.ProvisionThick {
			sp.Thick += v.Sizing.Size
		}
		if !v.HasParent {
			sp.Used += v.Mapped
		}
	}
	return sp
}

// change runs do on the volume, with mu held.
func (s *Service) change(ctx context.Context, id volume.VolumeID, do func(*record) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.volumes[id]
	if !ok {
		return fmt.Errorf("volume %s: %w", id, volume.ErrNotFound)
	}
	return do(v)
}

// asSource makes the error of a missing volume one of a missing source.
func asSource(err error) error {
	if errors.Is(err, volume.ErrNotFound) {
		return fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, err)
	}
	return err
}
