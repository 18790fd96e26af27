// Package lostnode marks what is on nodes that are gone.
//
// A node is gone when its Node object is, by the UID under which its agent last lived, and its agent is silent. From then on its pools say
// NodeLost=Unknown; after Config.NodeLostAfter they, and all volumes, snapshots and groups there, say NodeLost=True. Deletions of these are answered
// from then on, and carried out when the disks return. Contract: conditions are all that is written, and the UID of a node that came back; nothing is
// freed, deleted or moved. The times are in the conditions, so that a controller that starts anew goes on where the last one was.
package lostnode

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// lookEvery is how often a node that is gone is looked at: the silence of an agent is no event.
const lookEvery = 10 * time.Second

// Controller of nodes, by their names.
type Controller struct {
	*kit.Kit
	agents *kit.Agents
}

// New controller.
func New(k *kit.Kit, agents *kit.Agents) *Controller { return &Controller{k, agents} }

// Register it with a manager.
func (c *Controller) Register(_ context.Context, m ctrl.Manager) error {
	byName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request { return request(o.GetName()) })
	byField := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request { return request(*kit.ViewOf(o).Node) })
	byLease := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return request(kit.NodeOf(o.(*coordinationv1.Lease)))
	})
	b := ctrl.NewControllerManagedBy(m).Named("lostnode").
		WatchesMetadata(kit.NodeMeta(), byName, builder.WithPredicates(cameOrWent)).
		Watches(&coordinationv1.Lease{}, byLease, builder.WithPredicates(wokeUp))
	for _, k := range kit.Kinds { // one made, or moved, to a node that is gone is to be marked, too
		b = b.Watches(k.New(), byField, builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	}
	return b.Complete(kit.Calm(c))
}

func request(node string) []reconcile.Request {
	if node == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: node}}}
}

// cameOrWent lets Nodes through that are made or deleted, not their labels and annotations.
var cameOrWent = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() }}

// wokeUp lets a lease through that was renewed after a silence, not every renewal.
var wokeUp = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*coordinationv1.Lease).Spec.RenewTime, e.ObjectNew.(*coordinationv1.Lease).Spec.RenewTime
	return before == nil || after == nil || after.Sub(before.Time) >= v1alpha1.AgentSilence
}}

// Reconcile one node, which may not be there.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	name := req.Name
	here := map[string][]client.Object{}
	some := false
	for _, k := range kit.Kinds {
		objects, err := kit.Objects(ctx, c.Client, k, client.MatchingFields{kit.FieldNode: name})
		if err != nil {
			return reconcile.Result{}, err
		}
		here[k.Name] = objects
		some = some || len(objects) > 0
	}
	if !some {
		lostSince.DeleteLabelValues(name)
		return reconcile.Result{}, nil
	}
	node, err := c.Node(ctx, name)
	if err != nil {
		return reconcile.Result{}, err
	}
	alive, err := c.agents.Alive(ctx, name)
	if err != nil {
		return reconcile.Result{}, err
	}
	same, err := c.sameNode(ctx, node, alive, here["Pool"])
	if err != nil {
		return reconcile.Result{}, err
	}
	if !alive && !same {
		return c.mark(ctx, name, here)
	}
	lostSince.DeleteLabelValues(name)
	again := time.Duration(0)
	if !same { // somebody deleted the Node of a kubelet that runs: the agent will fall silent, which is no event
		again = lookEvery
	}
	return reconcile.Result{RequeueAfter: again}, c.unmark(ctx, here)
}

// sameNode says whether the Node is there that the pools were made on. One that was made again under its name is another one, until its agent lives:
// then its UID is the pools'.
func (c *Controller) sameNode(ctx context.Context, node *metav1.PartialObjectMetadata, alive bool, pools []client.Object) (bool, error) {
	if node == nil {
		return false, nil
	}
	same := true
	for _, o := range pools {
		p := o.(*v1alpha1.Pool)
		known := p.Spec.NodeUID
		switch {
		case known == string(node.UID):
		case known == "" || alive:
			if _, err := c.Patch(ctx, p, func() { p.Spec.NodeUID = string(node.UID) }); err != nil {
				return false, err
			}
		default:
			same = false
		}
	}
	return same, nil
}

// mark what is on a node that is gone: first the pools, or what there is, as a clock; then all.
func (c *Controller) mark(ctx context.Context, name string, here map[string][]client.Object) (reconcile.Result, error) {
	clocks := here["Pool"]
	if len(clocks) == 0 { // somebody removed the Pool with force: its volumes keep the time
		for _, k := range kit.Kinds {
			clocks = append(clocks, here[k.Name]...)
		}
	}
	since := c.Clock.Now()
	for _, o := range clocks {
		s := kit.ViewOf(o).Status
		if was := meta.FindStatusCondition(s.Conditions, v1alpha1.NodeLost); was != nil && was.Status != metav1.ConditionFalse {
			if was.LastTransitionTime.Time.Before(since) {
				since = was.LastTransitionTime.Time
			}
			continue
		}
		text := fmt.Sprintf("node %s is gone and its agent silent; if both stay so for %s, its volumes count as lost with it", name, c.NodeLostAfter)
		if err := c.PatchStatus(ctx, o, func() { c.SetCondition(o, s, v1alpha1.NodeLost, metav1.ConditionUnknown, "NodeGone", text) }); err != nil {
			return reconcile.Result{}, err
		}
	}
	lostSince.WithLabelValues(name).Set(float64(since.Unix()))
	wait := c.NodeLostAfter - c.Clock.Since(since)
	if wait > 0 && !anyLost(clocks) {
		return reconcile.Result{RequeueAfter: min(wait, lookEvery)}, nil
	}
	text := fmt.Sprintf("node %s is gone since %s; deletions are carried out when its disks return, on whatever node", name,
		since.UTC().Format(time.RFC3339))
	for _, k := range kit.Kinds {
		for _, o := range here[k.Name] {
			s := kit.ViewOf(o).Status
			if meta.IsStatusConditionTrue(s.Conditions, v1alpha1.NodeLost) {
				continue
			}
			if err := c.PatchStatus(ctx, o, func() { c.SetCondition(o, s, v1alpha1.NodeLost, metav1.ConditionTrue, "NodeGone", text) }); err != nil {
				return reconcile.Result{}, err
			}
			if k.Name == "Pool" {
				c.Events.Eventf(o, nil, corev1.EventTypeWarning, v1alpha1.NodeLost, "Mark", "%s", text)
			}
		}
	}
	return reconcile.Result{RequeueAfter: lookEvery}, nil // its agent may come back without its Node
}

// anyLost says whether one says NodeLost=True: the wait is over, though a change of status began its time anew.
func anyLost(objects []client.Object) bool {
	for _, o := range objects {
		if meta.IsStatusConditionTrue(kit.ViewOf(o).Status.Conditions, v1alpha1.NodeLost) {
			return true
		}
	}
	return false
}

func (c *Controller) unmark(ctx context.Context, here map[string][]client.Object) error {
	for _, k := range kit.Kinds {
		for _, o := range here[k.Name] {
			s := kit.ViewOf(o).Status
			if meta.FindStatusCondition(s.Conditions, v1alpha1.NodeLost) == nil {
				continue
			}
			if err := c.PatchStatus(ctx, o, func() { meta.RemoveStatusCondition(&s.Conditions, v1alpha1.NodeLost) }); err != nil {
				return err
			}
			if k.Name == "Pool" {
				c.Events.Eventf(o, nil, corev1.EventTypeNormal, "NodeReturned", "Mark", "node %s is back", *kit.ViewOf(o).Node)
			}
		}
	}
	return nil
}
