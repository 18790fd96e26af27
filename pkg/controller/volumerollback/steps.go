package volumerollback

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// carryOut takes a rollback as far as it comes: nil once it is done and told of, a verdict where it waits or is given up.
func (c *Controller) carryOut(ctx context.Context, r *v1alpha1.VolumeRollback) error {
	if r.Status.Volume == "" {
		if err := c.accept(ctx, r); err != nil {
			return err
		}
	}
	v, err := c.localVolume(ctx, r.Status.Volume)
	if err != nil {
		return err
	}
	if done(v, r) {
		return c.complete(ctx, r, v)
	}
	if told(v, r) {
		return c.awaitNode(ctx, r, v)
	}
	if _, err := c.localSnapshot(ctx, r.Status.Snapshot); err != nil {
		return err
	}
	if err := c.hold(ctx, r, v); err != nil {
		return err
	}
	since := v.Status.Rollback.HeldSince
	if safe(r) {
		if err := c.makeSafe(ctx, r, v, since); err != nil {
			return err
		}
	}
	if err := c.PatchStatus(ctx, r, func() { r.Status.HeldSince = since }); err != nil {
		return err
	}
	if _, err := c.Patch(ctx, v, func() { v.Spec.Rollback.HeldSince = since }); err != nil {
		return err
	}
	return wait(v1alpha1.ReasonRollingBack, "node %s is rolling the volume back", v.Spec.NodeName)
}

// accept writes what was found to be right: from here on it goes by the objects found, whatever becomes of the names.
func (c *Controller) accept(ctx context.Context, r *v1alpha1.VolumeRollback) error {
	v, s, err := c.find(ctx, r)
	if err != nil {
		return err
	}
	if safe(r) {
		if _, err := c.className(ctx, r); err != nil {
			return err
		}
	}
	return c.PatchStatus(ctx, r, func() {
		now := metav1.NewTime(c.Clock.Now())
		r.Status.Volume, r.Status.Snapshot, r.Status.Size, r.Status.StartTime = v.Name, s.Name, v.Status.Size, &now
		r.Status.SnapshotTime = &s.Status.Cut.CreationTime
		c.SetCondition(r, &r.Status.Status, v1alpha1.Complete, metav1.ConditionFalse, v1alpha1.ReasonLocking, locking(v))
	})
}

func locking(v *v1alpha1.LocalVolume) string {
	text := fmt.Sprintf("node %s is asked to hold volume %s", v.Spec.NodeName, v.Name)
	if meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.NodeLost) {
		text += "; the node is gone, and it waits until the disks return"
	}
	return text
}

// mine says whether the volume is held, or asked to be, for this rollback.
func mine(v *v1alpha1.LocalVolume, r *v1alpha1.VolumeRollback) bool {
	return v.Spec.Rollback != nil && v.Spec.Rollback.Token == string(r.UID)
}

// done says that the node has put the volume back for this rollback.
func done(v *v1alpha1.LocalVolume, r *v1alpha1.VolumeRollback) bool {
	s := v.Status.Rollback
	return s != nil && s.Token == string(r.UID) && s.DoneAt != nil
}

// told says that the node was told to go on: what comes of it, it alone knows.
func told(v *v1alpha1.LocalVolume, r *v1alpha1.VolumeRollback) bool {
	return mine(v, r) && v.Spec.Rollback.HeldSince != nil
}

// hold has the node hold the volume, and waits until it does.
func (c *Controller) hold(ctx context.Context, r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume) error {
	refuses := r.Spec.WhenInUse != v1alpha1.Wait
	if o := v.Spec.Rollback; o != nil && o.Token != string(r.UID) {
		if refuses {
			return refuse(v1alpha1.ReasonOther, "VolumeRollback %s/%s of this volume is under way: wait until it is finished, and make another one", o.Namespace, o.Name)
		}
		return wait(v1alpha1.ReasonOther, "VolumeRollback %s/%s of this volume is under way", o.Namespace, o.Name)
	}
	if !mine(v, r) {
		if refuses && meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.Attached) {
			return c.inUse(ctx, r, v)
		}
		if _, err := c.Patch(ctx, v, func() {
			v.Spec.Rollback = &v1alpha1.Rollback{Token: string(r.UID), Namespace: r.Namespace, Name: r.Name, Snapshot: r.Status.Snapshot}
		}); err != nil {
			return err
		}
	}
	s := v.Status.Rollback
	if s != nil && s.Token == string(r.UID) && s.HeldSince != nil {
		return nil
	}
	switch said := c.said(v); {
	case said == nil || s == nil || s.Token != string(r.UID):
		return wait(v1alpha1.ReasonLocking, "%s", locking(v))
	case said.Reason == v1alpha1.ReasonInUse:
		return c.inUse(ctx, r, v)
	default:
		return wait(v1alpha1.ReasonLocking, "%s: %s", locking(v), said.Message)
	}
}

// said is what the node said of the volume's rollback as it is in spec now; nil: nothing yet.
func (c *Controller) said(v *v1alpha1.LocalVolume) *metav1.Condition {
	s := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.RolledBack)
	if s == nil || s.ObservedGeneration != v.Generation || s.Status != metav1.ConditionFalse {
		return nil
	}
	return s
}

// inUse waits, or gives up, as was asked for.
func (c *Controller) inUse(ctx context.Context, r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume) error {
	users, err := c.users(ctx, r)
	if err != nil {
		return err
	}
	if r.Spec.WhenInUse == v1alpha1.Wait {
		return wait(v1alpha1.ReasonWaitingForUsers, "volume %s is in use on node %s%s: it is rolled back as soon as it is not", v.Name, v.Spec.NodeName, users)
	}
	return refuse(v1alpha1.ReasonWaitingForUsers, "volume %s is in use on node %s%s: stop what uses it and make another VolumeRollback, or one with whenInUse: Wait",
		v.Name, v.Spec.NodeName, users)
}

