package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// maxOrphans is how many a Pool's status names.
const maxOrphans = 100

// orphaned is what a pool has that no object stands for.
type orphaned struct {
	list []v1alpha1.Orphan
	size int64 // of the volumes
}

// report tells how an open pool is. trouble is what keeps it from being as its spec says.
func report(p *v1alpha1.Pool, c conditions, info engine.PoolInfo, trouble error, found orphaned) {
	if p.Status.UUID == "" {
		p.Status.UUID = info.ID
	}
	if info.Node != "" {
		p.Status.Identity = info.Node
	}
	setSize(&p.Status.Size, info.Size)
	p.Status.Members = p.Status.Members[:0]
	for _, m := range info.Members {
		p.Status.Members = append(p.Status.Members, v1alpha1.PoolMemberStatus{
			UUID: m.ID, Path: m.Path, State: m.State, Size: *resource.NewQuantity(m.Size, resource.BinarySI),
		})
	}
	switch {
	case info.State == stateDegraded:
		c.no(v1alpha1.Ready, v1alpha1.ReasonDegraded, info.Reason)
		c.no(v1alpha1.MembersComplete, v1alpha1.ReasonDegraded, info.Reason)
	case info.State != stateReady:
		c.no(v1alpha1.Ready, v1alpha1.ReasonPoolFailed, info.State+": "+info.Reason)
	default:
		c.yes(v1alpha1.Ready, v1alpha1.ReasonServing, "")
	}
	switch {
	case trouble != nil:
		c.failed(v1alpha1.MembersComplete, local.Translate(trouble))
	case info.State == stateReady:
		c.yes(v1alpha1.MembersComplete, v1alpha1.ReasonDone, "")
	}
	if info.Level == engine.SpaceScarce || info.Level == engine.SpaceFull {
		c.yes(v1alpha1.SpaceScarce, v1alpha1.ReasonNearlyFull, fmt.Sprintf("over %.0f %% of the pool are used: it takes no new volumes and snapshots; "+
			"delete some, or grow it", 100*info.RefuseAt))
	} else {
		c.no(v1alpha1.SpaceScarce, v1alpha1.ReasonDone, "")
	}
	reportGrowth(c, info)
	reportOrphans(p, c, found)
}

func reportGrowth(c conditions, info engine.PoolInfo) {
	for _, m := range info.Members {
		if m.GrowthStopped {
			c.yes(v1alpha1.GrowthStopped, v1alpha1.ReasonNearlyFull, "member "+m.Path+": "+m.Reason)
			return
		}
	}
	c.no(v1alpha1.GrowthStopped, v1alpha1.ReasonDone, "")
}

func reportOrphans(p *v1alpha1.Pool, c conditions, found orphaned) {
	p.Status.Orphans = found.list[:min(len(found.list), maxOrphans)]
	setSize(&p.Status.OrphanSize, found.size)
	if len(found.list) == 0 {
		c.no(v1alpha1.OrphansFound, v1alpha1.ReasonDone, "")
		return
	}
	c.yes(v1alpha1.OrphansFound, v1alpha1.ReasonFound, fmt.Sprintf("%d volumes and snapshots that no object stands for, see status.orphans. "+
		"They are kept, and count as promised space, until somebody deletes them", len(found.list)))
}

// setSize leaves a quantity alone that says the same in other words.
func setSize(q **resource.Quantity, size int64) {
	if *q == nil || (*q).Value() != size {
		*q = resource.NewQuantity(size, resource.BinarySI)
	}
}

// tell makes events of what an operator should know.
func (r pools) tell(before, now *v1alpha1.Pool) {
	for _, e := range []struct{ kind, bad, good, doing string }{
		{v1alpha1.Ready, "PoolNotReady", "PoolReady", "Serve"},
		{v1alpha1.MembersComplete, "MembersIncomplete", "", "Serve"},
	} {
		was, is := is(before, e.kind), is(now, e.kind)
		c := meta.FindStatusCondition(now.Status.Conditions, e.kind)
		switch {
		case c == nil || was == is:
		case is && e.good != "":
			r.events.Eventf(now, nil, corev1.EventTypeNormal, e.good, e.doing, "pool %s serves", now.Name)
		case !is:
			r.events.Eventf(now, nil, corev1.EventTypeWarning, e.bad, e.doing, "%s", c.Message)
		}
	}
	for _, kind := range []string{v1alpha1.SpaceScarce, v1alpha1.GrowthStopped, v1alpha1.OrphansFound} {
		if c := meta.FindStatusCondition(now.Status.Conditions, kind); is(now, kind) && !is(before, kind) {
			r.events.Eventf(now, nil, corev1.EventTypeWarning, kind, "Serve", "%s", c.Message)
		}
	}
}

