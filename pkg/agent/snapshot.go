package agent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// snapshots carries out LocalSnapshots.
type snapshots struct{ *Agent }

// Reconcile looks at one.
func (r snapshots) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s := &v1alpha1.LocalSnapshot{}
	if err := r.client.Get(ctx, req.NamespacedName, s); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if s.Spec.NodeName != r.cfg.Node {
		return reconcile.Result{}, nil
	}
	if s.Spec.DesiredState == v1alpha1.Absent {
		return r.remove(ctx, s)
	}
	_, err := r.openPool(ctx, s.Spec.Location)
	var info engine.SnapshotInfo
	if err == nil {
		info, err = r.engine.Snapshot(ctx, s.Spec.Pool, s.Name)
		err = local.Translate(err)
	}
	switch created := is(s, v1alpha1.Created); {
	case err == nil && !ownsSnapshot(s, info) && created:
		return r.lost(ctx, s, fmt.Errorf("snapshot %s: %w: the engine has another one of that name", s.Name, volume.ErrNotFound))
	case err == nil && !ownsSnapshot(s, info):
		return r.unmade(ctx, s, fmt.Errorf("pool %s: %w: it has a snapshot of that name which was made for another object; it is kept as an orphan, "+
			"see the Pool's status", s.Spec.Pool, volume.ErrExists))
	case err == nil && !created && s.Spec.Group == "":
		return r.adopt(ctx, s, info, "")
	case err == nil:
		return reconcile.Result{}, r.made(ctx, s, info, "")
	case created && (errors.Is(err, volume.ErrNotFound) || r.gone(ctx, s.Spec.Location, err)):
		return r.lost(ctx, s, err)
	case errors.Is(err, volume.ErrNotFound) && s.Spec.Group == "":
		return r.cut(ctx, s)
	}
	return r.unmade(ctx, s, err)
}

// ownsSnapshot says whether a snapshot of the engine was made for the object: by its UID, or by its group's cut.
func ownsSnapshot(s *v1alpha1.LocalSnapshot, info engine.SnapshotInfo) bool {
	if s.Spec.Group != "" {
		return info.Group == s.Spec.Group && info.Volume == s.Spec.Volume
	}
	return local.OwnerOf(info.Labels) == string(s.UID)
}

// cut takes a snapshot. Promise "commands do not outlive their callers": the object is read from the API server first, for its caller may have given up
// or moved notAfter on, and nothing is asked of the engine after that time.
func (r snapshots) cut(ctx context.Context, s *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	if refused(s, v1alpha1.Created) {
		return reconcile.Result{}, nil
	}
	if ok, err := r.live(ctx, s); !ok {
		return reconcile.Result{}, err
	}
	if is(s, v1alpha1.Created) {
		return r.lost(ctx, s, fmt.Errorf("snapshot %s: %w", s.Name, volume.ErrNotFound))
	}
	left := s.Spec.NotAfter.Sub(r.cfg.Clock.Now())
	if left <= 0 {
		return reconcile.Result{}, r.expired(ctx, s)
	}
	q := volume.SnapshotRequest{Name: s.Spec.CSIName}
	if q.ID().String() != s.Name {
		return r.unmade(ctx, s, fmt.Errorf("%w: LocalSnapshot %s: its name does not stand for spec.csiName, want %s", volume.ErrInvalid, s.Name, q.ID()))
	}
	source, err := r.engine.Volume(ctx, s.Spec.Pool, s.Spec.Volume)
	if errors.Is(err, engine.ErrNotFound) {
		return r.unmade(ctx, s, fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err))
	}
	if err == nil {
		err = q.Check()
	}
	if err == nil && freezes(s.Spec.Consistency) {
		err = r.freezable(source)
	}
	if err != nil {
		return r.unmade(ctx, s, local.Translate(err))
	}
	cutting, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	spec := snapshotSpec(s.Spec.CSIName, source, string(s.UID))
	info, how := engine.SnapshotInfo{}, ""
	if freezes(s.Spec.Consistency) {
		mounted := false
		if info, mounted, err = local.FrozenCut(cutting, r.engine, r.cfg.Freeze, s.Spec.Pool, spec); mounted {
			how = v1alpha1.FrozenFileSystem
		} else {
			how = v1alpha1.FrozenNotMounted
		}
	} else {
		info, err = r.engine.CreateSnapshot(cutting, s.Spec.Pool, spec)
	}
	switch {
	case err == nil && !info.CreatedAt.After(s.Spec.NotAfter.Time):
		// In time for whoever asked, by the object as it was read above. Should it be Absent by now, status may still name what remove takes away.
		return reconcile.Result{}, r.made(ctx, s, info, how)
	case err == nil:
		return r.adopt(ctx, s, info, how)
	case errors.Is(err, engine.ErrExists), cutting.Err() != nil:
		return reconcile.Result{}, fmt.Errorf("cut snapshot %s: %w", s.Name, err) // the next look tells what became of it
	case errors.Is(err, engine.ErrNotFound):
		err = fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	res, err := r.unmade(ctx, s, local.Translate(err))
	if res.RequeueAfter > left {
		res.RequeueAfter = left
	}
	return res, err
}

