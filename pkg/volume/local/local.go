// Package local is the volume.Service of one node: everything straight on the engine of that node, without Kubernetes.
//
// Contract: it keeps no state. What the domain knows of an object beyond the engine is in the object's labels, written in the commit that makes it. A
// handle is the object's name in the engine, whatever pool it is in; objects whose names are no handles are somebody else's and not touched. A group
// is its snapshots: the engine keeps its name with each. An object is only said to be gone when all pools were asked: while one is not open the answer is volume.ErrFailed, so that nothing is made twice and
// no deletion is believed done.
//
// Limits: copies stay in their source's pool.
package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Engine is what is needed of an engine's client (rpc.Client).
type Engine interface {
	Pools(ctx context.Context) ([]engine.PoolInfo, error)

	CreateVolume(ctx context.Context, pool string, s engine.VolumeSpec) (engine.VolumeInfo, error)
	Volume(ctx context.Context, pool, name string) (engine.VolumeInfo, error)
	Volumes(ctx context.Context, pool string) ([]engine.VolumeInfo, error)
	GrowVolume(ctx context.Context, pool, name string, size int64) (engine.VolumeInfo, error)
	DeleteVolume(ctx context.Context, pool, name string) error
	ChangeVolume(ctx context.Context, pool, name string, change engine.VolumeChange) (engine.VolumeInfo, error)
	// SetVolumeLabels sets labels; an empty value removes its key.
	SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (engine.VolumeInfo, error)

	Attach(ctx context.Context, pool, volume string, readOnly bool) (device string, err error)
	Detach(ctx context.Context, pool, volume string) error
	// Attachments tells of one pool's attached volumes, or of all pools' ("").
	Attachments(ctx context.Context, pool string) ([]host.Attachment, error)

	CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error)
	Snapshot(ctx context.Context, pool, name string) (engine.SnapshotInfo, error)
	// Snapshots tells of one volume's snapshots, or of all ("").
	Snapshots(ctx context.Context, pool, volume string) ([]engine.SnapshotInfo, error)
	DeleteSnapshot(ctx context.Context, pool, name string) error
	// CreateSnapshotGroup takes all in one cut, or none.
	CreateSnapshotGroup(ctx context.Context, pool string, s engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error)
}

// Config says what node this is. Pool is where volumes go whose storage class names none; "" for a service that makes none.
type Config struct {
	Node      volume.NodeID
	Pool      string
	Admission volume.Admission
	Freeze    Freeze // nil: no file system is frozen, and a snapshot that needs it is refused
}

// Service is the node.
type Service struct {
	cfg    Config
	engine Engine
	admit  sync.Mutex // held from admitting bytes to their being provisioned
}

var _ volume.Service = (*Service)(nil)

// New makes the service of an engine's node. It calls nothing yet.
func New(e Engine, cfg Config) *Service { return &Service{cfg: cfg, engine: e} }

// Create implements volume.Controller.
func (s *Service) Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	if !r.Placement.Allows(s.cfg.Node) {
		return volume.Volume{}, fmt.Errorf("%w: the pool is on node %s", volume.ErrPlacement, s.cfg.Node)
	}
	origin, err := s.origin(ctx, r)
	if err != nil {
		return volume.Volume{}, err
	}
	sizing, err := volume.Fit(r.Capacity, r.FSType, origin.Sizing)
	if err != nil {
		return volume.Volume{}, err
	}
	spec, err := VolumeSpec(r, sizing, "")
	if err != nil {
		return volume.Volume{}, err
	}
	pool := first(origin.Pool, r.Parameters.Pool, s.cfg.Pool)

	s.admit.Lock()
	defer s.admit.Unlock()
	space, err := s.space(ctx, pool, r.Parameters.Pool != "")
	if err != nil {
		return volume.Volume{}, err
	}
	if err := s.cfg.Admission.Admit(space, sizing.Size, r.Parameters.Provisioning); err != nil {
		return volume.Volume{}, err
	}
	info, err := s.engine.CreateVolume(ctx, pool, spec)
	if errors.Is(err, engine.ErrNotFound) && !r.Source.IsZero() { // deleted since it was looked at
		return volume.Volume{}, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	if err != nil {
		return volume.Volume{}, translate(err)
	}
	return s.toVolume(pool, info, false), nil
}

// origin is what the request copies. Zero without a source.
func (s *Service) origin(ctx context.Context, r volume.CreateRequest) (o volume.Origin, err error) {
	switch {
	case !r.Source.Snapshot.IsZero():
		var snap volume.Snapshot
		snap, err = s.GetSnapshot(ctx, r.Source.Snapshot)
		o = volume.Origin{Sizing: snap.Sizing, FSType: snap.FSType, Node: snap.Node, Pool: snap.Pool}
	case !r.Source.Volume.IsZero():
		var v volume.Volume
		v, err = s.Get(ctx, r.Source.Volume)
		o = volume.Origin{Sizing: v.Sizing, FSType: v.FSType, Node: v.Node, Pool: v.Pool}
	default:
		return o, nil
	}
	if errors.Is(err, volume.ErrNotFound) {
		return o, fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, err)
	}
	if err != nil {
		return o, fmt.Errorf("look at %s: %w", r.Source, err)
	}
	return o, r.CheckCopy(o)
}

// Delete implements volume.Controller.
func (s *Service) Delete(ctx context.Context, id volume.VolumeID) error {
	pool, _, err := s.findVolume(ctx, id)
	if err != nil {
		return err
	}
	return translate(s.engine.DeleteVolume(ctx, pool, id.String()))
}

