package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
)

func (s *Service) findVolume(ctx context.Context, id volume.VolumeID) (pool string, info engine.VolumeInfo, err error) {
	return find(ctx, s, "volume", id.String(), s.engine.Volume)
}

func (s *Service) findSnapshot(ctx context.Context, id volume.SnapshotID) (pool string, info engine.SnapshotInfo, err error) {
	return find(ctx, s, "snapshot", id.String(), s.engine.Snapshot)
}

// find asks the default pool, which nearly always has it, and then the others.
func find[T any](
	ctx context.Context, s *Service, kind, name string, get func(ctx context.Context, pool, name string) (T, error),
) (pool string, info T, err error) {
	var unknown error // why a pool could not be asked
	if s.cfg.Pool != "" {
		info, err = get(ctx, s.cfg.Pool, name)
		if err == nil {
			return s.cfg.Pool, info, nil
		}
		if !errors.Is(err, engine.ErrNotFound) {
			unknown = err
		}
	}
	pools, err := s.pools(ctx)
	if err != nil {
		return "", info, fmt.Errorf("find %s %s: %w", kind, name, err)
	}
	for _, pool := range pools {
		if pool == s.cfg.Pool {
			continue
		}
		if info, err = get(ctx, pool, name); err == nil {
			return pool, info, nil
		}
		if !errors.Is(err, engine.ErrNotFound) {
			unknown = err
		}
	}
	if unknown != nil {
		return "", info, fmt.Errorf("find %s %s: %w", kind, name, translate(unknown))
	}
	return "", info, fmt.Errorf("%s %s: %w", kind, name, volume.ErrNotFound)
}

// toDomain is the one table from the engine's errors to the domain's. The first that an error is decides; contexts' errors stay what they are.
var toDomain = []struct{ from, to error }{
	{engine.ErrNotFound, volume.ErrNotFound},
	{engine.ErrExists, volume.ErrExists},
	{engine.ErrShrink, volume.ErrOutOfRange},
	{engine.ErrInUse, volume.ErrInUse},
	{engine.ErrNoSpace, volume.ErrNoSpace},
	{engine.ErrFailed, volume.ErrFailed},
	{engine.ErrLocked, volume.ErrFailed},
	{engine.ErrLost, volume.ErrFailed},
	{engine.ErrIncompatible, volume.ErrFailed},
	{engine.ErrCorrupt, volume.ErrFailed},
	{engine.ErrMemberMissing, volume.ErrFailed},
	{engine.ErrForeign, volume.ErrFailed},
	{engine.ErrUnsupported, volume.ErrFailed},
	{engine.ErrNotBlank, volume.ErrFailed},
	{host.ErrNotOpen, volume.ErrFailed},
	{engine.ErrNotDescendant, volume.ErrInvalid},
	{engine.ErrInvalid, volume.ErrInvalid},
	{host.ErrStopping, volume.ErrUnavailable},
	{rpc.ErrUnreachable, volume.ErrUnavailable},
	{engine.ErrClosed, volume.ErrUnavailable},
	{engine.ErrBusy, volume.ErrPending},
}

// translated is an engine's error with its meaning in the domain; the text is the engine's, which names the thing and says what to do.
type translated struct{ is, err error }

func (t *translated) Error() string   { return t.err.Error() }
func (t *translated) Unwrap() []error { return []error{t.is, t.err} }

// Translate makes an engine's error one of the domain, with the engine's text.
func Translate(err error) error { return translate(err) }

func translate(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	for _, t := range toDomain {
		if errors.Is(err, t.from) {
			return &translated{is: t.to, err: err}
		}
	}
	return err
}
