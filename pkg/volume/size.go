package volume

import (
	"fmt"
	"strings"
)

// The sizes of volumes, in bytes.
const (
	SizeUnit    = 1 << 20   // every size is a multiple of it
	MinXFSSize  = 300 << 20 // mkfs.xfs refuses less
	DefaultSize = 1 << 30   // of a volume that was asked for without a size
	MaxSize     = 64 << 40
)

// Range is what a caller accepts, in bytes: at least Required, at most Limit. Zero means no bound.
type Range struct{ Required, Limit int64 }

// Sizing is the answer to a Range.
type Sizing struct {
	// Size is the device's size.
	Size int64
	// Requested is the smallest request known to give Size: what was asked for. A snapshot reports it as its size, so that the request its source was
	// made with is large enough for a restore (1G rounds up to more than 1G; 10Mi on XFS to 300 MiB).
	Requested int64
}

// MinSize is the smallest size of a volume for that file system ("" for none).
func MinSize(fsType string) int64 {
	if fsType == FSXFS {
		return MinXFSSize
	}
	return SizeUnit
}

// Round is the one rule for sizes: the size of a volume for which required bytes were asked. It may be over MaxSize.
func Round(required int64, fsType string) int64 {
	size := required
	if rest := size % SizeUnit; rest != 0 {
		size += SizeUnit - rest
	}
	return max(size, MinSize(fsType))
}

// Fit chooses the size of a new volume. source is the sizing of what it is a copy of, zero for a blank one: a copy is never smaller than its source.
func Fit(r Range, fsType string, source Sizing) (Sizing, error) {
	if err := r.check(); err != nil {
		return Sizing{}, err
	}
	s := Sizing{Requested: max(r.Required, source.Requested)}
	if s.Requested == 0 {
		s.Requested = DefaultSize
		if r.Limit > 0 && r.Limit < DefaultSize {
			s.Requested = r.Limit / SizeUnit * SizeUnit // nobody asked for a size: what fits will do
		}
	}
	s.Size = max(Round(s.Requested, fsType), source.Size)
	return s, r.admits(s.Size, fsType)
}

// FitGrowth chooses the size that an existing volume grows to. A volume that is large enough stays as it is.
func FitGrowth(r Range, fsType string, now Sizing) (Sizing, error) {
	if err := r.check(); err != nil {
		return Sizing{}, err
	}
	s := now
	if size := Round(r.Required, fsType); size > now.Size {
		s = Sizing{Size: size, Requested: r.Required}
	}
	return s, r.admits(s.Size, fsType)
}

// Accepts says whether a volume of that size satisfies the range.
func (r Range) Accepts(size int64) bool {
	return size >= r.Required && (r.Limit == 0 || size <= r.Limit)
}

func (r Range) check() error {
	switch {
	case r.Required < 0 || r.Limit < 0:
		return fmt.Errorf("%w: required %d and limit %d bytes must not be negative", ErrOutOfRange, r.Required, r.Limit)
	case r.Limit > 0 && r.Limit < r.Required:
		return fmt.Errorf("%w: the limit of %d bytes is below the %d bytes required", ErrOutOfRange, r.Limit, r.Required)
	case r.Required > MaxSize:
		return fmt.Errorf("%w: %d bytes required, a volume has at most %d (64 TiB)", ErrOutOfRange, r.Required, int64(MaxSize))
	}
	return nil
}

func (r Range) admits(size int64, fsType string) error {
	if r.Limit > 0 && size > r.Limit {
		return fmt.Errorf("%w: the volume would have %d bytes, over the limit of %d (sizes are rounded up to 1 MiB%s)",
			ErrOutOfRange, size, r.Limit, xfsNote(fsType))
	}
	return nil
}

func xfsNote(fsType string) string {
	if fsType == FSXFS {
		return ", XFS has at least 300 MiB"
	}
	return ""
}

// The file systems that a volume may be formatted with.
const (
	FSExt4    = "ext4"
	FSXFS     = "xfs"
	DefaultFS = FSExt4
)

// CheckFS refuses a file system that is not supported. "" stands for none (a raw block volume).
func CheckFS(fsType string) error {
	switch fsType {
	case "", FSExt4, FSXFS:
		return nil
	}
	return fmt.Errorf("%w: file system %q: use one of %s", ErrInvalid, fsType, strings.Join([]string{FSExt4, FSXFS}, ", "))
}
