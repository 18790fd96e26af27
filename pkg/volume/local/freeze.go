package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Freeze holds the file systems of devices still, all or none, until thaw is called, or until their time is over. thaw fails where one was not still until
// then.
type Freeze func(ctx context.Context, devices []string) (until time.Time, thaw func() error, err error)

// Cutter is what is needed of an engine to cut snapshots of frozen file systems.
type Cutter interface {
	Attachments(ctx context.Context, pool string) ([]host.Attachment, error)
	CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error)
	CreateSnapshotGroup(ctx context.Context, pool string, s engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error)
	DeleteSnapshot(ctx context.Context, pool, name string) error
}

// undoTimeout bounds taking a cut back.
const undoTimeout = 10 * time.Second

// FrozenCut cuts a snapshot of a file system that is frozen for it. mounted false: nobody had the volume, and there was nothing to freeze.
func FrozenCut(ctx context.Context, e Cutter, freeze Freeze, pool string, spec engine.SnapshotSpec) (info engine.SnapshotInfo, mounted bool, err error) {
	c := frozenCut{e: e, freeze: freeze, pool: pool, specs: []engine.SnapshotSpec{spec}}
	frozen, err := c.run(ctx, func(ctx context.Context) (err error) {
		info, err = e.CreateSnapshot(ctx, pool, spec)
		return err
	})
	return info, len(frozen) > 0, err
}

// FrozenGroupCut cuts snapshots of several volumes at one moment, at which all their file systems are frozen. frozen are the volumes that had one to
// freeze, in the order of the spec.
func FrozenGroupCut(
	ctx context.Context, e Cutter, freeze Freeze, pool string, spec engine.SnapshotGroupSpec,
) (infos []engine.SnapshotInfo, frozen []string, err error) {
	c := frozenCut{e: e, freeze: freeze, pool: pool, specs: spec.Snapshots}
	frozen, err = c.run(ctx, func(ctx context.Context) (err error) {
		infos, err = e.CreateSnapshotGroup(ctx, pool, spec)
		return err
	})
	return infos, frozen, err
}

// frozenCut is one cut, of one volume or several.
type frozenCut struct {
	e      Cutter
	freeze Freeze
	pool   string
	specs  []engine.SnapshotSpec
}

// run freezes what is mounted, cuts, and thaws. A volume that nobody has needs no freeze: what is on it was unmounted. Whoever got it meanwhile spoils the
// cut, which is taken back then, as one is whose file systems were thawed too early.
func (c *frozenCut) run(ctx context.Context, cut func(context.Context) error) (frozen []string, err error) {
	frozen, devices, err := c.attached(ctx)
	if err != nil {
		return nil, err
	}
	cutting, until, thaw := ctx, time.Time{}, func() error { return nil }
	if len(devices) > 0 {
		if until, thaw, err = c.freeze(ctx, devices); err != nil {
			return frozen, fmt.Errorf("%w: %s: %w", volume.ErrPending, named(frozen), err)
		}
		var cancel context.CancelFunc
		cutting, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	err = cut(cutting)
	terr := thaw()
	switch {
	case err == nil && terr != nil:
		return frozen, c.takeBack(ctx, fmt.Errorf("%w: %s: %w", volume.ErrPending, named(frozen), terr))
	case err != nil && !errors.Is(err, engine.ErrExists) && len(devices) > 0 && cutting.Err() != nil:
		// It may have been cut all the same, and nobody knows when.
		return frozen, c.takeBack(ctx, errors.Join(fmt.Errorf("%w: %s", volume.ErrPending, named(frozen)), err, terr))
	case err != nil:
		return frozen, errors.Join(err, terr)
	case len(frozen) == len(c.specs):
		return frozen, nil
	}
	now, _, err := c.attached(ctx)
	if err == nil && slices.Equal(now, frozen) {
		return frozen, nil
	}
	return frozen, c.takeBack(ctx, errors.Join(fmt.Errorf("%w: %s: what is in use changed while it was cut", volume.ErrPending, c), err))
}

// String is the volumes' names.
func (c *frozenCut) String() string {
	var all []string
	for _, s := range c.specs {
		all = append(all, s.Volume)
	}
	return named(all)
}

// named is how several volumes are told of.
func named(volumes []string) string {
	const most = 4
	if len(volumes) == 1 {
		return "volume " + volumes[0]
	}
	if n := len(volumes); n > most {
		return fmt.Sprintf("volumes %s and %d more", strings.Join(volumes[:most], ", "), n-most)
	}
	return "volumes " + strings.Join(volumes, ", ")
}

// takeBack deletes snapshots that are not what was asked for. Nobody knows of them yet.
func (c *frozenCut) takeBack(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, s := range c.specs {
		if err := c.e.DeleteSnapshot(ctx, c.pool, s.Name); err != nil && !errors.Is(err, engine.ErrNotFound) {
			why = fmt.Errorf("%w; delete snapshot %s: %w", why, s.Name, translate(err))
		}
	}
	return why
}

// attached are the volumes that somebody has, in the order of the specs, and their devices.
func (c *frozenCut) attached(ctx context.Context) (volumes, devices []string, err error) {
	all, err := c.e.Attachments(ctx, c.pool)
	if err != nil {
		return nil, nil, translate(err)
	}
	at := map[string]host.Attachment{}
	for _, a := range all {
		at[a.Volume] = a
	}
	for _, s := range c.specs {
		a, has := at[s.Volume]
		if has && a.Device == "" {
			return nil, nil, fmt.Errorf("%w: the device of volume %s is not served yet", volume.ErrPending, s.Volume)
		}
		if has {
			volumes, devices = append(volumes, s.Volume), append(devices, a.Device)
		}
	}
	return volumes, devices, nil
}
