package agent

import (
	"context"
	"fmt"
	"unicode/utf8"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// common is what all kinds have: the part of status, the node and what is wanted.
func common(o client.Object) (s *v1alpha1.Status, node string, want v1alpha1.DesiredState) {
	switch o := o.(type) {
	case *v1alpha1.Pool:
		return &o.Status.Status, o.Spec.NodeName, o.Spec.DesiredState
	case *v1alpha1.LocalVolume:
		return &o.Status.Status, o.Spec.NodeName, o.Spec.DesiredState
	case *v1alpha1.LocalSnapshot:
		return &o.Status.Status, o.Spec.NodeName, o.Spec.DesiredState
	case *v1alpha1.LocalSnapshotGroup:
		return &o.Status.Status, o.Spec.NodeName, o.Spec.DesiredState
	}
	return &v1alpha1.Status{}, "", v1alpha1.Present
}

// is says whether a condition is True.
func is(o client.Object, kind string) bool {
	s, _, _ := common(o)
	return meta.IsStatusConditionTrue(s.Conditions, kind)
}

// refused says that this generation of the object's spec was tried, that nothing was made, and that it will not be tried again.
func refused(o client.Object, kind string) bool {
	s, _, _ := common(o)
	c := meta.FindStatusCondition(s.Conditions, kind)
	return c != nil && c.Status == metav1.ConditionFalse && c.ObservedGeneration == o.GetGeneration() &&
		(reason.Final(c.Reason) || c.Reason == v1alpha1.ReasonExpired)
}

// neverMade says that nothing was made for the object when it was tried last.
func neverMade(o client.Object) bool {
	s, _, _ := common(o)
	c := meta.FindStatusCondition(s.Conditions, v1alpha1.Created)
	return c != nil && c.Status == metav1.ConditionFalse && (reason.Final(c.Reason) || c.Reason == v1alpha1.ReasonExpired)
}

// maxMessage is what a condition's validation allows, in characters.
const maxMessage = 32768

// conditions changes an object's conditions. Those of one change speak of one generation of spec.
type conditions struct {
	status     *v1alpha1.Status
	generation int64
	clock      clock.PassiveClock
}

func (c conditions) set(kind string, status metav1.ConditionStatus, why, message string) {
	for len(message) > maxMessage {
		_, n := utf8.DecodeLastRuneInString(message)
		message = message[:len(message)-n]
	}
	meta.SetStatusCondition(&c.status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: why, Message: message, ObservedGeneration: c.generation, LastTransitionTime: metav1.NewTime(c.clock.Now()),
	})
}

func (c conditions) yes(kind, why, message string) { c.set(kind, metav1.ConditionTrue, why, message) }
func (c conditions) no(kind, why, message string)  { c.set(kind, metav1.ConditionFalse, why, message) }

// failed says why something is not so. The text of an error that is tried again may differ each time: it is written with another reason only.
func (c conditions) failed(kind string, err error) {
	why := reason.Of(err)
	if old := meta.FindStatusCondition(c.status.Conditions, kind); old != nil && old.Status == metav1.ConditionFalse && old.Reason == why &&
		old.ObservedGeneration == c.generation && !reason.Final(why) {
		return
	}
	c.no(kind, why, err.Error())
}

// over makes a condition False that is True. One that never was is not told of.
func (c conditions) over(kind, why, message string) {
	if meta.IsStatusConditionTrue(c.status.Conditions, kind) {
		c.no(kind, why, message)
	}
}

// confirm says whether a deletion was asked for with one key only.
func (c conditions) confirm(o client.Object) {
	if _, _, want := common(o); o.GetDeletionTimestamp() == nil || want == v1alpha1.Absent {
		c.over(v1alpha1.DeletionNotConfirmed, v1alpha1.ReasonDone, "the deletion is confirmed")
		return
	}
	c.yes(v1alpha1.DeletionNotConfirmed, v1alpha1.ReasonNotConfirmed, "the object was deleted, but nothing is freed: spec.desiredState is Present. "+
		"It goes on being served. To give its data up set spec.desiredState to Absent; to keep it save the object's manifest, remove its finalizer and make it again")
}

// writeTries is how often a status is written that somebody else changes at the same time.
const writeTries = 5

// write changes an object's status. change is applied to the object at hand first, and to what the API server has when somebody else wrote meanwhile:
// it must follow from what the engine has alone.
func write[T client.Object](ctx context.Context, a *Agent, o T, change func(o T, c conditions)) error {
	generation, uid := o.GetGeneration(), o.GetUID()
	for try := 1; ; try++ {
		old := o.DeepCopyObject().(client.Object)
		s, _, _ := common(o)
		c := conditions{status: s, generation: generation, clock: a.cfg.Clock}
		change(o, c)
		c.confirm(o)
		s.ObservedGeneration = max(s.ObservedGeneration, generation)
		if apiequality.Semantic.DeepEqual(old, client.Object(o)) {
			return nil
		}
		err := a.client.Status().Patch(ctx, o, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) == nil {
			return nil // nobody is left to be told
		}
		if !apierrors.IsConflict(err) || try == writeTries {
			return fmt.Errorf("write status of %s: %w", old.GetName(), err)
		}
		if err := a.reader.Get(ctx, client.ObjectKeyFromObject(old), o); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("write status of %s: %w", old.GetName(), err)
		}
		if o.GetUID() != uid {
			return fmt.Errorf("write status of %s: it was deleted and made again meanwhile", old.GetName())
		}
	}
}

// live reads an object from the API server, for what must not be done on the word of the cache. It answers false where the object is gone, is another
// one, is not this node's any more or is not wanted: then there is nothing to make, and the cache will say so.
func (a *Agent) live(ctx context.Context, o client.Object) (bool, error) {
	uid := o.GetUID()
	if err := a.reader.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	_, node, want := common(o)
	return o.GetUID() == uid && node == a.cfg.Node && want != v1alpha1.Absent, nil
}
