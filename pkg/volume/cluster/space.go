package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// candidate is a pool as admission and placement see it.
type candidate struct {
	pool      *v1alpha1.Pool
	space     volume.Space
	admission volume.Admission
	closed    error // why it takes no new volume whatever its size; nil if it does
	away      error // why its node is not asked; nil if it is
}

// identity is the node's, or what it will be: a node's first pool gives it its name.
func (c candidate) identity() volume.NodeID {
	return volume.NodeID(cmp.Or(c.pool.Status.Identity, c.pool.Spec.NodeName))
}

// admit says whether the pool takes that many more bytes of volumes, and its node can be asked to.
func (c candidate) admit(bytes int64, kind volume.Provisioning) error {
	if c.away != nil {
		return c.away
	}
	if c.closed != nil {
		return c.closed
	}
	return c.admission.Admit(c.space, bytes, kind)
}

// capacity is what admit admits.
func (c candidate) capacity(fsType string, kind volume.Provisioning) volume.Capacity {
	if c.away != nil || c.closed != nil {
		return volume.Capacity{MinVolume: volume.MinSize(fsType)}
	}
	return c.admission.Capacity(c.space, fsType, kind)
}

// candidateOf judges a pool by the objects alone: its own, and those of the volumes that counts accepts.
func candidateOf(p *v1alpha1.Pool, volumes []v1alpha1.LocalVolume, counts func(*v1alpha1.LocalVolume) bool) candidate {
	c := candidate{pool: p, admission: volume.Admission{Overcommit: float64(p.Spec.OvercommitPercent) / 100}, closed: closed(p)}
	if p.Spec.OvercommitPercent == 0 {
		c.admission = volume.DefaultAdmission
	}
	c.space = volume.Space{Pool: p.Name, Scarce: meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.SpaceScarce)}
	if p.Status.Size != nil {
		c.space.Size = p.Status.Size.Value()
	}
	if p.Status.OrphanSize != nil { // volumes without an object take space, too
		c.space.Provisioned = p.Status.OrphanSize.Value()
	}
	for i := range volumes {
		v := &volumes[i]
		if v.Spec.PoolUUID != p.Status.UUID || stateOf(v).is(v1alpha1.Deleted) || !counts(v) {
			continue
		}
		size := promised(v)
		c.space.Provisioned += size
		if volume.Provisioning(v.Spec.Provisioning) == volume.ProvisionThick {
			c.space.Thick += size
		}
	}
	// How much is really in use only the engine knows, and it has the last word on thick volumes. What objects tell is what thick ones have set aside.
	c.space.Available = max(0, c.space.Size-c.space.Thick)
	return c
}

// promised is a volume's size, or what it is growing to.
func promised(v *v1alpha1.LocalVolume) int64 {
	size := v.Spec.Size.Value()
	if v.Status.Size != nil {
		size = max(size, v.Status.Size.Value())
	}
	return size
}

func anyVolume(*v1alpha1.LocalVolume) bool { return true }

// closed is why a pool takes no new volumes.
func closed(p *v1alpha1.Pool) error {
	if err := notServing(p); err != nil {
		return err
	}
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.GrowthStopped); c != nil && c.Status == metav1.ConditionTrue {
		return fmt.Errorf("%w: pool %s on node %s takes no more of its file system: %s", volume.ErrNoSpace, p.Name, p.Spec.NodeName, c.Message)
	}
	return nil
}

// notServing is why a pool can do nothing.
func notServing(p *v1alpha1.Pool) error {
	ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Ready)
	switch {
	case p.Spec.DesiredState == v1alpha1.Absent || !p.DeletionTimestamp.IsZero():
		return fmt.Errorf("%w: pool %s on node %s is being given up", volume.ErrFailed, p.Name, p.Spec.NodeName)
	case ready == nil || p.Status.UUID == "" || p.Status.Identity == "":
		return fmt.Errorf("%w: pool %s on node %s is not made yet: see kubectl describe pools.rowan.storage %s",
			volume.ErrFailed, p.Name, p.Spec.NodeName, p.Name)
	case ready.Status != metav1.ConditionTrue:
		return fmt.Errorf("%w: pool %s on node %s: %s", volume.ErrFailed, p.Name, p.Spec.NodeName, ready.Message)
	}
	return nil
}

// candidates are the pools as they are now.
func (s *Service) candidates(ctx context.Context) ([]candidate, error) {
	pools, err := s.pools(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := s.volumes(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]candidate, 0, len(pools))
	for i := range pools {
		all = append(all, s.candidate(&pools[i], volumes, anyVolume))
	}
	return all, nil
}

func (s *Service) candidate(p *v1alpha1.Pool, volumes []v1alpha1.LocalVolume, counts func(*v1alpha1.LocalVolume) bool) candidate {
	c := candidateOf(p, volumes, counts)
	c.away = s.agents.away(p.Spec.NodeName)
	return c
}

// candidateNamed is one pool as it is now.
func (s *Service) candidateNamed(ctx context.Context, l v1alpha1.Location, counts func(*v1alpha1.LocalVolume) bool) (candidate, error) {
	var p v1alpha1.Pool
	found, err := s.cached(ctx, l.Pool, &p)
	if err == nil && !found {
		found, err = s.live(ctx, l.Pool, &p)
	}
	if err != nil {
		return candidate{}, err
	}
	if !found || p.Status.UUID != "" && p.Status.UUID != l.PoolUUID {
		return candidate{}, fmt.Errorf("%w: pool %s (%s) on node %s has no Pool object any more", volume.ErrFailed, l.Pool, l.PoolUUID, l.NodeName)
	}
	volumes, err := s.volumes(ctx)
	if err != nil {
		return candidate{}, err
	}
	return s.candidate(&p, volumes, counts), nil
}

// Capacity implements volume.Controller: what the pools of a set have left on a node, or everywhere.
func (s *Service) Capacity(ctx context.Context, r volume.CapacityRequest) (volume.Capacity, error) {
	all, err := s.candidates(ctx)
	if err != nil {
		return volume.Capacity{}, err
	}
	set := s.poolSet(r.Parameters)
	if !slices.ContainsFunc(all, func(c candidate) bool { return c.pool.Spec.PoolSet == set }) && r.Parameters.Pool != "" {
		return volume.Capacity{}, noPools(volume.CreateRequest{Parameters: r.Parameters}, set, all)
	}
	var sum volume.Capacity
	for _, c := range all {
		if c.pool.Spec.PoolSet != set || r.Node != "" && r.Node != c.identity() {
			continue
		}
		one := c.capacity(r.FSType, r.Parameters.Provisioning)
		sum.Available += one.Available
		sum.MinVolume = one.MinVolume
		sum.MaxVolume = max(sum.MaxVolume, one.MaxVolume)
	}
	return sum, nil
}

func (s *Service) poolSet(p volume.Parameters) string {
	if p.Pool != "" {
		return p.Pool
	}
	return s.cfg.DefaultPoolSet
}
