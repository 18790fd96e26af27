// Package poolmove follows disks: a pool whose members show up on another node is moved there, and its volumes, snapshots and groups with it.
//
// An agent announces on its lease the pools that it found and that are not its node's. Contract: a pool moves only if exactly one living agent
// announces it and the node that has it cannot have it in use: that Node is gone (by its UID), or tainted as out of service, and its agent silent; or
// its agent lives and has said for a while that the pool is gone. Whatever a wrong or malicious agent announces, a pool that is served stays. What is
// written: spec.nodeName (and spec.nodeUID) of the Pool, then spec.nodeName of the objects that name the pool by its UUID. The Pool is written first
// and the objects follow it, so that there is one truth, and a controller that is ended in between goes on from there. Nothing is freed.
package poolmove

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// lookEvery is how often a pool is looked at that is announced elsewhere and may not move yet: an agent's silence is no event.
const lookEvery = 10 * time.Second

// Controller of pools.
type Controller struct {
	*kit.Kit
	agents *kit.Agents
}

// New controller.
func New(k *kit.Kit, agents *kit.Agents) *Controller { return &Controller{k, agents} }

// Register it with a manager.
func (c *Controller) Register(_ context.Context, m ctrl.Manager) error {
	b := ctrl.NewControllerManagedBy(m).Named("poolmove").
		For(&v1alpha1.Pool{}).
		Watches(&coordinationv1.Lease{}, handler.EnqueueRequestsFromMapFunc(c.announced), builder.WithPredicates(announcement))
	for _, k := range kit.Kinds {
		if k.Name != "Pool" {
			b = b.Watches(k.New(), handler.EnqueueRequestsFromMapFunc(c.strayed), builder.WithPredicates(predicate.GenerationChangedPredicate{}))
		}
	}
	return b.Complete(kit.Calm(c))
}

// announcement lets changes of what a lease announces through, not its renewals.
var announcement = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetAnnotations()[v1alpha1.ForeignPools] != e.ObjectNew.GetAnnotations()[v1alpha1.ForeignPools]
}}

// announced are the pools that a lease names.
func (c *Controller) announced(ctx context.Context, o client.Object) []reconcile.Request {
	uuids := foreign(o.(*coordinationv1.Lease))
	var pools v1alpha1.PoolList
	if len(uuids) == 0 || c.Client.List(ctx, &pools) != nil { // of a cache: it does not fail once it is filled
		return nil
	}
	var requests []reconcile.Request
	for i := range pools.Items {
		if slices.Contains(uuids, pools.Items[i].Status.UUID) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&pools.Items[i])})
		}
	}
	return requests
}

func foreign(lease *coordinationv1.Lease) []string {
	return strings.FieldsFunc(lease.Annotations[v1alpha1.ForeignPools], func(r rune) bool { return r == ',' || r == ' ' })
}

// strayed is the pool of an object that is not where its pool is: one that was made while the pool was moved.
func (c *Controller) strayed(ctx context.Context, o client.Object) []reconcile.Request {
	v := kit.ViewOf(o)
	var pool v1alpha1.Pool
	if err := c.Client.Get(ctx, client.ObjectKey{Name: v.Pool}, &pool); err != nil || pool.Spec.NodeName == *v.Node {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(&pool)}}
}

// Reconcile one pool.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.Pool
	if err := c.Client.Get(ctx, req.NamespacedName, &pool); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if pool.Status.UUID == "" {
		return reconcile.Result{}, nil
	}
	again, err := c.move(ctx, &pool)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: again}, c.follow(ctx, &pool)
}

// move the pool to the node whose agent found it, if it may. It returns after which time to look again.
func (c *Controller) move(ctx context.Context, pool *v1alpha1.Pool) (time.Duration, error) {
	finders, err := c.finders(ctx, pool)
	if err != nil || len(finders) == 0 {
		return 0, err
	}
	from, to := pool.Spec.NodeName, finders[0]
	if len(finders) > 1 {
		c.Events.Eventf(pool, nil, corev1.EventTypeWarning, "FoundTwice", "Move",
			"the agents of nodes %s found disks of this pool: were they copied? It stays on node %s until only one has them", strings.Join(finders, ", "),
			from)
		return lookEvery, nil
	}
	node, err := c.Node(ctx, to)
	if err != nil {
		return 0, err
	}
	if node == nil { // its lease is left
		return lookEvery, nil
	}
	if why, err := c.inUse(ctx, pool); err != nil || why != "" {
		if why != "" {
			c.Events.Eventf(pool, nil, corev1.EventTypeWarning, "FoundElsewhere", "Move", "the agent of node %s found disks of this pool, but %s", to, why)
		}
		return lookEvery, err
	}
	there, err := c.Patch(ctx, pool, func() { pool.Spec.NodeName, pool.Spec.NodeUID = to, string(node.UID) })
	if err == nil && there {
		moved.Inc()
		c.Events.Eventf(pool, nil, corev1.EventTypeNormal, "Moved", "Move",
			"the disks are on node %s now, and were on node %s; volumes and snapshots follow", to, from)
	}
	return 0, err
}

