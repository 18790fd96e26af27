package local

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// NodeID implements volume.Node.
func (s *Service) NodeID() volume.NodeID { return s.cfg.Node }

// Attach implements volume.Node.
func (s *Service) Attach(ctx context.Context, id volume.VolumeID, readOnly bool) (string, error) {
	pool, _, err := s.findVolume(ctx, id)
	if err != nil {
		return "", err
	}
	device, err := s.engine.Attach(ctx, pool, id.String(), readOnly)
	return device, translate(err)
}

// Detach implements volume.Node.
func (s *Service) Detach(ctx context.Context, id volume.VolumeID) error {
	pool, _, err := s.findVolume(ctx, id)
	if err != nil {
		return err
	}
	return translate(s.engine.Detach(ctx, pool, id.String()))
}

// Device implements volume.Node.
func (s *Service) Device(ctx context.Context, id volume.VolumeID) (string, error) {
	pool, _, err := s.findVolume(ctx, id)
	if err != nil {
		return "", err
	}
	a, err := s.attachment(ctx, pool, id)
	if err != nil {
		return "", err
	}
	if a == nil || a.Device == "" {
		return "", fmt.Errorf("volume %s: %w", id, volume.ErrNotAttached)
	}
	return a.Device, nil
}

// MarkFormat implements volume.Node.
func (s *Service) MarkFormat(ctx context.Context, id volume.VolumeID, state volume.FormatState) error {
	pool, _, err := s.findVolume(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.engine.SetVolumeLabels(ctx, pool, id.String(), map[string]string{labelFormat: string(state)})
	return translate(err)
}

// Stats implements volume.Node.
func (s *Service) Stats(ctx context.Context, id volume.VolumeID) (volume.Stats, error) {
	_, info, err := s.findVolume(ctx, id)
	if err != nil {
		return volume.Stats{}, err
	}
	return volume.Stats{Size: info.Size, Mapped: info.Mapped}, nil
}

// Labels are those that a volume has in the engine.
func (s *Service) Labels(ctx context.Context, id volume.VolumeID) (map[string]string, error) {
	_, info, err := s.findVolume(ctx, id)
	return info.Labels, err
}

// attachment is how the volume is attached, nil if it is not. What is attached is asked for and not whether the volume is open: while an engine
// starts, a device may wait for its volume.
func (s *Service) attachment(ctx context.Context, pool string, id volume.VolumeID) (*host.Attachment, error) {
	all, err := s.engine.Attachments(ctx, pool)
	if err != nil {
		return nil, translate(err)
	}
	for _, a := range all {
		if a.Volume == id.String() {
			return &a, nil
		}
	}
	return nil, nil
}
