package cluster

import (
	"context"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

// verdict is what a look at an object led to.
type verdict struct {
	done bool
	err  error             // with done: why not
	late *metav1.Condition // without done: what the node says about it meanwhile
}

// await judges the object as the cache has it, now and after each change, until the verdict is done; obj holds what was judged. What the cache does
// not have yet, an older spec included, is not judged: obj comes as it was created, changed or read live. An object that was there and is gone, or
// is another one of its name, is volume.ErrPending. caller is the context of the call, ctx the one to wait with.
func (s *Service) await(caller, ctx context.Context, obj client.Object, doing string, judge func() verdict) error {
	changes, cancel := s.hub.subscribe(obj)
	defer cancel()
	name, uid, generation, st := obj.GetName(), obj.GetUID(), obj.GetGeneration(), stateOf(obj)
	var last verdict
	for seen := false; ; {
		found, err := s.cached(ctx, name, obj)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && found && obj.GetUID() == uid && obj.GetGeneration() >= generation:
			seen = true
			if last = judge(); last.done {
				return last.err
			}
		case err == nil && seen:
			return fmt.Errorf("%s %s was removed meanwhile: %w", st.noun, name, volume.ErrPending)
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return s.late(caller, st, name, doing, last.late)
		}
	}
}

// late is the answer of a call whose time is over: what the node says, or that it says nothing. The object stays for the retry, so it is always an
// error after which the caller asks again.
func (s *Service) late(caller context.Context, st state, name, doing string, said *metav1.Condition) error {
	what := fmt.Sprintf("%s %s on node %s", st.noun, name, st.node)
	if err := caller.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", doing, what, err)
	}
	if said != nil {
		return reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("%s: %s (%s); it is tried again", what, said.Message, said.Reason))
	}
	if err := s.agents.away(st.node); err != nil {
		return reason.Err(v1alpha1.ReasonUnavailable, fmt.Sprintf("%s %s: %v", doing, what, err))
	}
	return fmt.Errorf("%s %s: the node has not done it yet: %w", doing, what, context.DeadlineExceeded)
}

// awaitCreated waits until the object is made. A final error takes it away again. check is called once, when the cache has the object.
func (s *Service) awaitCreated(caller, ctx context.Context, obj client.Object, doing string, check func() error) error {
	var final error
	err := s.await(caller, ctx, obj, doing, func() verdict {
		st := stateOf(obj)
		if st.absent {
			return verdict{done: true, err: fmt.Errorf("%s %s is being removed: %w", st.noun, obj.GetName(), volume.ErrPending)}
		}
		if check != nil {
			final, check = check(), nil
			if final != nil {
				return verdict{done: true, err: final}
			}
		}
		if st.is(v1alpha1.Created) {
			return verdict{done: true}
		}
		c := st.refused(v1alpha1.Created)
		switch {
		case c == nil:
			return verdict{}
		case c.Reason == v1alpha1.ReasonExpired:
			return verdict{done: true, err: reason.Err(v1alpha1.ReasonUnavailable, c.Message)}
		case reason.Final(c.Reason):
			final = reason.Err(c.Reason, c.Message)
			return verdict{done: true, err: final}
		}
		return verdict{late: c}
	})
	if err != nil && errors.Is(err, final) {
		return s.withdraw(caller, ctx, obj, final)
	}
	return err
}
