// Package selectednode places what is made from a snapshot or a volume where that is, before its pod is placed.
//
// A snapshot is on one node. A claim that waits for its first consumer is placed with its pod, by a scheduler that does not know where the snapshot
// is. A pod with one such claim and a new one would be placed anywhere, the new volume made there, the other where the snapshot is, and no node would
// ever have both. So the claim gets the annotation volume.kubernetes.io/selected-node, which is the scheduler's word for "make it there", as soon as
// it is seen: it binds before its pod is placed, and the pod and its other claims follow.
//
// Contract: only claims of our provisioner, unbound, that wait for their first consumer, have a source whose node is known and no such annotation.
// Nothing that the scheduler wrote is changed: the patch carries the resource version that was read. Where the definitions of snapshots are not
// installed, claims of snapshots wait until they are. CSI's snapshot topology will replace all this.
package selectednode

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// workers at once: the claim must be seen before its pod is placed, also when many come together.
const workers = 10

// Controller of claims.
type Controller struct {
	*kit.Kit
	snapshots atomic.Bool // their definitions are installed, and watched
	find      claims.Finder
}

// New controller.
func New(k *kit.Kit) *Controller {
	c := &Controller{Kit: k}
	c.find = claims.Finder{Reader: k.Client, Snapshots: c.snapshots.Load}
	return c
}

// Register it with a manager.
func (c *Controller) Register(ctx context.Context, m ctrl.Manager) error {
	if err := m.GetFieldIndexer().IndexField(ctx, &corev1.PersistentVolumeClaim{}, fieldSource, sourceIndex); err != nil {
		return fmt.Errorf("index claims by source: %w", err)
	}
	if err := c.registerPods(ctx, m); err != nil {
		return err
	}
	placer, err := ctrl.NewControllerManagedBy(m).Named("selectednode").
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		For(&corev1.PersistentVolumeClaim{}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(c.claimsOfClaim)).
		Build(kit.Calm(c))
	if err != nil {
		return err
	}
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return c.WhenInstalled(ctx, m.GetRESTMapper(), snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), func() error {
			c.snapshots.Store(true)
			if err := placer.Watch(source.Kind[client.Object](m.GetCache(), &snapshotv1.VolumeSnapshot{},
				handler.EnqueueRequestsFromMapFunc(c.claimsOfSnapshot))); err != nil {
				return fmt.Errorf("watch VolumeSnapshots: %w", err)
			}
			if err := placer.Watch(source.Kind[client.Object](m.GetCache(), &snapshotv1.VolumeSnapshotContent{},
				handler.EnqueueRequestsFromMapFunc(c.claimsOfContent))); err != nil {
				return fmt.Errorf("watch VolumeSnapshotContents: %w", err)
			}
			return nil
		})
	}))
}

// Reconcile one claim.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var claim corev1.PersistentVolumeClaim
	if err := c.Client.Get(ctx, req.NamespacedName, &claim); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !undecided(&claim) {
		return reconcile.Result{}, nil
	}
	class, err := c.find.Class(ctx, &claim)
	switch {
	case err != nil:
		return reconcile.Result{}, err
	case class == nil: // it may be made after the claim
		return reconcile.Result{RequeueAfter: c.ProbeEvery}, nil
	case !claims.WaitsForUs(class):
		return reconcile.Result{}, nil
	}
	at, err := c.find.Source(ctx, &claim)
	if err != nil {
		return reconcile.Result{}, err
	}
	if at == nil { // a change of the source brings it here again; but one of the caches that it is looked up in may be late
		return reconcile.Result{RequeueAfter: c.patience(&claim)}, nil
	}
	return c.place(ctx, &claim, at)
}

// patience with a claim whose source is not known: little with a new one, for its pod may be waiting.
func (c *Controller) patience(claim *corev1.PersistentVolumeClaim) time.Duration {
	return min(max(c.Clock.Since(claim.CreationTimestamp.Time), time.Second), c.ProbeEvery)
}

// undecided says whether a claim has a source and nobody has said where it is to be made.
func undecided(claim *corev1.PersistentVolumeClaim) bool {
	_, decided := claim.Annotations[claims.SelectedNode]
	return !decided && claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil && claims.SourceKey(claim) != ""
}

// place is the one function that decides for the scheduler.
func (c *Controller) place(ctx context.Context, claim *corev1.PersistentVolumeClaim, at *claims.Location) (reconcile.Result, error) {
	node, err := c.Node(ctx, at.Node)
	if err != nil {
		return reconcile.Result{}, err
	}
	if node == nil { // the provisioner would take the annotation away, and we would write it again, for ever
		c.Events.Eventf(claim, nil, corev1.EventTypeWarning, "SourceNodeGone", "Place",
			"%s is on node %s, which is gone: bring the node back, or take a source that is on another node", at.What, at.Node)
		return reconcile.Result{RequeueAfter: c.ProbeEvery}, nil
	}
	there, err := c.Patch(ctx, claim, func() {
		if claim.Annotations == nil {
			claim.Annotations = map[string]string{}
		}
		claim.Annotations[claims.SelectedNode] = at.Node
	})
	if apierrors.IsConflict(err) { // the scheduler, or whoever changed the claim, was first: the change brings it here again
		return reconcile.Result{}, nil
	}
	if err != nil || !there {
		return reconcile.Result{}, err
	}
	placed.Inc()
	c.Events.Eventf(claim, nil, corev1.EventTypeNormal, "SourceNode", "Place",
		"%s is on node %s: the volume is made there, and pods that use it run there", at.What, at.Node)
	return reconcile.Result{}, nil
}
