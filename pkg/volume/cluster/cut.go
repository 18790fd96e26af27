package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateSnapshot implements volume.Controller.
func (s *Service) CreateSnapshot(caller context.Context, r volume.SnapshotRequest) (volume.Snapshot, error) {
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalSnapshot
	err := s.carryOut(caller, ctx, command{
		obj: &o, name: r.ID().String(), csi: r.Name,
		make: func(ctx context.Context, notAfter time.Time) error {
			source, err := s.cuttable(ctx, r)
			if err == nil {
				o = *newSnapshot(r, source, notAfter)
			}
			return err
		},
		same: func() error { return asSnapshot(&o, "").Satisfies(r) },
		done: func(context.Context) error { return fmt.Errorf("snapshot %q: %w", r.Name, volume.ErrExists) },
		till: func() time.Time { return o.Spec.NotAfter.Time },
	})
	if err != nil {
		return volume.Snapshot{}, err
	}
	return s.snapshot(caller, &o)
}

// cuttable is the volume to cut, if its node can be asked and its pool has room for what writes will take after the cut.
func (s *Service) cuttable(ctx context.Context, r volume.SnapshotRequest) (*v1alpha1.LocalVolume, error) {
	v, err := s.cutSource(ctx, r.Source)
	if err == nil && r.Consistency == volume.ConsistencyFreeze {
		err = freezable(v)
	}
	if err != nil {
		return nil, err
	}
	return v, s.cutsNow(ctx, v.Spec.Location)
}

// freezable says why a volume has no file system to freeze.
func freezable(v *v1alpha1.LocalVolume) error {
	if err := volume.CheckFreeze(v.Spec.FSType); err != nil {
		return fmt.Errorf("volume %s: %w", v.Spec.CSIName, err)
	}
	return nil
}

// cutSource is a volume that is there to be cut.
func (s *Service) cutSource(ctx context.Context, id volume.VolumeID) (*v1alpha1.LocalVolume, error) {
	var v v1alpha1.LocalVolume
	if err := s.source(ctx, id.String(), &v); err != nil {
		return nil, err
	}
	if stateOf(&v).is(v1alpha1.Lost) {
		return nil, fmt.Errorf("%w: volume %s: pool %s on node %s has it no more", volume.ErrLost, id, v.Spec.Pool, v.Spec.NodeName)
	}
	return &v, nil
}

// cutsNow says whether a pool's volumes can be cut: its node can be asked, and it has room for what writes will take after the cut.
func (s *Service) cutsNow(ctx context.Context, at v1alpha1.Location) error {
	c, err := s.candidateNamed(ctx, at, anyVolume)
	if err != nil {
		return err
	}
	if c.away != nil {
		return c.away
	}
	if err := notServing(c.pool); err != nil {
		return err
	}
	return c.admission.AdmitSnapshot(c.space)
}

// DeleteSnapshot implements volume.Controller. One of a group is refused, unless its group's object is gone: then nothing else would ever delete it.
func (s *Service) DeleteSnapshot(caller context.Context, id volume.SnapshotID) error {
	return s.delete(caller, id.String(), &v1alpha1.LocalSnapshot{})
}
