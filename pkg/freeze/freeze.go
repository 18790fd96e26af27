// Package freeze holds file systems still for the moment of a cut: what is on the device then is what a clean unmount would have left, but for the journal's
// mark (see docs/consistency.md).
//
// Contract:
//   - A file system that was frozen is thawed, whatever becomes of this process: by the call itself, by the guard (Guard), a small process apart, once it was
//     frozen for Limit or this process died, or by the next process (ThawAll), from the note that is written before it is frozen.
//   - Nothing is frozen without a guard that lives, nor for longer than Limit: what took longer was thawed by the guard, and Thaw says so.
//   - The dirty data is written out first, while writers go on; where that takes over SyncLimit nothing is frozen.
//   - A file system that somebody else has frozen is left alone.
//   - Of several (Devices) all are frozen or none, and the limits hold for all of them together: what is dirty is written out first, while nothing is frozen
//     yet; then all are frozen side by side.
//
// Limits: ext4 and XFS, mounted in this mount namespace. FIFREEZE waits for what is being written; while a device does not answer, it waits, and so does
// everybody who writes, frozen or not. Notes must be on a tmpfs: after a restart of the machine nothing is frozen any more.
package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Limit is how long a file system is frozen at most.
	Limit = 5 * time.Second
	// SyncLimit is how long the dirty data may take to be written out.
	SyncLimit = 5 * time.Second
	// settled is a sync so short that what is left for the freeze is little.
	settled = 200 * time.Millisecond
)

// The reasons why nothing was, or stayed, frozen. Tried again later it may go well.
var (
	// ErrSlow: the dirty data could not be written out in time, or the file system could not be frozen in time.
	ErrSlow = errors.New("the file system's dirty data could not be written out in time")
	// ErrFrozen: somebody else has it frozen.
	ErrFrozen = errors.New("somebody else has the file system frozen")
	// ErrThawed: it was thawed before its time: what was cut meanwhile may not be consistent.
	ErrThawed = errors.New("the file system was thawed before the cut was over")
	// ErrNotMounted: the device's file system is mounted nowhere.
	ErrNotMounted = errors.New("not mounted")
	// ErrUnguarded: nobody would thaw it if this process died.
	ErrUnguarded = errors.New("no guard runs that would thaw the file system")
)

// The ioctls of linux/fs.h, which are the same on all architectures that Go has but mips and powerpc.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// Note names a file system that is frozen, or about to be.
type Note struct {
	Path  string `json:"path"`  // where it is mounted
	Major uint32 `json:"major"` // of its device
	Minor uint32 `json:"minor"`
	// At is when it was written, since the machine was started: no clock that anybody sets.
	At time.Duration `json:"at"`
}

// sinceBoot is the time since the machine was started.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // it is in every kernel
	}
	return time.Duration(t.Nano())
}

// Freezer freezes file systems.
type Freezer struct {
	// Notes is the folder of the notes, on a tmpfs that outlives this process.
	Notes string
	// Guarded says whether a guard of that folder lives.
	Guarded func() bool
	// Mounts are the places where a device's file system is mounted.
	Mounts func(device string) ([]string, error)
}

// mounted is where a device's file system is mounted; ErrNotMounted where it is nowhere.
func (f *Freezer) mounted(device string) (string, error) {
	paths, err := f.Mounts(device)
	if err != nil {
		return "", fmt.Errorf("freeze what is on %s: %w", device, err)
	}
	for _, path := range paths {
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			return path, nil
		}
	}
	return "", fmt.Errorf("freeze what is on %s: %w", device, ErrNotMounted)
}

// Frozen is a file system that is frozen.
type Frozen struct {
	note string
	dir  *os.File
	At   time.Time     // since when
	Took time.Duration // to freeze it, during which writers waited already
}

// spare is how long before the guard's time the cut must be over.
const spare = 250 * time.Millisecond

// Until is until when it stays frozen.
func (z *Frozen) Until() time.Time { return z.At.Add(Limit - z.Took - spare) }

