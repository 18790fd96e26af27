package memory

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// NodeID implements volume.Node.
func (s *Service) NodeID() volume.NodeID { return s.cfg.Node }

// Attach implements volume.Node.
func (s *Service) Attach(ctx context.Context, id volume.VolumeID, readOnly bool) (string, error) {
	err := s.change(ctx, id, func(v *record) error {
		if v.Attached && v.readOnly != readOnly {
			return fmt.Errorf("volume %s is attached with read-only %t: %w", id, v.readOnly, volume.ErrInUse)
		}
		v.Attached, v.readOnly = true, readOnly
		return nil
	})
	return devicePath(id), err
}

// Detach implements volume.Node.
func (s *Service) Detach(ctx context.Context, id volume.VolumeID) error {
	return s.change(ctx, id, func(v *record) error {
		v.Attached = false
		return nil
	})
}

// Device implements volume.Node.
func (s *Service) Device(ctx context.Context, id volume.VolumeID) (string, error) {
	err := s.change(ctx, id, func(v *record) error {
		if !v.Attached {
			return fmt.Errorf("volume %s: %w", id, volume.ErrNotAttached)
		}
		return nil
	})
	return devicePath(id), err
}

// MarkFormat implements volume.Node.
func (s *Service) MarkFormat(ctx context.Context, id volume.VolumeID, state volume.FormatState) error {
	return s.change(ctx, id, func(v *record) error {
		v.Format = state
		return nil
	})
}

// Stats implements volume.Node.
func (s *Service) Stats(ctx context.Context, id volume.VolumeID) (volume.Stats, error) {
	v, err := s.Get(ctx, id)
	return volume.Stats{Size: v.Sizing.Size, Mapped: v.Mapped}, err
}

func devicePath(id volume.VolumeID) string { return "/dev/memory/" + id.String() }
