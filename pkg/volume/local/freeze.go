package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Freeze holds the file system of a device still until thaw is called, or until its time is over. thaw fails where it was not still until then.
type Freeze func(ctx context.Context, device string) (until time.Time, thaw func() error, err error)

// Cutter is what is needed of an engine to cut a snapshot of a frozen file system.
type Cutter interface {
	Attachments(ctx context.Context, pool string) ([]host.Attachment, error)
	CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error)
	DeleteSnapshot(ctx context.Context, pool, name string) error
}

// undoTimeout bounds taking a cut back.
const undoTimeout = 10 * time.Second

// FrozenCut cuts a snapshot of a file system that is frozen for it. A volume that nobody has needs no freeze, and mounted is false: what is on it was
// unmounted. Whoever got it meanwhile spoils the cut, which is taken back then, as one is whose file system was thawed too early.
func FrozenCut(ctx context.Context, e Cutter, freeze Freeze, pool string, spec engine.SnapshotSpec) (info engine.SnapshotInfo, mounted bool, err error) {
	device, err := deviceOf(ctx, e, pool, spec.Volume)
	if err != nil {
		return info, false, err
	}
	if device == "" {
		if info, err = e.CreateSnapshot(ctx, pool, spec); err != nil {
			return info, false, err
		}
		if device, err = deviceOf(ctx, e, pool, spec.Volume); err == nil && device == "" {
			return info, false, nil
		}
		why := fmt.Errorf("%w: the volume came into use while it was cut", volume.ErrPending)
		return info, false, takeBack(ctx, e, pool, spec.Name, errors.Join(why, err))
	}
	until, thaw, err := freeze(ctx, device)
	if err != nil {
		return info, true, fmt.Errorf("%w: volume %s: %w", volume.ErrPending, spec.Volume, err)
	}
	cutting, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	info, err = e.CreateSnapshot(cutting, pool, spec)
	terr := thaw()
	switch {
	case err == nil && terr != nil:
		return info, true, takeBack(ctx, e, pool, spec.Name, fmt.Errorf("%w: volume %s: %w", volume.ErrPending, spec.Volume, terr))
	case err != nil && !errors.Is(err, engine.ErrExists) && cutting.Err() != nil:
		// It may have been cut all the same, and nobody knows when.
		return info, true, takeBack(ctx, e, pool, spec.Name, errors.Join(fmt.Errorf("%w: volume %s", volume.ErrPending, spec.Volume), err, terr))
	case err != nil:
		return info, true, errors.Join(err, terr)
	}
	return info, true, nil
}

// takeBack deletes a snapshot that is not what was asked for. Nobody knows of it yet.
func takeBack(ctx context.Context, e Cutter, pool, name string, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := e.DeleteSnapshot(ctx, pool, name); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("%w; delete snapshot %s: %w", why, name, translate(err))
	}
	return why
}

// deviceOf a volume; "": it has none.
func deviceOf(ctx context.Context, e Cutter, pool, name string) (string, error) {
	all, err := e.Attachments(ctx, pool)
	for _, a := range all {
		if a.Volume == name && a.Device == "" {
			return "", fmt.Errorf("%w: the device of volume %s is not served yet", volume.ErrPending, name)
		}
		if a.Volume == name {
			return a.Device, nil
		}
	}
	return "", translate(err)
}
