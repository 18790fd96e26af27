package snapshotpolicy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// finishAgain is how often a deleted policy whose snapshots are in use is looked at.
const finishAgain = 10 * time.Second

// finish a policy that is deleted. With deletionPolicy Delete its snapshots go first, all of them, the newest ready ones, too: that is what was asked
// for. Held ones stay, for somebody else asked for that; those in use are waited for. The finalizer goes when the API server, not the cache, says that
// none is left.
func (c *Controller) finish(ctx context.Context, p *policy, mem *memory) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(p.obj, v1alpha1.PolicyFinalizer) {
		return reconcile.Result{}, nil
	}
	if !p.deletes() || !c.snapshots.Load() {
		return reconcile.Result{}, c.release(ctx, p, "")
	}
	ps := newPass(c, p, mem)
	if err := ps.observe(ctx); err != nil {
		return reconcile.Result{}, err
	}
	var calls []func()
	var mu sync.Mutex
	var failed []error
	held, used := 0, 0
	for i, o := range ps.observed {
		s := &ps.snapshots[i]
		if s.Policy != p.uid() || s.Deleting {
			continue
		}
		switch {
		case s.Hold != "":
			held++
		case len(s.InUse) > 0:
			used++
		default:
			calls = append(calls, func() {
				err := ps.delete(ctx, o.obj)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					mem.deleted[o.obj.GetUID()] = true
					prunedTotal.WithLabelValues(append(p.labelValues(), "PolicyDeleted")...).Inc()
				} else if !apierrors.IsConflict(err) {
					failed = append(failed, fmt.Errorf("delete snapshot %s: %w", o.key(), err))
				}
			})
		}
	}
	sideBySide(calls)
	if n := len(calls) - len(failed); n > 0 {
		c.Events.Eventf(p.obj, nil, corev1.EventTypeNormal, "SnapshotsDeleted", "Delete",
			"%d snapshots, the newest of each PVC among them, as deletionPolicy Delete says", n)
	}
	left, err := ps.left(ctx)
	failed = append(failed, err)
	if err := errors.Join(failed...); err != nil {
		return reconcile.Result{}, err
	}
	if left > held {
		err := c.patchStatus(ctx, p, func(*v1alpha1.SnapshotPolicyStatus) {
			c.notice(p, v1alpha1.Deleting, v1alpha1.ReasonWaiting, fmt.Sprintf("%d snapshots are to be deleted, %d of them in use; to keep them and let the "+
				"policy go, set deletionPolicy to Orphan", left-held, used))
		})
		return reconcile.Result{RequeueAfter: finishAgain}, err
	}
	note := ""
	if held > 0 {
		note = fmt.Sprintf("%d snapshots are held (annotation %s) and stay", held, retention.AnnotationHold)
	}
	return reconcile.Result{}, c.release(ctx, p, note)
}

// left counts the policy's snapshots that nobody asked to delete yet, as the API server has them.
func (ps *pass) left(ctx context.Context) (int, error) {
	n := 0
	count := func(list client.ObjectList) error {
		options := []client.ListOption{client.MatchingLabels{retention.LabelPolicy: ps.p.uid()}}
		if !ps.p.cluster() {
			options = append(options, client.InNamespace(ps.p.obj.GetNamespace()))
		}
		return ps.c.Live.List(ctx, list, options...)
	}
	var volumes snapshotv1.VolumeSnapshotList
	if err := count(&volumes); err != nil {
		return 0, fmt.Errorf("list VolumeSnapshots: %w", err)
	}
	for i := range volumes.Items {
		if volumes.Items[i].DeletionTimestamp == nil {
			n++
		}
	}
	if ps.groupKind.Empty() {
		return n, nil
	}
	groups := &unstructured.UnstructuredList{}
	groups.SetGroupVersionKind(ps.groupKind.GroupVersion().WithKind(kindGroup + "List"))
	if err := count(groups); err != nil {
		return 0, fmt.Errorf("list VolumeGroupSnapshots: %w", err)
	}
	for i := range groups.Items {
		if groups.Items[i].GetDeletionTimestamp() == nil {
			n++
		}
	}
	return n, nil
}

// release lets the policy go.
func (c *Controller) release(ctx context.Context, p *policy, note string) error {
	if note != "" {
		c.Events.Eventf(p.obj, nil, corev1.EventTypeNormal, "SnapshotsStay", "Delete", "%s", kit.Shorten(note))
	}
	if _, err := c.Patch(ctx, p.obj, func() { controllerutil.RemoveFinalizer(p.obj, v1alpha1.PolicyFinalizer) }); err != nil {
		return fmt.Errorf("remove the finalizer: %w", err)
	}
	return nil
}
