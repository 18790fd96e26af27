package volumerollback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/snapshotusers"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// annotationHeld has the time since which the volume was held when the safety snapshot was asked for: of another hold it is not safe.
const annotationHeld = "rowan.storage/held-since"

// safetyPatience is how long the safety snapshot may take: nothing can use the volume meanwhile, and what keeps it from being taken (a full pool) may last.
const safetyPatience = 5 * time.Minute

// usedAgain is when it is looked again whether a safety snapshot whose time is over is in use still.
const usedAgain = 5 * time.Minute

// maxName is the longest name that a VolumeSnapshot's name is made from.
const maxName = 200

// safetyName is the name of a rollback's safety snapshot: the same however often it is asked for.
func safetyName(r *v1alpha1.VolumeRollback) string {
	sum := sha256.Sum256([]byte(r.UID))
	return r.Name[:min(len(r.Name), maxName)] + "-safety-" + hex.EncodeToString(sum[:4])
}

// makeSafe takes a snapshot of the volume that is held, and waits until it is ready.
func (c *Controller) makeSafe(ctx context.Context, r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume, since *metav1.MicroTime) error {
	name, held := safetyName(r), since.UTC().Format(metav1.RFC3339Micro)
	var s snapshotv1.VolumeSnapshot
	err := c.Client.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: name}, &s)
	if apierrors.IsNotFound(err) {
		if r.Status.SafetySnapshotName != "" { // the cache may be late
			if err = c.read(ctx, "VolumeSnapshot", r.Namespace, name, &s); err != nil {
				return err
			}
		} else if err = c.takeSafety(ctx, r, name, held); err != nil {
			return err
		} else {
			return wait(v1alpha1.ReasonSafety, "VolumeSnapshot %s is being taken of what is to be replaced", name)
		}
	}
	if err != nil {
		return fmt.Errorf("get VolumeSnapshot %s: %w", name, err)
	}
	switch {
	case s.Labels[v1alpha1.LabelRollback] != string(r.UID):
		return refuse(v1alpha1.ReasonExists, "there is a VolumeSnapshot %s already, which is not of this rollback", name)
	case s.Annotations[annotationHeld] != held:
		return refuse(v1alpha1.ReasonInvalid, "volume %s was let go meanwhile, and is held again since %s: what it holds now may be newer than VolumeSnapshot %s; "+
			"make another VolumeRollback", v.Name, held, name)
	}
	if r.Status.SafetySnapshotName == "" {
		if err := c.PatchStatus(ctx, r, func() { r.Status.SafetySnapshotName = name }); err != nil {
			return err
		}
	}
	if st := s.Status; st == nil || st.ReadyToUse == nil || !*st.ReadyToUse {
		if at := s.CreationTimestamp; !at.IsZero() && c.Clock.Since(at.Time) > safetyPatience {
			return refuse(v1alpha1.ReasonSafety, "VolumeSnapshot %s is not ready after %s%s: the volume is let go, so that pods can use it; "+
				"make another VolumeRollback once snapshots can be taken", name, safetyPatience, trouble(st))
		}
		return wait(v1alpha1.ReasonSafety, "VolumeSnapshot %s is being taken of what is to be replaced%s", name, trouble(st))
	}
	cut, err := c.snapshotOf(ctx, r.Namespace, name)
	if err != nil {
		return err
	}
	if cut.Spec.Volume != v.Name { // the claim was deleted and made again
		return refuse(v1alpha1.ReasonNotOfVolume, "safety snapshot %s is of volume %s: claim %s has not volume %s any more", name, cut.Spec.Volume,
			r.Spec.PersistentVolumeClaimName, v.Name)
	}
	return nil
}

func (c *Controller) takeSafety(ctx context.Context, r *v1alpha1.VolumeRollback, name, held string) error {
	class, err := c.className(ctx, r)
	if err != nil {
		return err
	}
	claim := r.Spec.PersistentVolumeClaimName
	err = c.Client.Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Namespace, Name: name, Labels: map[string]string{v1alpha1.LabelRollback: string(r.UID)},
			Annotations: map[string]string{
				v1alpha1.AnnotationRollback: r.Name, annotationHeld: held,
				v1alpha1.AnnotationDeleteAfter: c.Clock.Now().Add(timeToLive(r)).UTC().Format(time.RFC3339),
			},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}, VolumeSnapshotClassName: &class,
		},
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create VolumeSnapshot %s: %w", name, err)
	}
	return nil
}

