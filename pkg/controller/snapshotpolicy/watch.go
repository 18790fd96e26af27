package snapshotpolicy

import (
	"context"
	"fmt"
	"maps"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// The cache's indexes of snapshots, and of claims.
const (
	// fieldPolicy of VolumeSnapshots and VolumeGroupSnapshots: the UID that they are labelled with, and the name of the policy that made them.
	fieldPolicy = "rowan.policy"
	// fieldUnmanaged of VolumeSnapshots without such a label: the claim that they are of.
	fieldUnmanaged = "rowan.unmanaged"
	// fieldGroup of VolumeSnapshots: the group that they belong to.
	fieldGroup = "rowan.group"
	// fieldRestores of claims that are not bound and are made from snapshots: always restoring.
	fieldRestores = "rowan.restores"
	restoring     = "yes"
)

func byUID(uid string) string   { return "uid:" + uid }
func byName(name string) string { return "name:" + name }

func policyIndex(o client.Object) []string {
	var keys []string
	if uid := o.GetLabels()[retention.LabelPolicy]; uid != "" {
		keys = append(keys, byUID(uid))
	}
	if name := o.GetAnnotations()[retention.AnnotationPolicy]; name != "" {
		keys = append(keys, byName(name))
	}
	return keys
}

func unmanagedIndex(o client.Object) []string {
	claim := o.(*snapshotv1.VolumeSnapshot).Spec.Source.PersistentVolumeClaimName
	if o.GetLabels()[retention.LabelPolicy] != "" || claim == nil {
		return nil
	}
	return []string{o.GetNamespace() + "/" + *claim}
}

func groupIndex(o client.Object) []string {
	var keys []string
	for _, g := range groupsOf(o.(*snapshotv1.VolumeSnapshot)) {
		keys = append(keys, o.GetNamespace()+"/"+g)
	}
	return keys
}

// indexSnapshots once their definitions are installed: an index of a kind asks for its informer.
func (c *Controller) indexSnapshots(ctx context.Context, m ctrl.Manager) error {
	for field, extract := range map[string]client.IndexerFunc{fieldPolicy: policyIndex, fieldUnmanaged: unmanagedIndex, fieldGroup: groupIndex} {
		if err := m.GetFieldIndexer().IndexField(ctx, &snapshotv1.VolumeSnapshot{}, field, extract); err != nil {
			return fmt.Errorf("index VolumeSnapshots: %w", err)
		}
	}
	if err := m.GetFieldIndexer().IndexField(ctx, &corev1.PersistentVolumeClaim{}, fieldRestores, restoresIndex); err != nil {
		return fmt.Errorf("index claims: %w", err)
	}
	return nil
}

func (c *Controller) watchSnapshots(_ context.Context, m ctrl.Manager, to controller.Controller) error {
	for _, o := range []client.Object{&snapshotv1.VolumeSnapshot{}, &snapshotv1.VolumeSnapshotClass{}} {
		which := c.policiesOfSnapshot
		if _, class := o.(*snapshotv1.VolumeSnapshotClass); class {
			which = c.allPolicies
		}
		if err := to.Watch(source.Kind[client.Object](m.GetCache(), o, c.later(which))); err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
	}
	return nil
}

// later has policies looked at once an event has settled: a thousand snapshots that become ready are a few passes.
func (c *Controller) later(which handler.MapFunc) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	add := func(ctx context.Context, q queue, objects ...client.Object) {
		for _, o := range objects {
			for _, r := range which(ctx, o) {
				q.AddAfter(r, c.settle(r.NamespacedName))
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { add(ctx, q, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) { add(ctx, q, e.ObjectOld, e.ObjectNew) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { add(ctx, q, e.Object) },
	}
}

// claimChanged lets what concerns a policy through.
func claimChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		a, b := e.ObjectOld.(*corev1.PersistentVolumeClaim), e.ObjectNew.(*corev1.PersistentVolumeClaim)
		return !maps.Equal(a.Labels, b.Labels) || a.Annotations[v1alpha1.PolicyAnnotation] != b.Annotations[v1alpha1.PolicyAnnotation] ||
			a.Spec.VolumeName != b.Spec.VolumeName || a.Status.Phase != b.Status.Phase || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil)
	}}
}

// requests for the policies of a list. A list of a cache does not fail once that is filled, and each policy is looked at then.
func (c *Controller) requests(ctx context.Context, list client.ObjectList, options ...client.ListOption) []reconcile.Request {
	if err := c.Client.List(ctx, list, options...); err != nil {
		return nil
	}
	var requests []reconcile.Request
	switch l := list.(type) {
	case *v1alpha1.SnapshotPolicyList:
		for i := range l.Items {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&l.Items[i])})
		}
	case *v1alpha1.ClusterSnapshotPolicyList:
		for i := range l.Items {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&l.Items[i])})
		}
	}
	return requests
}

func (c *Controller) clusterPolicies(ctx context.Context, _ client.Object) []reconcile.Request {
	return c.requests(ctx, &v1alpha1.ClusterSnapshotPolicyList{})
}

func (c *Controller) policiesOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	return append(c.requests(ctx, &v1alpha1.SnapshotPolicyList{}, client.InNamespace(o.GetNamespace())), c.clusterPolicies(ctx, o)...)
}

func (c *Controller) allPolicies(ctx context.Context, o client.Object) []reconcile.Request {
	return append(c.requests(ctx, &v1alpha1.SnapshotPolicyList{}), c.clusterPolicies(ctx, o)...)
}

// policiesOfSnapshot is the one whose name it carries: a look at the annotation alone, for events are many. What was taken from it by hand is found at
// the next pass, for the event's old object still has it.
func (c *Controller) policiesOfSnapshot(_ context.Context, o client.Object) []reconcile.Request {
	if key, ok := parseAnnotation(o.GetAnnotations()[retention.AnnotationPolicy]); ok {
		return []reconcile.Request{{NamespacedName: key}}
	}
	return nil
}

// wake all policies: snapshots can be seen from now on.
func (c *Controller) wake(to controller.Controller) error {
	return to.Watch(source.Func(func(ctx context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		for _, r := range c.allPolicies(ctx, nil) {
			q.Add(r)
		}
		return nil
	}))
}