// Get implements volume.Controller and volume.Node.
func (s *Service) Get(ctx context.Context, id volume.VolumeID) (volume.Volume, error) {
	pool, info, err := s.findVolume(ctx, id)
	if err != nil {
		return volume.Volume{}, err
	}
	a, err := s.attachment(ctx, pool, id)
	if err != nil {
		return volume.Volume{}, err
	}
	return s.toVolume(pool, info, a != nil), nil
}

// List implements volume.Controller.
func (s *Service) List(ctx context.Context, p volume.Page[volume.VolumeID]) ([]volume.Volume, bool, error) {
	attachments, err := s.engine.Attachments(ctx, "")
	if err != nil {
		return nil, false, translate(err)
	}
	attached := map[[2]string]bool{}
	for _, a := range attachments {
		attached[[2]string{a.Pool, a.Volume}] = true
	}
	pools, err := s.pools(ctx)
	if err != nil {
		return nil, false, err
	}
	var all []volume.Volume
	for _, pool := range pools {
		infos, err := s.engine.Volumes(ctx, pool)
		if err != nil {
			return nil, false, fmt.Errorf("list volumes of pool %s: %w", pool, translate(err))
		}
		for _, info := range infos {
			if _, err := volume.ParseVolumeID(info.Name); err == nil {
				all = append(all, s.toVolume(pool, info, attached[[2]string{pool, info.Name}]))
			}
		}
	}
	slices.SortFunc(all, func(a, b volume.Volume) int { return a.ID.Compare(b.ID) })
	page, more := volume.Paginate(all, p, func(v volume.Volume, id volume.VolumeID) int { return v.ID.Compare(id) })
	return page, more, nil
}

// Expand implements volume.Controller.
func (s *Service) Expand(ctx context.Context, id volume.VolumeID, r volume.Range) (volume.Volume, error) {
	v, err := s.Get(ctx, id)
	if err != nil {
		return v, err
	}
	sizing, err := volume.FitGrowth(r, v.FSType, v.Sizing)
	if err != nil {
		return v, fmt.Errorf("volume %s: %w", id, err)
	}
	if sizing == v.Sizing {
		return v, nil
	}
	s.admit.Lock()
	defer s.admit.Unlock()
	space, err := s.space(ctx, v.Pool, false)
	if err != nil {
		return v, err
	}
	if err := s.cfg.Admission.Admit(space, sizing.Size-v.Sizing.Size, v.Parameters.Provisioning); err != nil {
		return v, err
	}
	if _, err := s.engine.SetVolumeLabels(ctx, v.Pool, id.String(), RequestedLabels(sizing)); err != nil {
		return v, translate(err)
	}
	if _, err := s.engine.GrowVolume(ctx, v.Pool, id.String(), sizing.Size); err != nil {
		return v, translate(err)
	}
	return s.Get(ctx, id)
}

// Capacity implements volume.Controller.
func (s *Service) Capacity(ctx context.Context, r volume.CapacityRequest) (volume.Capacity, error) {
	if r.Node != "" && r.Node != s.cfg.Node {
		return volume.Capacity{}, nil
	}
	space, err := s.space(ctx, first(r.Parameters.Pool, s.cfg.Pool), r.Parameters.Pool != "")
	if errors.Is(err, volume.ErrFailed) {
		return volume.Capacity{}, nil // nothing can be made there now
	}
	if err != nil {
		return volume.Capacity{}, err
	}
	return s.cfg.Admission.Capacity(space, r.FSType, r.Parameters.Provisioning), nil
}

// Health implements volume.Controller and volume.Node. It is about the engine; a pool that failed is the business of the calls that need it.
func (s *Service) Health(ctx context.Context) error {
	_, err := s.engine.Pools(ctx)
	return translate(err)
}

// space is the space of a pool that can take volumes. named says that the request chose the pool.
func (s *Service) space(ctx context.Context, pool string, named bool) (volume.Space, error) {
	pools, err := s.engine.Pools(ctx)
	if err != nil {
		return volume.Space{}, translate(err)
	}
	var names []string
	for _, p := range pools {
		if p.Name != pool {
			names = append(names, p.Name)
			continue
		}
		if p.State != stateReady {
			return volume.Space{}, fmt.Errorf("%w: pool %s on node %s is %s: %s", volume.ErrFailed, pool, s.cfg.Node, p.State, p.Reason)
		}
		return volume.Space{
			Pool: p.Name, Size: p.Size, Used: p.Used, Provisioned: p.Provisioned, Thick: p.Thick, Available: p.Available,
			Scarce: p.Level == engine.SpaceScarce || p.Level == engine.SpaceFull,
		}, nil
	}
	if named {
		return volume.Space{}, fmt.Errorf("%w: pool %q: node %s has %s", volume.ErrInvalid, pool, s.cfg.Node, first(strings.Join(names, ", "), "none"))
	}
	return volume.Space{}, fmt.Errorf("%w: node %s has no pool %q: make it with rowanctl, or choose another with --pool",
		volume.ErrFailed, s.cfg.Node, pool)
}

// stateReady is the State of a pool that takes writes.
const stateReady = "Ready"

// pools are the names of all pools, the default one first.
func (s *Service) pools(ctx context.Context) ([]string, error) {
	infos, err := s.engine.Pools(ctx)
	if err != nil {
		return nil, translate(err)
	}
	var names []string
	for _, p := range infos {
		if p.Name == s.cfg.Pool {
			names = slices.Insert(names, 0, p.Name)
		} else {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
