package selectednode

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

const (
	kindSnapshot = "VolumeSnapshot"
	kindClaim    = "PersistentVolumeClaim"
	// fieldSource is the cache's index of claims by what they are made from.
	fieldSource = "rowan.source"
)

// location is where a claim's source is.
type location struct {
	node string
	what string // the source, for people
}

// reference to the source of a claim, whose namespace is the claim's unless it says so.
func reference(claim *corev1.PersistentVolumeClaim) (kind, namespace, name string) {
	namespace = claim.Namespace
	group := ""
	switch ref, old := claim.Spec.DataSourceRef, claim.Spec.DataSource; {
	case ref != nil:
		kind, name = ref.Kind, ref.Name
		if ref.APIGroup != nil {
			group = *ref.APIGroup
		}
		if ref.Namespace != nil && *ref.Namespace != "" {
			namespace = *ref.Namespace
		}
	case old != nil:
		kind, name = old.Kind, old.Name
		if old.APIGroup != nil {
			group = *old.APIGroup
		}
	}
	if kind == kindSnapshot && group == snapshotv1.GroupName || kind == kindClaim && group == "" {
		return kind, namespace, name
	}
	return "", "", "" // a populator's: it makes a claim of its own for us
}

func key(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// sourceKey of a claim; "": it has no source that we know.
func sourceKey(claim *corev1.PersistentVolumeClaim) string {
	kind, namespace, name := reference(claim)
	if kind == "" {
		return ""
	}
	return key(kind, namespace, name)
}

func sourceIndex(o client.Object) []string {
	if k := sourceKey(o.(*corev1.PersistentVolumeClaim)); k != "" {
		return []string{k}
	}
	return nil
}

// sourceOf is where a claim's source is; nil: not known (yet), or not ours.
func (c *Controller) sourceOf(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*location, error) {
	kind, namespace, name := reference(claim)
	node, err := "", error(nil)
	switch kind {
	case kindClaim:
		node, err = c.nodeOfClaim(ctx, namespace, name)
	case kindSnapshot:
		if c.snapshots.Load() {
			node, err = c.nodeOfSnapshot(ctx, namespace, name)
		}
	}
	if err != nil || node == "" {
		return nil, err
	}
	return &location{node: node, what: kind + " " + name}, nil
}

// nodeOfSnapshot is the node of the snapshot, or, before it is cut, of the volume that it is to be cut from.
func (c *Controller) nodeOfSnapshot(ctx context.Context, namespace, name string) (string, error) {
	var snapshot snapshotv1.VolumeSnapshot
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &snapshot); err != nil {
		return "", missing(err, kindSnapshot, name)
	}
	contentName := snapshot.Spec.Source.VolumeSnapshotContentName
	if s := snapshot.Status; s != nil && s.BoundVolumeSnapshotContentName != nil {
		contentName = s.BoundVolumeSnapshotContentName
	}
	if contentName != nil {
		node, ours, err := c.nodeOfContent(ctx, *contentName)
		if err != nil || node != "" || !ours {
			return node, err
		}
	}
	if p := snapshot.Spec.Source.PersistentVolumeClaimName; p != nil {
		return c.nodeOfClaim(ctx, namespace, *p)
	}
	return "", nil
}

func (c *Controller) nodeOfContent(ctx context.Context, name string) (node string, ours bool, err error) {
	var content snapshotv1.VolumeSnapshotContent
	if err := c.Client.Get(ctx, client.ObjectKey{Name: name}, &content); err != nil {
		return "", true, missing(err, "VolumeSnapshotContent", name)
	}
	if content.Spec.Driver != v1alpha1.DriverName {
		return "", false, nil
	}
	handle := content.Spec.Source.SnapshotHandle
	if s := content.Status; s != nil && s.SnapshotHandle != nil {
		handle = s.SnapshotHandle
	}
	if handle != nil {
		var snapshot v1alpha1.LocalSnapshot
		err := c.Client.Get(ctx, client.ObjectKey{Name: *handle}, &snapshot)
		if err == nil {
			return snapshot.Spec.NodeName, true, nil
		}
		if err := missing(err, "LocalSnapshot", *handle); err != nil {
			return "", true, err
		}
	}
	if v := content.Spec.Source.VolumeHandle; v != nil {
		node, err := c.nodeOfVolume(ctx, *v)
		return node, true, err
	}
	return "", true, nil
}

// nodeOfClaim is the node of the volume that the claim is bound to.
func (c *Controller) nodeOfClaim(ctx context.Context, namespace, name string) (string, error) {
	var claim corev1.PersistentVolumeClaim
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &claim); err != nil {
		return "", missing(err, kindClaim, name)
	}
	if claim.Spec.VolumeName == "" {
		return "", nil
	}
	var volume corev1.PersistentVolume
	if err := c.Client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume); err != nil {
		return "", missing(err, "PersistentVolume", claim.Spec.VolumeName)
	}
	if volume.Spec.CSI == nil || volume.Spec.CSI.Driver != v1alpha1.DriverName {
		return "", nil
	}
	return c.nodeOfVolume(ctx, volume.Spec.CSI.VolumeHandle)
}

func (c *Controller) nodeOfVolume(ctx context.Context, handle string) (string, error) {
	var volume v1alpha1.LocalVolume
	if err := c.Client.Get(ctx, client.ObjectKey{Name: handle}, &volume); err != nil {
		return "", missing(err, "LocalVolume", handle)
	}
	return volume.Spec.NodeName, nil
}

// missing is no error: what a claim names may come later.
func missing(err error, kind, name string) error {
	if client.IgnoreNotFound(err) == nil {
		return nil
	}
	return fmt.Errorf("get %s %s: %w", kind, name, err)
}

// claimsOf a source.
func (c *Controller) claimsOf(ctx context.Context, source string) []reconcile.Request {
	var claims corev1.PersistentVolumeClaimList
	if err := c.Client.List(ctx, &claims, client.MatchingFields{fieldSource: source}); err != nil { // of a cache: it does not fail once it is filled
		return nil
	}
	var requests []reconcile.Request
	for i := range claims.Items {
		if undecided(&claims.Items[i]) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&claims.Items[i])})
		}
	}
	return requests
}

func (c *Controller) claimsOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	if o.(*corev1.PersistentVolumeClaim).Spec.VolumeName == "" {
		return nil
	}
	return c.claimsOf(ctx, key(kindClaim, o.GetNamespace(), o.GetName()))
}

func (c *Controller) claimsOfSnapshot(ctx context.Context, o client.Object) []reconcile.Request {
	return c.claimsOf(ctx, key(kindSnapshot, o.GetNamespace(), o.GetName()))
}

func (c *Controller) claimsOfContent(ctx context.Context, o client.Object) []reconcile.Request {
	ref := o.(*snapshotv1.VolumeSnapshotContent).Spec.VolumeSnapshotRef
	return c.claimsOf(ctx, key(kindSnapshot, ref.Namespace, ref.Name))
}
