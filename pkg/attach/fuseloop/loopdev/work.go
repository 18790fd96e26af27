package loopdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// Kind is what a Work does.
type Kind string

const (
	// Pin looks the file up in its mount's root folder and answers a descriptor of it. Asks the server: LOOKUP.
	Pin Kind = "pin"
	// Show makes sure that the file has a loop device before it, which shows its size. Asks OPEN, STATFS, FSYNC, FLUSH.
	Show Kind = "show"
	// Grow makes the loop device show the size that the file has by now. Asks SETATTR, perhaps GETATTR.
	Grow Kind = "grow"
	// Clear takes the file's loop device away; ErrInUse, and nothing changed, while somebody has it open. Closing it waits for the device's reads.
	Clear Kind = "clear"
)

// Work is one operation that may wait for the file's server. It crosses the keeper's socket as JSON: fields are added, not changed.
type Work struct {
	Kind     Kind   `json:"kind"`
	Name     string `json:"name"`             // the file's, and so the device's
	Loop     int    `json:"loop"`             // the device as far as known, or None
	Sector   int    `json:"sector,omitempty"` // for Show: logical sector, in bytes
	ReadOnly bool   `json:"readOnly,omitempty"`
	Dev      Folder `json:"dev"`
}

// Result is what a Work found.
type Result struct {
	Loop int   `json:"loop"` // of Show: the device; of Grow: as given
	Size int64 `json:"size"` // of Grow: what the device shows
}

// Check refuses a Work that makes no sense.
func (w Work) Check() error {
	ok := strings.HasPrefix(string(w.Dev), "/") && w.Name != "" && !strings.Contains(w.Name, "/") && w.Loop >= None
	switch w.Kind {
	case Pin, Clear:
	case Grow:
		ok = ok && w.Loop != None
	case Show:
		ok = ok && (w.Sector == 512 || w.Sector == 4096)
	default:
		return fmt.Errorf("work %q: %w: this program does not know it", w.Kind, attach.ErrInvalid)
	}
	if !ok {
		return fmt.Errorf("work %+v: %w", w, attach.ErrInvalid)
	}
	return nil
}

// Do carries the work out. file is the mount's root folder for Pin, and the file, as Pin answers it, for Show and Grow. What Pin returns is the
// caller's to close. ctx says whether somebody still wants it: it ends no call that waits in the kernel, but when it is done by then, Show makes no
// device and Clear takes none away.
func (w Work) Do(ctx context.Context, file *os.File) (Result, *os.File, error) {
	r := Result{Loop: w.Loop}
	err := w.Check()
	if err == nil && file == nil && w.Kind != Clear {
		err = fmt.Errorf("work %q without a descriptor: %w", w.Kind, attach.ErrInvalid)
	}
	if err != nil {
		return r, nil, err
	}
	switch w.Kind {
	case Pin:
		pinned, err := pin(file, w.Name)
		return r, pinned, err
	case Show:
		r.Loop, err = w.show(ctx, file)
	case Grow:
		if err = refresh(file, w.ReadOnly); err == nil {
			r.Size, err = w.Dev.grow(w.Loop, w.Name)
		}
	case Clear:
		err = w.Dev.clear(ctx, w.Loop, w.Name)
	}
	return r, nil, err
}

// pin opens the file as a place (O_PATH): that keeps the mount, asks nothing of the server when it is closed, and can be opened for I/O and looked
// at by a later process.
func pin(root *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("find %s in its mount: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenPlain opens without telling Go's poller. os.OpenFile offers each file to epoll, and the kernel then asks a FUSE file's server (FUSE_POLL) with
// epoll's lock held; where the server is this process, its threads may be waiting for that very lock.
func OpenPlain(path string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// reopen opens a pinned file for I/O.
func reopen(pin *os.File, readOnly bool) (*os.File, error) {
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	f, err := OpenPlain(fmt.Sprintf("/proc/self/fd/%d", pin.Fd()), flags)
	if err != nil {
		return nil, fmt.Errorf("open the file behind the device: %w", err)
	}
	return f, nil
}

// FileMode is the mode of the file, which refresh sets again.
func FileMode(readOnly bool) uint32 {
	if readOnly {
		return 0o400
	}
	return 0o600
}

// refresh makes the kernel take the file's size from the server. It asks by setting the mode to what it is: the kernel applies what SETATTR answers
// always, and what GETATTR answers only if no request of the file ended meanwhile, which under load is seldom.
func refresh(pin *os.File, readOnly bool) error {
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", pin.Fd()), FileMode(readOnly)); err != nil {
		return fmt.Errorf("ask for the new size of %s: %w", pin.Name(), err)
	}
	return nil
}

// grow makes the device show its file's size, and returns what it shows.
func (l Folder) grow(n int, name string) (int64, error) {
	f, err := OpenPlain(l.Path(n), unix.O_RDONLY)
	if err != nil {
		return 0, fmt.Errorf("open the device to grow it: %w", err)
	}
	defer func() { _ = f.Close() }()
	if !l.bound(n, name) {
		return 0, fmt.Errorf("grow %s: %w: it is another's by now", f.Name(), attach.ErrGone)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return 0, fmt.Errorf("grow %s: %w", f.Name(), err)
	}
	return l.Size(n)
}
