package hosttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

// Attacher is a attach.Attacher whose devices are names. They outlive the host that made them. The zero value is ready.
type Attacher struct {
	mu      sync.Mutex
	devices map[string]*Device
	next    int

	// Fail, when set, is asked before every operation.
	Fail func(op, id string) error
}

var _ attach.Attacher = (*Attacher)(nil)

// Device is one device. Served is what answers its requests.
type Device struct {
	a        *Attacher
	id, path string
	readOnly bool
	dev      block.Device
	size     int64
	done     chan struct{}
	err      error
}

func (a *Attacher) before(ctx context.Context, op, id string) error {
	if a.Fail != nil {
		if err := a.Fail(op, id); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Attach makes a device.
func (a *Attacher) Attach(ctx context.Context, id string, dev block.Device, o attach.Options) (attach.Attachment, error) {
	if err := a.before(ctx, "Attach", id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.devices[id] != nil {
		return nil, fmt.Errorf("device %s: %w", id, attach.ErrExists)
	}
	if a.devices == nil {
		a.devices = map[string]*Device{}
	}
	d := &Device{a: a, id: id, path: fmt.Sprintf("/dev/test%d", a.next), readOnly: o.ReadOnly, dev: dev, size: dev.Size(), done: make(chan struct{})}
	a.next++
	a.devices[id] = d
	return d, nil
}

// Resume serves a device again.
func (a *Attacher) Resume(ctx context.Context, id string, dev block.Device) (attach.Attachment, error) {
	if err := a.before(ctx, "Resume", id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.devices[id]
	if d == nil {
		return nil, fmt.Errorf("device %s: %w", id, attach.ErrNotFound)
	}
	r := &Device{a: a, id: id, path: d.path, readOnly: d.readOnly, dev: dev, size: d.size, done: make(chan struct{})}
	a.devices[id] = r
	return r, nil
}

// List tells of the devices.
func (a *Attacher) List(ctx context.Context) ([]attach.Info, error) {
	if err := a.before(ctx, "List", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var l []attach.Info
	for _, d := range a.devices {
		l = append(l, attach.Info{ID: d.id, Path: d.path, ReadOnly: d.readOnly})
	}
	slices.SortFunc(l, func(x, y attach.Info) int { return strings.Compare(x.ID, y.ID) })
	return l, nil
}

// Served is the block.Device that answers a device's requests now, and the size that its users see.
func (a *Attacher) Served(id string) (block.Device, int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.devices[id]
	if d == nil {
		return nil, 0
	}
	return d.dev, d.size
}

// Close stops serving.
func (a *Attacher) Close(ctx context.Context) error { return a.before(ctx, "Close", "") }

// Lose takes a device away from outside.
func (a *Attacher) Lose(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.devices[id]
	delete(a.devices, id)
	d.err = attach.ErrGone
	close(d.done)
}

// ID is the attachment's id.
func (d *Device) ID() string { return d.id }

// Done is closed by Detach and Lose.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err is attach.ErrGone after Lose.
func (d *Device) Err() error { return d.err }

// Path is the device's name.
func (d *Device) Path() string { return d.path }

// Resize shows the device's new size.
func (d *Device) Resize(ctx context.Context) error {
	if err := d.a.before(ctx, "Resize", d.id); err != nil {
		return err
	}
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	d.size = d.dev.Size()
	return nil
}

// Detach takes the device away.
func (d *Device) Detach(ctx context.Context) error {
	if err := d.a.before(ctx, "Detach", d.id); err != nil {
		return err
	}
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	if d.err != nil {
		return d.err
	}
	delete(d.a.devices, d.id)
	close(d.done)
	return nil
}
