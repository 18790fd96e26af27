package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/engine"
)

// undoTimeout bounds what an attach that failed half-way still cleans up, although its caller may be gone.
const undoTimeout = 30 * time.Second

// resumeTimeout bounds the resuming of one device, most of which is a moment's work.
const resumeTimeout = time.Minute

// errNotResumed is why a device that outlived the last engine does not answer yet.
var errNotResumed = errors.New("its pool is not open")

// Attachment is a volume shown as a device.
type Attachment struct {
	Pool, Volume string
	Device       string
	ReadOnly     bool
	Stalled      string // why the device does not answer now; empty when it does
}

// attachment is an attached volume. Its fields change under the volume's lock, or the pool's exclusive one, and Host.mu.
type attachment struct {
	pool, volume string
	node         string // the device node, as far as known
	readOnly     bool
	device       attach.Attachment // nil: not served by this engine (yet), or already detached
	gate         *gate
	open         Volume
	stalled      error // why it is not served
	detached     bool  // the device is gone, the volume not closed yet
}

func (a *attachment) path() string {
	if a.device != nil {
		return a.device.Path()
	}
	return a.node
}

// attachmentOf answers a volume's attachment, or nil. An engine without an attacher has none.
func (h *Host) attachmentOf(pool, volume string) (*attachment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return nil, fmt.Errorf("volume %q: %w", volume, ErrStopping)
	}
	return h.attached[ID(pool, volume)], nil
}

// Attachments tells of the attached volumes of one pool, or of all ("").
func (h *Host) Attachments(pool string) []Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	var l []Attachment
	for _, a := range h.attached {
		if pool != "" && a.pool != pool {
			continue
		}
		at := Attachment{Pool: a.pool, Volume: a.volume, Device: a.path(), ReadOnly: a.readOnly}
		if a.stalled != nil {
			at.Stalled = a.stalled.Error()
		}
		l = append(l, at)
	}
	slices.SortFunc(l, func(a, b Attachment) int { return strings.Compare(ID(a.Pool, a.Volume), ID(b.Pool, b.Volume)) })
	return l
}

// attachedOf lists the attached volumes of a pool by name.
func (h *Host) attachedOf(pool string) []string {
	var names []string
	for _, a := range h.Attachments(pool) {
		names = append(names, a.Volume)
	}
	return names
}

// Attach shows a volume as a device. A volume that is attached already the same way answers its device.
func (h *Host) Attach(ctx context.Context, pool, volume string, readOnly bool) (at Attachment, err error) {
	err = h.withVolume(ctx, pool, volume, func(p Pool) error {
		if h.cfg.Attacher == nil {
			return fmt.Errorf("attach volume %q: %w: this engine runs without an attacher", volume, engine.ErrUnsupported)
		}
		a, err := h.attachmentOf(pool, volume)
		if err != nil {
			return err
		}
		if a == nil {
			a, err = h.attachNew(ctx, p, pool, volume, readOnly)
		} else {
			err = h.attachAgain(ctx, p, a, readOnly)
		}
		if err == nil {
			at = Attachment{Pool: pool, Volume: volume, Device: a.path(), ReadOnly: a.readOnly}
		}
		return err
	})
	return at, err
}

func (h *Host) attachNew(ctx context.Context, p Pool, pool, volume string, readOnly bool) (*attachment, error) {
	v, err := p.OpenVolume(ctx, volume)
	if err != nil {
		return nil, err
	}
	a := &attachment{pool: pool, volume: volume, readOnly: readOnly, gate: &gate{Device: v}, open: v}
	a.device, err = h.cfg.Attacher.Attach(ctx, ID(pool, volume), a.gate, attach.Options{ReadOnly: readOnly})
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, v.Close(undo))
		if errors.Is(err, attach.ErrExists) {
			return h.attachLeftover(ctx, p, pool, volume, readOnly)
		}
		return nil, fmt.Errorf("attach volume %q: %w", volume, translate(err))
	}
	h.mu.Lock()
	h.attached[ID(pool, volume)] = a
	h.mu.Unlock()
	h.watch(a, a.device)
	return a, nil
}

// attachLeftover takes up what an attach that failed half-way in this very process left.
func (h *Host) attachLeftover(ctx context.Context, p Pool, pool, volume string, readOnly bool) (*attachment, error) {
	list, err := h.cfg.Attacher.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask what is attached: %w", translate(err))
	}
	for _, l := range list {
		if l.ID != ID(pool, volume) {
			continue
		}
		a := &attachment{pool: pool, volume: volume, readOnly: l.ReadOnly, node: l.Path, stalled: errNotResumed}
		h.mu.Lock()
		h.attached[l.ID] = a
		h.mu.Unlock()
		return a, h.attachAgain(ctx, p, a, readOnly)
	}
	return nil, fmt.Errorf("attach volume %q: %w: its device is just being taken away", volume, engine.ErrBusy)
}

// translate gives the attacher's errors the engine's meaning, which is what callers know.
func translate(err error) error {
	for _, t := range []struct{ from, to error }{
		{attach.ErrInUse, engine.ErrInUse},
		{attach.ErrInvalid, engine.ErrInvalid},
		{attach.ErrUnavailable, engine.ErrUnsupported},
		{attach.ErrClosed, ErrStopping},
	} {
		if errors.Is(err, t.from) && !errors.Is(err, t.to) {
			return fmt.Errorf("%w: %w", t.to, err)
		}
	}
	return err
}

