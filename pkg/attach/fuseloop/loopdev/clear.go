package loopdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// clearGrace is how long clear waits for those who open every device for a moment (udev, blkid).
const clearGrace = time.Second

// clear takes the file away from the loop device that has it; none has it when it returns nil. ErrInUse, and nothing changed, while somebody has the
// device open.
func (l Folder) clear(ctx context.Context, last int, name string) error {
	wanted := ctx
	ctx, cancel := context.WithTimeout(ctx, clearGrace)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := l.Find(last, name)
		if n == None || err != nil {
			return err
		}
		err = l.clearOnce(wanted, n, name)
		if err != nil && !errors.Is(err, attach.ErrInUse) {
			return err
		}
		if now, ferr := l.Find(last, name); now == None || ferr != nil {
			return ferr
		}
		if ctx.Err() != nil {
			return fmt.Errorf("detach %s: %w: %s", l.Path(n), attach.ErrInUse, holders(l.Path(n), n))
		}
		select {
		case <-tick.C:
		case <-ctx.Done(): // one more look
		}
	}
}

// clearOnce asks to clear the device. The kernel does so when the last opener closes, at once if that is us. If it is not, the request is withdrawn:
// the device must not vanish later under somebody who was told that it stays.
func (l Folder) clearOnce(wanted context.Context, n int, name string) error {
	path := l.Path(n)
	f, err := OpenPlain(path, unix.O_RDONLY|unix.O_EXCL) // exclusive: nobody mounts it meanwhile
	switch {
	case errors.Is(err, unix.EBUSY):
		return attach.ErrInUse
	case errors.Is(err, unix.ENXIO):
		return nil // somebody's last close clears it just now
	case err != nil:
		return fmt.Errorf("open %s to detach it: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	if wanted.Err() != nil { // opening may have waited until the next server came, and it goes on with this device
		return fmt.Errorf("detach %s: %w", path, wanted.Err())
	}
	if !l.bound(n, name) {
		return nil // somebody else's by now
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clear %s: %w", path, err)
	}
	kept, err := keepAfterAll(f)
	if kept && err == nil {
		err = attach.ErrInUse
	}
	return err
}

// keepAfterAll withdraws the request to clear the device when its last opener closes it; kept is false where it is cleared already.
func keepAfterAll(device *os.File) (kept bool, err error) {
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask whether %s is clear: %w", device.Name(), err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(device.Fd()), info); err != nil {
		return false, fmt.Errorf("keep %s after all: %w", device.Name(), err)
	}
	return true, nil
}
