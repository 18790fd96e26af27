package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateGroup implements volume.Controller. The LocalSnapshotGroup is the cut: the node makes all of it or nothing, once. Its snapshots' own objects, by
// which they are found, copied and counted, are made after it and tell what the engine has of it: nothing is cut for them. A process that dies in between
// leaves them to the repeated call.
func (s *Service) CreateGroup(caller context.Context, r volume.GroupRequest) (volume.Group, error) {
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalSnapshotGroup
	err := s.carryOut(caller, ctx, command{
		obj: &o, name: r.ID().String(), csi: r.Name,
		make: func(ctx context.Context, notAfter time.Time) error {
			sources, err := s.cuttableTogether(ctx, r)
			if err == nil {
				o = *newGroup(r, sources[0].Spec.Location, notAfter)
			}
			return err
		},
		same: func() error { return sameGroup(&o, r) },
		done: func(ctx context.Context) error {
			if err := sameGroup(&o, r); err != nil {
				return err
			}
			if _, err := s.group(ctx, &o, s.find); !errors.Is(err, volume.ErrNotFound) {
				return errors.Join(err, fmt.Errorf("snapshot group %q: %w", r.Name, volume.ErrExists))
			}
			return nil
		},
		till: func() time.Time { return o.Spec.NotAfter.Time },
	})
	if err != nil {
		return volume.Group{}, err
	}
	if err := s.makeMembers(caller, ctx, &o); err != nil {
		return volume.Group{}, err
	}
	return s.group(caller, &o, s.find)
}

// cuttableTogether are the volumes of a group, if they can be cut at the same moment, now.
func (s *Service) cuttableTogether(ctx context.Context, r volume.GroupRequest) (sources []*v1alpha1.LocalVolume, err error) {
	var places []volume.Place
	for _, m := range r.Members() {
		v, err := s.cutSource(ctx, m.Source)
		if err == nil && r.Consistency == volume.ConsistencyFreeze {
			err = freezable(v)
		}
		if err != nil {
			return nil, err
		}
		sources = append(sources, v)
		places = append(places, volume.Place{Volume: v.Spec.CSIName, Pool: v.Spec.Pool, Node: v.Spec.NodeName})
	}
	if err := volume.CheckTogether(places); err != nil {
		return nil, err
	}
	return sources, s.cutsNow(ctx, sources[0].Spec.Location)
}

// sameGroup is volume.ErrExists where a group's object is not what is asked for.
func sameGroup(o *v1alpha1.LocalSnapshotGroup, r volume.GroupRequest) error {
	g := volume.Group{ID: r.ID()}
	for _, m := range o.Spec.Members {
		id, _ := volume.ParseVolumeID(m.Volume)
		g.Snapshots = append(g.Snapshots, volume.Snapshot{Source: id})
	}
	return g.Satisfies(r)
}

// atOnce is how many requests about a group's members are under way at a time.
const atOnce = 16

// eachMember does something for every member, several at a time, and answers the first member's error.
func eachMember(o *v1alpha1.LocalSnapshotGroup, do func(v1alpha1.GroupMember) error) error {
	errs := make(chan error, len(o.Spec.Members))
	slots := make(chan struct{}, atOnce)
	for _, m := range o.Spec.Members {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			errs <- do(m)
		}()
	}
	var first error
	for range o.Spec.Members {
		first = firstError(first, <-errs)
	}
	return first
}

// makeMembers makes the snapshots' objects that are not there, and waits until all tell what was cut.
func (s *Service) makeMembers(caller, ctx context.Context, o *v1alpha1.LocalSnapshotGroup) error {
	return eachMember(o, func(m v1alpha1.GroupMember) error {
		snap := newMember(o, m)
		err := s.cfg.Client.Create(ctx, snap)
		if apierrors.IsAlreadyExists(err) {
			var found bool
			if found, err = s.live(ctx, m.Snapshot, snap); err == nil && !found {
				err = fmt.Errorf("snapshot %s of group %s was removed meanwhile: %w", m.Snapshot, o.Name, volume.ErrPending)
			}
			if err == nil && (snap.Spec.Group != o.Name || snap.Spec.Volume != m.Volume) {
				err = fmt.Errorf("%w: snapshot %s is not of group %s: delete it, and the group", volume.ErrFailed, m.Snapshot, o.Name)
			}
		} else if err != nil {
			err = apiError("create snapshot "+m.Snapshot, err)
		}
		if err != nil {
			return err
		}
		return s.awaitCreated(caller, ctx, snap, "create", nil)
	})
}

// GetGroup implements volume.Controller.
func (s *Service) GetGroup(ctx context.Context, id volume.GroupID) (volume.Group, error) {
	return s.groupNamed(ctx, id, s.find)
}

