package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

var errNoResend = fmt.Errorf("kernel cannot send requests again after a restart (FUSE_HAS_RESEND, kernel 6.9): %w for devices that must "+
	"survive one; without a keeper it works", attach.ErrUnavailable)

// Available says whether this mechanism works here, takeover included; nil, or an ErrUnavailable that names everything that is missing. It makes a
// mount and drops it, because capabilities, seccomp and the kernel's age are only known by trying.
func Available() error {
	var errs []error
	if f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0); err != nil {
		errs = append(errs, fmt.Errorf("open /dev/loop-control (is the loop module loaded, and is this root?): %w", err))
	} else {
		_ = f.Close()
	}
	if err := tryMount(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", attach.ErrUnavailable, errors.Join(errs...))
}

func tryMount() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*undoTime)
	defer cancel()
	m, err := newMount()
	if err != nil {
		return err
	}
	s := newServer(m.fuse, block.NewRAM(1<<20, block.SectorSize), newMemory(4*maxIO), "probe", true, 1)
	if err := s.start(); err != nil {
		return errors.Join(err, m.root.Close(), m.fuse.Close())
	}
	select {
	case <-s.ready:
		if err = s.initErr; err == nil && s.proto.Caps&capResend == 0 {
			err = errNoResend
		}
	case <-s.ended:
		err = s.failure()
	case <-ctx.Done():
		err = errors.New("the kernel sent no INIT")
	}
	return errors.Join(err, m.root.Close(), s.abandoned(ctx), m.fuse.Close())
}

// Abort makes all I/O of an attachment fail, at once and for ever, whether or not somebody serves it. It is the way out when nobody can: processes
// that hang on the device get I/O errors. The attachment must still be detached, or its record dropped by List.
func (a *Attacher) Abort(ctx context.Context, id string) error {
	if t, err := a.lookup(id); err != nil {
		return err
	} else if t != nil {
		return abortConnection(t.rec.File)
	}
	rec, files, err := a.fetch(ctx, id)
	if err != nil {
		return fmt.Errorf("abort %q: %w", id, err)
	}
	defer closeFiles(files)
	return abortConnection(rec.File)
}
