package snapshotpolicy

import (
	"context"
	"fmt"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// pressing says of which pools a policy wants to hear, and from when on.
type pressing struct {
	above  float64
	pools  map[string]bool
	active map[string]bool
}

// figures of pools are in their agents' leases, which are renewed anyway: no write is made for them, and each is as fresh as the lease. When a figure was
// told is this process's time at which it first saw that renewal, for a node's clock may be wrong.
type figures struct {
	mu   sync.Mutex
	seen map[string]renewal // by lease
}

type renewal struct{ told, at time.Time }

func (f *figures) seenAt(lease *coordinationv1.Lease, now time.Time) time.Time {
	if lease.Spec.RenewTime == nil {
		return time.Time{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[string]renewal{}
	}
	last, ok := f.seen[lease.Name]
	if !ok || !last.told.Equal(lease.Spec.RenewTime.Time) {
		last = renewal{lease.Spec.RenewTime.Time, now}
		f.seen[lease.Name] = last
	}
	return last.at
}

// policiesOfLease are those whose pools are too full by what the lease says, or that wait for its figure.
func (c *Controller) policiesOfLease(_ context.Context, o client.Object) []reconcile.Request {
	lease := o.(*coordinationv1.Lease)
	usage := v1alpha1.ParsePoolUsage(lease.Annotations[v1alpha1.PoolUsageAnnotation])
	if len(usage) == 0 {
		return nil
	}
	c.figures.seenAt(lease, c.Clock.Now())
	var requests []reconcile.Request
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, m := range c.memories {
		p := m.pressing.Load()
		if p == nil {
			continue
		}
		for _, u := range usage {
			if p.pools[u.Pool] && (p.active[u.Pool] || u.Percent() > p.above) {
				requests = append(requests, reconcile.Request{NamespacedName: key})
				break
			}
		}
	}
	return requests
}

// poolFigures tells the planner of the pools that the policy's snapshots lie in, and, where one is too full, what each snapshot there would free.
func (ps *pass) poolFigures(ctx context.Context, in *retention.Input, titles map[string]*observed) error {
	if !ps.p.presses() {
		ps.mem.pressing.Store(nil)
		return nil
	}
	limits := ps.p.spec.Retention.PoolPressure
	told := &pressing{above: float64(limits.AbovePercent), pools: map[string]bool{}, active: map[string]bool{}}
	for _, st := range in.Pressure {
		told.active[st.Pool] = st.Active
	}
	full := map[string]bool{}
	poolOf := map[string]string{}
	for i := range in.Sources {
		s := &in.Sources[i]
		if s.Pool == "" { // gone, or not chosen any more: its snapshots tell
			local, err := ps.localSnapshot(ctx, titles[s.Key])
			if err != nil {
				return err
			}
			if local != nil {
				s.Pool = local.Spec.Pool
			}
		}
		poolOf[s.Key] = s.Pool
		if s.Pool == "" || told.pools[s.Pool] {
			continue
		}
		told.pools[s.Pool] = true
		figure, err := ps.poolFigure(ctx, s.Pool)
		if err != nil {
			return err
		}
		if figure != nil {
			in.Pools = append(in.Pools, *figure)
			full[s.Pool] = told.active[s.Pool] || figure.UsedPercent > told.above
		}
	}
	ps.mem.pressing.Store(told)
	for i, o := range ps.observed {
		if !full[poolOf[in.Snapshots[i].Source]] {
			continue
		}
		local, err := ps.localSnapshot(ctx, o)
		if err != nil {
			return err
		}
		// Nothing by itself is no figure: what older snapshots left to it may be freed with it.
		if local != nil && local.Status.Cut != nil && local.Status.Cut.Owned != nil && local.Status.Cut.Owned.Value() > 0 {
			n := local.Status.Cut.Owned.Value()
			in.Snapshots[i].Frees = &n
		}
	}
	return nil
}

// poolFigure is what the agent of the pool's node last told; nil: nothing.
func (ps *pass) poolFigure(ctx context.Context, name string) (*retention.Pool, error) {
	var pool v1alpha1.Pool
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: name}, &pool, noCopies); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	var lease coordinationv1.Lease
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Namespace: ps.c.Namespace, Name: v1alpha1.AgentLease(pool.Spec.NodeName)}, &lease, noCopies); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	for _, u := range v1alpha1.ParsePoolUsage(lease.Annotations[v1alpha1.PoolUsageAnnotation]) {
		if u.Pool == name && u.Size > 0 {
			return &retention.Pool{Name: name, UsedPercent: u.Percent(), UsedBytes: u.Used, At: ps.c.figures.seenAt(&lease, ps.now)}, nil
		}
	}
	return nil, nil
}

// localSnapshot of a VolumeSnapshot of ours; nil: not ours, or not known yet.
func (ps *pass) localSnapshot(ctx context.Context, o *observed) (*v1alpha1.LocalSnapshot, error) {
	s, ok := o.obj.(*snapshotv1.VolumeSnapshot)
	if !ok || s.Status == nil || s.Status.BoundVolumeSnapshotContentName == nil {
		return nil, nil
	}
	var content snapshotv1.VolumeSnapshotContent
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: *s.Status.BoundVolumeSnapshotContentName}, &content, noCopies); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if content.Spec.Driver != v1alpha1.DriverName || content.Status == nil || content.Status.SnapshotHandle == nil {
		return nil, nil
	}
	var local v1alpha1.LocalSnapshot
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: *content.Status.SnapshotHandle}, &local, noCopies); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("get LocalSnapshot: %w", err)
	}
	return &local, nil
}
