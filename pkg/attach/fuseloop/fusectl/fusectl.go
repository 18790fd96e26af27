// Package fusectl speaks to the kernel's control file system of FUSE, which has a folder for each connection, whoever serves it. Not every machine has
// it mounted, so it is used without.
package fusectl

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Control is the control file system, held open.
type Control struct{ root int }

// Open opens it. A kernel without FUSE has none: the error is unix.ENODEV then.
func Open() (*Control, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen fusectl: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create fusectl: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount fusectl: %w", err)
	}
	return &Control{root}, nil
}

// Close lets it go.
func (c *Control) Close() error { return unix.Close(c.root) }

// Has tells whether there is a connection of that number: the kernel names it after the minor number of its file system's device.
func (c *Control) Has(number uint32) bool {
	var st unix.Stat_t
	return unix.Fstatat(c.root, strconv.FormatUint(uint64(number), 10), &st, 0) == nil
}

// Abort makes every request of a connection fail, now and later. It is the way out of a hang: what waits for the file system gets I/O errors. Where the
// connection has gone the error is unix.ENOENT.
func (c *Control) Abort(number uint32) error {
	name := fmt.Sprintf("%d/abort", number)
	fd, err := unix.Openat(c.root, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open fusectl's %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}