// orphans compares what a pool has with the objects of this node, both ways: what no object stands for is told of; objects whose volume or snapshot is
// not there are looked at.
//
// The engine is asked first: what it has then had its object before, and that is in the cache. What was deleted since, object and all, is asked for again.
func (a *Agent) orphans(ctx context.Context, info engine.PoolInfo) (o orphaned, err error) {
	vs, err := a.engine.Volumes(ctx, info.Name)
	if err != nil {
		return o, fmt.Errorf("list volumes of pool %s: %w", info.Name, local.Translate(err))
	}
	ss, err := a.engine.Snapshots(ctx, info.Name, "")
	if err != nil {
		return o, fmt.Errorf("list snapshots of pool %s: %w", info.Name, local.Translate(err))
	}
	known, err := a.known(ctx)
	if err != nil {
		return o, err
	}
	there := map[string]bool{}
	for _, v := range vs {
		there[v.Name] = true
		if owner := local.OwnerOf(v.Labels); !known.owners[owner] {
			if _, err := a.engine.Volume(ctx, info.Name, v.Name); err == nil {
				o.list = append(o.list, v1alpha1.Orphan{Name: v.Name, Kind: "LocalVolume", UID: owner, Size: *resource.NewQuantity(v.Size, resource.BinarySI)})
				o.size += v.Size
			}
		}
	}
	for _, s := range ss {
		there[s.Name] = true
		if owner := local.OwnerOf(s.Labels); !known.owners[owner] && !(s.Group != "" && known.groups[s.Name] == s.Group) {
			if _, err := a.engine.Snapshot(ctx, info.Name, s.Name); err == nil {
				o.list = append(o.list, v1alpha1.Orphan{Name: s.Name, Kind: "LocalSnapshot", UID: owner, Size: *resource.NewQuantity(s.Size, resource.BinarySI)})
			}
		}
	}
	slices.SortFunc(o.list, func(a, b v1alpha1.Orphan) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	a.lookAtMissing(ctx, info.ID, known, there)
	return o, nil
}

// known is what objects of this node there are.
type known struct {
	volumes   []v1alpha1.LocalVolume
	snapshots []v1alpha1.LocalSnapshot
	owners    map[string]bool   // by UID
	groups    map[string]string // of snapshots, by name
}

func (a *Agent) known(ctx context.Context) (k known, err error) {
	var vs v1alpha1.LocalVolumeList
	var ss v1alpha1.LocalSnapshotList
	var gs v1alpha1.LocalSnapshotGroupList
	for _, err := range []error{a.client.List(ctx, &vs), a.client.List(ctx, &ss), a.client.List(ctx, &gs)} {
		if err != nil {
			return k, fmt.Errorf("list this node's objects: %w", err)
		}
	}
	k = known{volumes: vs.Items, snapshots: ss.Items, owners: map[string]bool{}, groups: map[string]string{}}
	for _, v := range vs.Items {
		k.owners[string(v.UID)] = true
	}
	for _, s := range ss.Items {
		k.owners[string(s.UID)] = true
		k.groups[s.Name] = s.Spec.Group
	}
	for _, g := range gs.Items {
		k.owners[string(g.UID)] = true
	}
	return k, nil
}

// lookAtMissing has the reconcilers look at objects that were made and of which the pool knows nothing, or which were lost and may be back.
func (a *Agent) lookAtMissing(ctx context.Context, uuid string, k known, there map[string]bool) {
	for i, v := range k.volumes {
		if v.Spec.PoolUUID == uuid && is(&v, v1alpha1.Created) && there[v.Name] == is(&v, v1alpha1.Lost) && !is(&v, v1alpha1.Deleted) {
			a.lookAt(ctx, &k.volumes[i])
		}
	}
	for i, s := range k.snapshots {
		if s.Spec.PoolUUID == uuid && is(&s, v1alpha1.Created) && there[s.Name] == is(&s, v1alpha1.Lost) && !is(&s, v1alpha1.Deleted) {
			select {
			case a.oddSnapshots <- event.TypedGenericEvent[*v1alpha1.LocalSnapshot]{Object: &k.snapshots[i]}:
			default:
			}
		}
	}
}
