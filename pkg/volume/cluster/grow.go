package cluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// Expand implements volume.Controller. A growth that another call began is waited for where it is enough, and raised where it is not.
func (s *Service) Expand(caller context.Context, id volume.VolumeID, r volume.Range) (volume.Volume, error) {
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalVolume
	size, err := s.change(ctx, id, &o, "expand", func() (int64, error) { return s.raise(ctx, &o, r) })
	if err != nil {
		return volume.Volume{}, err
	}
	err = s.await(caller, ctx, &o, "expand", func() verdict {
		if o.Status.Size != nil && o.Status.Size.Value() >= size {
			return verdict{done: true}
		}
		c := stateOf(&o).refused(v1alpha1.Resized)
		if c != nil && reason.Final(c.Reason) {
			return verdict{done: true, err: reason.Err(c.Reason, c.Message)}
		}
		return verdict{late: c}
	})
	if err != nil {
		return volume.Volume{}, err
	}
	return s.volume(caller, &o)
}

// raise puts the size into o's spec that r asks for, and answers it. What is promised already is not admitted again.
func (s *Service) raise(ctx context.Context, o *v1alpha1.LocalVolume, r volume.Range) (int64, error) {
	now := sizing(o)
	want, err := volume.FitGrowth(r, o.Spec.FSType, now)
	if err != nil {
		return 0, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	promised := promised(o)
	switch {
	case want.Size <= now.Size || want.Size <= promised && r.Accepts(promised):
		return want.Size, nil
	case want.Size < promised:
		return 0, fmt.Errorf("%w: volume %s is growing to %d bytes already, over the limit of %d", volume.ErrOutOfRange, o.Name, promised, r.Limit)
	}
	c, err := s.candidateNamed(ctx, o.Spec.Location, anyVolume)
	if err == nil {
		err = c.admit(want.Size-promised, volume.Provisioning(o.Spec.Provisioning))
	}
	if err != nil {
		return 0, err
	}
	o.Spec.Size, o.Spec.Requested = bytes(want.Size), bytes(want.Requested)
	return want.Size, nil
}

// Modify implements volume.Controller.
func (s *Service) Modify(caller context.Context, id volume.VolumeID, m volume.Mutable) (volume.Volume, error) {
	if err := m.Check(); err != nil {
		return volume.Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalVolume
	_, err := s.change(ctx, id, &o, "modify", func() (int64, error) {
		p := volume.Parameters{Mode: volume.Mode(o.Spec.Mode), Tidy: o.Spec.Tidy}.With(m).Normal()
		if string(p.Mode) == o.Spec.Mode && p.Tidy == o.Spec.Tidy {
			return 0, nil
		}
		o.Spec.Mode, o.Spec.Tidy = string(p.Mode), p.Tidy
		return 0, s.agents.away(o.Spec.NodeName)
	})
	if err != nil {
		return volume.Volume{}, err
	}
	err = s.await(caller, ctx, &o, "modify", func() verdict {
		st := stateOf(&o)
		c := meta.FindStatusCondition(st.conditions, v1alpha1.Modified)
		switch {
		case o.Generation == 1, c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration >= o.Generation:
			return verdict{done: true} // never changed, or changed
		case c != nil && c.Status == metav1.ConditionFalse && c.ObservedGeneration >= o.Generation && reason.Final(c.Reason):
			return verdict{done: true, err: reason.Err(c.Reason, c.Message)}
		}
		return verdict{late: st.refused(v1alpha1.Modified)}
	})
	if err != nil {
		return volume.Volume{}, err
	}
	return s.volume(caller, &o)
}

// change reads a volume into o, lets do change its spec, and writes that where it did. It starts over when somebody else was faster.
func (s *Service) change(ctx context.Context, id volume.VolumeID, o *v1alpha1.LocalVolume, doing string, do func() (int64, error)) (int64, error) {
	if err := s.find(ctx, id.String(), o); err != nil {
		return 0, err
	}
	for {
		if stateOf(o).absent {
			return 0, fmt.Errorf("volume %s is being removed: %w", id, volume.ErrPending)
		}
		before := o.DeepCopy()
		size, err := do()
		if err != nil {
			return 0, err
		}
		if equalSpec(before, o) {
			return size, nil
		}
		err = s.cfg.Client.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if err == nil {
			return size, nil
		}
		if !apierrors.IsConflict(err) && !missing(err) {
			return 0, apiError(doing+" volume "+o.Name, err)
		}
		found, err := s.live(ctx, id.String(), o)
		if err != nil {
			return 0, err
		}
		if !found {
			return 0, fmt.Errorf("volume %s: %w", id, volume.ErrNotFound)
		}
	}
}

func equalSpec(a, b *v1alpha1.LocalVolume) bool {
	return a.Spec.Size.Cmp(b.Spec.Size) == 0 && a.Spec.Requested.Cmp(b.Spec.Requested) == 0 && a.Spec.Mode == b.Spec.Mode && a.Spec.Tidy == b.Spec.Tidy
}
