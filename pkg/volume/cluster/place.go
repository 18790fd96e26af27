package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// origin is the source of a copy and where it is.
type origin struct {
	volume.Origin                   // Pool is the pool's own name
	at            v1alpha1.Location //
	poolSet       string            // that the pool is of
}

// place chooses the pool of a new volume, and its size. It looks at nothing but its arguments.
//
// A copy goes where its source is, if that is the node asked for first (rule 1) or any other that the request allows (rule 2: the volume's topology
// then moves the pod); else ErrPlacement names the node that has the source (rule 3). A new volume goes to the first node, in the order that is
// preferred, whose pool admits it; nodes without a preference come by the space that they have left. Nobody is asked whose agent is away (rule 4).
// If none takes it, the error is the most preferred one's: only space is ErrNoSpace, where the scheduler's next choice may do.
func place(r volume.CreateRequest, poolSet string, from *origin, pools []candidate) (*v1alpha1.Pool, volume.Sizing, error) {
	if from != nil {
		return placeCopy(r, from, pools)
	}
	sizing, err := volume.Fit(r.Capacity, r.FSType, volume.Sizing{})
	if err != nil {
		return nil, sizing, err
	}
	of := slices.DeleteFunc(slices.Clone(pools), func(c candidate) bool { return c.pool.Spec.PoolSet != poolSet })
	if len(of) == 0 {
		return nil, sizing, noPools(r, poolSet, pools)
	}
	allowed := slices.DeleteFunc(slices.Clone(of), func(c candidate) bool { return !r.Placement.Allows(c.identity()) })
	if len(allowed) == 0 {
		return nil, sizing, fmt.Errorf("%w: the pools of PoolSet %s are on nodes %s, which the request excludes (allowedTopologies, or the pod's node)",
			volume.ErrPlacement, poolSet, nodesOf(of))
	}
	order(allowed, r.Placement)
	var refusal error
	for _, c := range allowed {
		if err = c.admit(sizing.Size, r.Parameters.Provisioning); err == nil {
			return c.pool, sizing, nil
		}
		refusal = firstError(refusal, err)
	}
	if n := len(allowed) - 1; n > 0 {
		refusal = fmt.Errorf("%w (%d more pools of PoolSet %s were tried)", refusal, n, poolSet)
	}
	return nil, sizing, refusal
}

func placeCopy(r volume.CreateRequest, from *origin, pools []candidate) (*v1alpha1.Pool, volume.Sizing, error) {
	if !r.Placement.Allows(from.Node) {
		return nil, volume.Sizing{}, fmt.Errorf(
			"%w: %s is on node %s%s, which the request excludes: a copy stays on its source's node; allow that node (allowedTopologies)",
			volume.ErrPlacement, r.Source, from.at.NodeName, identityNote(from))
	}
	if want := r.Parameters.Pool; want != "" && want != from.poolSet {
		return nil, volume.Sizing{}, fmt.Errorf(
			"%w: %s is in pool %s of PoolSet %s, the copy is asked for in PoolSet %s: copies stay in their source's pool",
			volume.ErrInvalid, r.Source, from.Pool, cmp.Or(from.poolSet, "(none)"), want)
	}
	r.Parameters.Pool = ""
	if err := r.CheckCopy(from.Origin); err != nil {
		return nil, volume.Sizing{}, err
	}
	sizing, err := volume.Fit(r.Capacity, r.FSType, from.Sizing)
	if err != nil {
		return nil, sizing, err
	}
	for _, c := range pools {
		if c.pool.Name != from.at.Pool || c.pool.Status.UUID != from.at.PoolUUID {
			continue
		}
		return c.pool, sizing, c.admit(sizing.Size, r.Parameters.Provisioning)
	}
	return nil, sizing, fmt.Errorf("%w: pool %s (%s) on node %s, which has %s, has no Pool object any more",
		volume.ErrFailed, from.at.Pool, from.at.PoolUUID, from.at.NodeName, r.Source)
}

// order puts pools on preferred nodes first, in their order, then those with the most left.
func order(pools []candidate, p volume.Placement) {
	rank := func(c candidate) int {
		if i := slices.Index(p.Preferred, c.identity()); i >= 0 {
			return i
		}
		return len(p.Preferred)
	}
	left := func(c candidate) int64 { return c.capacity("", volume.ProvisionThin).MaxVolume }
	slices.SortStableFunc(pools, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(left(b), left(a)), strings.Compare(a.pool.Name, b.pool.Name))
	})
}

// noPools says that a PoolSet has no pools: a wrong parameter if the storage class named it, else something that is still to be made.
func noPools(r volume.CreateRequest, poolSet string, pools []candidate) error {
	sets := map[string]bool{}
	for _, c := range pools {
		sets[c.pool.Spec.PoolSet] = true
	}
	have := cmp.Or(strings.Join(slices.Sorted(maps.Keys(sets)), ", "), "none")
	if r.Parameters.Pool != "" {
		return fmt.Errorf("%w: poolSet %q has no pools; PoolSets that have: %s", volume.ErrInvalid, poolSet, have)
	}
	return fmt.Errorf(
		"%w: PoolSet %s, which is used where a storage class names none, has no pools (PoolSets that have: %s): see kubectl get poolsets,pools",
		volume.ErrFailed, poolSet, have)
}

func nodesOf(pools []candidate) string {
	var names []string
	for _, c := range pools {
		names = append(names, c.pool.Spec.NodeName)
	}
	slices.Sort(names)
	const most = 10
	if n := len(names); n > most {
		names = append(names[:most], fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(names, ", ")
}

func identityNote(from *origin) string {
	if string(from.Node) == from.at.NodeName {
		return ""
	}
	return fmt.Sprintf(" (identity %s)", from.Node)
}

// firstError is the first error of the two.
func firstError(first, second error) error {
	if first != nil {
		return first
	}
	return second
}
