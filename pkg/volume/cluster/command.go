package cluster

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// command is a cut that is asked for: of a LocalSnapshot or of a LocalSnapshotGroup.
type command struct {
	obj  client.Object                                       // what is read is read into it
	name string                                              // the handle
	csi  string                                              // the name that it is asked for under
	make func(ctx context.Context, notAfter time.Time) error // makes obj what is to be created, or says why it cannot be
	same func() error                                        // volume.ErrExists where obj, which was read, is not what is asked for
	done func(ctx context.Context) error                     // of an object that is Created when the call finds it: what is left to do, or volume.ErrExists
	till func() time.Time                                    // obj's spec.notAfter
}

// carryOut has a cut made. The node cuts before this call stops waiting or not at all (spec.notAfter): whoever froze something for the cut has thawed it
// by then. A retry moves that time on.
func (s *Service) carryOut(caller, ctx context.Context, c command) error {
	notAfter, _ := ctx.Deadline() // it always has one
	found, err := s.cached(ctx, c.name, c.obj)
	if err == nil && found {
		found, err = s.live(ctx, c.name, c.obj)
	}
	if err != nil {
		return err
	}
	if found {
		return s.joinCut(caller, ctx, c, notAfter)
	}
	if err := c.make(ctx, notAfter); err != nil {
		// The cache may not have yet what another process cut, before the source went or the pool was full.
		if found, liveErr := s.live(ctx, c.name, c.obj); liveErr == nil && found {
			return s.joinCut(caller, ctx, c, notAfter)
		}
		return err
	}
	noun := stateOf(c.obj).noun
	switch err := s.cfg.Client.Create(ctx, c.obj); {
	case apierrors.IsAlreadyExists(err):
		if found, err = s.live(ctx, c.name, c.obj); err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("%s %q was removed meanwhile: %w", noun, c.csi, volume.ErrPending)
		}
		return s.joinCut(caller, ctx, c, notAfter)
	case err != nil:
		return apiError(fmt.Sprintf("create %s %s", noun, c.name), err)
	}
	return s.awaitCreated(caller, ctx, c.obj, "create", nil)
}

// joinCut waits for a cut that somebody else asked for, and has it done within this call's time, too. c.obj was read live.
func (s *Service) joinCut(caller, ctx context.Context, c command, notAfter time.Time) error {
	st := stateOf(c.obj)
	switch {
	case st.absent || st.gone():
		if st.is(v1alpha1.Deleted) && !c.obj.GetDeletionTimestamp().IsZero() {
			if err := s.release(ctx, c.obj); err != nil {
				return err
			}
		}
		return fmt.Errorf("%s %q is being removed: %w", st.noun, c.csi, volume.ErrPending)
	case st.is(v1alpha1.Created):
		return c.done(ctx)
	}
	if err := c.same(); err != nil {
		return err
	}
	what := fmt.Sprintf("create %s %s", st.noun, c.name)
	if err := s.agents.away(st.node); err != nil {
		return reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("%s: %v", what, err))
	}
	if c.till().Before(notAfter) {
		until, err := metav1.NewMicroTime(notAfter).MarshalJSON()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"notAfter":%s}}`, c.obj.GetUID(), until)
		err = s.cfg.Client.Patch(ctx, c.obj, client.RawPatch(types.MergePatchType, patch))
		if missing(err) {
			return fmt.Errorf("%s %q was removed meanwhile: %w", st.noun, c.csi, volume.ErrPending)
		}
		if err != nil {
			return apiError(what, err)
		}
	}
	return s.awaitCreated(caller, ctx, c.obj, "create", nil)
}
