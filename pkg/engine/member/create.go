package member

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Spec describes a member to make. Exactly one of Directory and Device is set.
type Spec struct {
	PoolName         string
	PoolID, MemberID format.UUID
	Index            uint32
	Metadata         uint64 // number of the metadata that will be here; 0: none
	Unfinished       bool   // until Finish the member is nobody's: a later Create takes its place
	Directory        string // made if missing
	Device           string // a blank block device
	Wipe             bool   // Device only: destroy what is on it
	Size             int64  // bytes of data, a multiple of 1 MiB; 0: by Share
	Share            Share
	MinSize          int64  // bytes: refuse to make less
	Node             string // the identity of the node that the pool was made for
	Created          time.Time
	MountDir         string // Device only
}

// Share is how much of its file system a member takes that is made without a size, in hundredths of what there is then.
type Share struct {
	OfFree int // of what is free; 0: 90, the rest is for metadata and ballast
	FullAt int // never so much that more than this of the file system would be used; 0: no such limit
	StopAt int // with a size, too, and kept: from the use of so much of the file system on, whoever uses it, the member takes no more of it; 0: no such limit
}

func (s Share) check() error {
	if s.OfFree < 0 || s.OfFree > 100 || s.FullAt < 0 || s.FullAt > 100 || s.StopAt < 0 || s.StopAt > 100 {
		return fmt.Errorf("%w: %d %% of what is free, until %d %% of the file system are used, no more from %d %% on: want 0 to 100", ErrInvalid, s.OfFree,
			s.FullAt, s.StopAt)
	}
	return nil
}

// of is the size that the share comes to. The ballast counts as well: it is taken when the member is made.
func (s Share) of(u fsys.Usage) int64 {
	size := u.Available / 100 * int64(cmp.Or(s.OfFree, defaultShare))
	if s.FullAt != 0 {
		left := u.Available - u.Total/100*int64(100-s.FullAt)
		size = min(size, left-ballastSize(max(left, 0)))
	}
	return max(size, 0) / sizeUnit * sizeUnit
}

// Create makes a member and opens it. On an error it leaves the place as it was, but for what Wipe destroyed.
func Create(fsy fsys.FS, spec Spec) (*Member, error) {
	if (spec.Directory == "") == (spec.Device == "") {
		return nil, fmt.Errorf("create member: %w: want a folder or a device", ErrInvalid)
	}
	if spec.Size < 0 || spec.Size%sizeUnit != 0 {
		return nil, fmt.Errorf("create member: %w: size of %d bytes is no multiple of 1 MiB", ErrInvalid, spec.Size)
	}
	if err := spec.Share.check(); err != nil {
		return nil, fmt.Errorf("create member: %w", err)
	}
	place, create := spec.Directory, createFolder
	if spec.Device != "" {
		place, create = spec.Device, createDevice
	}
	m, err := create(fsy, spec)
	if err != nil {
		return nil, fmt.Errorf("create member %s: %w", place, err)
	}
	return m, nil
}

func createFolder(fsy fsys.FS, spec Spec) (*Member, error) {
	dir, err := filepath.Abs(spec.Directory)
	if err != nil {
		return nil, err
	}
	have, err := existing(fsy, dir)
	if err != nil {
		return nil, err
	}
	usage, err := fsy.Usage(have)
	if err != nil {
		return nil, err
	}
	if err := checkFileSystem(usage); err != nil {
		return nil, err
	}
	if spec.Size, err = spec.sizeIn(usage); err != nil {
		return nil, err
	}
	if have == dir {
		if _, err := checkEmpty(fsy, dir); err != nil {
			return nil, err
		}
	}
	return fill(fsy, dir, have, spec)
}

