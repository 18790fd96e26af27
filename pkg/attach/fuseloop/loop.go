package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// loops finds, makes and clears loop devices.
type loops struct{ dev string } // folder of the device nodes, /dev

// noLoop is the number of a device that is not there.
const noLoop = -1

// loopTries bounds the race for a free device with others on the machine.
const loopTries = 64

func (l loops) path(n int) string { return filepath.Join(l.dev, fmt.Sprintf("loop%d", n)) }

// node returns the path of loop device n, and makes the node where it is missing: a container's /dev does not get new ones by itself.
func (l loops) node(n int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return "", fmt.Errorf("find the number of loop%d: %w", n, err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("parse the number %q of loop%d: %w", b, n, err)
	}
	path, want := l.path(n), unix.Mkdev(major, minor)
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(want)); err != nil && !errors.Is(err, unix.EEXIST) {
			return "", fmt.Errorf("make the node %s: %w", path, err)
		}
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != want:
		return "", fmt.Errorf("%s is not the block device %d:%d: remove it", path, major, minor)
	}
	return path, nil
}

// bound tells whether loop device n has the file of that name behind it. Names are never used twice (fileName), so the name alone decides. sysfs knows it
// without a question to the file system behind the device: LOOP_GET_STATUS64 may ask for the file's attributes, and after a restart it would be this very
// process, not serving yet, that had to answer. It needs no opening of the device either, which could keep others from clearing it.
func (l loops) bound(n int, name string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", n))
	return err == nil && strings.HasSuffix(strings.TrimSuffix(string(b), "\n"), "/"+name)
}

// find looks for the loop device of the record's file: first the one it was last, then all. noLoop when there is none.
func (l loops) find(r record) (int, error) {
	if r.Loop >= 0 && l.bound(r.Loop, r.Name) {
		return r.Loop, nil
	}
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return noLoop, fmt.Errorf("list loop devices: %w", err)
	}
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		if !l.bound(n, r.Name) {
			continue
		}
		if _, err := l.node(n); err != nil {
			return noLoop, err
		}
		return n, nil
	}
	return noLoop, nil
}

// configure puts a free loop device before file. name is what it is called there.
func (l loops) configure(file *os.File, name string, sector int, readOnly bool) (int, error) {
	control, err := openPlain("/dev/loop-control", unix.O_RDWR)
	if err != nil {
		return noLoop, fmt.Errorf("open /dev/loop-control (is the loop module loaded?): %w", err)
	}
	defer func() { _ = control.Close() }()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(sector)}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return noLoop, fmt.Errorf("get a free loop device: %w", err)
		}
		path, err := l.node(n)
		if err != nil {
			return noLoop, err
		}
		f, err := openPlain(path, unix.O_RDWR)
		if err != nil {
			return noLoop, fmt.Errorf("open %s: %w", path, err)
		}
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, unix.EBUSY) { // busy: somebody else took it first
			return noLoop, fmt.Errorf("configure %s: %w", path, err)
		}
	}
	return noLoop, fmt.Errorf("get a loop device: others took it first, %d times", loopTries)
}

// check makes sure that the device keeps its promises: without "write back" the kernel sends no flush.
func (l loops) check(n int, readOnly bool) error {
	var bad []string
	checks := []struct{ file, want string }{{"loop/dio", "1"}}
	if !readOnly {
		checks = append(checks, struct{ file, want string }{"queue/write_cache", "write back"}, struct{ file, want string }{"queue/discard_max_bytes", ""})
	}
	for _, c := range checks {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/%s", n, c.file))
		if err != nil {
			return fmt.Errorf("check loop%d: %w", n, err)
		}
		got := strings.TrimSpace(string(b))
		if (c.want != "" && got != c.want) || got == "0" {
			bad = append(bad, fmt.Sprintf("%s is %q", c.file, got))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("loop%d cannot be used: %w: %s", n, attach.ErrUnavailable, strings.Join(bad, ", "))
	}
	return nil
}

// size is what the device shows, in bytes.
func (l loops) size(n int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/size", n))
	if err != nil {
		return 0, fmt.Errorf("look at the size of loop%d: %w", n, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse the size of loop%d: %w", n, err)
	}
	return sectors * 512, nil
}

// grow makes the device show its file's size, and returns what it shows.
func (l loops) grow(n int) (int64, error) {
	f, err := openPlain(l.path(n), unix.O_RDONLY)
	if err != nil {
		return 0, fmt.Errorf("open the device to grow it: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return 0, fmt.Errorf("grow %s: %w", f.Name(), err)
	}
	return l.size(n)
}

// clearGrace is how long clear waits for those who open every device for a moment (udev, blkid).
const clearGrace = time.Second

// clear takes the file away from the loop device that has it; none has it when it returns nil. ErrInUse, and nothing changed, while somebody has the
// device open.
func (l loops) clear(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(ctx, clearGrace)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := l.find(r)
		if n == noLoop || err != nil {
			return err
		}
		err = l.clearOnce(n, r.Name)
		if err == nil {
			continue
		}
		if !errors.Is(err, attach.ErrInUse) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s", err, holders(l.path(n), n))
		}
		select {
		case <-tick.C:
		case <-ctx.Done(): // one more look
		}
	}
}

// clearOnce asks to clear the device. The kernel does so when the last opener closes, at once if that is us. If it is not, the request is withdrawn:
// the device must not vanish later under somebody who was told that it stays.
func (l loops) clearOnce(n int, name string) error {
	path := l.path(n)
	f, err := openPlain(path, unix.O_RDONLY|unix.O_EXCL) // exclusive: nobody mounts it meanwhile
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("detach %s: %w", path, attach.ErrInUse)
	case errors.Is(err, unix.ENXIO):
		return nil
	case err != nil:
		return fmt.Errorf("open %s to detach it: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	if !l.bound(n, name) {
		return nil // somebody else's by now
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clear %s: %w", path, err)
	}
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask whether %s is clear: %w", path, err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return fmt.Errorf("keep %s after all: %w", path, err)
	}
	return fmt.Errorf("detach %s: %w", path, attach.ErrInUse)
}
