package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// pools carries out Pools, and looks at each again and again for what only the engine knows.
type pools struct{ *Agent }

// openingAgain is when a pool is looked at again that the engine is opening.
const openingAgain = time.Second

// Reconcile looks at one.
func (r pools) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	p := &v1alpha1.Pool{}
	err := r.client.Get(ctx, req.NamespacedName, p)
	if apierrors.IsNotFound(err) || err == nil && p.Spec.NodeName != r.cfg.Node {
		r.lookAtNode() // its disk may serve elsewhere from now on, and take the identity along
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read pool %s: %w", req.Name, err)
	}
	info, err := r.engine.Pool(ctx, p.Name)
	if p.Spec.DesiredState == v1alpha1.Absent {
		return r.remove(ctx, p, info, err)
	}
	switch {
	case errors.Is(err, engine.ErrNotFound):
		info, err = r.find(ctx, p)
	case err == nil && info.State == host.StateUnavailable:
		// What kept it from opening may be over: a disk that came late.
		info, err = r.engine.OpenPool(ctx, host.OpenSpec{Name: p.Name, Members: paths(p)})
	}
	if err != nil {
		return r.broken(ctx, p, err)
	}
	if info.State == host.StateOpening {
		return reconcile.Result{RequeueAfter: openingAgain}, nil
	}
	return r.serve(ctx, p, info)
}

// Why a pool is not served, beside the engine's errors.
var (
	errPoolGone    = errors.New("the pool is gone")
	errForeignPool = errors.New("another pool is there")
)

// find opens a pool that the engine does not know, where its members are to be, or makes it. It is made only where no pool ever was, by the object's
// status and by the members: a disk that is not mounted yet, or lost, is never taken for a new one.
func (r pools) find(ctx context.Context, p *v1alpha1.Pool) (info engine.PoolInfo, err error) {
	at := paths(p)
	info, err = r.engine.OpenPool(ctx, host.OpenSpec{Member: at[0], Members: at[1:]})
	found := err == nil
	if !found && !errors.Is(err, engine.ErrNotFound) {
		return info, err
	}
	if ok, lerr := r.live(ctx, p); !ok {
		return info, errors.Join(lerr, errNothingToDo)
	}
	switch {
	case found && info.Name == p.Name && (p.Status.UUID == "" || p.Status.UUID == info.ID):
		return info, nil
	case found && p.Status.UUID != "":
		return info, fmt.Errorf("pool %s (%s): %w: %s holds pool %s (%s)", p.Name, p.Status.UUID, errPoolGone, at[0], info.Name, info.ID)
	case found:
		return info, fmt.Errorf("pool %s: %w: %s holds pool %s (%s): if its disks were moved here it is moved to this node by and by; "+
			"or use another directory or device", p.Name, errForeignPool, at[0], info.Name, info.ID)
	case p.Status.UUID != "":
		return info, fmt.Errorf("pool %s (%s): %w: there is none at %s: bring its disks back; if they are lost for good delete its volumes and snapshots, "+
			"set the Pool's spec.desiredState to Absent and delete it, and a new one is made", p.Name, p.Status.UUID, errPoolGone, at[0])
	}
	node, err := r.Identity(ctx)
	if err != nil {
		return info, err
	}
	info, err = r.engine.CreatePool(ctx, poolSpec(p, node))
	if err == nil {
		r.events.Eventf(p, nil, corev1.EventTypeNormal, "PoolMade", "Create", "made pool %s (%s) with %d bytes at %s", info.Name, info.ID, info.Size, at[0])
	}
	return info, err
}

// errNothingToDo: the object is not what it was in the cache, which will say so.
var errNothingToDo = errors.New("nothing to do")

// broken tells why a pool does not serve.
func (r pools) broken(ctx context.Context, p *v1alpha1.Pool, err error) (reconcile.Result, error) {
	err = local.Translate(err)
	switch {
	case errors.Is(err, errNothingToDo):
		return reconcile.Result{}, nil
	case unanswered(err):
		return reconcile.Result{}, errors.Join(err, r.confirmOnly(ctx, p))
	}
	was := is(p, v1alpha1.Ready)
	werr := write(ctx, r.Agent, p, func(_ *v1alpha1.Pool, c conditions) {
		switch {
		case errors.Is(err, errPoolGone):
			c.no(v1alpha1.Ready, v1alpha1.ReasonPoolGone, err.Error())
		case errors.Is(err, errForeignPool):
			c.no(v1alpha1.Ready, v1alpha1.ReasonForeignPool, err.Error())
		default:
			c.failed(v1alpha1.Ready, err)
		}
	})
	if was && werr == nil {
		r.events.Eventf(p, nil, corev1.EventTypeWarning, "PoolNotReady", "Open", "%v", err)
	}
	return r.again(), werr
}

