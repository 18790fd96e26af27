package selectednode

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// fieldClaim is the cache's index of pods by the claims that they use.
const fieldClaim = "rowan.claim"

// pods tells people of pods that can run nowhere, because their volumes are, or are to be made, on different nodes. The cache has pods without a node
// only.
type pods struct {
	*Controller

	mu   sync.Mutex
	told map[client.ObjectKey]string // by pod: what was said last
}

func (c *Controller) registerPods(ctx context.Context, m ctrl.Manager) error {
	if err := m.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, fieldClaim, claimIndex); err != nil {
		return fmt.Errorf("index pods by claim: %w", err)
	}
	p := &pods{Controller: c, told: map[client.ObjectKey]string{}}
	return ctrl.NewControllerManagedBy(m).Named("podsources").
		For(&corev1.Pod{}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(p.podsOfClaim)).
		Complete(kit.Calm(p))
}

func claimIndex(o client.Object) []string { return claims.OfPod(o.(*corev1.Pod)) }

func (p *pods) podsOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	var list corev1.PodList
	if err := p.Client.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{fieldClaim: o.GetName()}); err != nil {
		return nil // of a cache: it does not fail once it is filled
	}
	var requests []reconcile.Request
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// Reconcile one pod.
func (p *pods) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := p.Client.Get(ctx, req.NamespacedName, &pod); err != nil {
		if apierrors.IsNotFound(err) { // deleted, or it has a node
			p.mu.Lock()
			delete(p.told, req.NamespacedName)
			p.mu.Unlock()
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	bound := map[string][]string{} // by node: what is there
	var open []corev1.PersistentVolumeClaim
	for _, name := range claims.OfPod(&pod) {
		var claim corev1.PersistentVolumeClaim
		if err := p.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, &claim); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return reconcile.Result{}, fmt.Errorf("get claim %s: %w", name, err)
		}
		node, what, err := p.find.Needs(ctx, &claim)
		if err != nil {
			return reconcile.Result{}, err
		}
		if node != "" {
			bound[node] = append(bound[node], what)
		}
		if claim.Spec.VolumeName == "" {
			open = append(open, claim)
		}
	}
	if len(bound) > 1 {
		p.tell(&pod, open, bound)
	}
	return reconcile.Result{}, nil
}

// tell the pod and its unbound claims once.
func (p *pods) tell(pod *corev1.Pod, open []corev1.PersistentVolumeClaim, bound map[string][]string) {
	var parts []string
	for node, what := range bound {
		parts = append(parts, fmt.Sprintf("node %s has %s", node, strings.Join(what, ", ")))
	}
	slices.Sort(parts)
	text := strings.Join(parts, "; ")
	key := client.ObjectKeyFromObject(pod)
	said := string(pod.UID) + text
	p.mu.Lock()
	known := p.told[key] == said
	p.told[key] = said
	p.mu.Unlock()
	if known {
		return
	}
	note := "no node can run pod " + pod.Name + ": " + text + ". Use snapshots and volumes of one node in a pod"
	p.Events.Eventf(pod, nil, corev1.EventTypeWarning, "SourcesOnDifferentNodes", "Place", "%s", note)
	for i := range open {
		p.Events.Eventf(&open[i], pod, corev1.EventTypeWarning, "SourcesOnDifferentNodes", "Place", "%s", note)
	}
}
