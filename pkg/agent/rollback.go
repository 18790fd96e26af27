package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// errChanged: the object is gone, or not this node's any more, and the cache will say so; or nothing is known of it now.
var errChanged = errors.New("read the object again")

// rollBack brings a volume as far as spec.rollback says: held, put back, or let go where nothing is asked for any more.
//
// Promises, and who keeps them:
//   - A volume that is staged is not rolled back, and one that is held is not staged: the engine, which attaches and holds under one lock.
//   - Nothing is rolled back twice: the engine writes the token in the commit that rolls back. A retry, of this process or the next, finds it there.
//   - What is replaced is what the safety snapshot shows: the agent goes on only where the hold is the one that spec.rollback.heldSince names.
//   - Nothing is done on the word of the cache: the object is read from the API server first.
func (r volumes) rollBack(ctx context.Context, v *v1alpha1.LocalVolume, info engine.VolumeInfo) (engine.VolumeInfo, error) {
	want, hold := v.Spec.Rollback, info.Hold()
	if hold.By == "" && (want == nil || info.RolledBack().By == want.Token) {
		return info, nil
	}
	switch ok, err := r.live(ctx, v); {
	case err != nil:
		return info, fmt.Errorf("%w: %w", errChanged, err)
	case !ok:
		return info, errChanged
	}
	want = v.Spec.Rollback
	if hold.By != "" && (want == nil || want.Token != hold.By) { // given up before it was done
		var err error
		if info, err = keep(r.engine.ReleaseVolume(ctx, v.Spec.Pool, v.Name, hold.By))(info); err != nil {
			return info, err
		}
	}
	if want == nil || info.RolledBack().By == want.Token {
		return info, nil
	}
	info, err := keep(r.engine.HoldVolume(ctx, v.Spec.Pool, v.Name, want.Token))(info)
	if err != nil || want.HeldSince == nil || info.RolledBack().By == want.Token { // by a call whose answer was lost
		return info, err
	}
	if since := info.Hold().Since; !since.Equal(want.HeldSince.Time) {
		return info, fmt.Errorf("%w: volume %s was let go meanwhile, and is held again since %s: what it holds now may be newer than its safety snapshot",
			volume.ErrInvalid, v.Name, since)
	}
	info, err = keep(r.engine.RollbackVolume(ctx, v.Spec.Pool, v.Name, want.Snapshot, want.Token))(info)
	if errors.Is(err, volume.ErrNotFound) {
		err = fmt.Errorf("%w: %w", volume.ErrSourceNotFound, err)
	}
	return info, err
}

// keep what was known of a volume where a call failed.
func keep(now engine.VolumeInfo, err error) func(before engine.VolumeInfo) (engine.VolumeInfo, error) {
	return func(before engine.VolumeInfo) (engine.VolumeInfo, error) {
		if err != nil {
			return before, local.Translate(err)
		}
		return now, nil
	}
}

// reportRollback tells how far a rollback has come. What the engine has decides; err is why it came no farther.
func reportRollback(v *v1alpha1.LocalVolume, c conditions, info engine.VolumeInfo, err error) {
	hold, done, want := info.Hold(), info.RolledBack(), v.Spec.Rollback
	if want == nil {
		if s := v.Status.Rollback; s != nil && hold.By == "" {
			s.HeldSince = nil
		}
		return
	}
	s := &v1alpha1.RollbackStatus{Token: want.Token}
	switch {
	case done.By == want.Token:
		s.DoneAt = microTime(done.At)
		c.yes(v1alpha1.RolledBack, v1alpha1.ReasonDone, fmt.Sprintf("it was put back to snapshot %s", done.To))
	case err != nil && unanswered(err) && !errors.Is(err, volume.ErrPending):
		return
	case err != nil:
		c.failed(v1alpha1.RolledBack, err)
	default:
		c.no(v1alpha1.RolledBack, v1alpha1.ReasonHeld, "")
	}
	if hold.By == want.Token {
		s.HeldSince = microTime(hold.Since)
	}
	if old := v.Status.Rollback; old == nil || old.Token != s.Token || !old.HeldSince.Equal(s.HeldSince) || !old.DoneAt.Equal(s.DoneAt) {
		v.Status.Rollback = s
	}
}

func microTime(t time.Time) *metav1.MicroTime {
	m := metav1.NewMicroTime(t.Truncate(time.Microsecond))
	return &m
}

// tellRollback makes an event of a rollback that was done.
func (r volumes) tellRollback(before *v1alpha1.RollbackStatus, v *v1alpha1.LocalVolume) {
	if s := v.Status.Rollback; s != nil && s.DoneAt != nil && (before == nil || before.Token != s.Token || before.DoneAt == nil) {
		r.events.Eventf(v, nil, corev1.EventTypeNormal, "RolledBack", "RollBack", "the volume was put back to snapshot %s", v.Spec.Rollback.Snapshot)
	}
}
