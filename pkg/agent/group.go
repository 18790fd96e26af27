package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// groups carries out LocalSnapshotGroups. A group is cut once, whole; its snapshots have objects of their own then, by which each may be deleted before
// the group is.
type groups struct{ *Agent }

// Reconcile looks at one.
func (r groups) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	g := &v1alpha1.LocalSnapshotGroup{}
	if err := r.client.Get(ctx, req.NamespacedName, g); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if g.Spec.NodeName != r.cfg.Node {
		return reconcile.Result{}, nil
	}
	_, err := r.openPool(ctx, g.Spec.Location)
	var there []engine.SnapshotInfo
	if err == nil {
		there, err = r.members(ctx, g)
	}
	switch {
	case g.Spec.DesiredState == v1alpha1.Absent:
		return r.remove(ctx, g, there, err)
	case is(g, v1alpha1.Created):
		return reconcile.Result{}, r.confirmOnly(ctx, g)
	case err != nil:
		return r.unmade(ctx, g, err)
	case len(there) > 0:
		return r.adopt(ctx, g, there, nil, false)
	}
	return r.cut(ctx, g)
}

// members are the snapshots that the engine has of the group's cut.
func (r groups) members(ctx context.Context, g *v1alpha1.LocalSnapshotGroup) (there []engine.SnapshotInfo, err error) {
	for _, m := range g.Spec.Members {
		info, err := r.engine.Snapshot(ctx, g.Spec.Pool, m.Snapshot)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, local.Translate(err)
		}
		if info.Group == g.Name && local.OwnerOf(info.Labels) == string(g.UID) {
			there = append(there, info)
		}
	}
	return there, nil
}

// cut takes all snapshots at once, before notAfter; see snapshots.cut.
func (r groups) cut(ctx context.Context, g *v1alpha1.LocalSnapshotGroup) (reconcile.Result, error) {
	if refused(g, v1alpha1.Created) {
		return reconcile.Result{}, nil
	}
	if ok, err := r.live(ctx, g); !ok || is(g, v1alpha1.Created) {
		return reconcile.Result{}, err
	}
	left := g.Spec.NotAfter.Sub(r.cfg.Clock.Now())
	if left <= 0 {
		return reconcile.Result{}, r.expired(ctx, g)
	}
	spec, err := r.spec(ctx, g)
	if err != nil {
		return r.unmade(ctx, g, err)
	}
	cutting, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	var infos []engine.SnapshotInfo
	var frozen []string
	if freezes(g.Spec.Consistency) {
		infos, frozen, err = local.FrozenGroupCut(cutting, r.engine, r.cfg.Freeze, g.Spec.Pool, spec)
	} else {
		infos, err = r.engine.CreateSnapshotGroup(cutting, g.Spec.Pool, spec)
	}
	switch {
	case err == nil:
		return r.adopt(ctx, g, infos, frozen, true)
	case cutting.Err() != nil:
		return reconcile.Result{}, fmt.Errorf("cut group %s: %w", g.Name, err)
	case errors.Is(err, engine.ErrNotFound):
		err = fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	return r.unmade(ctx, g, local.Translate(err))
}

// spec is what the engine is asked for.
func (r groups) spec(ctx context.Context, g *v1alpha1.LocalSnapshotGroup) (engine.SnapshotGroupSpec, error) {
	spec := engine.SnapshotGroupSpec{Name: g.Name}
	for _, m := range g.Spec.Members {
		q := volume.SnapshotRequest{Name: m.CSIName}
		if err := q.Check(); err != nil {
			return spec, err
		}
		if q.ID().String() != m.Snapshot {
			return spec, fmt.Errorf("%w: group %s: the name of member %s does not stand for its csiName, want %s", volume.ErrInvalid, g.Name, m.Snapshot, q.ID())
		}
		source, err := r.engine.Volume(ctx, g.Spec.Pool, m.Volume)
		if errors.Is(err, engine.ErrNotFound) {
			return spec, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
		}
		if err != nil {
			return spec, local.Translate(err)
		}
		if freezes(g.Spec.Consistency) {
			if err := r.freezable(source); err != nil {
				return spec, err
			}
		}
		spec.Snapshots = append(spec.Snapshots, snapshotSpec(m.CSIName, source, string(g.UID)))
	}
	return spec, nil
}

// adopt takes a cut that the engine has; one that came too late is nobody's, nor is one that was to be frozen and of which nobody knows whether it was: see
// snapshots.adopt. Nor is what is left of a cut: this process was killed while it deleted one of those, and its time may have been moved on since.
// cut: this very call made it, and frozen is what it froze.
func (r groups) adopt(
	ctx context.Context, g *v1alpha1.LocalSnapshotGroup, infos []engine.SnapshotInfo, frozen []string, cut bool,
) (reconcile.Result, error) {
	if ok, err := r.live(ctx, g); !ok {
		return reconcile.Result{}, err
	}
	at, unknown := infos[0].CreatedAt, freezes(g.Spec.Consistency) && !cut || len(infos) < len(g.Spec.Members)
	if !is(g, v1alpha1.Created) && (unknown || at.After(g.Spec.NotAfter.Time)) {
		if err := r.deleteAll(ctx, g, infos); err != nil {
			return reconcile.Result{}, fmt.Errorf("delete group %s, which was cut too late or not frozen: %w", g.Name, err)
		}
		if unknown && r.cfg.Clock.Now().Before(g.Spec.NotAfter.Time) {
			return r.cut(ctx, g)
		}
		return reconcile.Result{}, r.expired(ctx, g)
	}
	return reconcile.Result{}, write(ctx, r.Agent, g, func(g *v1alpha1.LocalSnapshotGroup, c conditions) {
		t := metav1.NewMicroTime(at.Truncate(time.Microsecond))
		if g.Status.CreationTime == nil {
			g.Status.CreationTime, g.Status.Frozen = &t, frozen
		}
		c.yes(v1alpha1.Created, v1alpha1.ReasonDone, "")
	})
}

func (r groups) deleteAll(ctx context.Context, g *v1alpha1.LocalSnapshotGroup, infos []engine.SnapshotInfo) error {
	for _, i := range infos {
		if err := r.engine.DeleteSnapshot(ctx, g.Spec.Pool, i.Name); err != nil && !errors.Is(err, engine.ErrNotFound) {
			return local.Translate(err)
		}
	}
	return nil
}

// remove frees what the engine still has of the cut.
func (r groups) remove(ctx context.Context, g *v1alpha1.LocalSnapshotGroup, there []engine.SnapshotInfo, err error) (reconcile.Result, error) {
	if is(g, v1alpha1.Deleted) {
		return reconcile.Result{}, nil
	}
	if err == nil {
		err = r.deleteAll(ctx, g, there)
	}
	return r.removed(ctx, g, g.Spec.Location, err)
}
