// Package controller has the controllers of rowan-controller, one folder for each, and the list of all.
//
// Contract: they meet the agents and the CSI controller in the custom resources only. They run in one process that was elected; two that overlap do
// no harm (see package kit). Each is idempotent: it compares what is wanted with what is there, and may be ended between any two of its writes.
package controller

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/finalizer"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/controller/lostnode"
	"github.com/rowan-csi/rowan/pkg/controller/poolmove"
	"github.com/rowan-csi/rowan/pkg/controller/poolset"
	"github.com/rowan-csi/rowan/pkg/controller/selectednode"
	"github.com/rowan-csi/rowan/pkg/controller/snapshotpolicy"
	"github.com/rowan-csi/rowan/pkg/controller/storageprofile"
	"github.com/rowan-csi/rowan/pkg/controller/volumerollback"
)

// Controller is one of them.
type Controller interface {
	Register(ctx context.Context, m ctrl.Manager) error
}

// All controllers, in no order that matters.
func All(k *kit.Kit) []Controller {
	agents := kit.NewAgents(k)
	all := []Controller{
		poolset.New(k),
		poolmove.New(k, agents),
		lostnode.New(k, agents),
		selectednode.New(k),
		storageprofile.New(k),
		volumerollback.New(k),
	}
	if k.SnapshotPolicies {
		all = append(all, snapshotpolicy.New(k))
	}
	for _, kind := range kit.Kinds {
		all = append(all, finalizer.New(k, kind))
	}
	return all
}

// Register all controllers, and the indexes that they read by, with a manager.
func Register(ctx context.Context, m ctrl.Manager, k *kit.Kit) error {
	index := func(o client.Object, field string, extract client.IndexerFunc) error {
		return m.GetFieldIndexer().IndexField(ctx, o, field, extract)
	}
	if err := kit.Indexes(index); err != nil {
		return err
	}
	for _, c := range All(k) {
		if err := c.Register(ctx, m); err != nil {
			return fmt.Errorf("register controller %T: %w", c, err)
		}
	}
	return nil
}

// AddToScheme makes all kinds known that the controllers use.
func AddToScheme(s *runtime.Scheme) error {
	for _, add := range []func(*runtime.Scheme) error{
		v1alpha1.AddToScheme, corev1.AddToScheme, storagev1.AddToScheme, coordinationv1.AddToScheme, snapshotv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return err
		}
	}
	return nil
}

// CacheOptions keep the cache small: of leases those of the release's namespace; of pods those without a node, and their names, volumes and no more;
// of snapshots what is read of them; and of nothing the record of who wrote which field.
func CacheOptions(namespace string) cache.Options {
	return cache.Options{
		DefaultTransform: slim,
		ByObject: map[client.Object]cache.ByObject{
			&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{namespace: {}}},
			&corev1.Pod{}:           {Field: fields.OneTermEqualSelector("spec.nodeName", ""), Transform: onlyVolumes},
		},
	}
}

// onlyVolumes of a pod.
func onlyVolumes(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	return &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion, DeletionTimestamp: pod.DeletionTimestamp,
		},
		Spec: corev1.PodSpec{NodeName: pod.Spec.NodeName, Volumes: pod.Spec.Volumes},
	}, nil
}
