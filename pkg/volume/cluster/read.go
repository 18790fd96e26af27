package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// cached reads an object from the cache, found says whether it is there.
func (s *Service) cached(ctx context.Context, name string, into client.Object) (found bool, err error) {
	return get(ctx, s.cfg.Cache, name, into)
}

// live reads an object from the API server.
func (s *Service) live(ctx context.Context, name string, into client.Object) (found bool, err error) {
	return get(ctx, s.cfg.Client, name, into)
}

func get(ctx context.Context, from client.Reader, name string, into client.Object) (found bool, err error) {
	if err := ctx.Err(); err != nil { // a cache does not look at it
		return false, err
	}
	switch err := from.Get(ctx, client.ObjectKey{Name: name}, into); {
	case err == nil:
		return true, nil
	case missing(err):
		return false, nil
	default:
		return false, apiError(fmt.Sprintf("read %s", name), err)
	}
}

// missing says whether the error means that the object is not there. A kind that is not there (its definition was deleted) says nothing of its
// objects' volumes: the API server's answer to it names no object.
func missing(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Name != ""
}

// apiError is an error of the API server as the domain has it: it may pass, and the caller asks again, unless the object itself was refused.
func apiError(what string, err error) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
		return fmt.Errorf("%s: %w: %w", what, volume.ErrInvalid, err)
	}
	return reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("%s: the Kubernetes API: %v", what, err))
}

// find reads an object that is made: from the cache, and live where that knows of none. ErrNotFound if there is none, or it is gone.
func (s *Service) find(ctx context.Context, name string, into client.Object) error {
	found, err := s.cached(ctx, name, into)
	if err == nil && (!found || !stateOf(into).is(v1alpha1.Created)) {
		found, err = s.live(ctx, name, into)
	}
	if err != nil {
		return err
	}
	if st := stateOf(into); !found || !st.is(v1alpha1.Created) || st.gone() {
		return fmt.Errorf("%s %s: %w", st.noun, name, volume.ErrNotFound)
	}
	return nil
}

// peek reads an object that is made from the cache alone.
func (s *Service) peek(ctx context.Context, name string, into client.Object) error {
	found, err := s.cached(ctx, name, into)
	if err != nil {
		return err
	}
	if st := stateOf(into); !found || !st.is(v1alpha1.Created) || st.gone() {
		return fmt.Errorf("%s %s: %w", st.noun, name, volume.ErrNotFound)
	}
	return nil
}

// Peek implements volume.Peeker.
func (s *Service) Peek(ctx context.Context, id volume.VolumeID) (volume.Volume, error) {
	var o v1alpha1.LocalVolume
	if err := s.peek(ctx, id.String(), &o); err != nil {
		return volume.Volume{}, err
	}
	return s.volume(ctx, &o)
}

// PeekSnapshot implements volume.Peeker.
func (s *Service) PeekSnapshot(ctx context.Context, id volume.SnapshotID) (volume.Snapshot, error) {
	var o v1alpha1.LocalSnapshot
	if err := s.peek(ctx, id.String(), &o); err != nil {
		return volume.Snapshot{}, err
	}
	return s.snapshot(ctx, &o)
}

// Get implements volume.Controller.
func (s *Service) Get(ctx context.Context, id volume.VolumeID) (volume.Volume, error) {
	var o v1alpha1.LocalVolume
	if err := s.find(ctx, id.String(), &o); err != nil {
		return volume.Volume{}, err
	}
	return s.volume(ctx, &o)
}

// GetSnapshot implements volume.Controller.
func (s *Service) GetSnapshot(ctx context.Context, id volume.SnapshotID) (volume.Snapshot, error) {
	var o v1alpha1.LocalSnapshot
	if err := s.find(ctx, id.String(), &o); err != nil {
		return volume.Snapshot{}, err
	}
	return s.snapshot(ctx, &o)
}

