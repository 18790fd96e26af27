package selectednode

import (
	"context"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/claims"
)

// fieldSource is the cache's index of claims by what they are made from.
const fieldSource = "rowan.source"

func sourceIndex(o client.Object) []string {
	if k := claims.SourceKey(o.(*corev1.PersistentVolumeClaim)); k != "" {
		return []string{k}
	}
	return nil
}

// claimsOf a source.
func (c *Controller) claimsOf(ctx context.Context, source string) []reconcile.Request {
	var list corev1.PersistentVolumeClaimList
	if err := c.Client.List(ctx, &list, client.MatchingFields{fieldSource: source}); err != nil { // of a cache: it does not fail once it is filled
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if undecided(&list.Items[i]) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}

func (c *Controller) claimsOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	if o.(*corev1.PersistentVolumeClaim).Spec.VolumeName == "" {
		return nil
	}
	return c.claimsOf(ctx, claims.Key(claims.KindClaim, o.GetNamespace(), o.GetName()))
}

func (c *Controller) claimsOfSnapshot(ctx context.Context, o client.Object) []reconcile.Request {
	return c.claimsOf(ctx, claims.Key(claims.KindSnapshot, o.GetNamespace(), o.GetName()))
}

func (c *Controller) claimsOfContent(ctx context.Context, o client.Object) []reconcile.Request {
	ref := o.(*snapshotv1.VolumeSnapshotContent).Spec.VolumeSnapshotRef
	return c.claimsOf(ctx, claims.Key(claims.KindSnapshot, ref.Namespace, ref.Name))
}
