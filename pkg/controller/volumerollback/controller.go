// Package volumerollback carries out VolumeRollbacks: a claim's volume is put back to one of its snapshots, in place.
//
// The steps, each of which may be the last before the process ends: what was asked for is found and checked, and written to status; the volume's node is
// asked to hold the volume (LocalVolume.spec.rollback), which it does as soon as nothing uses it, and staging answers ABORTED from then on; the safety
// snapshot is taken of what is held; the node is told to go on, with that hold and no other; what it did is written to status; the node is told that it is
// over.
//
// Contract:
//   - Nothing is rolled back but to a snapshot of that very volume: both are compared by their objects, whatever claims and snapshots are called.
//   - With a safety snapshot, nothing is lost: it was cut while the volume was held, and shows that very volume.
//   - A rollback happens once. Complete and Failed are final; of one that failed the volume is as it was.
//   - A VolumeRollback that is deleted is given up where it was not done: the volume is let go. So is a volume that is held for one that is gone.
//   - Safety snapshots are deleted after their time, unless they are held, in use or owned by somebody.
//
// Limits: a deletion in the moment in which the node rolls back may come too late. A deletion of the safety snapshot between its being ready and the
// rollback is not seen.
package volumerollback

import (
	"context"
	"fmt"
	"sync/atomic"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// workers at once: most of them wait for the API server.
const workers = 10

// The cache's indexes: rollbacks by the volume they were found to be of, and volumes by the rollback they are held for.
const (
	fieldVolume   = "rowan.rollback.volume"
	fieldRollback = "rowan.rollback.name"
)

// Controller of rollbacks.
type Controller struct {
	*kit.Kit
	snapshots atomic.Bool // their definitions are installed, and watched
}

// New controller.
func New(k *kit.Kit) *Controller { return &Controller{Kit: k} }

// Register it with a manager.
func (c *Controller) Register(ctx context.Context, m ctrl.Manager) error {
	index := m.GetFieldIndexer()
	if err := index.IndexField(ctx, &v1alpha1.VolumeRollback{}, fieldVolume, volumeIndex); err != nil {
		return fmt.Errorf("index rollbacks by volume: %w", err)
	}
	if err := index.IndexField(ctx, &v1alpha1.LocalVolume{}, fieldRollback, rollbackIndex); err != nil {
		return fmt.Errorf("index volumes by rollback: %w", err)
	}
	rollbacks, err := ctrl.NewControllerManagedBy(m).Named("volumerollback").
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		For(&v1alpha1.VolumeRollback{}).
		Watches(&v1alpha1.LocalVolume{}, handler.EnqueueRequestsFromMapFunc(c.ofVolume)).
		Build(kit.Calm(c))
	if err != nil {
		return err
	}
	safety, err := controller.New("volumerollback-safety", m, controller.Options{Reconciler: kit.Calm(&safety{c})})
	if err != nil {
		return err
	}
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return c.WhenInstalled(ctx, m.GetRESTMapper(), snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), func() error {
			c.snapshots.Store(true)
			if err := rollbacks.Watch(source.Kind[client.Object](m.GetCache(), &snapshotv1.VolumeSnapshot{},
				handler.EnqueueRequestsFromMapFunc(c.ofSnapshot))); err != nil {
				return fmt.Errorf("watch VolumeSnapshots: %w", err)
			}
			if err := safety.Watch(source.Kind[client.Object](m.GetCache(), &snapshotv1.VolumeSnapshot{},
				handler.EnqueueRequestsFromMapFunc(taken))); err != nil {
				return fmt.Errorf("watch safety snapshots: %w", err)
			}
			return nil
		})
	}))
}

func volumeIndex(o client.Object) []string {
	if v := o.(*v1alpha1.VolumeRollback).Status.Volume; v != "" {
		return []string{v}
	}
	return nil
}

func rollbackIndex(o client.Object) []string {
	if r := o.(*v1alpha1.LocalVolume).Spec.Rollback; r != nil {
		return []string{r.Namespace + "/" + r.Name}
	}
	return nil
}

