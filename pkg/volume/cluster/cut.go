package cluster

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// CreateSnapshot implements volume.Controller. The node cuts before this call stops waiting or not at all (spec.notAfter): whoever froze something
// for the cut has thawed it by then. A retry moves that time on.
func (s *Service) CreateSnapshot(caller context.Context, r volume.SnapshotRequest) (volume.Snapshot, error) {
	ctx, cancel := within(caller)
	defer cancel()
	notAfter, _ := ctx.Deadline() // it always has one
	var o v1alpha1.LocalSnapshot
	found, err := s.cached(ctx, r.ID().String(), &o)
	if err == nil && found {
		found, err = s.live(ctx, r.ID().String(), &o)
	}
	if err != nil {
		return volume.Snapshot{}, err
	}
	if found {
		return s.joinCut(caller, ctx, &o, r, notAfter)
	}
	source, err := s.cuttable(ctx, r.Source)
	if err != nil {
		// The cache may not have yet what another process cut, before the source went or the pool was full.
		if found, liveErr := s.live(ctx, r.ID().String(), &o); liveErr == nil && found {
			return s.joinCut(caller, ctx, &o, r, notAfter)
		}
		return volume.Snapshot{}, err
	}
	o = *newSnapshot(r, source, notAfter)
	switch err := s.cfg.Client.Create(ctx, &o); {
	case apierrors.IsAlreadyExists(err):
		if found, err = s.live(ctx, r.ID().String(), &o); err != nil {
			return volume.Snapshot{}, err
		}
		if !found {
			return volume.Snapshot{}, fmt.Errorf("snapshot %q was removed meanwhile: %w", r.Name, volume.ErrPending)
		}
		return s.joinCut(caller, ctx, &o, r, notAfter)
	case err != nil:
		return volume.Snapshot{}, apiError("create snapshot "+o.Name, err)
	}
	return s.awaitCut(caller, ctx, &o)
}

// cuttable is the volume to cut, if its node can be asked and its pool has room for what writes will take after the cut.
func (s *Service) cuttable(ctx context.Context, id volume.VolumeID) (*v1alpha1.LocalVolume, error) {
	var v v1alpha1.LocalVolume
	if err := s.source(ctx, id.String(), &v); err != nil {
		return nil, err
	}
	if stateOf(&v).is(v1alpha1.Lost) {
		return nil, fmt.Errorf("%w: volume %s: pool %s on node %s has it no more", volume.ErrLost, id, v.Spec.Pool, v.Spec.NodeName)
	}
	c, err := s.candidateNamed(ctx, v.Spec.Location, anyVolume)
	if err != nil {
		return nil, err
	}
	if c.away != nil {
		return nil, c.away
	}
	if err := notServing(c.pool); err != nil {
		return nil, err
	}
	return &v, c.admission.AdmitSnapshot(c.space)
}

// joinCut waits for a cut that somebody else asked for, and has it done within this call's time, too. o was read live.
func (s *Service) joinCut(
	caller, ctx context.Context, o *v1alpha1.LocalSnapshot, r volume.SnapshotRequest, notAfter time.Time,
) (volume.Snapshot, error) {
	st := stateOf(o)
	switch {
	case st.absent || st.gone():
		if st.is(v1alpha1.Deleted) {
			if err := s.release(ctx, o); err != nil {
				return volume.Snapshot{}, err
			}
		}
		return volume.Snapshot{}, fmt.Errorf("snapshot %q is being removed: %w", r.Name, volume.ErrPending)
	case st.is(v1alpha1.Created):
		return volume.Snapshot{}, fmt.Errorf("snapshot %q: %w", r.Name, volume.ErrExists)
	}
	if err := asSnapshot(o, "").Satisfies(r); err != nil {
		return volume.Snapshot{}, err
	}
	if err := s.agents.away(st.node); err != nil {
		return volume.Snapshot{}, reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("create snapshot %s: %v", o.Name, err))
	}
	if o.Spec.NotAfter.Time.Before(notAfter) {
		until, err := metav1.NewMicroTime(notAfter).MarshalJSON()
		if err != nil {
			return volume.Snapshot{}, fmt.Errorf("create snapshot %s: %w", o.Name, err)
		}
		patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"notAfter":%s}}`, o.UID, until)
		err = s.cfg.Client.Patch(ctx, o, client.RawPatch(types.MergePatchType, patch))
		if missing(err) {
			return volume.Snapshot{}, fmt.Errorf("snapshot %q was removed meanwhile: %w", r.Name, volume.ErrPending)
		}
		if err != nil {
			return volume.Snapshot{}, apiError("create snapshot "+o.Name, err)
		}
	}
	return s.awaitCut(caller, ctx, o)
}

func (s *Service) awaitCut(caller, ctx context.Context, o *v1alpha1.LocalSnapshot) (volume.Snapshot, error) {
	if err := s.awaitCreated(caller, ctx, o, "create", nil); err != nil {
		return volume.Snapshot{}, err
	}
	return s.snapshot(caller, o)
}

// DeleteSnapshot implements volume.Controller.
func (s *Service) DeleteSnapshot(caller context.Context, id volume.SnapshotID) error {
	return s.delete(caller, id.String(), &v1alpha1.LocalSnapshot{})
}
