// Package poolset makes a Pool on every node that a PoolSet chooses, and counts them.
//
// Contract: it makes pools, adds members, changes overcommit, and gives up a pool only when all of these hold: nobody else's PoolSet has it, no
// object and no orphan is in it by a live look at the API server, and its node is there but was not chosen for a while (or another pool of the set
// took its place). The agent looks again in the engine before it does anything. A node that is gone, a PoolSet that is deleted and a node plugin that
// is away give up nothing.
package poolset

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// Controller of PoolSets.
type Controller struct{ *kit.Kit }

// New controller.
func New(k *kit.Kit) *Controller { return &Controller{k} }

// Register it with a manager.
func (c *Controller) Register(_ context.Context, m ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(c.everySet)
	return ctrl.NewControllerManagedBy(m).Named("poolset").
		For(&v1alpha1.PoolSet{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Pool{}, handler.EnqueueRequestsFromMapFunc(setOfPool)).
		Watches(&storagev1.CSINode{}, all).
		WatchesMetadata(kit.NodeMeta(), all, builder.WithPredicates(predicate.Or[client.Object](predicate.LabelChangedPredicate{}, deletionBegan()))).
		Complete(kit.Calm(c))
}

// deletionBegan lets updates through that began a deletion. (Creations and deletions pass every predicate that does not name them.)
func deletionBegan() predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetDeletionTimestamp() != nil })
}

func setOfPool(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: o.(*v1alpha1.Pool).Spec.PoolSet}}}
}

func (c *Controller) everySet(ctx context.Context, _ client.Object) []reconcile.Request {
	var sets v1alpha1.PoolSetList
	if err := c.Client.List(ctx, &sets); err != nil { // of a cache: it does not fail once it is filled, and a set is looked at then
		return nil
	}
	var requests []reconcile.Request
	for i := range sets.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&sets.Items[i])})
	}
	return requests
}

// Reconcile one PoolSet.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var set v1alpha1.PoolSet
	if err := c.Client.Get(ctx, req.NamespacedName, &set); err != nil {
		if client.IgnoreNotFound(err) == nil {
			forget(req.Name)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if set.DeletionTimestamp != nil { // its pools stay
		return reconcile.Result{}, nil
	}
	selector := labels.Everything()
	if set.Spec.NodeSelector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(set.Spec.NodeSelector); err != nil {
			return reconcile.Result{}, c.PatchStatus(ctx, &set, func() {
				c.SetCondition(&set, &set.Status.Status, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonInvalid, "spec.nodeSelector: "+err.Error())
			})
		}
	}
	w, err := c.look(ctx, &set, selector)
	if err != nil {
		return reconcile.Result{}, err
	}
	var problems []string
	for _, node := range w.chosen {
		if len(w.pools[node.Name]) > 0 {
			continue
		}
		if other := w.identityTaken(node.Name); other != nil {
			problems = append(problems, fmt.Sprintf("node %s gets no pool: its name is the node identity of node %s, which has pool %s now; "+
				"give the node another name, or move the pool's disks back", node.Name, other.Spec.NodeName, other.Name))
			continue
		}
		pool, err := c.make(ctx, &set, node)
		if err != nil {
			return reconcile.Result{}, err
		}
		w.pools[node.Name] = append(w.pools[node.Name], pool)
	}
	applied, err := c.carryTemplate(ctx, &set, w)
	if err != nil {
		return reconcile.Result{}, err
	}
	again, err := c.giveUp(ctx, w)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: again}, c.count(ctx, &set, w, problems, applied)
}

// world is what a PoolSet is judged by.
type world struct {
	chosen   []metav1.PartialObjectMetadata
	selected func(node string) (there, selected bool)
	pools    map[string][]*v1alpha1.Pool // of this set, by node
	everyOne []v1alpha1.Pool             // of all sets
}

