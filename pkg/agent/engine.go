package agent

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// Engine is what is needed of the engine's client.
type Engine interface {
	local.Engine
	Pool(ctx context.Context, name string) (engine.PoolInfo, error)
	CreatePool(ctx context.Context, s engine.PoolSpec) (engine.PoolInfo, error)
	OpenPool(ctx context.Context, s host.OpenSpec) (engine.PoolInfo, error)
	ClosePool(ctx context.Context, name string) error
	AddMember(ctx context.Context, pool string, s engine.MemberSpec) (engine.PoolInfo, error)
	ChangeVolume(ctx context.Context, pool, name string, change engine.VolumeChange) (engine.VolumeInfo, error)
	HoldVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error)
	ReleaseVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error)
	RollbackVolume(ctx context.Context, pool, volume, snapshot, holder string) (engine.VolumeInfo, error)
}

var _ Engine = (*rpc.Client)(nil)

// States of a pool, as the engine names them.
const (
	stateReady    = "Ready"
	stateDegraded = "Degraded"
)

var (
	// errPoolAway: the engine answers, and has no pool of that identity open.
	errPoolAway = fmt.Errorf("%w: it is not open on this node", volume.ErrFailed)
	// errPoolOther: the pool of that name has another identity.
	errPoolOther = fmt.Errorf("%w: the pool of that name is another one", errPoolAway)
)

// openPool answers an object's pool if the engine has it open, by its identity: a pool of the same name with another one has nothing of the object.
func (a *Agent) openPool(ctx context.Context, l v1alpha1.Location) (engine.PoolInfo, error) {
	p, err := a.engine.Pool(ctx, l.Pool)
	if errors.Is(err, engine.ErrNotFound) {
		return p, fmt.Errorf("pool %s (%s): %w", l.Pool, l.PoolUUID, errPoolAway)
	}
	if err != nil {
		return p, local.Translate(err)
	}
	switch {
	case p.ID != "" && p.ID != l.PoolUUID:
		return p, fmt.Errorf("pool %s (%s): %w, with UUID %s", l.Pool, l.PoolUUID, errPoolOther, p.ID)
	case p.State == host.StateOpening:
		return p, fmt.Errorf("pool %s: %w: the engine is opening it", l.Pool, volume.ErrUnavailable)
	case p.State == host.StateUnavailable:
		return p, fmt.Errorf("pool %s: %w: %s", l.Pool, volume.ErrFailed, p.Reason)
	}
	return p, nil
}

// gone says whether an object's pool is known not to be here, rather than not open yet: the Pool's reconciler has looked for it where its members are to be.
func (a *Agent) gone(ctx context.Context, l v1alpha1.Location, err error) bool {
	if !errors.Is(err, errPoolAway) {
		return false
	}
	if errors.Is(err, errPoolOther) {
		return true
	}
	p := &v1alpha1.Pool{}
	if err := a.client.Get(ctx, client.ObjectKey{Name: l.Pool}, p); err != nil || p.Status.UUID != l.PoolUUID {
		return false
	}
	return poolGone(p)
}

// givenUp says whether an object's pool is gone and was given up, with both keys: its disk is lost for good. What was to be deleted there counts as
// deleted then. Promise "blocks are freed by two keys alone": nothing is freed; should the disk return, all on it are orphans, which are kept.
func (a *Agent) givenUp(ctx context.Context, l v1alpha1.Location, err error) bool {
	p := &v1alpha1.Pool{}
	return a.gone(ctx, l, err) && a.client.Get(ctx, client.ObjectKey{Name: l.Pool}, p) == nil && p.Status.UUID == l.PoolUUID &&
		p.Spec.DesiredState == v1alpha1.Absent && p.DeletionTimestamp != nil
}

// unanswered says that the engine, or the pool on its way up, gave no answer: nothing is known that was not known before.
func unanswered(err error) bool {
	return errors.Is(err, volume.ErrUnavailable) || errors.Is(err, volume.ErrPending) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded)
}