// ofVolume are the rollbacks that a volume is held for, and those that wait for it.
func (c *Controller) ofVolume(ctx context.Context, o client.Object) (requests []reconcile.Request) {
	var list v1alpha1.VolumeRollbackList
	if err := c.Client.List(ctx, &list, client.MatchingFields{fieldVolume: o.GetName()}); err != nil {
		return nil // of a cache: it does not fail once it is filled
	}
	for i := range list.Items {
		if r := &list.Items[i]; !r.Finished() || controllerutil.ContainsFinalizer(r, v1alpha1.FinalizerRollback) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(r)})
		}
	}
	if r := o.(*v1alpha1.LocalVolume).Spec.Rollback; r != nil {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: r.Namespace, Name: r.Name}})
	}
	return requests
}

// ofSnapshot are the rollbacks that wait for a snapshot: to go back to, or to be safe.
func (c *Controller) ofSnapshot(ctx context.Context, o client.Object) (requests []reconcile.Request) {
	var list v1alpha1.VolumeRollbackList
	if err := c.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		return nil
	}
	for i := range list.Items {
		if r := &list.Items[i]; !r.Finished() && (r.Spec.VolumeSnapshotName == o.GetName() || safetyName(r) == o.GetName()) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(r)})
		}
	}
	return requests
}

// Reconcile one rollback.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := c.sweep(ctx, req.NamespacedName); err != nil {
		return reconcile.Result{}, err
	}
	var r v1alpha1.VolumeRollback
	if err := c.Client.Get(ctx, req.NamespacedName, &r); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if r.DeletionTimestamp != nil || r.Finished() {
		return reconcile.Result{}, c.over(ctx, &r)
	}
	if there, err := c.Patch(ctx, &r, func() { controllerutil.AddFinalizer(&r, v1alpha1.FinalizerRollback) }); err != nil || !there {
		return reconcile.Result{}, err
	}
	err := c.carryOut(ctx, &r)
	var v *verdict
	switch {
	case err == nil:
		return reconcile.Result{}, c.over(ctx, &r)
	case !asVerdict(err, &v):
		return reconcile.Result{}, err
	case v.final:
		return reconcile.Result{}, c.fail(ctx, &r, v)
	}
	return reconcile.Result{RequeueAfter: c.ProbeEvery}, c.waits(ctx, &r, v)
}

// over lets the volume go of a rollback that is finished, or given up by its deletion, and then the rollback.
func (c *Controller) over(ctx context.Context, r *v1alpha1.VolumeRollback) error {
	if !controllerutil.ContainsFinalizer(r, v1alpha1.FinalizerRollback) {
		return nil
	}
	if r.Status.Volume != "" {
		var v v1alpha1.LocalVolume
		// From the API server: the cache may not have yet what this process wrote.
		err := c.Live.Get(ctx, client.ObjectKey{Name: r.Status.Volume}, &v)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get LocalVolume %s: %w", r.Status.Volume, err)
		}
		if err == nil {
			if err := c.letGo(ctx, &v, string(r.UID)); err != nil {
				return err
			}
		}
	}
	_, err := c.Patch(ctx, r, func() { controllerutil.RemoveFinalizer(r, v1alpha1.FinalizerRollback) })
	return err
}

// letGo takes a rollback out of its volume's spec.
func (c *Controller) letGo(ctx context.Context, v *v1alpha1.LocalVolume, token string) error {
	if v.Spec.Rollback == nil || v.Spec.Rollback.Token != token {
		return nil
	}
	_, err := c.Patch(ctx, v, func() { v.Spec.Rollback = nil })
	return err
}

// sweep lets volumes go that are held for a rollback of that name which is gone: its finalizer was removed by hand, or its definition deleted.
func (c *Controller) sweep(ctx context.Context, key client.ObjectKey) error {
	var list v1alpha1.LocalVolumeList
	if err := c.Client.List(ctx, &list, client.MatchingFields{fieldRollback: key.String()}); err != nil {
		return fmt.Errorf("list volumes of rollback %s: %w", key, err)
	}
	for i := range list.Items {
		v := &list.Items[i]
		var r v1alpha1.VolumeRollback
		if err := c.Live.Get(ctx, key, &r); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get rollback %s: %w", key, err)
		}
		if token := v.Spec.Rollback.Token; string(r.UID) != token {
			if err := c.letGo(ctx, v, token); err != nil {
				return err
			}
		}
	}
	return nil
}
