package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// volumes carries out LocalVolumes.
type volumes struct{ *Agent }

// Reconcile looks at one.
func (r volumes) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	v := &v1alpha1.LocalVolume{}
	if err := r.client.Get(ctx, req.NamespacedName, v); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if v.Spec.NodeName != r.cfg.Node {
		return reconcile.Result{}, nil
	}
	if v.Spec.DesiredState == v1alpha1.Absent {
		return r.remove(ctx, v)
	}
	return r.keep(ctx, v)
}

// keep makes a volume that was never made, and has one that was made be as its spec says.
func (r volumes) keep(ctx context.Context, v *v1alpha1.LocalVolume) (reconcile.Result, error) {
	pool, err := r.openPool(ctx, v.Spec.Location)
	var info engine.VolumeInfo
	if err == nil {
		info, err = r.engine.Volume(ctx, v.Spec.Pool, v.Name)
		err = local.Translate(err)
	}
	switch {
	case err == nil && local.OwnerOf(info.Labels) == string(v.UID):
		return r.follow(ctx, v, info)
	case err == nil:
		return r.taken(ctx, v)
	case errors.Is(err, volume.ErrNotFound) && !is(v, v1alpha1.Created):
		return r.create(ctx, v, pool)
	case errors.Is(err, volume.ErrNotFound), is(v, v1alpha1.Created) && r.gone(ctx, v.Spec.Location, err):
		return r.lostVolume(ctx, v, err)
	}
	return r.unmade(ctx, v, err)
}

// unmade tells why a volume is not made yet.
func (a *Agent) unmade(ctx context.Context, o client.Object, err error) (reconcile.Result, error) {
	if unanswered(err) {
		return reconcile.Result{}, errors.Join(err, a.confirmOnly(ctx, o))
	}
	werr := write(ctx, a, o, func(o client.Object, c conditions) {
		if !is(o, v1alpha1.Created) {
			c.failed(v1alpha1.Created, err)
		}
	})
	if werr != nil || refused(o, v1alpha1.Created) {
		return reconcile.Result{}, werr
	}
	return a.again(), nil
}

// confirmOnly tells of a deletion that is not confirmed although nothing else is known.
func (a *Agent) confirmOnly(ctx context.Context, o client.Object) error {
	if o.GetDeletionTimestamp() == nil {
		return nil
	}
	return write(ctx, a, o, func(client.Object, conditions) {})
}

// taken: the engine has a volume of that name for another object.
func (r volumes) taken(ctx context.Context, v *v1alpha1.LocalVolume) (reconcile.Result, error) {
	err := fmt.Errorf("pool %s: %w: it has a volume of that name which was made for another object; it is kept as an orphan, see the Pool's status",
		v.Spec.Pool, volume.ErrExists)
	if is(v, v1alpha1.Created) {
		return r.lostVolume(ctx, v, err)
	}
	return r.unmade(ctx, v, err)
}