// finders are the nodes other than the pool's whose agents live and announce it.
func (c *Controller) finders(ctx context.Context, pool *v1alpha1.Pool) ([]string, error) {
	var leases coordinationv1.LeaseList
	if err := c.Client.List(ctx, &leases, client.InNamespace(c.Namespace)); err != nil {
		return nil, fmt.Errorf("list leases of agents: %w", err)
	}
	var nodes []string
	for i := range leases.Items {
		l := &leases.Items[i]
		if node := kit.NodeOf(l); node != "" && node != pool.Spec.NodeName && slices.Contains(foreign(l), pool.Status.UUID) && c.agents.AliveBy(l) {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes, nil
}

// inUse says why the pool's node may have it in use; "": it cannot.
func (c *Controller) inUse(ctx context.Context, pool *v1alpha1.Pool) (string, error) {
	name := pool.Spec.NodeName
	alive, err := c.agents.Alive(ctx, name)
	if err != nil {
		return "", err
	}
	if alive {
		ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.Ready)
		switch {
		case ready == nil || ready.Status != metav1.ConditionFalse || ready.Reason != v1alpha1.ReasonPoolGone: // a failed pool's volumes are read
			return fmt.Sprintf("node %s has it: were they copied?", name), nil
		case c.Clock.Since(ready.LastTransitionTime.Time) < v1alpha1.AgentSilence:
			return fmt.Sprintf("the agent of node %s says only for a moment that it is not there", name), nil
		}
		return c.torn(ctx, pool)
	}
	var node corev1.Node // with its taints, which the cache does not have
	if err := c.Live.Get(ctx, client.ObjectKey{Name: name}, &node); client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("get node %s: %w", name, err)
	} else if err != nil || pool.Spec.NodeUID != "" && string(node.UID) != pool.Spec.NodeUID {
		return "", nil
	}
	if slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService }) {
		return "", nil
	}
	return fmt.Sprintf("node %s, whose agent is silent, may still run pods on it: delete that Node, or taint it with %s, when it is off",
		name, corev1.TaintNodeOutOfService), nil
}

// torn says which other pool of the node keeps serving under the identity that this pool's disks would take along: pods of both would be sent to either
// node.
func (c *Controller) torn(ctx context.Context, pool *v1alpha1.Pool) (string, error) {
	var pools v1alpha1.PoolList
	if err := c.Client.List(ctx, &pools); err != nil {
		return "", fmt.Errorf("list pools: %w", err)
	}
	for i := range pools.Items {
		p := &pools.Items[i]
		if p.Name == pool.Name || p.Spec.NodeName != pool.Spec.NodeName || p.Status.Identity == "" || p.Status.Identity != pool.Status.Identity {
			continue
		}
		if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Ready); ready == nil || ready.Reason != v1alpha1.ReasonPoolGone {
			return fmt.Sprintf("node %s still serves pool %s: volumes of both are looked for on %s, and a node's disks move together: move those, too, or these back",
				p.Spec.NodeName, p.Name, p.Status.Identity), nil
		}
	}
	return "", nil
}

// follow moves what is in the pool to the pool's node.
func (c *Controller) follow(ctx context.Context, pool *v1alpha1.Pool) error {
	for _, k := range kit.Kinds {
		if k.Name == "Pool" {
			continue
		}
		objects, err := kit.Objects(ctx, c.Client, k, client.MatchingFields{kit.FieldPoolUUID: pool.Status.UUID})
		if err != nil {
			return err
		}
		for _, o := range objects {
			v := kit.ViewOf(o)
			if v.Pool != pool.Name {
				continue
			}
			if _, err := c.Patch(ctx, o, func() { *v.Node = pool.Spec.NodeName }); err != nil {
				return err
			}
		}
	}
	return nil
}
