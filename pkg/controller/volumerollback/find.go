package volumerollback

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// verdict is why a rollback does not go on: now, or ever.
type verdict struct {
	reason, message string
	final           bool
}

func (v *verdict) Error() string { return v.message }

func wait(reason, format string, args ...any) error {
	return &verdict{reason: reason, message: fmt.Sprintf(format, args...)}
}

func refuse(reason, format string, args ...any) error {
	return &verdict{reason: reason, message: fmt.Sprintf(format, args...), final: true}
}

func asVerdict(err error, v **verdict) bool { return errors.As(err, v) }

// read gets an object from the API server: what is found missing is given up for good, and a cache may be late.
func (c *Controller) read(ctx context.Context, kind, namespace, name string, o client.Object) error {
	err := c.Live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, o)
	switch {
	case apierrors.IsNotFound(err):
		return refuse(v1alpha1.ReasonNotFound, "there is no %s %s", kind, name)
	case err != nil:
		return fmt.Errorf("get %s %s: %w", kind, name, err)
	}
	return nil
}

// find what is to be rolled back, and to what; a verdict where that cannot be.
func (c *Controller) find(ctx context.Context, r *v1alpha1.VolumeRollback) (*v1alpha1.LocalVolume, *v1alpha1.LocalSnapshot, error) {
	v, err := c.volumeOf(ctx, r.Namespace, r.Spec.PersistentVolumeClaimName)
	if err != nil {
		return nil, nil, err
	}
	s, err := c.snapshotOf(ctx, r.Namespace, r.Spec.VolumeSnapshotName)
	if err != nil {
		return nil, nil, err
	}
	return v, s, ofThatVolume(r, v, s)
}

// ofThatVolume refuses a snapshot of another volume.
func ofThatVolume(r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume, s *v1alpha1.LocalSnapshot) error {
	if s.Spec.Volume != v.Name || s.Spec.PoolUUID != v.Spec.PoolUUID {
		return refuse(v1alpha1.ReasonNotOfVolume, "VolumeSnapshot %s is of volume %s, claim %s has volume %s: a volume is rolled back to its own snapshots only; "+
			"restore that one to a new claim", r.Spec.VolumeSnapshotName, s.Spec.Volume, r.Spec.PersistentVolumeClaimName, v.Name)
	}
	return nil
}

