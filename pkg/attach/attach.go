// Package attach turns a block.Device into a block device of the kernel's. Each mechanism (fuseloop/, ublk/, nbd/) implements Attacher in a package
// of its own, with a function Available() error that says what the machine lacks for it.
//
// Contract: while an attachment exists, its device node answers, whether or not a process serves it. When the serving process dies, even by SIGKILL,
// requests wait; the process that Resumes the attachment answers them, and the ones the dead process had taken, again from the beginning. Nobody
// above sees an error. So a request may be carried out twice, the second time after the first; never is an old one carried out after a newer one that
// overlaps it was answered, provided that the dead process can do no more I/O: the caller of Resume must have made sure of that (the engine takes its
// pool's lock first).
//
// Limits: an id is 1 to MaxIDLen bytes, Meta at most MaxMetaLen. A device grows, never shrinks. The caller keeps each block.Device open until the
// attachment's Detach has returned nil, Done is closed, or the Attacher's Close has returned.
package attach

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/block"
)

// Limits, in bytes.
const (
	MaxIDLen   = 256
	MaxMetaLen = 4 << 10
)

// Options say how a device is shown.
type Options struct {
	ReadOnly   bool
	SectorSize int    // logical sector in bytes, 512 or 4096, not below the device's own; 0 takes the device's
	Meta       []byte // the caller's; List gives it back, also to another process
}

// Info describes an attachment that exists.
type Info struct {
	ID         string
	Path       string // /dev/…; empty when a process died before it made the device (Resume finishes the work)
	Mechanism  string // "fuseloop", "ublk", "nbd"
	Meta       []byte
	ReadOnly   bool
	SectorSize int
	Serving    bool // by this Attacher
}

// Attacher shows devices. Its methods may be called at once; two calls for one id wait for each other.
type Attacher interface {
	// Attach shows dev as a block device. id is the caller's name for the attachment, the same over restarts. It returns ErrExists when there is an
	// attachment of that id, served or left behind by a dead process; ErrUnavailable when the machine lacks something.
	Attach(ctx context.Context, id string, dev block.Device, o Options) (Attachment, error)
	// Resume serves an attachment that a process that is gone left behind; dev has the content and at least the size it had then. ErrNotFound when
	// there is none of that id, ErrExists when this Attacher serves it already.
	Resume(ctx context.Context, id string, dev block.Device) (Attachment, error)
	// List tells which attachments exist, so that a restarted process can find what to Resume.
	List(ctx context.Context) ([]Info, error)
	// Close stops serving: requests under way are answered, later ones wait for the process that Resumes. It detaches nothing.
	Close(ctx context.Context) error
}

// Attachment is a device that this process serves.
type Attachment interface {
	ID() string
	// Path is the device node, /dev/…
	Path() string
	// Resize shows the size that the block.Device has now.
	Resize(ctx context.Context) error
	// Detach takes the device away. It returns ErrInUse, and everything is as before, when somebody has the node open or mounted; the text says who, as
	// far as this process can see. What an interrupted Detach left is finished by Detaching again, if need be after a Resume.
	Detach(ctx context.Context) error
	// Done is closed when this process no longer serves the attachment: after Detach, Close, or when the kernel's side of it is gone.
	Done() <-chan struct{}
	// Err says why, once Done is closed: nil after Detach and Close.
	Err() error
}

// CheckID validates an attachment's id.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > MaxIDLen {
		return fmt.Errorf("attachment id of %d bytes: %w: 1 to %d are allowed", len(id), ErrInvalid, MaxIDLen)
	}
	return nil
}

// Check validates the options for a device and fills in the sector size.
func (o Options) Check(dev block.Device) (Options, error) {
	if len(o.Meta) > MaxMetaLen {
		return o, fmt.Errorf("meta of %d bytes: %w: at most %d are allowed", len(o.Meta), ErrInvalid, MaxMetaLen)
	}
	own := dev.SectorSize()
	if o.SectorSize == 0 {
		o.SectorSize = own
	}
	if (o.SectorSize != 512 && o.SectorSize != 4096) || o.SectorSize < own {
		return o, fmt.Errorf("sector size %d: %w: 512 or 4096, and not below the device's %d", o.SectorSize, ErrInvalid, own)
	}
	if size := dev.Size(); size <= 0 || size%int64(o.SectorSize) != 0 {
		return o, fmt.Errorf("device of %d bytes: %w: its size must be a multiple of the sector, %d, and not 0", size, ErrInvalid, o.SectorSize)
	}
	return o, nil
}
