package agent

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// SetUp adds the reconcilers to a manager whose cache was made with Selectors.
func (a *Agent) SetUp(m manager.Manager) error {
	ready := builder.WithPredicates(predicate.Funcs{UpdateFunc: readyChanged})
	set := []struct {
		kind string
		b    *builder.Builder
		r    reconcile.Reconciler
	}{
		{"pool", builder.ControllerManagedBy(m).For(&v1alpha1.Pool{}, changes()), pools{a}},
		{"volume", builder.ControllerManagedBy(m).For(&v1alpha1.LocalVolume{}, changes()).
			Watches(&v1alpha1.Pool{}, handler.EnqueueRequestsFromMapFunc(a.volumesOf), ready).
			WatchesRawSource(source.Channel(a.oddVolumes, &handler.TypedEnqueueRequestForObject[*v1alpha1.LocalVolume]{})), volumes{a}},
		{"snapshot", builder.ControllerManagedBy(m).For(&v1alpha1.LocalSnapshot{}, changes()).
			Watches(&v1alpha1.Pool{}, handler.EnqueueRequestsFromMapFunc(a.snapshotsOf), ready).
			WatchesRawSource(source.Channel(a.oddSnapshots, &handler.TypedEnqueueRequestForObject[*v1alpha1.LocalSnapshot]{})), snapshots{a}},
		{"group", builder.ControllerManagedBy(m).For(&v1alpha1.LocalSnapshotGroup{}, changes()), groups{a}},
	}
	for _, s := range set {
		if err := s.b.Named(s.kind).WithOptions(options()).Complete(s.r); err != nil {
			return fmt.Errorf("set up the reconciler of each %s: %w", s.kind, err)
		}
	}
	return nil
}

// changes lets through what people and controllers change: the agent's own writes of status are no news to it.
func changes() builder.ForOption {
	return builder.WithPredicates(predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return (e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
	}}))
}

func readyChanged(e event.UpdateEvent) bool {
	before, _, _ := common(e.ObjectOld)
	now, _, _ := common(e.ObjectNew)
	old, new := meta.FindStatusCondition(before.Conditions, v1alpha1.Ready), meta.FindStatusCondition(now.Conditions, v1alpha1.Ready)
	return new != nil && (old == nil || old.Status != new.Status || old.Reason != new.Reason)
}

// volumesOf are the volumes of a pool: what they wait for may have come, or is gone.
func (a *Agent) volumesOf(ctx context.Context, pool client.Object) (list []reconcile.Request) {
	var vs v1alpha1.LocalVolumeList
	if err := a.client.List(ctx, &vs); err != nil {
		return nil // from a cache: it cannot be
	}
	for _, v := range vs.Items {
		if v.Spec.Pool == pool.GetName() {
			list = append(list, reconcile.Request{NamespacedName: types.NamespacedName{Name: v.Name}})
		}
	}
	return list
}

func (a *Agent) snapshotsOf(ctx context.Context, pool client.Object) (list []reconcile.Request) {
	var ss v1alpha1.LocalSnapshotList
	if err := a.client.List(ctx, &ss); err != nil {
		return nil
	}
	for _, s := range ss.Items {
		if s.Spec.Pool == pool.GetName() {
			list = append(list, reconcile.Request{NamespacedName: types.NamespacedName{Name: s.Name}})
		}
	}
	return list
}

// Live says that the agent lives until ctx ends, and keeps the Node as it should be while serving says that the kubelet knows the driver. told is told of what went wrong; it is tried again.
func (a *Agent) Live(ctx context.Context, serving func() bool, told func(error)) {
	var renewed time.Time
	done := false
	tick := a.cfg.Clock.NewTicker(time.Second)
	defer tick.Stop()
	for {
		due := a.cfg.Clock.Since(renewed) >= v1alpha1.AgentRenewal
		if due {
			if err := a.Renew(ctx); err != nil {
				told(err)
			}
			renewed = a.cfg.Clock.Now()
		}
		if due || !done {
			var err error
			if done, err = a.KeepNode(ctx, serving()); err != nil {
				told(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-a.oddNode:
			done = false
		case <-tick.C():
		}
	}
}