// serve has an open pool be as its spec says, and tells of it.
func (r pools) serve(ctx context.Context, p *v1alpha1.Pool, info engine.PoolInfo) (reconcile.Result, error) {
	if p.Status.UUID != "" && p.Status.UUID != info.ID {
		return r.broken(ctx, p, fmt.Errorf("pool %s (%s): %w: the engine has one of that name with UUID %s", p.Name, p.Status.UUID, errPoolGone, info.ID))
	}
	info, merr := r.members(ctx, p, info)
	ierr := r.settle(ctx, p, info.Node)
	found, oerr := r.orphans(ctx, info)
	if unanswered(merr) || unanswered(oerr) {
		return reconcile.Result{}, errors.Join(merr, oerr)
	}
	before := p.DeepCopy()
	err := write(ctx, r.Agent, p, func(p *v1alpha1.Pool, c conditions) { report(p, c, info, errors.Join(merr, ierr), found) })
	if err != nil {
		return reconcile.Result{}, err
	}
	r.tell(before, p)
	if oerr != nil {
		return reconcile.Result{}, oerr
	}
	return r.again(), nil
}

// remove gives a pool up that holds nothing and that nothing is wanted of. Its files stay where they are.
func (r pools) remove(ctx context.Context, p *v1alpha1.Pool, info engine.PoolInfo, err error) (reconcile.Result, error) {
	if is(p, v1alpha1.Deleted) {
		return reconcile.Result{}, nil
	}
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return r.removed(ctx, p, v1alpha1.Location{}, err)
	}
	here := err == nil && (p.Status.UUID == "" || p.Status.UUID == info.ID)
	if err := r.unused(ctx, p, info, here); err != nil {
		return r.stay(ctx, p, err)
	}
	if here {
		if err := r.engine.ClosePool(ctx, p.Name); err != nil && !errors.Is(err, engine.ErrNotFound) {
			return r.removed(ctx, p, v1alpha1.Location{}, err)
		}
	}
	return r.removed(ctx, p, v1alpha1.Location{}, nil)
}

// stay tells why a pool cannot be given up yet, and looks again.
func (r pools) stay(ctx context.Context, p *v1alpha1.Pool, err error) (reconcile.Result, error) {
	if !errors.Is(err, volume.ErrInUse) {
		return reconcile.Result{}, err
	}
	return r.again(), write(ctx, r.Agent, p, func(_ *v1alpha1.Pool, c conditions) { c.failed(v1alpha1.Deleted, err) })
}

// unused is nil if no volume or snapshot is in the pool, and no object says that one was or is to be.
func (r pools) unused(ctx context.Context, p *v1alpha1.Pool, info engine.PoolInfo, here bool) error {
	if here && info.Volumes+info.Snapshots > 0 {
		return fmt.Errorf("pool %s: %w: it has %d volumes and %d snapshots: delete them first", p.Name, volume.ErrInUse, info.Volumes, info.Snapshots)
	}
	if here && info.State == host.StateUnavailable {
		return fmt.Errorf("pool %s: %w: what is in it is not known, for it does not open: %s", p.Name, volume.ErrInUse, info.Reason)
	}
	var vs v1alpha1.LocalVolumeList
	var ss v1alpha1.LocalSnapshotList
	if err := errors.Join(r.client.List(ctx, &vs), r.client.List(ctx, &ss)); err != nil {
		return fmt.Errorf("list what is in pool %s: %w", p.Name, err)
	}
	for _, v := range vs.Items {
		if v.Spec.Pool == p.Name && v.Spec.PoolUUID == p.Status.UUID && !is(&v, v1alpha1.Deleted) {
			return fmt.Errorf("pool %s: %w: LocalVolume %s is of this pool: delete it first", p.Name, volume.ErrInUse, v.Name)
		}
	}
	for _, s := range ss.Items {
		if s.Spec.Pool == p.Name && s.Spec.PoolUUID == p.Status.UUID && !is(&s, v1alpha1.Deleted) {
			return fmt.Errorf("pool %s: %w: LocalSnapshot %s is of this pool: delete it first", p.Name, volume.ErrInUse, s.Name)
		}
	}
	return nil
}
