// Package claims says where a claim's data is, or is to come from: the node of the volume that it is bound to, or of the snapshot or volume that it
// is made from.
//
// Contract: it reads and writes nothing. What is named and not there (yet), and what is another driver's, has no node, and is no error. An answer is
// as fresh as the reader: it serves decisions that may be taken again.
package claims

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// The kinds that a claim of ours may be made from.
const (
	KindSnapshot = "VolumeSnapshot"
	KindClaim    = "PersistentVolumeClaim"
)

// SelectedNode is a claim's annotation that names the node which the scheduler drew for it, or rowan-controller in its place.
const SelectedNode = "volume.kubernetes.io/selected-node"

// Location is where a claim's source is.
type Location struct {
	Node string
	What string // the source, for people
}

// Finder finds out.
type Finder struct {
	Reader client.Reader
	// Snapshots says whether VolumeSnapshots may be asked for: a cache must know their definitions.
	Snapshots func() bool
}

// OfPod are the names of the claims that a pod uses, those that are made for it included.
func OfPod(pod *corev1.Pod) []string {
	var names []string
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}

// Class of a claim; nil: there is none.
func (f *Finder) Class(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		return nil, nil
	}
	var class storagev1.StorageClass
	err := f.Reader.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, &class)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get StorageClass %s: %w", *claim.Spec.StorageClassName, err)
	}
	return &class, nil
}

// WaitsForUs says whether claims of a class are made by our driver once they have a consumer.
func WaitsForUs(class *storagev1.StorageClass) bool {
	return class.Provisioner == v1alpha1.DriverName && class.VolumeBindingMode != nil &&
		*class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// Needs is the only node that can have a claim's volume, and why; "": any, or not known.
func (f *Finder) Needs(ctx context.Context, claim *corev1.PersistentVolumeClaim) (node, what string, err error) {
	if claim.Spec.VolumeName != "" {
		node, err := f.NodeOf(ctx, claim.Namespace, claim.Name)
		return node, "the volume of claim " + claim.Name, err
	}
	class, err := f.Class(ctx, claim)
	if err != nil || class == nil || !WaitsForUs(class) {
		return "", "", err
	}
	at, err := f.Source(ctx, claim)
	if err != nil || at == nil {
		return "", "", err
	}
	return at.Node, fmt.Sprintf("%s, which claim %s is made from", at.What, claim.Name), nil
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
	if kind == KindSnapshot && group == snapshotv1.GroupName || kind == KindClaim && group == "" {
		return kind, namespace, name
	}
	return "", "", "" // a populator's: it makes a claim of its own for us
}

// Key of a source, as SourceKey gives it.
func Key(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// SourceKey of a claim; "": it has no source that we know.
func SourceKey(claim *corev1.PersistentVolumeClaim) string {
	kind, namespace, name := reference(claim)
	if kind == "" {
		return ""
	}
	return Key(kind, namespace, name)
}

// SnapshotOf is the namespace and name, with a slash between, of the snapshot that a claim is made from; "": none.
func SnapshotOf(claim *corev1.PersistentVolumeClaim) string {
	kind, namespace, name := reference(claim)
	if kind != KindSnapshot {
		return ""
	}
	return namespace + "/" + name
}

// Source is where a claim's source is; nil: not known (yet), or not ours.
func (f *Finder) Source(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*Location, error) {
	kind, namespace, name := reference(claim)
	node, err := "", error(nil)
	switch kind {
	case KindClaim:
		node, err = f.NodeOf(ctx, namespace, name)
	case KindSnapshot:
		if f.Snapshots() {
			node, err = f.nodeOfSnapshot(ctx, namespace, name)
		}
	}
	if err != nil || node == "" {
		return nil, err
	}
	return &Location{Node: node, What: kind + " " + name}, nil
}

// nodeOfSnapshot is the node of the snapshot, or, before it is cut, of the volume that it is to be cut from.
func (f *Finder) nodeOfSnapshot(ctx context.Context, namespace, name string) (string, error) {
	var snapshot snapshotv1.VolumeSnapshot
	if err := f.Reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &snapshot); err != nil {
		return "", missing(err, KindSnapshot, name)
	}
	contentName := snapshot.Spec.Source.VolumeSnapshotContentName
	if s := snapshot.Status; s != nil && s.BoundVolumeSnapshotContentName != nil {
		contentName = s.BoundVolumeSnapshotContentName
	}
	if contentName != nil {
		node, ours, err := f.nodeOfContent(ctx, *contentName)
		if err != nil || node != "" || !ours {
			return node, err
		}
	}
	if p := snapshot.Spec.Source.PersistentVolumeClaimName; p != nil {
		return f.NodeOf(ctx, namespace, *p)
	}
	return "", nil
}

func (f *Finder) nodeOfContent(ctx context.Context, name string) (node string, ours bool, err error) {
	var content snapshotv1.VolumeSnapshotContent
	if err := f.Reader.Get(ctx, client.ObjectKey{Name: name}, &content); err != nil {
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
		err := f.Reader.Get(ctx, client.ObjectKey{Name: *handle}, &snapshot)
		if err == nil {
			return snapshot.Spec.NodeName, true, nil
		}
		if err := missing(err, "LocalSnapshot", *handle); err != nil {
			return "", true, err
		}
	}
	if v := content.Spec.Source.VolumeHandle; v != nil {
		node, err := f.nodeOfVolume(ctx, *v)
		return node, true, err
	}
	return "", true, nil
}

// NodeOf is the node of the volume that the claim is bound to.
func (f *Finder) NodeOf(ctx context.Context, namespace, name string) (string, error) {
	var claim corev1.PersistentVolumeClaim
	if err := f.Reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &claim); err != nil {
		return "", missing(err, KindClaim, name)
	}
	if claim.Spec.VolumeName == "" {
		return "", nil
	}
	var volume corev1.PersistentVolume
	if err := f.Reader.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume); err != nil {
		return "", missing(err, "PersistentVolume", claim.Spec.VolumeName)
	}
	if volume.Spec.CSI == nil || volume.Spec.CSI.Driver != v1alpha1.DriverName {
		return "", nil
	}
	return f.nodeOfVolume(ctx, volume.Spec.CSI.VolumeHandle)
}

func (f *Finder) nodeOfVolume(ctx context.Context, handle string) (string, error) {
	var volume v1alpha1.LocalVolume
	if err := f.Reader.Get(ctx, client.ObjectKey{Name: handle}, &volume); err != nil {
		return "", missing(err, "LocalVolume", handle)
	}
	return volume.Spec.NodeName, nil
}

// missing is no error: what a claim names may come later.
func missing(err error, kind, name string) error {
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) { // or its definition is not installed
		return nil
	}
	return fmt.Errorf("get %s %s: %w", kind, name, err)
}
