// Package block defines Device, the contract between what stores blocks (the engine's volumes and snapshots, a RAM disk) and what shows them to a
// kernel (package attach).
//
// It is a leaf: it imports the standard library alone.
package block

import (
	"errors"
	"io"
)

// SectorSize is the smallest logical sector, in bytes. Offsets and lengths of every Device call are multiples of Device.SectorSize, which is
// SectorSize or 4096.
const SectorSize = 512

// Errors that a Device returns, wrapped with what it was doing. An attacher maps them to errno; anything else is an I/O error (EIO).
var (
	// ErrOutOfRange: the request reaches beyond the device's size.
	ErrOutOfRange = errors.New("request beyond the end of the device")
	// ErrUnaligned: offset or length is not a multiple of the sector size.
	ErrUnaligned = errors.New("request not aligned to sectors")
	// ErrReadOnly: a write, discard or write-zeroes to a device that takes none.
	ErrReadOnly = errors.New("device is read-only")
	// ErrNoSpace: no space for a block that must be newly allocated (ENOSPC). The request changed nothing that was acknowledged before.
	ErrNoSpace = errors.New("no space for a new block")
	// ErrClosed: the device was closed.
	ErrClosed = errors.New("device is closed")
)

// Device is a random-access block device. All methods may be called at once from many goroutines; the order of overlapping requests under way at the
// same time is undefined, and each sector then holds the content of one of them.
//
// A request that returned nil is visible to every later read. It survives the death of the process that serves the device, and a power cut only when a
// Flush that began after it returned has returned nil.
type Device interface {
	// ReadAt fills p from off. It returns len(p), or an error. Sectors never written read as zeroes.
	io.ReaderAt
	// WriteAt writes p at off. It returns len(p), or an error, after which each sector of the range holds its old or its new content. The device
	// does not keep p.
	io.WriterAt
	// Discard says that the range's content is no longer needed and may give its space back. The range then reads as zeroes.
	Discard(off, length int64) error
	// WriteZeroes makes the range read as zeroes, whether or not that gives space back.
	WriteZeroes(off, length int64) error
	// Flush makes every request that returned before Flush was called survive a power cut. A failed Flush says nothing of those requests, and no
	// later Flush can vouch for them.
	Flush() error
	// Size is the device's size in bytes, a multiple of SectorSize. It may grow while the device is open, never shrink.
	Size() int64
	// SectorSize is the logical sector in bytes: 512 or 4096.
	SectorSize() int
}

// CheckRange validates a request against size and sector, both in bytes.
func CheckRange(off, length, size int64, sector int) error {
	s := int64(sector)
	if off < 0 || length < 0 || off%s != 0 || length%s != 0 {
		return ErrUnaligned
	}
	if off > size || length > size-off {
		return ErrOutOfRange
	}
	return nil
}
