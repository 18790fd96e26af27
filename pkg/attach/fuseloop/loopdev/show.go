package loopdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// showTries bounds the race for a free device with others on the machine.
const showTries = 64

// show finds the file's device, or makes one.
func (w Work) show(ctx context.Context, pin *os.File) (int, error) {
	n, err := w.Dev.Find(w.Loop, w.Name)
	if err != nil {
		return None, err
	}
	if n != None {
		return n, w.Dev.keep(n)
	}
	if n, err = w.make(ctx, pin); err != nil {
		return None, err
	}
	return n, nil
}

// taken are the devices that this process configures now. Until LOOP_CONFIGURE is done, LOOP_CTL_GET_FREE offers the device to everybody, and who
// opens it waits: with one server away, another's Show must not come to wait for it.
var taken struct {
	sync.Mutex
	numbers map[int]bool
}

// reserve finds a loop device that is free and that nobody else in this process configures.
func reserve(control *os.File) (n int, release func(), err error) {
	taken.Lock()
	defer taken.Unlock()
	n, err = unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err == nil && taken.numbers[n] {
		n, err = addNew(control)
	}
	if err != nil {
		return None, nil, fmt.Errorf("get a free loop device: %w", err)
	}
	if taken.numbers == nil {
		taken.numbers = make(map[int]bool)
	}
	taken.numbers[n] = true
	return n, func() {
		taken.Lock()
		defer taken.Unlock()
		delete(taken.numbers, n)
	}, nil
}

// addNew makes a device of the lowest number that there is none of.
func addNew(control *os.File) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_ADD, ^uintptr(0))
	if errno != 0 {
		return None, errno
	}
	return int(n), nil
}

// make puts a free loop device before the file.
func (w Work) make(ctx context.Context, pin *os.File) (n int, err error) {
	file, err := reopen(pin, w.ReadOnly)
	if err != nil {
		return None, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if ctx.Err() != nil { // that may have taken until the next server came, which has a device made if it wants one
		return None, fmt.Errorf("show %s: %w", w.Name, ctx.Err())
	}
	control, err := OpenPlain("/dev/loop-control", unix.O_RDWR)
	if err != nil {
		return None, fmt.Errorf("open /dev/loop-control (is the loop module loaded?): %w", err)
	}
	defer func() { _ = control.Close() }()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(w.Sector)}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if w.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], w.Name)
	for range showTries {
		n, release, err := reserve(control)
		if err != nil {
			return None, err
		}
		err = w.Dev.configure(n, &config)
		release()
		if err == nil || !errors.Is(err, unix.EBUSY) { // busy: somebody else took it first
			return n, err
		}
	}
	return None, fmt.Errorf("get a loop device: others took it first, %d times", showTries)
}

func (l Folder) configure(n int, config *unix.LoopConfig) error {
	path, err := l.Node(n)
	if err != nil {
		return err
	}
	f, err := OpenPlain(path, unix.O_RDWR)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err = unix.IoctlLoopConfigure(int(f.Fd()), config)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("configure %s: %w", path, err)
	}
	return nil
}

// keep withdraws what an interrupted Clear asked for: the device would vanish when its last opener closes it.
func (l Folder) keep(n int) error {
	clearing, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/autoclear", n))
	if err != nil {
		return fmt.Errorf("look at loop%d: %w", n, err)
	}
	if !bytes.HasPrefix(clearing, []byte("1")) {
		return nil
	}
	f, err := OpenPlain(l.Path(n), unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open the device to keep it: %w", err)
	}
	defer func() { _ = f.Close() }()
	kept, err := keepAfterAll(f)
	if err == nil && !kept {
		err = fmt.Errorf("show %s: %w: it is just being cleared: do it again", f.Name(), attach.ErrGone)
	}
	return err
}
