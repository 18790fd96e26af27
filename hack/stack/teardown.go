package stack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
)

// order is how long ending in order may take before force is used.
const order = 60 * time.Second

// ErrLeft is in Close's error when something could not be taken away; the text names it.
var ErrLeft = errors.New("left behind")

// Close ends everything and looks for what is left.
func (s *Stack) Close() error {
	s.closing.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Stack) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), order)
	defer cancel()
	var errs []error
	note := func(what string, err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
		return err == nil
	}
	if s.CSI != nil {
		note("close the connection to the driver", s.CSI.Close())
	}
	note("stop the driver", s.driver.stop(ctx))
	if !note("end the volumes' use", s.endUse(ctx)) {
		note("end by force", s.Abort())
		note("unmount by force", s.unmountVolumes(ctx))
		note("clear devices by force", s.clearDevices())
	} else {
		note("stop the engine", s.engine.stop(ctx))
		note("stop the keeper", s.keeper.stop(ctx))
	}
	if s.Engine != nil {
		note("close the connection to the engine", s.Engine.Close())
	}
	note("take the disk away", s.disk.close())
	for _, dir := range []string{s.ringDir, s.Dir} {
		if dir != "" {
			note("remove files", os.RemoveAll(dir))
		}
	}
	if left := s.leftovers(); len(left) > 0 {
		note("clean up", fmt.Errorf("%w: %s", ErrLeft, strings.Join(left, ", ")))
	}
	return errors.Join(errs...)
}

// hangs is how long a killed process may take to end before its devices are aborted.
const hangs = 5 * time.Second

// Abort ends engine and keeper by force: all I/O on the devices fails, so that who waits for it can end. The engine's log ends with what it was doing.
func (s *Stack) Abort() error {
	if s.engine == nil || s.engine.ended() == nil {
		return s.keeper.kill()
	}
	err := s.engine.dump()
	if err == nil {
		err = s.engine.signal(syscall.SIGKILL)
	}
	if err == nil && !s.engine.ends(hangs) {
		err = s.abortDevices() // it waits in the kernel for itself, and nothing else wakes it
	}
	// Without both processes nobody holds the devices' other end.
	return errors.Join(err, s.engine.kill(), s.keeper.kill())
}

// abortDevices makes all I/O of the pool's devices fail while the keeper lives.
func (s *Stack) abortDevices() error {
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	defer cancel()
	records, err := keeper.NewClient(s.keeperSocket()).List(ctx)
	a := fuseloop.New(fuseloop.Config{Keeper: s.keeperSocket()})
	for _, r := range records {
		err = errors.Join(err, a.Abort(ctx, r.ID))
	}
	return errors.Join(err, a.Close(ctx))
}

// endUse unmounts and detaches all volumes.
func (s *Stack) endUse(ctx context.Context) error {
	if s.engine == nil || s.engine.ended() == nil {
		return nil
	}
	select {
	case <-s.engine.ended():
		return fmt.Errorf("the engine had ended: %w; its log ends with\n%s", s.engine.result(), s.engine.tail())
	default:
	}
	if err := s.unmountVolumes(ctx); err != nil {
		return err
	}
	attached, err := s.Engine.Attachments(ctx, s.Pool)
	if err != nil {
		return err
	}
	for _, a := range attached {
		if err := s.Engine.Detach(ctx, a.Pool, a.Volume); err != nil {
			return err
		}
	}
	return nil
}

// unmountVolumes unmounts all that is mounted below Dir but the pool's disk, newest first. A mount whose device does not answer would wait for ever.
func (s *Stack) unmountVolumes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, order/2)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		mounts, err := s.mounts()
		for i := len(mounts) - 1; i >= 0 && err == nil; i-- {
			if s.disk == nil || mounts[i] != s.disk.dir {
				err = unmount(mounts[i])
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("unmounting takes too long")
	}
}

// mounts lists what is mounted at and below Dir, oldest first.
func (s *Stack) mounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer f.Close()
	var at []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", s.Dir+"/") {
			at = append(at, fields[4])
		}
	}
	return at, lines.Err()
}

// devices lists the loop devices that are ours: over files below Dir, and the volumes' of our pool.
func (s *Stack) devices() (paths []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		file := strings.TrimSpace(string(text))
		if strings.HasPrefix(file, s.Dir+"/") || strings.HasPrefix(filepath.Base(file), "rowan-"+s.Pool+"_") {
			paths = append(paths, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return paths
}

// clearDevices takes the volumes' loop devices away.
func (s *Stack) clearDevices() error {
	var errs []error
	for _, d := range s.devices() {
		if s.disk == nil || d != s.disk.device {
			errs = append(errs, clearLoop(d))
		}
	}
	return errors.Join(errs...)
}

func clearLoop(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("open %s to clear it: %w", device, err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clear %s: %w", device, err)
	}
	return nil
}

// unmount waits for those who have a file open for a moment only.
func unmount(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return Until(ctx, "it is unmounted", func() error {
		err := unix.Unmount(path, 0)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is no mount
			cancel()
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		return nil
	})
}

// leftovers names what should be gone. Devices go a moment after their last user.
func (s *Stack) leftovers() (left []string) {
	if s.Dir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = Until(ctx, "nothing is left", func() error {
		if left = s.look(); len(left) > 0 {
			return errors.New("something is left")
		}
		return nil
	})
	return left
}

func (s *Stack) look() (left []string) {
	mounts, err := s.mounts()
	if err != nil {
		left = append(left, err.Error())
	}
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	for _, d := range s.devices() {
		left = append(left, "loop device "+d)
	}
	for _, dir := range []string{s.Dir, s.ringDir} {
		if _, err := os.Lstat(dir); dir != "" && err == nil {
			left = append(left, "folder "+dir)
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		text, err := os.ReadFile(l)
		pid := filepath.Base(filepath.Dir(l))
		if err == nil && strings.Contains(string(text), s.Dir+"/") && pid != strconv.Itoa(os.Getpid()) {
			left = append(left, "process "+pid)
		}
	}
	return left
}