// existing is the nearest folder upwards that is there.
func existing(fsy fsys.FS, dir string) (string, error) {
	for {
		info, err := fsy.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%w: %s is not a folder", ErrInvalid, dir)
		case err == nil:
			return dir, nil
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

func checkFileSystem(u fsys.Usage) error {
	if u.Type != "xfs" && u.Type != "ext4" {
		return fmt.Errorf("%w: the file system is %s; a member needs XFS or ext4", ErrUnsupported, u.Type)
	}
	return checkBarriers(u.Device)
}

// checkEmpty refuses a folder that holds a pool or anything else. What an interrupted Create left is taken: it made the superblock last, and that may say
// that the pool was not finished: then left is true.
func checkEmpty(fsy fsys.FS, dir string) (left bool, err error) {
	switch sb, err := readSuperblock(fsy, dir); {
	case err == nil && unfinished(sb):
		return true, nil
	case err == nil || errors.Is(err, ErrIncompatible):
		return false, fmt.Errorf("%w: it holds pool %q (id %v); open that one, or choose another folder", ErrForeign, sb.PoolName, sb.PoolID)
	case !errors.Is(err, ErrNotFound):
		return false, fmt.Errorf("%w: it holds a pool whose superblock cannot be read: %w; restore it, or choose another folder", ErrForeign, err)
	}
	names, err := fsy.ReadDir(dir)
	if err != nil {
		return false, err
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		return slices.Contains([]string{"lost+found", superblockTemp, segmentsName, flushName, ballastName}, n)
	})
	if len(names) > 0 {
		return false, fmt.Errorf("%w: it holds %s; choose an empty folder", ErrNotEmpty, some(names))
	}
	if names, err = fsy.ReadDir(filepath.Join(dir, segmentsName)); err == nil && len(names) > 0 {
		return false, fmt.Errorf("%w: it holds segments (%s) without a superblock: a pool that lost it? Choose another folder", ErrNotEmpty, some(names))
	}
	return false, nil
}

// some names a few of many.
func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// sizeIn is the size to make in a file system.
func (s Spec) sizeIn(u fsys.Usage) (int64, error) {
	size, available := s.Size, u.Available
	if size == 0 {
		size = s.Share.of(u)
	}
	if size < max(s.MinSize, sizeUnit) {
		return 0, fmt.Errorf("%w: a pool of %d MiB is too small, want %d MiB; the file system has %d of %d MiB free", ErrInvalid, size>>20,
			s.MinSize>>20, available>>20, u.Total>>20)
	}
	if need := size + ballastSize(size); need > available {
		return 0, fmt.Errorf("%w: a pool of %d MiB needs %d MiB with its ballast, and the file system has %d MiB free", ErrNoSpace, size>>20, need>>20,
			available>>20)
	}
	return size, nil
}

// fill makes the member's files; have is the nearest folder upwards that was there before.
func fill(fsy fsys.FS, dir, have string, spec Spec) (m *Member, err error) {
	defer func() {
		if err != nil {
			m, err = nil, wrap(err)
			unfill(fsy, dir, have, err)
		}
	}()
	segments := filepath.Join(dir, segmentsName)
	if err := fsy.MkdirAll(segments); err != nil {
		return nil, err
	}
	// The lock comes first: of two that make a member here at once, the second sees the first one's superblock, or is refused.
	flush, err := openLocked(fsy, filepath.Join(dir, flushName), fsys.Create|fsys.Write|fsys.Direct, time.Now())
	if err != nil {
		return nil, err
	}
	m = &Member{fs: fsy, dir: dir, flush: flush, align: sectorOf(flush)}
	m.segs.Store(&[]*segment{})
	defer func() {
		if err != nil {
			err = errors.Join(err, flush.Close())
		}
	}()
	left, err := checkEmpty(fsy, dir)
	if err == nil && left {
		err = removeUnfinished(fsy, dir)
	}
	if err != nil {
		return nil, err
	}
	if err := checkSector(m.align); err != nil {
		return nil, err
	}
	if err := prepareFlush(flush); err != nil {
		return nil, err
	}
	m.sb = format.Superblock{
		PoolID: spec.PoolID, MemberID: spec.MemberID, MemberIndex: spec.Index, PoolName: spec.PoolName, Size: spec.Size, StopAt: spec.Share.StopAt, SectorSize: m.align,
		Created: spec.Created.UTC(), Device: spec.Device, Node: spec.Node, Metadata: spec.Metadata,
	}
	if spec.Unfinished {
		m.sb.Incompatible |= format.Unfinished
	}
	if spec.Metadata != 0 {
		if err := m.RestoreBallast(); err != nil {
			return nil, err
		}
	}
	// The names above the superblock must be durable before it is: it says that they are.
	for _, d := range append([]string{segments}, upTo(dir, have)...) {
		if err := fsy.SyncDir(d); err != nil {
			return nil, err
		}
	}
	return m, writeSuperblock(fsy, dir, m.sb)
}

// unfinished: no pool was promised to be here.
func unfinished(sb format.Superblock) bool { return sb.Incompatible&format.Unfinished != 0 }

// removeUnfinished removes what an unfinished member holds, under its lock. Its superblock stays until the next one is written over it: without one, the
// rest could be a pool's that lost it. What is removed is durably so before a new superblock is, with the folder's sync.
func removeUnfinished(fsy fsys.FS, dir string) error {
	segments := filepath.Join(dir, segmentsName)
	for _, name := range []string{filepath.Join(dir, metaName), filepath.Join(dir, metaAheadName), segments} {
		if err := fsy.RemoveAll(name); err != nil {
			return err
		}
	}
	return fsy.MkdirAll(segments)
}

// unfill removes what fill made, as far as it can: a later Create takes what is left. A folder that another process holds or has finished in the
// meantime is left alone.
func unfill(fsy fsys.FS, dir, have string, cause error) {
	if errors.Is(cause, ErrLocked) || errors.Is(cause, ErrForeign) || errors.Is(cause, ErrNotEmpty) {
		return
	}
	sb, err := readSuperblock(fsy, dir)
	names := []string{superblockName, superblockTemp, ballastName, segmentsName, flushName}
	if err == nil && unfinished(sb) {
		names = append(names[1:], superblockName) // it says of the others that they are nobody's
	}
	for _, name := range names {
		_ = fsy.RemoveAll(filepath.Join(dir, name))
	}
	for _, d := range upTo(dir, have) {
		if d != have {
			_ = fsy.Remove(d)
		}
	}
}

// upTo lists the folders from dir up to and including top.
func upTo(dir, top string) []string {
	list := []string{dir}
	for dir != top && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		list = append(list, dir)
	}
	return list
}
