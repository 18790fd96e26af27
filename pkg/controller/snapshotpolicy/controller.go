// Package snapshotpolicy takes and prunes snapshots as SnapshotPolicies and ClusterSnapshotPolicies say.
//
// What is to be done is decided by package retention, which is pure: this package gathers the facts, carries the decisions out and says what it did.
// One pass looks at one policy: its sources (PVCs, or groups of them), its snapshots, what is due, what is to go.
//
// Contract, and what it rests on:
//   - Snapshots are named by a hash of policy, source, schedule and nominal time. A retry, another leader and a process that forgot make the same object.
//   - Create before prune, in each pass. What is due and could not be made is told to the planner, which then prunes nothing of that source by a rule.
//   - A snapshot is deleted only as it was seen: the deletion carries its UID and resource version, so a hold, a label or a use that was written
//     meanwhile stops it. Before anything of a source goes, the newest ready snapshots that stay are read from the API server, and so is the policy.
//   - A cache that is late leads to nothing twice: what was made is known (memory) until the cache shows it, and its name is the same.
//   - Memory is a convenience: a process that is ended between any two of its writes, and the next one, come to the same end. What must be remembered
//     is in the policy's status: since when a schedule is what it is, when a source was found gone, until when pruning is braked.
//   - No source waits for another: calls run side by side, and each source's failures have their own back-off.
//   - Status is written where it changes; a pass that finds nothing to do writes nothing.
//
// Limits: pool pressure is for pools of our own driver. Who uses a snapshot is known of PVCs, and where their definitions are installed of CDI's
// DataVolumes and DataSources, KubeVirt's snapshots and restores, and VolumeRollbacks.
package snapshotpolicy

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

const (
	// policiesAtOnce have a pass; callsAtOnce are made for one.
	policiesAtOnce = 4
	callsAtOnce    = 10
	// lookAgain is how often a policy is looked at though nothing happened: ages grow.
	lookAgain = 10 * time.Minute
	// brake is how long pruning pauses after a pass that might not prune all.
	brake = 5 * time.Minute
	// costShare keeps passes of a large policy from following one another closely: each waits so many times as long as the last one took.
	costShare = 4
)

// Controller of policies.
type Controller struct {
	*kit.Kit
	snapshots atomic.Bool // their definitions are installed, and watched
	mapper    meta.RESTMapper
	others    optional // kinds that may be installed
	figures   figures  // of pools, as the agents tell them

	mu       sync.Mutex
	memories map[client.ObjectKey]*memory
}

// New controller.
func New(k *kit.Kit) *Controller {
	return &Controller{Kit: k, memories: map[client.ObjectKey]*memory{}}
}

// Register it with a manager.
func (c *Controller) Register(ctx context.Context, m ctrl.Manager) error {
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		for _, kind := range []string{"SnapshotPolicy", "ClusterSnapshotPolicy"} {
			installed := false
			if err := c.WhenInstalled(ctx, m.GetRESTMapper(), v1alpha1.GroupVersion.WithKind(kind), func() error {
				installed = true
				return nil
			}); err != nil || !installed {
				return err
			}
		}
		return c.begin(ctx, m)
	}))
}

// begin watching, now that our own definitions are there. Those of snapshots may come later.
func (c *Controller) begin(ctx context.Context, m ctrl.Manager) error {
	c.mapper, c.others.reader = m.GetRESTMapper(), m.GetCache()
	own := builder.WithPredicates(predicate.Or[client.Object](
		predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}, predicate.LabelChangedPredicate{}))
	policies, err := ctrl.NewControllerManagedBy(m).Named("snapshotpolicy").
		WithOptions(controller.Options{MaxConcurrentReconciles: policiesAtOnce}).
		For(&v1alpha1.SnapshotPolicy{}, own).
		Watches(&v1alpha1.ClusterSnapshotPolicy{}, &handler.EnqueueRequestForObject{}, own).
		Watches(&corev1.PersistentVolumeClaim{}, c.later(c.policiesOfClaim), builder.WithPredicates(claimChanged())).
		WatchesMetadata(kit.Meta("Namespace"), c.later(c.clusterPolicies), builder.WithPredicates(predicate.Or[client.Object](
			predicate.LabelChangedPredicate{}, predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetDeletionTimestamp() != nil })))).
		Build(kit.Calm(c))
	if err != nil {
		return err
	}
	if err := policies.Watch(source.Kind[client.Object](m.GetCache(), &coordinationv1.Lease{}, c.later(c.policiesOfLease))); err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	c.watchOptional(ctx, m, policies)
	return c.WhenInstalled(ctx, m.GetRESTMapper(), snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), func() error {
		if err := c.indexSnapshots(ctx, m); err != nil {
			return err
		}
		if err := c.watchSnapshots(ctx, m, policies); err != nil {
			return err
		}
		c.snapshots.Store(true)
		return c.wake(policies)
	})
}

// notInstalled says that the API server does not know VolumeSnapshots. One that does not answer has not said so.
func (c *Controller) notInstalled() bool {
	kind := snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot")
	_, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	return meta.IsNoMatchError(err)
}

// Reconcile one policy: of a namespace, or, where the request has none, of the cluster.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	p, err := c.load(ctx, req.NamespacedName)
	if err != nil {
		return reconcile.Result{}, err
	}
	if p == nil {
		c.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	mem := c.remember(req.NamespacedName, p.uid())
	began := time.Now() // of the process' own time, for the cost alone
	defer func() { mem.cost.Store(int64(time.Since(began))) }()
	if !c.snapshots.Load() && !c.notInstalled() { // this process has just begun, and does not see them yet: nothing can be said of them
		return reconcile.Result{RequeueAfter: c.SettleFor}, nil
	}
	if p.obj.GetDeletionTimestamp() != nil {
		return c.finish(ctx, p, mem)
	}
	if !c.snapshots.Load() {
		ps := newPass(c, p, mem)
		ps.dateSchedules()
		return reconcile.Result{}, c.patchStatus(ctx, p, func(s *v1alpha1.SnapshotPolicyStatus) {
			s.Schedules = ps.schedules(nil) // what is due from now on is made up for
			c.ready(p, false, v1alpha1.ReasonNotInstalled, "the definitions of VolumeSnapshots are not installed: nothing is taken or pruned; "+
				"install them with the snapshot-controller (chart value snapshotController.install)")
		})
	}
	if there, err := c.keepFinalizer(ctx, p); err != nil || !there {
		return reconcile.Result{}, err
	}
	again, err := newPass(c, p, mem).run(ctx)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("pass over %s: %w", p.title(), err)
	}
	return reconcile.Result{RequeueAfter: again}, nil
}