// create makes a volume. Promise "a lost volume is never made again, blank": the cache may be older than a status that says Created, so the object is
// read from the API server first.
func (r volumes) create(ctx context.Context, v *v1alpha1.LocalVolume, pool engine.PoolInfo) (reconcile.Result, error) {
	if refused(v, v1alpha1.Created) {
		return reconcile.Result{}, nil
	}
	if ok, err := r.live(ctx, v); !ok {
		return reconcile.Result{}, err
	}
	if is(v, v1alpha1.Created) {
		return r.lostVolume(ctx, v, fmt.Errorf("volume %s: %w in pool %s", v.Name, volume.ErrNotFound, pool.Name))
	}
	spec, err := volumeSpec(v)
	if err != nil {
		return r.unmade(ctx, v, err)
	}
	info, err := r.engine.CreateVolume(ctx, v.Spec.Pool, spec)
	switch {
	case err == nil:
		return r.follow(ctx, v, info)
	case errors.Is(err, engine.ErrNotFound) && v.Spec.Source != nil:
		err = fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	case errors.Is(err, engine.ErrExists): // by a call whose answer was lost; the next look tells whose it is
		return reconcile.Result{}, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	return r.unmade(ctx, v, local.Translate(err))
}

// volumeSpec is what the engine is asked for.
func volumeSpec(v *v1alpha1.LocalVolume) (spec engine.VolumeSpec, err error) {
	q := volume.CreateRequest{
		Name: v.Spec.CSIName, FSType: v.Spec.FSType,
		Parameters: volume.Parameters{
			Mode: volume.Mode(v.Spec.Mode), Tidy: v.Spec.Tidy, Provisioning: volume.Provisioning(v.Spec.Provisioning),
		},
	}
	if q.ID().String() != v.Name {
		return spec, fmt.Errorf("%w: LocalVolume %s: its name does not stand for spec.csiName, want %s", volume.ErrInvalid, v.Name, q.ID())
	}
	if s := v.Spec.Source; s != nil && s.Snapshot != "" {
		q.Source.Snapshot, err = volume.ParseSnapshotID(s.Snapshot)
	} else if s != nil {
		q.Source.Volume, err = volume.ParseVolumeID(s.Volume)
	}
	if err != nil {
		return spec, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	if err := q.Check(); err != nil {
		return spec, err
	}
	return local.VolumeSpec(q, volume.Sizing{Size: v.Spec.Size.Value(), Requested: v.Spec.Requested.Value()}, string(v.UID))
}

// follow has a volume that the engine has be as its spec says, and tells of it.
func (r volumes) follow(ctx context.Context, v *v1alpha1.LocalVolume, info engine.VolumeInfo) (reconcile.Result, error) {
	grown, gerr := r.grow(ctx, v, info)
	if gerr == nil {
		info = grown
	}
	cerr := r.change(ctx, v, info)
	info, rerr := r.rollBack(ctx, v, info)
	switch {
	case rerr == errChanged:
		return reconcile.Result{}, nil
	case errors.Is(rerr, errChanged):
		return reconcile.Result{}, rerr
	}
	rolled := v.Status.Rollback
	// After the growth: whoever attaches later sees the new size by itself, whoever was attached before is seen here.
	attached, aerr := r.attached(ctx, v)
	lost := is(v, v1alpha1.Lost)
	werr := write(ctx, r.Agent, v, func(v *v1alpha1.LocalVolume, c conditions) {
		c.yes(v1alpha1.Created, v1alpha1.ReasonDone, "")
		c.over(v1alpha1.Lost, v1alpha1.ReasonDone, "the engine has it again")
		size, created := resource.NewQuantity(info.Size, resource.BinarySI), metav1.NewTime(info.CreatedAt.UTC().Truncate(1e9))
		if v.Status.Size == nil || v.Status.Size.Cmp(*size) != 0 {
			v.Status.Size = size
		}
		v.Status.CreationTime = &created
		switch {
		case gerr == nil && info.Size >= v.Spec.Size.Value():
			c.yes(v1alpha1.Resized, v1alpha1.ReasonDone, "")
		case gerr != nil && !unanswered(gerr):
			c.failed(v1alpha1.Resized, gerr)
		}
		switch {
		case cerr == nil:
			c.yes(v1alpha1.Modified, v1alpha1.ReasonDone, "")
		case !unanswered(cerr):
			c.failed(v1alpha1.Modified, cerr)
		}
		reportRollback(v, c, info, rerr)
		switch {
		case aerr == nil && attached:
			c.yes(v1alpha1.Attached, v1alpha1.ReasonAttached, "")
		case aerr == nil:
			c.no(v1alpha1.Attached, v1alpha1.ReasonDetached, "")
		}
	})
	if lost && werr == nil {
		r.events.Eventf(v, nil, corev1.EventTypeNormal, "VolumeFound", "Serve", "the engine has the volume again")
	}
	if werr == nil {
		r.tellRollback(rolled, v)
	}
	if errors.Is(rerr, volume.ErrInUse) || rerr != nil && reason.Final(reason.Of(rerr)) {
		return r.again(), errors.Join(gerr, cerr, aerr, werr) // a detach, or a change of spec, brings it here sooner
	}
	return reconcile.Result{}, errors.Join(gerr, cerr, aerr, rerr, werr)
}

// grow makes a volume as large as its spec says.
func (r volumes) grow(ctx context.Context, v *v1alpha1.LocalVolume, info engine.VolumeInfo) (engine.VolumeInfo, error) {
	want := volume.Sizing{Size: v.Spec.Size.Value(), Requested: v.Spec.Requested.Value()}
	if have, _ := local.SizingOf(info.Size, info.Labels); want.Size <= info.Size && (want.Size < info.Size || want.Requested == have.Requested) {
		return info, nil
	}
	if _, err := r.engine.SetVolumeLabels(ctx, v.Spec.Pool, v.Name, local.RequestedLabels(want)); err != nil {
		return info, local.Translate(err)
	}
	grown, err := r.engine.GrowVolume(ctx, v.Spec.Pool, v.Name, want.Size)
	return grown, local.Translate(err)
}

// change gives a volume the mode that its spec says.
func (r volumes) change(ctx context.Context, v *v1alpha1.LocalVolume, info engine.VolumeInfo) error {
	mode, err := engine.ParseMode(v.Spec.Mode)
	if err != nil || mode == info.Mode && v.Spec.Tidy == info.Tidy {
		return local.Translate(err)
	}
	_, err = r.engine.ChangeVolume(ctx, v.Spec.Pool, v.Name, engine.VolumeChange{Mode: &mode, Tidy: &v.Spec.Tidy})
	return local.Translate(err)
}

// attached says whether the volume has a device. A device that waits for its volume counts.
func (r volumes) attached(ctx context.Context, v *v1alpha1.LocalVolume) (bool, error) {
	all, err := r.engine.Attachments(ctx, v.Spec.Pool)
	for _, a := range all {
		if a.Volume == v.Name {
			return true, nil
		}
	}
	return false, local.Translate(err)
}

// lostVolume is lost, and tells whether the volume has a device yet: one that said it was attached when its disk went could never be deleted.
func (r volumes) lostVolume(ctx context.Context, v *v1alpha1.LocalVolume, cause error) (reconcile.Result, error) {
	attached, err := r.attached(ctx, v)
	if err != nil {
		return reconcile.Result{}, err
	}
	return r.lost(ctx, v, cause, func(c conditions) {
		if !attached {
			c.over(v1alpha1.Attached, v1alpha1.ReasonDetached, "the volume is lost")
		}
	})
}

// lost tells that what was made once is not there any more, and more of it. Nothing is made in its place.
func (a *Agent) lost(ctx context.Context, o client.Object, cause error, more ...func(conditions)) (reconcile.Result, error) {
	was := is(o, v1alpha1.Lost)
	err := write(ctx, a, o, func(o client.Object, c conditions) {
		why := v1alpha1.ReasonLost
		if errors.Is(cause, errPoolAway) {
			why = v1alpha1.ReasonPoolGone
		}
		if !is(o, v1alpha1.Lost) {
			c.yes(v1alpha1.Lost, why, cause.Error()+". It was made once and is never made again, blank. Bring its pool's disks back, or restore it from a backup")
		}
		for _, tell := range more {
			tell(c)
		}
	})
	if err == nil && !was {
		a.events.Eventf(o, nil, corev1.EventTypeWarning, "Lost", "Serve", "%v", cause)
	}
	return a.again(), err
}

// remove frees a volume whose deletion is confirmed. Promise "deletion takes two keys": it is called for desiredState Absent alone, which nobody can take
// back, and frees what carries the object's UID alone.
func (r volumes) remove(ctx context.Context, v *v1alpha1.LocalVolume) (reconcile.Result, error) {
	if is(v, v1alpha1.Deleted) {
		return reconcile.Result{}, nil
	}
	_, err := r.openPool(ctx, v.Spec.Location)
	if err == nil {
		var info engine.VolumeInfo
		info, err = r.engine.Volume(ctx, v.Spec.Pool, v.Name)
		if err == nil && local.OwnerOf(info.Labels) == string(v.UID) {
			err = r.engine.DeleteVolume(ctx, v.Spec.Pool, v.Name)
		}
	}
	return r.removed(ctx, v, v.Spec.Location, err)
}

// removed tells how a removal went.
func (a *Agent) removed(ctx context.Context, o client.Object, l v1alpha1.Location, err error) (reconcile.Result, error) {
	err = local.Translate(err)
	if errors.Is(err, volume.ErrNotFound) || a.givenUp(ctx, l, err) ||
		errors.Is(err, errPoolAway) && !is(o, v1alpha1.Created) && (neverMade(o) || a.gone(ctx, l, err)) {
		err = nil // it is gone, or never was
	}
	if unanswered(err) {
		return reconcile.Result{}, err
	}
	werr := write(ctx, a, o, func(o client.Object, c conditions) {
		if err == nil {
			c.yes(v1alpha1.Deleted, v1alpha1.ReasonDone, "")
			return
		}
		c.failed(v1alpha1.Deleted, err)
	})
	switch {
	case err == nil:
		return reconcile.Result{}, werr
	case errors.Is(err, volume.ErrFailed): // which takes longer than the queue's patience
		return a.again(), werr
	}
	return reconcile.Result{}, errors.Join(err, werr)
}