// watch notes when a device goes away without having been asked to.
func (h *Host) watch(a *attachment, d attach.Attachment) {
	h.watchers.Go(func() {
		select {
		case <-d.Done():
		case <-h.life.Done():
			return
		}
		err := d.Err()
		if err == nil {
			return
		}
		h.mu.Lock()
		if a.device == d {
			a.stalled = fmt.Errorf("device %s is served no more: %w", d.Path(), err)
		}
		h.mu.Unlock()
		h.event(a.pool, "device is served no more: detach the volume and attach it again", "volume", a.volume, "device", d.Path(), "err", err)
	})
}

// attachAgain answers an attachment that is there, and serves it again if it was stalled.
func (h *Host) attachAgain(ctx context.Context, p Pool, a *attachment, readOnly bool) error {
	if a.readOnly != readOnly {
		return fmt.Errorf("attach volume %q %s: %w: it is attached %s as %s; detach it first",
			a.volume, mode(readOnly), engine.ErrInUse, mode(a.readOnly), a.path())
	}
	h.mu.Lock()
	stalled := a.stalled
	h.mu.Unlock()
	if a.device != nil {
		if stalled != nil {
			return fmt.Errorf("attach volume %q: %w: %w; detach it first", a.volume, engine.ErrBusy, stalled)
		}
		return nil
	}
	if a.detached {
		return fmt.Errorf("attach volume %q: %w: its last detach is not over; detach it again first", a.volume, engine.ErrBusy)
	}
	return h.resume(ctx, p, a)
}

func mode(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "read-write"
}

// recall asks the attacher what outlived the last engine.
func (h *Host) recall(ctx context.Context) error {
	if h.cfg.Attacher == nil {
		return nil
	}
	list, err := h.cfg.Attacher.List(ctx)
	if err != nil {
		return fmt.Errorf("ask what is attached: %w", translate(err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range list {
		pool, volume, ok := parseID(l.ID)
		if !ok {
			h.event("", "an attachment with a foreign id was left alone", "id", l.ID, "device", l.Path)
			continue
		}
		h.attached[l.ID] = &attachment{pool: pool, volume: volume, readOnly: l.ReadOnly, node: l.Path, stalled: errNotResumed}
	}
	return nil
}

// resumePool serves a pool's attachments again, all at once, under the pool's exclusive lock: what the kernel still does for one of them may wait for
// another (two may have taken the same loop device), and every one that waits is a device that does not answer. One that fails stays listed as stalled.
func (h *Host) resumePool(ctx context.Context, pool string, p Pool) {
	h.mu.Lock()
	var todo []*attachment
	for _, a := range h.attached {
		if a.pool == pool && a.device == nil {
			todo = append(todo, a)
		}
	}
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, a := range todo {
		wg.Go(func() {
			if err := h.resume(ctx, p, a); err != nil {
				h.event(pool, "attachment does not resume", "volume", a.volume, "device", a.path(), "err", err)
				return
			}
			h.event(pool, "attachment resumed", "volume", a.volume, "device", a.path())
		})
	}
	wg.Wait()
}

func (h *Host) resume(ctx context.Context, p Pool, a *attachment) error {
	v, err := p.OpenVolume(ctx, a.volume)
	if err != nil {
		return h.setStalled(a, err)
	}
	g := &gate{Device: v}
	// Bounded, because operations on the pool wait for it. Attaching the volume again tries again.
	resuming, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	d, err := h.cfg.Attacher.Resume(resuming, ID(a.pool, a.volume), g)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return h.setStalled(a, errors.Join(translate(err), v.Close(undo)))
	}
	h.mu.Lock()
	a.device, a.gate, a.open, a.stalled = d, g, v, nil
	h.mu.Unlock()
	h.watch(a, d)
	// The last engine may have died between growing the volume and its device.
	if err := d.Resize(resuming); err != nil {
		h.event(a.pool, "resumed device does not show its volume's size: grow it to its present size", "volume", a.volume, "err", err)
	}
	return nil
}

func (h *Host) setStalled(a *attachment, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	a.stalled = err
	return fmt.Errorf("resume device %s of volume %q: %w", a.node, a.volume, err)
}

// Detach takes a volume's device away and closes the volume. A volume that is not attached is no error.
func (h *Host) Detach(ctx context.Context, pool, volume string) error {
	return h.withVolume(ctx, pool, volume, func(p Pool) error {
		a, err := h.attachmentOf(pool, volume)
		if a == nil {
			return err
		}
		if a.device == nil && !a.detached {
			// Only who serves a device can end it in order: its writes under way must be answered.
			if err := h.resume(ctx, p, a); err != nil {
				return fmt.Errorf("detach volume %q: %w", volume, err)
			}
		}
		if a.device != nil {
			err := a.device.Detach(ctx)
			if err != nil && !errors.Is(err, attach.ErrGone) && !errors.Is(err, attach.ErrNotFound) {
				return fmt.Errorf("detach volume %q from %s: %w", volume, a.path(), translate(err))
			}
			h.mu.Lock()
			a.node, a.device, a.detached, a.stalled = "", nil, true, errors.New("its device is gone; the volume is still being closed")
			h.mu.Unlock()
		}
		if err := a.open.Close(ctx); err != nil {
			return fmt.Errorf("close volume %q (its device is gone): %w", volume, err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.attached, ID(pool, volume))
		return nil
	})
}

// holdPool holds back the requests of a pool's devices and closes their volumes, under the pool's exclusive lock.
func (h *Host) holdPool(ctx context.Context, pool string) (errs []error) {
	h.mu.Lock()
	var served []*attachment
	for _, a := range h.attached {
		if a.pool == pool && a.open != nil {
			served = append(served, a)
		}
	}
	h.mu.Unlock()
	for _, a := range served {
		if err := a.gate.hold(ctx); err != nil {
			errs = append(errs, fmt.Errorf("wait for requests to volume %q: %w", a.volume, err))
		}
		if err := a.open.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("close volume %q: %w", a.volume, err))
		}
	}
	return errs
}
