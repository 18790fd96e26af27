package member

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Open opens the member in a folder, or on the block device that it was made on, which is mounted if it is not.
func Open(fsy fsys.FS, path string, o Options) (*Member, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open member: %w", err)
	}
	m, err := open(fsy, path, o)
	if err != nil {
		return nil, fmt.Errorf("open member %s: %w", path, err)
	}
	return m, nil
}

func open(fsy fsys.FS, path string, o Options) (*Member, error) {
	info, err := fsy.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no such folder or device", ErrNotFound)
	case err != nil:
		return nil, err
	case info.IsDir():
		return openFolder(fsy, path, nil, o)
	case info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0:
		return nil, fmt.Errorf("%w: it is neither a folder nor a block device", ErrUnsupported)
	}
	mnt, err := mountMember(fsy, path, o.MountDir)
	if err != nil {
		return nil, err
	}
	m, err := openFolder(fsy, filepath.Join(mnt.point, folderOnDevice), mnt, o)
	if err != nil && mnt.fresh {
		err = errors.Join(err, mnt.unmount()) // an older mount may be the one of an engine that runs
	}
	return m, err
}

// openFolder takes the locks, and only then reads what it relies on. The superblock is looked at before, too, so that a folder without a pool is told
// from one that lost its flush file.
func openFolder(fsy fsys.FS, dir string, mnt *mount, o Options) (*Member, error) {
	seen, err := readSuperblock(fsy, dir)
	if err != nil {
		return nil, err
	}
	flags := fsys.Direct
	if !o.ReadOnly {
		flags |= fsys.Write
	}
	deadline := time.Now().Add(o.lockTimeout())
	flush, err := openLocked(fsy, filepath.Join(dir, flushName), flags, deadline)
	if errors.Is(err, fs.ErrNotExist) && unfinished(seen) {
		return nil, fmt.Errorf("%w in %s: what is left there of pool %q was never finished", ErrNotFound, dir, seen.PoolName)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has a superblock but no file %q; make it, 4096 bytes of zeroes, if the other files are whole", ErrCorrupt, dir,
			flushName)
	}
	if err != nil {
		return nil, err
	}
	m := &Member{fs: fsy, dir: dir, readOnly: o.ReadOnly, mount: mnt, flush: flush, align: sectorOf(flush)}
	m.segs.Store(&[]*segment{})
	if err := m.load(flags, deadline); err != nil {
		return nil, errors.Join(err, m.closeFiles())
	}
	return m, nil
}

func (m *Member) load(flags fsys.OpenFlags, deadline time.Time) error {
	if err := m.openSegments(flags, deadline); err != nil {
		return err
	}
	sb, err := readSuperblock(m.fs, m.dir)
	if err != nil {
		return err
	}
	if m.align > sb.SectorSize {
		return fmt.Errorf("%w: the pool was made with sectors of %d bytes, and its device now needs %d; move it back to a device like its first",
			ErrUnsupported, sb.SectorSize, m.align)
	}
	m.sb, m.align = sb, sb.SectorSize
	if m.readOnly {
		return nil
	}
	// A process that died may have left the flush file short, or the ballast released.
	if size, err := m.flush.Size(); err != nil || size != BlockSize {
		if err := prepareFlush(m.flush); err != nil {
			return err
		}
	}
	m.ballast, err = m.ballastIsHeld()
	return err
}

func (o Options) lockTimeout() time.Duration {
	if o.LockTimeout == 0 {
		return DefaultLockTimeout
	}
	return o.LockTimeout
}

// openLocked opens a file and takes its lock, on the descriptor that it returns.
func openLocked(fsy fsys.FS, name string, flags fsys.OpenFlags, deadline time.Time) (fsys.File, error) {
	f, err := fsy.Open(name, flags)
	if err != nil {
		return nil, fmt.Errorf("open: %w", wrap(err))
	}
	if err := lockUntil(f, deadline); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockPoll is how often a lock is tried. There is no flock with a timeout.
const lockPoll = 10 * time.Millisecond

func lockUntil(f fsys.File, deadline time.Time) error {
	for {
		err := f.Lock()
		if err == nil {
			return nil
		}
		if !errors.Is(err, fsys.ErrLocked) {
			return fmt.Errorf("lock: %w", err)
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%w: %s is locked; stop the other engine, or wait until its I/O has ended", ErrLocked, f.Name())
		}
		time.Sleep(lockPoll)
	}
}

// sectorOf is the sector size of a file opened Direct. Less than 512 is what memory alone may be aligned to.
func sectorOf(f fsys.File) int {
	if f.Alignment() <= 512 {
		return 512
	}
	return f.Alignment()
}

// checkSector refuses what a superblock could not hold.
func checkSector(sector int) error {
	if sector != 512 && sector != format.SuperblockSize {
		return fmt.Errorf("%w: direct I/O here must be aligned to %d bytes; 512 and 4096 can be used", ErrUnsupported, sector)
	}
	return nil
}
