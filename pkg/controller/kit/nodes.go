package kit

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NodeMeta is a Node of which only the metadata is wanted: the cache then has a few hundred bytes of each, and no heartbeats.
func NodeMeta() *metav1.PartialObjectMetadata { return Meta("Node") }

// NodeMetas is a list of those.
func NodeMetas() *metav1.PartialObjectMetadataList { return Metas("Node") }

// Meta is an object of one of Kubernetes' own kinds, such as Node, of which only the metadata is wanted.
func Meta(kind string) *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return m
}

// Metas is a list of those.
func Metas(kind string) *metav1.PartialObjectMetadataList {
	l := &metav1.PartialObjectMetadataList{}
	l.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind + "List"))
	return l
}

// Node by its name; nil: there is none.
func (k *Kit) Node(ctx context.Context, name string) (*metav1.PartialObjectMetadata, error) {
	m := NodeMeta()
	err := k.Client.Get(ctx, client.ObjectKey{Name: name}, m)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get node %q: %w", name, err)
	}
	return m, nil
}