// PeekGroup implements volume.Peeker.
func (s *Service) PeekGroup(ctx context.Context, id volume.GroupID) (volume.Group, error) {
	return s.groupNamed(ctx, id, s.peek)
}

// reading is find or peek.
type reading func(ctx context.Context, name string, into client.Object) error

func (s *Service) groupNamed(ctx context.Context, id volume.GroupID, read reading) (volume.Group, error) {
	var o v1alpha1.LocalSnapshotGroup
	if err := read(ctx, id.String(), &o); err != nil {
		return volume.Group{}, err
	}
	return s.group(ctx, &o, read)
}

// group is what a group's object and its snapshots' say. It is not there (ErrNotFound) until all of them are.
func (s *Service) group(ctx context.Context, o *v1alpha1.LocalSnapshotGroup, read reading) (volume.Group, error) {
	var g volume.Group
	g.ID, _ = volume.ParseGroupID(o.Name)
	if t := o.Status.CreationTime; t != nil {
		g.CreatedAt = t.Time
	}
	for _, m := range o.Spec.Members {
		var snap v1alpha1.LocalSnapshot
		if err := read(ctx, m.Snapshot, &snap); err != nil {
			return g, fmt.Errorf("snapshot group %s: %w", o.Name, err)
		}
		v, err := s.snapshot(ctx, &snap)
		if err != nil {
			return g, err
		}
		g.Snapshots = append(g.Snapshots, v)
	}
	slices.SortFunc(g.Snapshots, func(a, b volume.Snapshot) int { return a.Source.Compare(b.Source) })
	return g, nil
}

// DeleteGroup implements volume.Controller. The promise is that blocks are freed only by two keys, and that no snapshot's object outlives the group's, by
// which it is found again. So the order is: the group's first key, with which the node may begin to delete; every snapshot's two keys, and their objects
// gone; the group's second key, and its object gone. A process that dies in between leaves the group's object to the repeated call: rowan-controller does
// not let it go without its second key.
func (s *Service) DeleteGroup(caller context.Context, id volume.GroupID, said []volume.SnapshotID) error {
	ctx, cancel := within(caller)
	defer cancel()
	var o v1alpha1.LocalSnapshotGroup
	found, err := s.live(ctx, id.String(), &o)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("snapshot group %s: %w", id, volume.ErrNotFound)
	}
	var have []volume.SnapshotID
	for _, m := range o.Spec.Members {
		snap, _ := volume.ParseSnapshotID(m.Snapshot)
		have = append(have, snap)
	}
	if err := volume.MatchMembers(id, have, said); err != nil {
		return err
	}
	st := stateOf(&o)
	was := st.gone() // for the caller, it is gone already; what is left is to clean up
	if !st.absent && !st.is(v1alpha1.NodeLost) {
		if err := s.agents.away(st.node); err != nil {
			return err
		}
	}
	if err := s.writeFirstKey(ctx, &o); err != nil {
		return err
	}
	if err := eachMember(&o, func(m v1alpha1.GroupMember) error { return s.removeMember(caller, ctx, &o, m) }); err != nil {
		return err
	}
	if err := s.writeKeys(ctx, &o); err != nil {
		return err
	}
	if err := s.awaitDeleted(caller, ctx, &o); err != nil || !was {
		return err
	}
	return fmt.Errorf("snapshot group %s: %w", id, volume.ErrNotFound)
}

// removeMember removes the object of a group's snapshot, and the snapshot.
func (s *Service) removeMember(caller, ctx context.Context, o *v1alpha1.LocalSnapshotGroup, m v1alpha1.GroupMember) error {
	var snap v1alpha1.LocalSnapshot
	found, err := s.live(ctx, m.Snapshot, &snap)
	if err != nil || !found || snap.Spec.Group != o.Name {
		return err
	}
	if err := s.remove(caller, ctx, &snap); !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	return nil
}

// refuseMember is volume.ErrGrouped for a snapshot whose group is there.
func (s *Service) refuseMember(ctx context.Context, obj client.Object) error {
	snap, ok := obj.(*v1alpha1.LocalSnapshot)
	if !ok || snap.Spec.Group == "" {
		return nil
	}
	var o v1alpha1.LocalSnapshotGroup
	found, err := s.cached(ctx, snap.Spec.Group, &o)
	if err == nil && !found {
		found, err = s.live(ctx, snap.Spec.Group, &o)
	}
	if err != nil || !found {
		return err
	}
	return volume.RefuseMember(asSnapshot(snap, "").ID, asSnapshot(snap, "").Group)
}
