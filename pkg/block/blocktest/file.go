package blocktest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/rowan-csi/rowan/pkg/block"
)

const (
	blkDiscard    = 0x1277
	blkZeroOut    = 0x127f
	blkGetSize64  = 0x80081272
	blkSectorSize = 0x1268
	blkReadOnly   = 0x125e
	punchKeep     = 0x3  // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
	zeroKeep      = 0x11 // FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
	alignment     = 4096
)

// File is a Device over a file or a block device node. Errors of the kernel come back as the errno they are, but for ENOSPC and EROFS, which become
// block's.
type File struct {
	f        *os.File
	node     bool // a block device
	sector   int
	readOnly bool
}

var _ block.Device = (*File)(nil)

// OpenFile opens path; flags are os.O_* and syscall.O_DIRECT. A block device tells its own sector size, a file gets sector.
func OpenFile(path string, flags, sector int) (*File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d := &File{f: f, sector: sector, node: st.Mode()&os.ModeDevice != 0}
	if d.node {
		var size, ro int32
		if err := ioctl(f, blkSectorSize, unsafe.Pointer(&size)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if err := ioctl(f, blkReadOnly, unsafe.Pointer(&ro)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		d.sector, d.readOnly = int(size), ro != 0
	}
	return d, nil
}

// Close closes the descriptor.
func (d *File) Close() error { return d.f.Close() }

// SectorSize implements Device.
func (d *File) SectorSize() int { return d.sector }

// Size implements Device; it asks the kernel every time.
func (d *File) Size() int64 {
	if d.node {
		var size uint64
		if ioctl(d.f, blkGetSize64, unsafe.Pointer(&size)) != nil {
			return 0
		}
		return int64(size)
	}
	st, err := d.f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// ReadAt implements Device; memory that is not aligned for direct I/O goes through a copy.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	q := p
	if !aligned(p) {
		q = Aligned(len(p))
	}
	n, err := d.f.ReadAt(q, off)
	if !aligned(p) {
		copy(p, q)
	}
	return n, translate(err)
}

// WriteAt implements Device.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	if err := d.checkWrite(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	if !aligned(p) {
		q := Aligned(len(p))
		copy(q, p)
		p = q
	}
	n, err := d.f.WriteAt(p, off)
	return n, translate(err)
}

// Discard implements Device (BLKDISCARD, or a punched hole).
func (d *File) Discard(off, length int64) error { return d.drop(off, length, blkDiscard, punchKeep) }

// WriteZeroes implements Device (BLKZEROOUT, or fallocate).
func (d *File) WriteZeroes(off, length int64) error {
	return d.drop(off, length, blkZeroOut, zeroKeep)
}

func (d *File) drop(off, length int64, request uintptr, mode uint32) error {
	if err := d.checkWrite(off, length); err != nil || length == 0 {
		return err
	}
	if d.node {
		span := [2]uint64{uint64(off), uint64(length)}
		return translate(ioctl(d.f, request, unsafe.Pointer(&span)))
	}
	err := syscall.Fallocate(int(d.f.Fd()), mode, off, length)
	if errors.Is(err, syscall.EOPNOTSUPP) && mode == zeroKeep { // tmpfs punches holes but has no ZERO_RANGE
		err = syscall.Fallocate(int(d.f.Fd()), punchKeep, off, length)
	}
	return translate(err)
}

// Flush implements Device.
func (d *File) Flush() error { return translate(d.f.Sync()) }

func (d *File) check(off, length int64) error {
	if err := block.CheckRange(off, length, d.Size(), d.sector); err != nil {
		return fmt.Errorf("%d bytes at %d of %s: %w", length, off, d.f.Name(), err)
	}
	return nil
}

func (d *File) checkWrite(off, length int64) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	if d.readOnly {
		return fmt.Errorf("write to %s: %w", d.f.Name(), block.ErrReadOnly)
	}
	return nil
}

func translate(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w (%w)", block.ErrNoSpace, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w (%w)", block.ErrReadOnly, err)
	}
	return err
}

// Aligned returns n bytes of zeroes in memory that direct I/O accepts.
func Aligned(n int) []byte {
	p := make([]byte, n+alignment)
	shift := int(-uintptr(unsafe.Pointer(unsafe.SliceData(p))) & (alignment - 1))
	return p[shift : shift+n : shift+n]
}

func aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%block.SectorSize == 0
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return &os.PathError{Op: fmt.Sprintf("ioctl %#x", request), Path: f.Name(), Err: errno}
	}
	return nil
}
