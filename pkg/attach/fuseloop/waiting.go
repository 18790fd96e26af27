package fuseloop

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
)

// Everything here may wait for the attachment's own server, which is this process. A process that is killed while it waits for itself never ends: the
// kernel has its thread wait for the answer, uninterruptibly, and the thread keeps all the descriptors, the pool's locks among them, so that no
// successor can come and answer. So the keeper does these; it can wait for the successor as every other user of the device does.

// do has a work of an attachment carried out by the keeper. Without a keeper this process does it, and must not be killed meanwhile. The caller has
// the id's turn.
func (a *Attacher) do(ctx context.Context, id string, w loopdev.Work, file *os.File) (loopdev.Result, *os.File, error) {
	w.Dev = a.loops
	if a.keeper == nil {
		return w.Do(ctx, file)
	}
	return a.keeper.Do(ctx, id, w, file)
}

// pin gets the descriptor by which the file is known from its mount's root folder.
func (a *Attacher) pin(ctx context.Context, id, name string, root *os.File) (*os.File, error) {
	_, pin, err := a.do(ctx, id, loopdev.Work{Kind: loopdev.Pin, Name: name, Loop: loopdev.None}, root)
	if err == nil && pin == nil {
		err = fmt.Errorf("find %s: the keeper sent no descriptor: %w", name, attach.ErrInvalid)
	}
	return pin, err
}

// clear takes the loop device of a record away.
func (a *Attacher) clear(ctx context.Context, id string, r record) error {
	_, _, err := a.do(ctx, id, loopdev.Work{Kind: loopdev.Clear, Name: r.Name, Loop: r.Loop}, nil)
	return err
}

// show makes sure that there is a loop device, and notes which one it is.
func (t *attachment) show(ctx context.Context) error {
	w := loopdev.Work{Kind: loopdev.Show, Name: t.rec.Name, Loop: t.rec.Loop, Sector: t.rec.Sector, ReadOnly: t.rec.ReadOnly}
	r, _, err := t.a.do(ctx, t.id, w, t.pin)
	if err != nil {
		return err
	}
	if _, err := t.a.loops.Node(r.Loop); err != nil { // the keeper may have another /dev
		return err
	}
	if err := t.a.loops.Check(r.Loop, t.rec.ReadOnly); err != nil {
		return err
	}
	if r.Loop == t.rec.Loop {
		return nil
	}
	t.setLoop(r.Loop)
	return t.updateRecord(ctx)
}

// grow makes the device show the size that the block.Device has now. It stops waiting when ctx is done or the server has ended.
func (t *attachment) grow(ctx context.Context) error {
	want := t.dev.Size() / int64(t.rec.Sector) * int64(t.rec.Sector)
	pin, err := duplicate(t.pin) // it may be closed meanwhile, when the caller has stopped waiting
	if err != nil {
		return err
	}
	w := loopdev.Work{Kind: loopdev.Grow, Name: t.rec.Name, Loop: t.rec.Loop, ReadOnly: t.rec.ReadOnly}
	type result struct {
		size int64
		err  error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		r, _, err := t.a.do(ctx, t.id, w, pin)
		_ = pin.Close()
		done <- result{r.Size, err}
	}()
	select {
	case r := <-done:
		if r.err == nil && r.size < want {
			r.err = fmt.Errorf("%s shows %d bytes of %d after growing", t.Path(), r.size, want)
		}
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("attachment %q, waiting for its own server: %w", t.id, ctx.Err())
	case <-t.server.ended:
		return fmt.Errorf("attachment %q, waiting for its own server: %w", t.id, attach.ErrClosed)
	}
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