// Freeze the file system that is mounted at path. Until Thaw its writers wait.
//
// The order: the note, and then the freeze; the thaw, and then the note. A process that ends anywhere leaves a note of all that is frozen.
func (f *Freezer) Freeze(ctx context.Context, path string) (*Frozen, error) {
	all, err := f.freezeAll(ctx, []string{path})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// hold freezes a file system whose dirty data was written out, and takes dir over.
func (f *Freezer) hold(ctx context.Context, dir *os.File, path string) (z *Frozen, err error) {
	defer func() {
		if err != nil {
			_ = dir.Close() // nothing was written
		}
	}()
	if !f.Guarded() {
		return nil, fmt.Errorf("freeze %s: %w", path, ErrUnguarded)
	}
	note, err := f.write(dir, path)
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", path, err)
	}
	begun := time.Now()
	if err := ioctl(dir, fiFreeze); err != nil {
		err = errors.Join(err, os.Remove(note))
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", ErrFrozen, err)
		}
		return nil, fmt.Errorf("freeze %s: %w", path, err)
	}
	z = &Frozen{note: note, dir: dir, At: time.Now(), Took: time.Since(begun)}
	if z.Took < Limit-2*spare && ctx.Err() == nil && f.Guarded() {
		return z, nil
	}
	err = fmt.Errorf("freeze %s: %w: it took %s (%w)", path, ErrSlow, z.Took, cause(ctx))
	return nil, errors.Join(err, z.thaw())
}

func cause(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return ErrUnguarded
}

// syncOut writes the dirty data out while writers go on, until little is left.
func syncOut(ctx context.Context, dir *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, SyncLimit)
	defer cancel()
	for {
		begun := time.Now()
		done := make(chan error, 1)
		// By a descriptor of its own: it cannot be called off, and may outlast this call.
		fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		go func() {
			err := unix.Syncfs(fd)
			done <- errors.Join(err, unix.Close(fd))
		}()
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("sync: %w", err)
			}
		case <-ctx.Done():
			return fmt.Errorf("%w (%s)", ErrSlow, SyncLimit)
		}
		if time.Since(begun) <= settled {
			return nil
		}
	}
}

// write writes the note, whole or not at all.
func (f *Freezer) write(dir *os.File, path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return "", fmt.Errorf("note: %w", err)
	}
	text, err := json.Marshal(Note{Path: path, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), At: sinceBoot()})
	if err != nil {
		return "", fmt.Errorf("note: %w", err)
	}
	if err := os.MkdirAll(f.Notes, 0o700); err != nil {
		return "", fmt.Errorf("note: %w", err)
	}
	name := filepath.Join(f.Notes, fmt.Sprintf("%d-%d%s", unix.Major(st.Dev), unix.Minor(st.Dev), suffix))
	if _, err := os.Lstat(name); err == nil {
		return "", fmt.Errorf("%w: there is a note of it, %s", ErrFrozen, name)
	}
	err = os.WriteFile(name+".new", text, 0o600)
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return "", fmt.Errorf("note: %w", err)
	}
	return name, nil
}

// suffix of a note's name.
const suffix = ".frozen"

// Thaw the file system. ErrThawed: somebody did before, and what was cut may not be consistent.
func (z *Frozen) Thaw() error {
	if err := z.thaw(); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

func (z *Frozen) thaw() error {
	err := ioctl(z.dir, fiThaw)
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w (after %s)", ErrThawed, time.Since(z.At).Round(time.Millisecond))
	} else if err != nil {
		return errors.Join(err, z.dir.Close()) // the note stays: the guard tries on
	}
	if rerr := os.Remove(z.note); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return errors.Join(err, z.dir.Close())
}

func ioctl(dir *os.File, request uint) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), uintptr(request), 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		name := "FIFREEZE"
		if request == fiThaw {
			name = "FITHAW"
		}
		return os.NewSyscallError(name, e)
	}
}
