package member

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// The place cannot become a member; nothing was changed there.
var (
	// ErrInvalid: a size, name or path is out of its bounds.
	ErrInvalid = errors.New("invalid argument")
	// ErrUnsupported: the file system is neither XFS nor ext4, or cannot do direct I/O or flushes; or the device is no block device.
	ErrUnsupported = errors.New("unsupported")
	// ErrForeign: the folder holds a pool already.
	ErrForeign = errors.New("belongs to another pool")
	// ErrNotEmpty: the folder holds files that are not a pool's.
	ErrNotEmpty = errors.New("folder is not empty")
	// ErrNotWritable: the folder or its file system is read-only.
	ErrNotWritable = errors.New("folder cannot be written to")
	// ErrNotBlank: the device holds a file system, partition table or other signature.
	ErrNotBlank = errors.New("device is not blank")
	// ErrInUse: the device is mounted or held by something else, or its mount point is taken.
	ErrInUse = errors.New("in use")
	// ErrTool: a program that devices need is not installed.
	ErrTool = errors.New("program not found")
)

// The member cannot be opened.
var (
	// ErrNotFound: there is no pool in the folder or on the device.
	ErrNotFound = errors.New("no pool found")
	// ErrLocked: another engine has it open.
	ErrLocked = errors.New("open in another process")
	// ErrCorrupt: the superblock does not decode, or files contradict it.
	ErrCorrupt = format.ErrCorrupt
	// ErrIncompatible: a newer version wrote it.
	ErrIncompatible = format.ErrUnknownFeatures
)

// An operation on an open member failed.
var (
	// ErrNoSpace: the file system is full.
	ErrNoSpace = block.ErrNoSpace
	// ErrFlush: a flush failed. What was written since the last good flush may be lost, whatever a later flush would say.
	ErrFlush = errors.New("flush failed")
	// ErrReadOnly: the member was opened for reading.
	ErrReadOnly = errors.New("member is open read-only")
	// ErrOutOfRange: a block of no segment, or a range that is not within its segment or not aligned.
	ErrOutOfRange = errors.New("out of range")
)

// wrap gives what the operating system said the package's own kind, where it has one.
func wrap(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrNoSpace) || errors.Is(err, ErrNotWritable) || errors.Is(err, ErrUnsupported):
		return err
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrNotWritable, err)
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