func (s *Service) volume(ctx context.Context, o *v1alpha1.LocalVolume) (volume.Volume, error) {
	node, err := s.identity(ctx, o.Spec.Location)
	return asVolume(o, node), err
}

func (s *Service) snapshot(ctx context.Context, o *v1alpha1.LocalSnapshot) (volume.Snapshot, error) {
	node, err := s.identity(ctx, o.Spec.Location)
	return asSnapshot(o, node), err
}

// identity is the node identity of a pool. Should the Pool's object be gone the node's name stands for it: it is what the identity was made from.
func (s *Service) identity(ctx context.Context, l v1alpha1.Location) (volume.NodeID, error) {
	var p v1alpha1.Pool
	found, err := s.cached(ctx, l.Pool, &p)
	if err != nil {
		return "", err
	}
	if !found || p.Status.Identity == "" {
		return volume.NodeID(l.NodeName), nil
	}
	return volume.NodeID(p.Status.Identity), nil
}

// List implements volume.Controller.
func (s *Service) List(ctx context.Context, p volume.Page[volume.VolumeID]) ([]volume.Volume, bool, error) {
	objects, err := s.volumes(ctx)
	if err != nil {
		return nil, false, err
	}
	var all []volume.Volume
	for i := range objects {
		o := &objects[i]
		if st := stateOf(o); !st.is(v1alpha1.Created) || st.gone() {
			continue
		}
		v, err := s.volume(ctx, o)
		if err != nil {
			return nil, false, err
		}
		if !v.ID.IsZero() {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b volume.Volume) int { return a.ID.Compare(b.ID) })
	page, more := volume.Paginate(all, p, func(v volume.Volume, id volume.VolumeID) int { return v.ID.Compare(id) })
	return page, more, nil
}

// ListSnapshots implements volume.Controller. One that is asked for by its handle is looked for live, too: the side-cars ask so for a single one.
func (s *Service) ListSnapshots(
	ctx context.Context, f volume.SnapshotFilter, p volume.Page[volume.SnapshotID],
) (page []volume.Snapshot, more bool, err error) {
	var all []volume.Snapshot
	if !f.ID.IsZero() {
		snap, err := s.GetSnapshot(ctx, f.ID)
		if errors.Is(err, volume.ErrNotFound) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		all = append(all, snap)
	} else {
		if all, err = s.snapshots(ctx); err != nil {
			return nil, false, err
		}
	}
	all = slices.DeleteFunc(all, func(snap volume.Snapshot) bool { return !f.Accepts(snap) })
	slices.SortFunc(all, func(a, b volume.Snapshot) int { return a.ID.Compare(b.ID) })
	page, more = volume.Paginate(all, p, func(v volume.Snapshot, id volume.SnapshotID) int { return v.ID.Compare(id) })
	return page, more, nil
}

// snapshots are all that are made.
func (s *Service) snapshots(ctx context.Context) (all []volume.Snapshot, err error) {
	var list v1alpha1.LocalSnapshotList
	if err := s.list(ctx, &list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		o := &list.Items[i]
		if st := stateOf(o); !st.is(v1alpha1.Created) || st.gone() {
			continue
		}
		snap, err := s.snapshot(ctx, o)
		if err != nil {
			return nil, err
		}
		if !snap.ID.IsZero() && !snap.Source.IsZero() {
			all = append(all, snap)
		}
	}
	return all, nil
}

// volumes are all objects, whatever has become of them. They are the cache's own and must not be changed.
func (s *Service) volumes(ctx context.Context) ([]v1alpha1.LocalVolume, error) {
	var list v1alpha1.LocalVolumeList
	err := s.list(ctx, &list)
	return list.Items, err
}

func (s *Service) pools(ctx context.Context) ([]v1alpha1.Pool, error) {
	var list v1alpha1.PoolList
	err := s.list(ctx, &list)
	return list.Items, err
}

func (s *Service) list(ctx context.Context, into client.ObjectList) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return apiError("list objects", s.cfg.Cache.List(ctx, into, client.UnsafeDisableDeepCopy))
}
