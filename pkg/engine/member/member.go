package member

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// DefaultLockTimeout is how long Open waits for another engine's I/O to end.
const DefaultLockTimeout = 10 * time.Second

// Options say how a member is opened. Zero values take the defaults.
type Options struct {
	MountDir    string        // where devices are mounted, at MountDir/<pool name>, MountDir/<pool name>.<index>; needed for devices only
	LockTimeout time.Duration // how long to wait for another engine's locks; default DefaultLockTimeout
	ReadOnly    bool          // open for looking only; it takes the locks all the same
}

// Member is an open member.
type Member struct {
	fs       fsys.FS
	dir      string
	readOnly bool
	mount    *mount // what Close unmounts; nil for a folder
	flush    fsys.File
	align    int
	failed   atomic.Pointer[error] // the flush that failed
	flushed  atomic.Uint64         // writes that a good flush covers
	counters counters

	// mu guards what follows; segs is replaced, never changed, so that I/O reads it without the lock.
	mu      sync.Mutex
	sb      format.Superblock
	ballast bool
	closed  bool
	segs    atomic.Pointer[[]*segment] // by index; nil where there is no such segment
}

// Superblock tells what the member is.
func (m *Member) Superblock() format.Superblock {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sb
}

// Dir is the member's folder; MetaDir the folder for the metadata store in it, which the store makes.
func (m *Member) Dir() string { return m.dir }

// MetaDir is where the metadata store lives.
func (m *Member) MetaDir() string { return filepath.Join(m.dir, metaName) }

// MetaAheadDir is where a part of the store is put ahead of its move to MetaDir.
func (m *Member) MetaAheadDir() string { return filepath.Join(m.dir, metaAheadName) }

// DropMetadata removes the store's files, whole or not, and the ballast. The superblock must say, durably, that none is here.
func (m *Member) DropMetadata() error {
	if m.readOnly {
		return ErrReadOnly
	}
	if n := m.Superblock().Metadata; n != 0 {
		return fmt.Errorf("%w: the metadata of %s (number %d) is in use", ErrInvalid, m.dir, n)
	}
	for _, name := range []string{metaName, metaAheadName, ballastName} {
		path := filepath.Join(m.dir, name)
		if _, err := m.fs.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := m.fs.RemoveAll(path); err != nil {
			return fmt.Errorf("remove metadata: %w", wrap(err))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ballast = false
	return nil
}

// Alignment is what offsets and lengths of ReadAt and WriteAt must be multiples of, in bytes: 512 or 4096. Memory may lie anywhere; aligned memory
// saves a copy.
func (m *Member) Alignment() int { return m.align }

// Usage tells of the file system that the member is on.
func (m *Member) Usage() (fsys.Usage, error) {
	u, err := m.fs.Usage(m.dir)
	if err != nil {
		return u, fmt.Errorf("ask for the space of %s: %w", m.dir, err)
	}
	return u, nil
}

// Room is what the file system has left for data, in bytes: the ballast's share is not counted, held or not, nor what is beyond the limit of growth.
func (m *Member) Room() (int64, error) {
	u, err := m.Usage()
	if err != nil {
		return 0, err
	}
	if !m.BallastHeld() {
		u.Available -= ballastSize(m.Superblock().Size)
	}
	if stop := m.Superblock().StopAt; stop > 0 {
		u.Available -= u.Total / 100 * int64(100-stop)
	}
	return max(u.Available, 0), nil
}

// GrowthStopped is ErrNoSpace with a text when the file system is used beyond the limit of growth: the member takes no more of it, though there is some.
func (m *Member) GrowthStopped() error {
	stop := m.Superblock().StopAt
	if stop == 0 {
		return nil
	}
	u, err := m.Usage()
	if err != nil || u.Available > u.Total/100*int64(100-stop) {
		return nil
	}
	return fmt.Errorf("%w: over %d %% of the file system of %s are used, and the pool takes no more of it: free space there, or enlarge it", ErrNoSpace, stop, m.dir)
}

// SetSize records a new size, in bytes, durably. The engine sees to it that nothing lies beyond.
func (m *Member) SetSize(size int64) error {
	return m.update(func(sb *format.Superblock) { sb.Size = size })
}

// SetMetadata records, durably, which number the metadata here has (0: there is none), and the member that it is being moved to, if it is.
func (m *Member) SetMetadata(number uint64, movingTo format.UUID) error {
	return m.update(func(sb *format.Superblock) { sb.Metadata, sb.MovingTo = number, movingTo })
}

// Unfinished: the member is nobody's until Finish.
func (m *Member) Unfinished() bool { return unfinished(m.Superblock()) }

// Finish records, durably, that the member is a pool's.
func (m *Member) Finish() error {
	return m.update(func(sb *format.Superblock) { sb.Incompatible &^= format.Unfinished })
}

// HasFlushLog records, durably, that flushed writes may be in a flush log beside the metadata here.
func (m *Member) HasFlushLog() error {
	if m.Superblock().Incompatible&format.FlushLog != 0 {
		return nil
	}
	return m.update(func(sb *format.Superblock) { sb.Incompatible |= format.FlushLog })
}

func (m *Member) update(change func(*format.Superblock)) error {
	if m.readOnly {
		return ErrReadOnly
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sb := m.sb
	change(&sb)
	if err := writeSuperblock(m.fs, m.dir, sb); err != nil {
		return err
	}
	m.sb = sb
	return nil
}

// Close gives the locks back and unmounts what Create or Open mounted. It flushes nothing. No I/O may be under way.
func (m *Member) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	err := m.closeFiles()
	if m.mount != nil {
		err = errors.Join(err, m.mount.unmount())
	}
	if err != nil {
		return fmt.Errorf("close member %s: %w", m.dir, err)
	}
	return nil
}

// closeFiles closes the flush file last: its lock says that all other locks are free, too.
func (m *Member) closeFiles() error {
	var err error
	for _, s := range *m.segs.Load() {
		if s != nil {
			err = errors.Join(err, s.file.Close())
		}
	}
	return errors.Join(err, m.flush.Close())
}

// Destroy removes the member's files and closes it. The superblock goes first, so that what is left is no member; if it says that already, it goes last: a
// later Create takes what it stands beside. Of a device, the signature is wiped too, so that it is blank again.
func (m *Member) Destroy() error {
	if m.readOnly {
		return ErrReadOnly
	}
	last := m.Unfinished()
	if !last {
		if err := m.removeSuperblock(); err != nil {
			return fmt.Errorf("destroy member: %w", errors.Join(wrap(err), m.Close()))
		}
	}
	var err error
	for _, name := range []string{superblockTemp, segmentsName, metaName, metaAheadName, ballastName, flushName} {
		err = errors.Join(err, m.fs.RemoveAll(filepath.Join(m.dir, name)))
	}
	if last && err == nil {
		err = m.removeSuperblock()
	}
	err = errors.Join(err, m.Close())
	if m.mount != nil && err == nil {
		err = wipe(m.mount.device)
	}
	if err != nil {
		return fmt.Errorf("destroy member: %w", err)
	}
	return nil
}

func (m *Member) removeSuperblock() error {
	err := m.fs.Remove(filepath.Join(m.dir, superblockName))
	if err == nil {
		err = m.fs.SyncDir(m.dir)
	}
	return err
}
