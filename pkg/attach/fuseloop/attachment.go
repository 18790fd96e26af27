package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
	"github.com/rowan-csi/rowan/pkg/block"
)

// attachment is one that this process serves.
type attachment struct {
	a      *Attacher
	id     string
	dev    block.Device
	server *server
	fuse   *os.File
	pin    *os.File // O_PATH of the file
	done   chan struct{}

	mu       sync.Mutex
	rec      record // its Loop changes once, before the attachment is handed out; holders of the id's turn read it without mu
	finished bool
	detached bool
	ours     bool // being detached: the kernel closing the file is no surprise
	err      error
}

var _ attach.Attachment = (*attachment)(nil)

func (a *Attacher) newAttachment(id string, dev block.Device, fuse *os.File, name string, ro bool) *attachment {
	t := &attachment{a: a, id: id, dev: dev, fuse: fuse, done: make(chan struct{})}
	t.server = newServer(fuse, dev, a.mem, name, ro, a.config.Readers)
	t.server.released, t.server.tap = t.released, a.tap
	return t
}

func (t *attachment) ID() string            { return t.id }
func (t *attachment) Path() string          { return t.a.loops.Path(t.record().Loop) }
func (t *attachment) Done() <-chan struct{} { return t.done }

func (t *attachment) record() record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec
}

// setLoop notes which loop device it is; the caller has the id's turn.
func (t *attachment) setLoop(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.Loop = n
}

func (t *attachment) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// watch notices the end of the server; it runs for as long as it serves.
func (t *attachment) watch() {
	<-t.server.ended
	t.finish(t.server.failure())
}

// released is called when the loop driver has closed the file. Unless we asked for that, somebody took the device away (losetup -d). It may also be
// an earlier device's, which a dead process cleared and whose RELEASE nobody had read: so what counts is whether there is a device when nobody works
// on that.
func (t *attachment) released() {
	go func() {
		unlock, err := t.a.lock(t.a.ctx, t.id)
		if err != nil {
			return // closed
		}
		defer unlock()
		if t.isOurs() {
			return
		}
		if n, err := t.a.loops.Find(t.rec.Loop, t.rec.Name); err != nil || n != loopdev.None {
			return
		}
		t.server.fail(fmt.Errorf("the loop device of %q was cleared by somebody else: %w", t.id, attach.ErrGone))
		t.server.stop()
	}()
}

// finish closes Done, once.
func (t *attachment) finish(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.finished {
		return
	}
	t.finished = true
	if !t.ours {
		t.err = err
	}
	close(t.done)
}

func (t *attachment) isOurs() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ours
}

func (t *attachment) setOurs(ours bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ours = ours
}

// keeperRecord is what the keeper keeps of it.
func (t *attachment) keeperRecord() (keeper.Record, error) {
	data, err := t.rec.encode()
	return keeper.Record{ID: t.id, Data: data}, err
}

// storeAgain puts the record to a keeper that may not have it.
func (t *attachment) storeAgain(ctx context.Context) error {
	unlock, err := t.a.lock(ctx, t.id)
	if err != nil {
		return err
	}
	defer unlock()
	if now, err := t.a.lookup(t.id); err != nil || now != t {
		return err // detached meanwhile
	}
	r, err := t.keeperRecord()
	if err != nil {
		return err
	}
	return t.a.keeper.Put(ctx, r, false, t.fuse, t.pin)
}

// Resize implements attach.Attachment.
func (t *attachment) Resize(ctx context.Context) error {
	unlock, err := t.a.lock(ctx, t.id)
	if err != nil {
		return err
	}
	defer unlock()
	select {
	case <-t.done:
		return fmt.Errorf("resize attachment %q: %w", t.id, attach.ErrClosed)
	default:
	}
	return t.grow(ctx)
}

// Detach implements attach.Attachment. Each step can be done again: clear the loop device (its file identity finds it), forget the record, drop the
// descriptors, upon which the kernel drops the mount.
func (t *attachment) Detach(ctx context.Context) error {
	unlock, err := t.a.lock(ctx, t.id)
	if err != nil {
		return err
	}
	defer unlock()
	if t.isDetached() {
		return nil
	}
	if now, err := t.a.lookup(t.id); err != nil {
		return err
	} else if now != t {
		return fmt.Errorf("detach attachment %q: %w: it is another's by now", t.id, attach.ErrGone)
	}
	t.setOurs(true)
	if err := t.a.clear(ctx, t.id, t.rec); err != nil {
		t.setOurs(false)
		return fmt.Errorf("attachment %q: %w", t.id, err)
	}
	if t.a.keeper != nil {
		if err := t.a.keeper.Delete(ctx, t.id); err != nil && !errors.Is(err, keeper.ErrNotFound) {
			return err
		}
	}
	if err := t.leave(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detached = true
	return nil
}

func (t *attachment) isDetached() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.detached
}

// leave stops serving and closes this process's descriptors.
func (t *attachment) leave(ctx context.Context) error {
	t.setOurs(true)
	t.server.stop()
	select {
	case <-t.server.ended:
	case <-ctx.Done():
		return fmt.Errorf("attachment %q: wait for requests under way: %w", t.id, ctx.Err())
	}
	t.finish(nil)
	t.a.forget(t)
	return errors.Join(ignoreClosed(t.pin.Close()), ignoreClosed(t.fuse.Close()))
}

// drop undoes an Attach that nobody else knows of: once the last descriptor of its file is closed, the kernel drops the mount, and the readers end.
func (t *attachment) drop(ctx context.Context) error {
	var err error
	if t.pin != nil {
		err = t.pin.Close()
	}
	return errors.Join(err, t.server.abandoned(ctx), t.fuse.Close())
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADF) {
		return nil
	}
	return err
}
