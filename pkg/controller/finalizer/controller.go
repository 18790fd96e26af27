// Package finalizer lets objects go that were deleted with both keys and that the agent has said nothing is left of.
//
// Normally the call that asked for the deletion does this; its process may be gone. Contract: the finalizer is removed if and only if
// spec.desiredState is Absent, the object has a deletionTimestamp and its condition Deleted is True. Nothing else is evidence: an agent that is
// silent, a node that is lost or a pool that is gone may come back with the blocks.
package finalizer

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// Controller of the finalizers of one kind.
type Controller struct {
	*kit.Kit
	kind kit.Kind
}

// New controller of one kind.
func New(k *kit.Kit, kind kit.Kind) *Controller { return &Controller{k, kind} }

// Register it with a manager.
func (c *Controller) Register(_ context.Context, m ctrl.Manager) error {
	over := predicate.NewPredicateFuncs(func(o client.Object) bool { return finished(o) != nil })
	return ctrl.NewControllerManagedBy(m).Named("finalizer-"+c.kind.Name).For(c.kind.New(), builder.WithPredicates(over)).Complete(kit.Calm(c))
}

// finished is the condition that says so, of an object whose finalizer may go; nil of any other.
func finished(o client.Object) *metav1.Condition {
	v := kit.ViewOf(o)
	if v.Desired != v1alpha1.Absent || o.GetDeletionTimestamp() == nil || !controllerutil.ContainsFinalizer(o, v1alpha1.Finalizer) ||
		!meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.Deleted) {
		return nil
	}
	return meta.FindStatusCondition(v.Status.Conditions, v1alpha1.Deleted)
}

// Reconcile one object.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	o := c.kind.New()
	if err := c.Client.Get(ctx, req.NamespacedName, o); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	said := finished(o)
	if said == nil {
		return reconcile.Result{}, nil
	}
	// Nobody but us removes the finalizer of a Pool.
	if wait := c.FinalizeAfter - c.Clock.Since(said.LastTransitionTime.Time); wait > 0 && c.kind.Name != "Pool" {
		return reconcile.Result{RequeueAfter: min(wait, c.FinalizeAfter)}, nil
	}
	if _, err := c.Patch(ctx, o, func() { controllerutil.RemoveFinalizer(o, v1alpha1.Finalizer) }); err != nil {
		return reconcile.Result{}, fmt.Errorf("remove finalizer: %w", err)
	}
	return reconcile.Result{}, nil
}
