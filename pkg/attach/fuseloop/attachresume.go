package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
	"github.com/rowan-csi/rowan/pkg/block"
)

// undoTime bounds cleaning up after a failure.
const undoTime = 5 * time.Second

// Attach implements attach.Attacher. The order matters: the keeper has the descriptors before the device can be seen.
func (a *Attacher) Attach(ctx context.Context, id string, dev block.Device, o attach.Options) (attach.Attachment, error) {
	if err := attach.CheckID(id); err != nil {
		return nil, err
	}
	o, err := o.Check(dev)
	if err != nil {
		return nil, err
	}
	unlock, err := a.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := a.vacant(ctx, id); err != nil {
		return nil, err
	}
	t, err := a.serveNew(ctx, id, dev, o)
	if err != nil {
		return nil, fmt.Errorf("attach %q: %w", id, err)
	}
	if err = t.store(ctx); err == nil {
		err = t.show(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach %q: %w", id, err), t.undo())
	}
	return t, nil
}

// vacant makes sure that there is no attachment of that id, and forgets one that is gone.
func (a *Attacher) vacant(ctx context.Context, id string) error {
	t, err := a.lookup(id)
	if err != nil {
		return err
	}
	if t != nil {
		if alive(t.fuse) {
			return fmt.Errorf("attachment %q: %w", id, attach.ErrExists)
		}
		if err := errors.Join(a.clear(ctx, id, t.rec), t.leave(ctx)); err != nil {
			return err
		}
	}
	if a.keeper == nil {
		return nil
	}
	live, err := a.prune(ctx, id)
	if err == nil && live {
		err = fmt.Errorf("attachment %q was left by another process: %w: resume it", id, attach.ErrExists)
	}
	return err
}

// serveNew makes the mount and serves it; only this process knows of it yet.
func (a *Attacher) serveNew(ctx context.Context, id string, dev block.Device, o attach.Options) (*attachment, error) {
	m, err := newMount()
	if err != nil {
		return nil, err
	}
	t := a.newAttachment(id, dev, m.fuse, fileName(id), o.ReadOnly)
	err = t.server.start()
	if err == nil {
		err = t.introduce(ctx, m, o)
	}
	if cerr := m.root.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = a.adopt(t)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, t.drop(ctx))
	}
	go t.watch()
	return t, nil
}

// introduce waits for INIT and finds out what the file is. If this process dies meanwhile, its descriptors of /dev/fuse are the last: the kernel then
// fails what waits for them.
func (t *attachment) introduce(ctx context.Context, m *mount, o attach.Options) error {
	select {
	case <-t.server.ready:
	case <-t.server.ended:
		return t.server.failure()
	case <-ctx.Done():
		return fmt.Errorf("wait for the kernel's INIT: %w", ctx.Err())
	}
	if err := t.server.initErr; err != nil {
		return err
	}
	if t.a.keeper != nil && t.server.proto.Caps&capResend == 0 {
		return errNoResend
	}
	pin, err := t.a.pin(ctx, t.id, t.server.name, m.root)
	if err != nil {
		return err
	}
	t.pin = pin
	id, err := identify(pin)
	t.rec = record{File: id, Name: t.server.name, Loop: loopdev.None, ReadOnly: o.ReadOnly, Sector: o.SectorSize, Protocol: t.server.proto, Meta: o.Meta}
	return err
}

// store gives the descriptors and the record to the keeper.
func (t *attachment) store(ctx context.Context) error {
	if t.a.keeper == nil {
		return nil
	}
	r, err := t.keeperRecord()
	if err != nil {
		return err
	}
	err = t.a.keeper.Put(ctx, r, true, t.fuse, t.pin)
	if errors.Is(err, keeper.ErrExists) {
		return fmt.Errorf("%w (%w)", attach.ErrExists, err)
	}
	return err
}

func (t *attachment) updateRecord(ctx context.Context) error {
	if t.a.keeper == nil {
		return nil
	}
	r, err := t.keeperRecord()
	if err != nil {
		return err
	}
	return t.a.keeper.Update(ctx, r)
}

// undo takes back what a failed Attach did. What it cannot take back, Resume and Detach can.
func (t *attachment) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	t.setOurs(true)
	err := t.a.clear(ctx, t.id, t.rec)
	if err == nil && t.a.keeper != nil {
		if err = t.a.keeper.Delete(ctx, t.id); errors.Is(err, keeper.ErrNotFound) {
			err = nil
		}
	}
	return errors.Join(err, t.leave(ctx))
}

// Resume implements attach.Attacher.
func (a *Attacher) Resume(ctx context.Context, id string, dev block.Device) (attach.Attachment, error) {
	if err := attach.CheckID(id); err != nil {
		return nil, err
	}
	unlock, err := a.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if t, err := a.lookup(id); err != nil {
		return nil, err
	} else if t != nil {
		return nil, fmt.Errorf("attachment %q is served already: %w", id, attach.ErrExists)
	}
	rec, files, err := a.fetch(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("resume %q: %w", id, err)
	}
	if err := a.fits(rec, dev); err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("resume %q: %w", id, err)
	}
	t := a.newAttachment(id, dev, files[0], rec.Name, rec.ReadOnly)
	t.pin, t.rec = files[1], rec
	if err := a.adopt(t); err != nil {
		closeFiles(files)
		return nil, err
	}
	if err := t.server.resume(rec.Protocol); err != nil {
		a.forget(t)
		closeFiles(files)
		return nil, fmt.Errorf("resume %q: %w", id, err)
	}
	go t.watch()
	// Now that it is served, what the dead process had under way at the keeper can end, and Show comes after it. It makes a device where the dead
	// process had not come so far, or had begun to detach.
	if err := t.show(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("resume %q: %w", id, err), t.leave(ctx))
	}
	return t, nil
}

// fits refuses a dev that cannot be what was behind the record's loop device.
func (a *Attacher) fits(rec record, dev block.Device) error {
	if _, err := (attach.Options{SectorSize: rec.Sector}).Check(dev); err != nil {
		return err
	}
	n, err := a.loops.Find(rec.Loop, rec.Name)
	if err != nil || n == loopdev.None {
		return err
	}
	shown, err := a.loops.Size(n)
	if err == nil && shown > dev.Size() {
		err = fmt.Errorf("%s shows %d bytes, and the device offered for it has %d: %w: not the same device?",
			a.loops.Path(n), shown, dev.Size(), attach.ErrInvalid)
	}
	return err
}

// fetch gets the record and the two descriptors from the keeper.
func (a *Attacher) fetch(ctx context.Context, id string) (record, []*os.File, error) {
	if a.keeper == nil {
		return record{}, nil, fmt.Errorf("%w: there is no keeper", attach.ErrNotFound)
	}
	r, files, err := a.keeper.Get(ctx, id)
	if err != nil {
		if errors.Is(err, keeper.ErrNotFound) {
			err = fmt.Errorf("%w (%w)", attach.ErrNotFound, err)
		}
		return record{}, nil, err
	}
	rec, err := decodeRecord(r.Data)
	switch {
	case err != nil:
	case len(files) != 2:
		err = fmt.Errorf("keeper has %d descriptors, not 2: %w", len(files), attach.ErrInvalid)
	case !alive(files[0]):
		err = fmt.Errorf("its connection was aborted: %w (%w)", attach.ErrNotFound, attach.ErrGone)
	}
	if err != nil {
		closeFiles(files)
		return record{}, nil, err
	}
	return rec, files, nil
}
