// Package storageprofile tells KubeVirt's importer (CDI) what our storage classes can do, where it does not know.
//
// CDI makes a StorageProfile for each StorageClass and owns it; of drivers that it does not know, the spec is empty. Contract: of profiles of our
// classes, only fields that are empty are filled, each by itself, and the annotation is set only where there is none: what people write stands. Where
// CDI is not installed, this waits until it is.
package storageprofile

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

var profileKind = schema.GroupVersionKind{Group: "cdi.kubevirt.io", Version: "v1beta1", Kind: "StorageProfile"}

const (
	// minimumSize is CDI's annotation for the smallest claim of a class; xfsMinimum is the smallest XFS that mkfs makes.
	minimumSize = "cdi.kubevirt.io/minimumSupportedPvcSize"
	xfsMinimum  = "300Mi"
	// fsTypeParameter is the provisioner's parameter of a StorageClass.
	fsTypeParameter = "csi.storage.k8s.io/fstype"
)

// Controller of StorageProfiles.
type Controller struct{ *kit.Kit }

// New controller.
func New(k *kit.Kit) *Controller { return &Controller{k} }

func newProfile() *unstructured.Unstructured {
	p := &unstructured.Unstructured{}
	p.SetGroupVersionKind(profileKind)
	return p
}

// Register it with a manager.
func (c *Controller) Register(_ context.Context, m ctrl.Manager) error {
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return c.WhenInstalled(ctx, m.GetRESTMapper(), profileKind, func() error {
			return ctrl.NewControllerManagedBy(m).Named("storageprofile").
				For(newProfile()).
				Watches(&storagev1.StorageClass{}, &handler.EnqueueRequestForObject{}). // a profile has its class' name
				Complete(kit.Calm(c))
		})
	}))
}

// Reconcile one profile.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var class storagev1.StorageClass
	if err := c.Client.Get(ctx, req.NamespacedName, &class); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if class.Provisioner != v1alpha1.DriverName {
		return reconcile.Result{}, nil
	}
	profile := newProfile()
	if err := c.Client.Get(ctx, req.NamespacedName, profile); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	before := profile.DeepCopy()
	if err := fill(profile, &class); err != nil {
		return reconcile.Result{}, fmt.Errorf("fill StorageProfile %s: %w", req.Name, err)
	}
	if equality.Semantic.DeepEqual(before, profile) {
		return reconcile.Result{}, nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := c.Client.Patch(ctx, profile, patch); err != nil {
		return reconcile.Result{}, fmt.Errorf("patch StorageProfile %s: %w", req.Name, err)
	}
	c.Events.Eventf(profile, nil, corev1.EventTypeNormal, "Filled", "Fill", "what StorageClass %s can do was filled in", class.Name)
	return reconcile.Result{}, nil
}

// fill what is empty in a profile.
func fill(profile *unstructured.Unstructured, class *storagev1.StorageClass) error {
	sets, _, err := unstructured.NestedSlice(profile.Object, "spec", "claimPropertySets")
	if err != nil {
		return err
	}
	if len(sets) == 0 {
		// ReadWriteOnce alone: a volume is on one node. Block first, for it is what a virtual machine is best served with.
		sets = []any{claims(corev1.PersistentVolumeBlock), claims(corev1.PersistentVolumeFilesystem)}
		if err := unstructured.SetNestedSlice(profile.Object, sets, "spec", "claimPropertySets"); err != nil {
			return err
		}
	}
	format, _, err := unstructured.NestedString(profile.Object, "spec", "dataImportCronSourceFormat")
	if err != nil {
		return err
	}
	if format == "" { // a golden image is kept as a snapshot, whose clones cost nothing
		if err := unstructured.SetNestedField(profile.Object, "snapshot", "spec", "dataImportCronSourceFormat"); err != nil {
			return err
		}
	}
	annotations := profile.GetAnnotations()
	if _, said := annotations[minimumSize]; !said && class.Parameters[fsTypeParameter] == "xfs" {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[minimumSize] = xfsMinimum
		profile.SetAnnotations(annotations)
	}
	return nil
}

func claims(mode corev1.PersistentVolumeMode) map[string]any {
	return map[string]any{"accessModes": []any{string(corev1.ReadWriteOnce)}, "volumeMode": string(mode)}
}
