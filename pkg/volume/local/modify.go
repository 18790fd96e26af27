package local

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Modify implements volume.Controller. The engine first, then the labels that Get answers from: whoever dies between the two is asked again, and does
// both again.
func (s *Service) Modify(ctx context.Context, id volume.VolumeID, m volume.Mutable) (volume.Volume, error) {
	if err := m.Check(); err != nil {
		return volume.Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	v, err := s.Get(ctx, id)
	if err != nil {
		return v, err
	}
	p := v.Parameters.With(m).Normal()
	mode, err := engine.ParseMode(string(p.Mode))
	if err != nil {
		return v, translate(err)
	}
	if _, err := s.engine.ChangeVolume(ctx, v.Pool, id.String(), engine.VolumeChange{Mode: &mode, Tidy: &p.Tidy}); err != nil {
		return v, translate(err)
	}
	labels := map[string]string{labelMode: string(p.Mode), labelTidy: ""}
	if p.Tidy {
		labels[labelTidy] = "true"
	}
	if _, err := s.engine.SetVolumeLabels(ctx, v.Pool, id.String(), labels); err != nil {
		return v, translate(err)
	}
	return s.Get(ctx, id)
}
