package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// Create implements volume.Controller. A volume that somebody began to make is waited for, although its source is gone by now or the pool is full.
func (s *Service) Create(caller context.Context, r volume.CreateRequest) (volume.Volume, error) {
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalVolume
	found, err := s.cached(ctx, r.ID().String(), &o)
	if err == nil && found {
		found, err = s.live(ctx, r.ID().String(), &o)
	}
	if err != nil {
		return volume.Volume{}, err
	}
	if found {
		return s.join(caller, ctx, &o, r)
	}
	planned, err := s.plan(ctx, r)
	if err != nil {
		// The cache may not have yet what another process made, before the source went or the pool was full.
		if found, liveErr := s.live(ctx, r.ID().String(), &o); liveErr == nil && found {
			return s.join(caller, ctx, &o, r)
		}
		return volume.Volume{}, err
	}
	o = *planned
	switch err := s.cfg.Client.Create(ctx, &o); {
	case apierrors.IsAlreadyExists(err):
		if found, err = s.live(ctx, r.ID().String(), &o); err != nil {
			return volume.Volume{}, err
		}
		if !found {
			return volume.Volume{}, fmt.Errorf("volume %q was removed meanwhile: %w", r.Name, volume.ErrPending)
		}
		return s.join(caller, ctx, &o, r)
	case err != nil:
		return volume.Volume{}, apiError("create volume "+o.Name, err)
	}
	if err := s.awaitCreated(caller, ctx, &o, "create", func() error { return s.secondLook(ctx, &o) }); err != nil {
		return volume.Volume{}, err
	}
	return s.volume(caller, &o)
}

// plan is the object of a volume that can be made.
func (s *Service) plan(ctx context.Context, r volume.CreateRequest) (*v1alpha1.LocalVolume, error) {
	from, err := s.origin(ctx, r.Source)
	if err != nil {
		return nil, err
	}
	pools, err := s.candidates(ctx)
	if err != nil {
		return nil, err
	}
	pool, sizing, err := place(r, s.poolSet(r.Parameters), from, pools)
	if err != nil {
		return nil, err
	}
	return newVolume(r, sizing, pool), nil
}

// join waits for a volume that somebody else began to make, if it is what is asked for. o was read live.
func (s *Service) join(caller, ctx context.Context, o *v1alpha1.LocalVolume, r volume.CreateRequest) (volume.Volume, error) {
	st := stateOf(o)
	switch {
	case st.absent || st.gone():
		if st.is(v1alpha1.Deleted) {
			if err := s.release(ctx, o); err != nil {
				return volume.Volume{}, err
			}
		}
		return volume.Volume{}, fmt.Errorf("volume %q is being removed: %w", r.Name, volume.ErrPending)
	case st.is(v1alpha1.Created):
		return volume.Volume{}, fmt.Errorf("volume %q: %w", r.Name, volume.ErrExists)
	}
	v, err := s.volume(ctx, o)
	if err != nil {
		return v, err
	}
	if err := v.Satisfies(r); err != nil {
		return v, err
	}
	if err := s.agents.away(st.node); err != nil {
		return v, reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("create volume %s: %v", o.Name, err))
	}
	if err := s.awaitCreated(caller, ctx, o, "create", nil); err != nil {
		return v, err
	}
	return s.volume(caller, o)
}

// secondLook is volume.ErrNoSpace if volumes that are older than o, or made already, leave no room for it: somebody else was admitted at the same
// time.
func (s *Service) secondLook(ctx context.Context, o *v1alpha1.LocalVolume) error {
	older := func(v *v1alpha1.LocalVolume) bool {
		if v.Name == o.Name {
			return false
		}
		if a, b := v.CreationTimestamp, o.CreationTimestamp; !a.Equal(&b) {
			return a.Before(&b) || stateOf(v).is(v1alpha1.Created)
		}
		return strings.Compare(v.Name, o.Name) < 0 || stateOf(v).is(v1alpha1.Created)
	}
	c, err := s.candidateNamed(ctx, o.Spec.Location, older)
	if err != nil {
		return nil // not a matter of space: the node decides
	}
	return c.admission.Admit(c.space, o.Spec.Size.Value(), volume.Provisioning(o.Spec.Provisioning))
}

// origin is what a copy is made of, nil for a blank volume.
func (s *Service) origin(ctx context.Context, src volume.Source) (*origin, error) {
	o := &origin{}
	var obj client.Object
	switch {
	case !src.Snapshot.IsZero():
		var snap v1alpha1.LocalSnapshot
		if err := s.source(ctx, src.Snapshot.String(), &snap); err != nil {
			return nil, err
		}
		d := asSnapshot(&snap, "")
		o.Origin, o.at, obj = volume.Origin{Sizing: d.Sizing, FSType: d.FSType, Pool: d.Pool}, snap.Spec.Location, &snap
	case !src.Volume.IsZero():
		var v v1alpha1.LocalVolume
		if err := s.source(ctx, src.Volume.String(), &v); err != nil {
			return nil, err
		}
		d := asVolume(&v, "")
		o.Origin, o.at, obj = volume.Origin{Sizing: d.Sizing, FSType: d.FSType, Pool: d.Pool}, v.Spec.Location, &v
	default:
		return nil, nil
	}
	if stateOf(obj).is(v1alpha1.Lost) {
		return nil, fmt.Errorf("%w: %s: pool %s on node %s has it no more", volume.ErrLost, src, o.at.Pool, o.at.NodeName)
	}
	var p v1alpha1.Pool
	if _, err := s.cached(ctx, o.at.Pool, &p); err != nil {
		return nil, err
	}
	o.poolSet = p.Spec.PoolSet
	var err error
	o.Node, err = s.identity(ctx, o.at)
	return o, err
}

// source reads what is to be copied or cut: it has to be there. What is still being made is volume.ErrPending.
func (s *Service) source(ctx context.Context, name string, into client.Object) error {
	err := s.find(ctx, name, into)
	if errors.Is(err, volume.ErrNotFound) {
		if st := stateOf(into); into.GetName() == name && !st.absent && !st.gone() {
			return fmt.Errorf("%s %s is not made yet: %w", st.noun, name, volume.ErrPending)
		}
		return fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, err)
	}
	if st := stateOf(into); err == nil && st.absent {
		return fmt.Errorf("%w: %s %s is being removed", volume.ErrSourceNotFound, st.noun, name)
	}
	return err
}

// Delete implements volume.Controller.
func (s *Service) Delete(caller context.Context, id volume.VolumeID) error {
	return s.delete(caller, id.String(), &v1alpha1.LocalVolume{})
}

func (s *Service) delete(caller context.Context, name string, obj client.Object) error {
	ctx, cancel := within(caller)
	defer cancel()
	found, err := s.cached(ctx, name, obj)
	if err == nil && !(found && stateOf(obj).absent) {
		found, err = s.live(ctx, name, obj)
	}
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%s %s: %w", stateOf(obj).noun, name, volume.ErrNotFound)
	}
	if err := s.refuseMember(ctx, obj); err != nil {
		return err
	}
	return s.remove(caller, ctx, obj)
}
