package kit

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// conflictAgain is after which time it is tried again where the cache was older than the object: it is fresh by then.
const conflictAgain = 100 * time.Millisecond

// Calm a reconciler: a conflict is the lock at work, not an error that somebody should see in a log.
func Calm(r reconcile.Reconciler) reconcile.Reconciler {
	return reconcile.Func(func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		result, err := r.Reconcile(ctx, req)
		if apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: conflictAgain}, nil
		}
		return result, err
	})
}