// maxUsers is how many pods a message names.
const maxUsers = 3

// users names the pods that use the claim.
func (c *Controller) users(ctx context.Context, r *v1alpha1.VolumeRollback) (string, error) {
	var pods corev1.PodList
	// From the API server: the cache has the pods alone that no node has yet.
	if err := c.Live.List(ctx, &pods, client.InNamespace(r.Namespace)); err != nil {
		return "", fmt.Errorf("list pods: %w", err)
	}
	var names []string
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && slices.Contains(claims.OfPod(p), r.Spec.PersistentVolumeClaimName) {
			names = append(names, p.Name)
		}
	}
	switch n := len(names); {
	case n == 0:
		return "", nil
	case n > maxUsers:
		return fmt.Sprintf(" by pods %s and %d more", strings.Join(names[:maxUsers], ", "), n-maxUsers), nil
	}
	return " by pod " + strings.Join(names, ", "), nil
}

// awaitNode waits for what the node says that was told to go on. It is given up only for what the node says itself: of one that is silent nothing is known.
func (c *Controller) awaitNode(ctx context.Context, r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume) error {
	said := c.said(v)
	switch {
	case said == nil || v.Status.Rollback == nil || v.Status.Rollback.Token != string(r.UID) || said.Reason == v1alpha1.ReasonHeld:
		return wait(v1alpha1.ReasonRollingBack, "node %s is rolling the volume back", v.Spec.NodeName)
	case said.Reason == v1alpha1.ReasonInvalid, said.Reason == v1alpha1.ReasonSourceNotFound:
		return refuse(said.Reason, "%s", said.Message)
	}
	return wait(said.Reason, "node %s could not roll the volume back yet: %s", v.Spec.NodeName, said.Message)
}

// complete tells that it is done.
func (c *Controller) complete(ctx context.Context, r *v1alpha1.VolumeRollback, v *v1alpha1.LocalVolume) error {
	if r.Finished() {
		return nil
	}
	undo := "there is no safety snapshot: what was replaced is gone"
	if r.Status.SafetySnapshotName != "" {
		undo = fmt.Sprintf("what was replaced is VolumeSnapshot %s: rolling back to it undoes this", r.Status.SafetySnapshotName)
	}
	text := fmt.Sprintf("claim %s is as it was in VolumeSnapshot %s, of %s; %s", r.Spec.PersistentVolumeClaimName, r.Spec.VolumeSnapshotName,
		r.Status.SnapshotTime.UTC().Format("2006-01-02 15:04:05 MST"), undo)
	if err := c.PatchStatus(ctx, r, func() {
		r.Status.ObservedGeneration = r.Generation
		r.Status.CompletionTime = v.Status.Rollback.DoneAt
		c.SetCondition(r, &r.Status.Status, v1alpha1.Complete, metav1.ConditionTrue, v1alpha1.ReasonDone, text)
	}); err != nil {
		return err
	}
	finished.WithLabelValues("complete").Inc()
	c.tell(ctx, r, corev1.EventTypeNormal, "RolledBack", text)
	return nil
}

// fail gives a rollback up. That the volume is as it was is made sure of first: a node that was told to go on may be at it.
func (c *Controller) fail(ctx context.Context, r *v1alpha1.VolumeRollback, why *verdict) error {
	if r.Status.Volume != "" {
		var v v1alpha1.LocalVolume
		err := c.Live.Get(ctx, client.ObjectKey{Name: r.Status.Volume}, &v)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get LocalVolume %s: %w", r.Status.Volume, err)
		}
		if err == nil && done(&v, r) {
			return c.complete(ctx, r, &v)
		}
	}
	if err := c.PatchStatus(ctx, r, func() {
		r.Status.ObservedGeneration = r.Generation
		c.SetCondition(r, &r.Status.Status, v1alpha1.Complete, metav1.ConditionFalse, why.reason, why.message)
		c.SetCondition(r, &r.Status.Status, v1alpha1.Failed, metav1.ConditionTrue, why.reason, why.message)
	}); err != nil {
		return err
	}
	finished.WithLabelValues("failed").Inc()
	c.tell(ctx, r, corev1.EventTypeWarning, "RollbackFailed", why.message)
	return c.over(ctx, r)
}

// waits tells what is waited for.
func (c *Controller) waits(ctx context.Context, r *v1alpha1.VolumeRollback, why *verdict) error {
	before := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.Complete)
	news := before == nil || before.Reason != why.reason
	if err := c.PatchStatus(ctx, r, func() {
		r.Status.ObservedGeneration = r.Generation
		c.SetCondition(r, &r.Status.Status, v1alpha1.Complete, metav1.ConditionFalse, why.reason, why.message)
	}); err != nil {
		return err
	}
	if news && (why.reason == v1alpha1.ReasonWaitingForUsers || why.reason == v1alpha1.ReasonRollingBack) {
		c.tell(ctx, r, corev1.EventTypeNormal, "Rollback"+why.reason, why.message)
	}
	return nil
}

// tell makes an event on the rollback and on its claim.
func (c *Controller) tell(ctx context.Context, r *v1alpha1.VolumeRollback, kind, reason, text string) {
	text = kit.Shorten(text)
	c.Events.Eventf(r, nil, kind, reason, "RollBack", "%s", text)
	var claim corev1.PersistentVolumeClaim
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: r.Spec.PersistentVolumeClaimName}, &claim); err == nil {
		c.Events.Eventf(&claim, r, kind, reason, "RollBack", "VolumeRollback %s: %s", r.Name, text)
	}
}