func (c *Controller) look(ctx context.Context, set *v1alpha1.PoolSet, selector labels.Selector) (*world, error) {
	nodes := kit.NodeMetas()
	if err := c.Client.List(ctx, nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var plugins storagev1.CSINodeList
	if err := c.Client.List(ctx, &plugins); err != nil {
		return nil, fmt.Errorf("list CSINodes: %w", err)
	}
	var pools v1alpha1.PoolList
	if err := c.Client.List(ctx, &pools); err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	runs := map[string]bool{} // our node plugin
	for _, p := range plugins.Items {
		runs[p.Name] = slices.ContainsFunc(p.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == v1alpha1.DriverName })
	}
	w := &world{pools: map[string][]*v1alpha1.Pool{}, everyOne: pools.Items}
	matches := map[string]bool{}
	for _, n := range nodes.Items {
		matches[n.Name] = selector.Matches(labels.Set(n.Labels))
		if matches[n.Name] && runs[n.Name] && n.DeletionTimestamp == nil {
			w.chosen = append(w.chosen, n)
		}
	}
	w.selected = func(node string) (bool, bool) { m, there := matches[node]; return there, m }
	for i := range w.everyOne {
		if p := &w.everyOne[i]; p.Spec.PoolSet == set.Name {
			w.pools[p.Spec.NodeName] = append(w.pools[p.Spec.NodeName], p)
		}
	}
	slices.SortFunc(w.chosen, func(a, b metav1.PartialObjectMetadata) int { return strings.Compare(a.Name, b.Name) })
	return w, nil
}

// identityTaken is a pool on another node whose node identity is this name: disks that moved took it along. Two nodes with one topology value would
// draw each other's pods.
func (w *world) identityTaken(node string) *v1alpha1.Pool {
	for i := range w.everyOne {
		if p := &w.everyOne[i]; p.Status.Identity == node && p.Spec.NodeName != node {
			return p
		}
	}
	return nil
}

// count writes the set's status.
func (c *Controller) count(ctx context.Context, set *v1alpha1.PoolSet, w *world, problems, differences []string) error {
	ready := int32(0)
	for _, n := range w.chosen {
		why := "its pool is not made yet"
		ok := false
		for _, p := range w.pools[n.Name] {
			r := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Ready)
			if r != nil && r.Status == metav1.ConditionTrue {
				ok = true
			} else if r != nil {
				why = fmt.Sprintf("pool %s: %s", p.Name, r.Message)
			}
		}
		if ok {
			ready++
		} else {
			problems = append(problems, fmt.Sprintf("node %s: %s", n.Name, why))
		}
	}
	return c.PatchStatus(ctx, set, func() {
		s := &set.Status
		s.Nodes, s.Ready, s.ObservedGeneration = int32(len(w.chosen)), ready, set.Generation
		observe(set.Name, s.Nodes, s.Ready)
		switch {
		case len(problems) > 0:
			c.SetCondition(set, &s.Status, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonPending, summary(problems))
		case len(w.chosen) == 0:
			c.SetCondition(set, &s.Status, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonPending,
				"no node is chosen: none that runs Rowan's node plugin matches spec.nodeSelector")
		default:
			c.SetCondition(set, &s.Status, v1alpha1.Ready, metav1.ConditionTrue, v1alpha1.ReasonServing, fmt.Sprintf("%d pools serve", ready))
		}
		if len(differences) > 0 {
			c.SetCondition(set, &s.Status, v1alpha1.TemplateApplied, metav1.ConditionFalse, v1alpha1.ReasonInvalid, summary(differences))
		} else {
			c.SetCondition(set, &s.Status, v1alpha1.TemplateApplied, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
		}
	})
}

// summary of many lines: an object is no place for hundreds.
func summary(lines []string) string {
	const most = 5
	if len(lines) > most {
		lines = append(slices.Clone(lines[:most]), fmt.Sprintf("and %d more", len(lines)-most))
	}
	return strings.Join(lines, "; ")
}

// soonest of two waits; 0 is none.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