// safety deletes safety snapshots after their time.
type safety struct{ *Controller }

// taken is a snapshot that was taken to be safe.
func taken(_ context.Context, o client.Object) []reconcile.Request {
	if o.GetLabels()[v1alpha1.LabelRollback] == "" || o.GetAnnotations()[v1alpha1.AnnotationDeleteAfter] == "" || o.GetDeletionTimestamp() != nil {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(o)}}
}

// Reconcile one snapshot.
func (c *safety) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var s snapshotv1.VolumeSnapshot
	if err := c.Client.Get(ctx, req.NamespacedName, &s); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if len(taken(ctx, &s)) == 0 {
		return reconcile.Result{}, nil
	}
	text := s.Annotations[v1alpha1.AnnotationDeleteAfter]
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		c.Events.Eventf(&s, nil, corev1.EventTypeWarning, "DeleteAfterUnreadable", "Prune",
			"annotation %s: %q is no time as in RFC 3339: the snapshot stays until it is", v1alpha1.AnnotationDeleteAfter, text)
		return reconcile.Result{}, nil
	}
	if left := at.Sub(c.Clock.Now()); left > 0 {
		return reconcile.Result{RequeueAfter: min(left, time.Hour)}, nil // a clock that was set comes to be seen
	}
	if _, held := s.Annotations[retention.AnnotationHold]; held {
		return reconcile.Result{}, nil // taking the annotation off brings it here again
	}
	user, err := c.userOf(ctx, &s)
	if err != nil {
		return reconcile.Result{}, err
	}
	if user != "" {
		return reconcile.Result{RequeueAfter: usedAgain}, nil
	}
	// By identity and version: a hold that came meanwhile is a conflict.
	err = c.Client.Delete(ctx, &s, client.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion})
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("delete safety snapshot %s: %w", s.Name, err)
	}
	if err == nil {
		c.Events.Eventf(&s, nil, corev1.EventTypeNormal, "SafetySnapshotExpired", "Prune", "deleted: its time ended at %s", text)
	}
	return reconcile.Result{}, nil
}

// userOf names what uses a snapshot; "": nothing does.
func (c *safety) userOf(ctx context.Context, s *snapshotv1.VolumeSnapshot) (string, error) {
	if len(s.OwnerReferences) > 0 {
		return s.OwnerReferences[0].Kind + " " + s.OwnerReferences[0].Name, nil
	}
	var rollbacks v1alpha1.VolumeRollbackList
	if err := c.Live.List(ctx, &rollbacks, client.InNamespace(s.Namespace)); err != nil {
		return "", fmt.Errorf("list rollbacks: %w", err)
	}
	for i := range rollbacks.Items {
		if r := &rollbacks.Items[i]; !r.Finished() && (r.Spec.VolumeSnapshotName == s.Name || safetyName(r) == s.Name) {
			return "VolumeRollback " + r.Name, nil
		}
	}
	var list corev1.PersistentVolumeClaimList
	if err := c.Client.List(ctx, &list); err != nil { // of all namespaces: a claim may name a snapshot of another
		return "", fmt.Errorf("list claims: %w", err)
	}
	key := claims.Key(claims.KindSnapshot, s.Namespace, s.Name)
	for i := range list.Items {
		if p := &list.Items[i]; p.Spec.VolumeName == "" && claims.SourceKey(p) == key {
			return "PersistentVolumeClaim " + p.Name, nil
		}
	}
	return c.otherUserOf(ctx, s)
}

// otherUserOf names what else uses a snapshot, of the kinds that are installed. They are read from the API server: rarely, for that is after the snapshot's
// time alone.
func (c *safety) otherUserOf(ctx context.Context, s *snapshotv1.VolumeSnapshot) (user string, err error) {
	for _, kind := range snapshotusers.Kinds {
		if kind.Group == v1alpha1.GroupVersion.Group {
			continue // rollbacks were looked at
		}
		err := kind.Each(ctx, c.Live, func(by, snapshot string) {
			if snapshot == s.Namespace+"/"+s.Name {
				user = by
			}
		})
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			continue // not installed
		}
		if err != nil || user != "" {
			return user, err
		}
	}
	return "", nil
}