// volumeOf a claim.
func (c *Controller) volumeOf(ctx context.Context, namespace, name string) (*v1alpha1.LocalVolume, error) {
	var claim corev1.PersistentVolumeClaim
	if err := c.read(ctx, "PersistentVolumeClaim", namespace, name, &claim); err != nil {
		return nil, err
	}
	if claim.Spec.VolumeName == "" || claim.DeletionTimestamp != nil {
		return nil, refuse(v1alpha1.ReasonNotFound, "PersistentVolumeClaim %s has no volume yet, or is being deleted", name)
	}
	var pv corev1.PersistentVolume
	if err := c.read(ctx, "PersistentVolume", "", claim.Spec.VolumeName, &pv); err != nil {
		return nil, err
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.Namespace != namespace || ref.Name != name || ref.UID != "" && ref.UID != claim.UID {
		return nil, refuse(v1alpha1.ReasonNotFound, "PersistentVolume %s is not bound to claim %s", pv.Name, name)
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != v1alpha1.DriverName {
		return nil, refuse(v1alpha1.ReasonNotOurs, "the volume of claim %s is not one of %s", name, v1alpha1.DriverName)
	}
	return c.localVolume(ctx, pv.Spec.CSI.VolumeHandle)
}

// localVolume by its name, which is there and to stay.
func (c *Controller) localVolume(ctx context.Context, name string) (*v1alpha1.LocalVolume, error) {
	var v v1alpha1.LocalVolume
	if err := c.read(ctx, "LocalVolume", "", name, &v); err != nil {
		return nil, err
	}
	switch {
	case v.Spec.DesiredState == v1alpha1.Absent:
		return nil, refuse(v1alpha1.ReasonNotFound, "volume %s is being deleted", name)
	case meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.Lost):
		return nil, refuse(v1alpha1.ReasonLost, "volume %s is lost: %s", name, meta.FindStatusCondition(v.Status.Conditions, v1alpha1.Lost).Message)
	}
	return &v, nil
}

// snapshotOf a VolumeSnapshot, by its content's handle.
func (c *Controller) snapshotOf(ctx context.Context, namespace, name string) (*v1alpha1.LocalSnapshot, error) {
	if !c.snapshots.Load() {
		return nil, wait(v1alpha1.ReasonNoSnapshots, "the cluster has no definition of VolumeSnapshots: install the snapshot controller")
	}
	var snapshot snapshotv1.VolumeSnapshot
	if err := c.read(ctx, "VolumeSnapshot", namespace, name, &snapshot); err != nil {
		return nil, err
	}
	st := snapshot.Status
	if snapshot.DeletionTimestamp != nil {
		return nil, refuse(v1alpha1.ReasonNotFound, "VolumeSnapshot %s is being deleted", name)
	}
	if st == nil || st.BoundVolumeSnapshotContentName == nil || st.ReadyToUse == nil || !*st.ReadyToUse {
		return nil, wait(v1alpha1.ReasonNotReady, "VolumeSnapshot %s is not ready yet%s", name, trouble(st))
	}
	var content snapshotv1.VolumeSnapshotContent
	if err := c.read(ctx, "VolumeSnapshotContent", "", *st.BoundVolumeSnapshotContentName, &content); err != nil {
		return nil, err
	}
	switch ref := content.Spec.VolumeSnapshotRef; {
	case content.Spec.Driver != v1alpha1.DriverName:
		return nil, refuse(v1alpha1.ReasonNotOurs, "VolumeSnapshot %s is one of driver %s, not of %s", name, content.Spec.Driver, v1alpha1.DriverName)
	case ref.Namespace != namespace || ref.Name != name || ref.UID != snapshot.UID:
		return nil, refuse(v1alpha1.ReasonNotFound, "VolumeSnapshotContent %s is another snapshot's", content.Name)
	case content.Status == nil || content.Status.SnapshotHandle == nil:
		return nil, wait(v1alpha1.ReasonNotReady, "VolumeSnapshot %s is not ready yet", name)
	}
	return c.localSnapshot(ctx, *content.Status.SnapshotHandle)
}

// trouble is what a snapshot's error says, if it has one.
func trouble(st *snapshotv1.VolumeSnapshotStatus) string {
	if st == nil || st.Error == nil || st.Error.Message == nil {
		return ""
	}
	return ": " + *st.Error.Message
}

// localSnapshot by its name, which is there and to stay.
func (c *Controller) localSnapshot(ctx context.Context, name string) (*v1alpha1.LocalSnapshot, error) {
	var s v1alpha1.LocalSnapshot
	if err := c.read(ctx, "LocalSnapshot", "", name, &s); err != nil {
		return nil, err
	}
	switch conditions := s.Status.Conditions; {
	case s.Spec.DesiredState == v1alpha1.Absent:
		return nil, refuse(v1alpha1.ReasonSourceNotFound, "snapshot %s is being deleted", name)
	case meta.IsStatusConditionTrue(conditions, v1alpha1.Lost):
		return nil, refuse(v1alpha1.ReasonLost, "snapshot %s is lost: %s", name, meta.FindStatusCondition(conditions, v1alpha1.Lost).Message)
	case !meta.IsStatusConditionTrue(conditions, v1alpha1.Created) || s.Status.Cut == nil:
		return nil, wait(v1alpha1.ReasonNotReady, "snapshot %s is not cut yet", name)
	}
	return &s, nil
}

// className is the class of the safety snapshot: the one that is named, or the driver's default. Without one, nothing is begun.
func (c *Controller) className(ctx context.Context, r *v1alpha1.VolumeRollback) (string, error) {
	if name := r.Spec.SafetySnapshot.VolumeSnapshotClassName; name != "" {
		var class snapshotv1.VolumeSnapshotClass
		if err := c.read(ctx, "VolumeSnapshotClass", "", name, &class); err != nil {
			return "", err
		}
		return name, usable(&class)
	}
	var list snapshotv1.VolumeSnapshotClassList
	if err := c.Live.List(ctx, &list); err != nil {
		return "", fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	var found *snapshotv1.VolumeSnapshotClass
	for i := range list.Items {
		class := &list.Items[i]
		if class.Driver != v1alpha1.DriverName || class.Annotations[isDefaultClass] != "true" {
			continue
		}
		if found != nil {
			return "", refuse(v1alpha1.ReasonInvalid, "VolumeSnapshotClasses %s and %s are both the default of %s: name one in "+
				"spec.safetySnapshot.volumeSnapshotClassName", found.Name, class.Name, v1alpha1.DriverName)
		}
		found = class
	}
	if found == nil {
		return "", refuse(v1alpha1.ReasonNotFound, "no VolumeSnapshotClass is the default of %s: name one in spec.safetySnapshot.volumeSnapshotClassName",
			v1alpha1.DriverName)
	}
	return found.Name, usable(found)
}

// isDefaultClass is the annotation of the snapshot controller's.
const isDefaultClass = "snapshot.storage.kubernetes.io/is-default-class"

func usable(class *snapshotv1.VolumeSnapshotClass) error {
	switch {
	case class.Driver != v1alpha1.DriverName:
		return refuse(v1alpha1.ReasonNotOurs, "VolumeSnapshotClass %s is of driver %s, not of %s", class.Name, class.Driver, v1alpha1.DriverName)
	case class.DeletionPolicy != snapshotv1.VolumeSnapshotContentDelete:
		return refuse(v1alpha1.ReasonClassRetains, "VolumeSnapshotClass %s has deletionPolicy %s: the safety snapshot's data would stay for ever; "+
			"name a class with deletionPolicy Delete in spec.safetySnapshot.volumeSnapshotClassName", class.Name, class.DeletionPolicy)
	}
	return nil
}

// timeToLive of the safety snapshot. The definition has refused what does not parse.
func timeToLive(r *v1alpha1.VolumeRollback) time.Duration {
	d, err := time.ParseDuration(r.Spec.SafetySnapshot.TTL)
	if err != nil {
		return defaultTTL
	}
	return d
}

// defaultTTL is the definition's default.
const defaultTTL = 168 * time.Hour

// safe says whether there is to be a safety snapshot.
func safe(r *v1alpha1.VolumeRollback) bool {
	e := r.Spec.SafetySnapshot.Enabled
	return e == nil || *e
}