// freezes says whether the file system is to be frozen for the cut.
func freezes(consistency string) bool { return consistency == string(volume.ConsistencyFreeze) }

// freezable says why a volume cannot be frozen.
func (a *Agent) freezable(source engine.VolumeInfo) error {
	if a.cfg.Freeze == nil {
		return fmt.Errorf("%w: this node's plugin freezes no file systems", volume.ErrInvalid)
	}
	_, fsType := local.SizingOf(source.Size, source.Labels)
	if err := volume.CheckFreeze(fsType); err != nil {
		return fmt.Errorf("volume %s: %w", source.Name, err)
	}
	return nil
}

// snapshotSpec is what the engine is asked for.
func snapshotSpec(name string, source engine.VolumeInfo, owner string) engine.SnapshotSpec {
	sizing, fsType := local.SizingOf(source.Size, source.Labels)
	spec := local.SnapshotSpec(volume.SnapshotRequest{Name: name}, sizing, fsType, owner)
	spec.Volume = source.Name
	return spec
}

// adopt takes a snapshot that the engine has and of which status says nothing yet. One that was cut too late, because the engine was slow or this process
// was killed, is nobody's: whoever asked was told, or has given up, and may have let the volume's content go on. Status never named it. Neither is one that
// was to be frozen, of which nobody knows whether it was (how is ""): this process was killed between the cut and the thaw.
func (r snapshots) adopt(ctx context.Context, s *v1alpha1.LocalSnapshot, info engine.SnapshotInfo, how string) (reconcile.Result, error) {
	if ok, err := r.live(ctx, s); !ok {
		return reconcile.Result{}, err
	}
	unknown := freezes(s.Spec.Consistency) && how == ""
	if is(s, v1alpha1.Created) || !unknown && !info.CreatedAt.After(s.Spec.NotAfter.Time) {
		return reconcile.Result{}, r.made(ctx, s, info, how)
	}
	if err := r.engine.DeleteSnapshot(ctx, s.Spec.Pool, s.Name); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return reconcile.Result{}, fmt.Errorf("delete snapshot %s, which was cut too late or not frozen: %w", s.Name, local.Translate(err))
	}
	if unknown && r.cfg.Clock.Now().Before(s.Spec.NotAfter.Time) {
		return r.cut(ctx, s)
	}
	return reconcile.Result{}, r.expired(ctx, s)
}

func (a *Agent) expired(ctx context.Context, o client.Object) error {
	return write(ctx, a, o, func(_ client.Object, c conditions) {
		c.no(v1alpha1.Created, v1alpha1.ReasonExpired, "spec.notAfter passed before it could be carried out; nothing was made. A retry moves it on")
	})
}

// made tells of a snapshot that is there.
func (r snapshots) made(ctx context.Context, s *v1alpha1.LocalSnapshot, info engine.SnapshotInfo, how string) error {
	sizing, fsType := local.SizingOf(info.Size, info.Labels)
	return write(ctx, r.Agent, s, func(s *v1alpha1.LocalSnapshot, c conditions) {
		if s.Status.Cut == nil {
			s.Status.Cut = &v1alpha1.Cut{
				CreationTime: metav1.NewMicroTime(info.CreatedAt.Truncate(1000)), FSType: fsType,
				Size: *resource.NewQuantity(sizing.Size, resource.BinarySI), Requested: *resource.NewQuantity(sizing.Requested, resource.BinarySI),
				Owned:  resource.NewQuantity(info.Owned, resource.BinarySI),
				Frozen: how,
			}
		}
		c.yes(v1alpha1.Created, v1alpha1.ReasonDone, "")
		c.over(v1alpha1.Lost, v1alpha1.ReasonDone, "the engine has it again")
	})
}

// remove frees a snapshot whose deletion is confirmed; see volumes.remove.
func (r snapshots) remove(ctx context.Context, s *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	if is(s, v1alpha1.Deleted) {
		return reconcile.Result{}, nil
	}
	_, err := r.openPool(ctx, s.Spec.Location)
	if err == nil {
		var info engine.SnapshotInfo
		info, err = r.engine.Snapshot(ctx, s.Spec.Pool, s.Name)
		if err == nil && ownsSnapshot(s, info) {
			err = r.engine.DeleteSnapshot(ctx, s.Spec.Pool, s.Name)
		}
	}
	return r.removed(ctx, s, s.Spec.Location, err)
}
