package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// remove has the object's volume or snapshot deleted on its node, and then the object. The promise is that blocks are freed only by two keys, so the
// order is: the first key (spec.desiredState Absent; it cannot be taken back), the second (a deletion), the node's word that nothing is left
// (Deleted), the finalizer. obj was read live if the first key is not written: a cache may not know yet that the volume is attached. A process that
// dies in between leaves what the next call, or rowan-controller, goes on with.
func (s *Service) remove(caller, ctx context.Context, obj client.Object) error {
	st := stateOf(obj)
	if st.gone() {
		if st.is(v1alpha1.Deleted) {
			if err := s.release(ctx, obj); err != nil {
				return err
			}
		}
		return fmt.Errorf("%s %s: %w", st.noun, obj.GetName(), volume.ErrNotFound)
	}
	if !st.absent && !st.is(v1alpha1.NodeLost) {
		if err := s.agents.away(st.node); err != nil {
			return err // which names the node
		}
		if st.is(v1alpha1.Attached) { // with the first key it would be deleted as soon as it is not, whatever the caller wants by then
			if err := s.awaitDetached(ctx, obj); err != nil {
				return err
			}
		}
	}
	if err := s.writeKeys(ctx, obj); err != nil {
		return err
	}
	return s.awaitDeleted(caller, ctx, obj)
}

// detachPatience is how long a volume that is said to be attached is waited for: the node says that it is not a moment after it answered to the unstaging.
const detachPatience = 2 * time.Second

// awaitDetached waits a moment until the volume is not attached, by what the API server has: obj is that then. Else it is volume.ErrInUse.
func (s *Service) awaitDetached(ctx context.Context, obj client.Object) error {
	ctx, cancel := context.WithTimeout(ctx, detachPatience)
	defer cancel()
	changes, done := s.hub.subscribe(obj)
	defer done()
	name, uid, node := obj.GetName(), obj.GetUID(), stateOf(obj).node
	inUse := fmt.Errorf("volume %s is attached on node %s: %w", name, node, volume.ErrInUse)
	for {
		found, err := s.live(ctx, name, obj)
		switch {
		case ctx.Err() != nil:
			return inUse
		case err != nil:
			return err
		case !found || obj.GetUID() != uid:
			return fmt.Errorf("volume %s was removed meanwhile: %w", name, volume.ErrPending)
		case !stateOf(obj).is(v1alpha1.Attached):
			return nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return inUse
		}
	}
}

// writeKeys writes both keys, of this very object and no other of its name.
func (s *Service) writeKeys(ctx context.Context, obj client.Object) error {
	what := fmt.Sprintf("delete %s %s", stateOf(obj).noun, obj.GetName())
	uid := obj.GetUID()
	if err := s.writeFirstKey(ctx, obj); err != nil {
		return err
	}
	if obj.GetDeletionTimestamp().IsZero() {
		if err := s.cfg.Client.Delete(ctx, obj, client.Preconditions{UID: &uid}); err != nil && !missing(err) {
			return apiError(what, err)
		}
	}
	return nil
}

// writeFirstKey says, for good, that the object's removal is wanted.
func (s *Service) writeFirstKey(ctx context.Context, obj client.Object) error {
	if stateOf(obj).absent {
		return nil
	}
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"desiredState":%q}}`, obj.GetUID(), v1alpha1.Absent)
	err := s.cfg.Client.Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch))
	if missing(err) {
		return nil // nothing is left to delete; whoever waits for it finds that out
	}
	return apiError(fmt.Sprintf("delete %s %s", stateOf(obj).noun, obj.GetName()), err)
}

// awaitDeleted waits until the node has deleted what the object stands for, or is lost, and lets the object go.
func (s *Service) awaitDeleted(caller, ctx context.Context, obj client.Object) error {
	name, uid := obj.GetName(), obj.GetUID()
	// The cache may not have the object yet, which must not look as if it were gone; nor may what it lacks be waited for in vain.
	if found, err := s.cached(ctx, name, obj); err != nil {
		return err
	} else if !found {
		if found, err = s.live(ctx, name, obj); err != nil || !found || obj.GetUID() != uid {
			return err
		}
	}
	lost, gone := false, false
	err := s.await(caller, ctx, obj, "delete", func() verdict {
		st := stateOf(obj)
		deleted := st.is(v1alpha1.Deleted)
		if lost = st.absent && st.is(v1alpha1.NodeLost) && !deleted; lost || deleted {
			gone = true
			return verdict{done: true}
		}
		c := st.refused(v1alpha1.Deleted)
		if c != nil && c.Reason == v1alpha1.ReasonInUse {
			return verdict{done: true, err: reason.Err(c.Reason, c.Message)}
		}
		return verdict{late: c}
	})
	if !gone && err != nil && caller.Err() == nil { // somebody else may have let it go
		if found, liveErr := s.live(caller, name, obj); liveErr == nil && (!found || obj.GetUID() != uid) {
			return nil
		}
	}
	if err != nil || lost {
		return err
	}
	return s.release(ctx, obj)
}

// release takes our finalizer off a deleted object. rowan-controller may be first.
func (s *Service) release(ctx context.Context, obj client.Object) error {
	uid := obj.GetUID()
	for {
		if !slices.Contains(obj.GetFinalizers(), v1alpha1.Finalizer) {
			return nil
		}
		before, ok := obj.DeepCopyObject().(client.Object)
		if !ok {
			return fmt.Errorf("release %s: %T is no object", obj.GetName(), obj)
		}
		controllerutil.RemoveFinalizer(obj, v1alpha1.Finalizer)
		err := s.cfg.Client.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if err == nil || missing(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return apiError("release "+obj.GetName(), err)
		}
		found, err := s.live(ctx, obj.GetName(), obj)
		if err != nil || !found || obj.GetUID() != uid {
			return err
		}
	}
}

// withdraw takes an object away again that nothing was made for, and answers why. Once both keys are written nothing more can come of it, so the
// answer does not depend on the node being quick.
func (s *Service) withdraw(caller, ctx context.Context, obj client.Object, why error) error {
	if err := s.writeKeys(ctx, obj); err != nil {
		return reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("%v; it is still to be cleaned up: %v", why, err))
	}
	_ = s.awaitDeleted(caller, ctx, obj) // what is not gone by now, rowan-controller lets go when the node has answered
	return why
}
