package metafs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Config says how the metadata's files are kept. The zero value works.
type Config struct {
	// OnFatal is told of an error after which the DB must not be used; it returns soon and does not call Pebble. It may be called more than once.
	OnFatal func(error)
	// OnNoSpace is asked to free space when a file system is full; it says whether it did. It is not called twice at once.
	OnNoSpace func() bool
	// LogBytes is how much of a new log file is written with zeroes beforehand; longer logs grow by the MiB. Default 8 MiB: what a memtable of 16
	// MiB takes.
	LogBytes int64
}

// FS is the vfs.FS to open one DB with. Close it after the DB.
type FS struct {
	fsys  fsys.FS
	cfg   Config
	stats Stats
	slots slots
	room  room

	opening opening
	copying atomic.Pointer[Copy] // while it finishes

	mutation mutation // a test's
}

var _ vfs.FS = (*FS)(nil)

// New makes a file system for one DB.
func New(fs fsys.FS, cfg Config) *FS {
	if cfg.LogBytes <= 0 {
		cfg.LogBytes = 8 << 20
	}
	if cfg.OnFatal == nil {
		cfg.OnFatal = func(error) {}
	}
	if cfg.OnNoSpace == nil {
		cfg.OnNoSpace = func() bool { return false }
	}
	made := &FS{fsys: fs, cfg: cfg}
	made.slots.fs = made
	return made
}

// Stats are the live counters.
func (fs *FS) Stats() *Stats { return &fs.stats }

// Close waits for the slot that is being prepared. It stays for the next DB.
func (fs *FS) Close() { fs.slots.close() }

// fatal reports an error that must not reach Pebble, and does not return.
func (fs *FS) fatal(err error) {
	fs.cfg.OnFatal(err)
	park()
}

// park keeps a goroutine from going on; it may hold Pebble's locks, which is as well.
func park() { select {} }

// retry repeats a call as long as the file system is full and OnNoSpace frees something.
func (fs *FS) retry(call func() error) error {
	for {
		before := fs.room.freed.Load()
		if err := call(); !errors.Is(err, unix.ENOSPC) || !fs.freeSpace(before) {
			return err
		}
	}
}

// room counts how often OnNoSpace freed something. Of several calls that meet a full file system at once only one finds anything to free, and the
// others go on with that.
type room struct {
	mu    sync.Mutex // held while OnNoSpace is asked
	freed atomic.Uint64
}

func (fs *FS) freeSpace(before uint64) bool {
	fs.room.mu.Lock()
	defer fs.room.mu.Unlock()
	if fs.room.freed.Load() != before {
		return true
	}
	if !fs.cfg.OnNoSpace() {
		return false
	}
	fs.room.freed.Add(1)
	return true
}

// Create implements vfs.FS. A log that cannot be made is fatal, because Pebble would panic.
func (fs *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if isLog(name) {
		f, err := fs.createLog(name)
		if err != nil {
			fs.fatal(fmt.Errorf("create metadata log: %w", err))
		}
		return f, nil
	}
	fs.opening.making(name)
	var f fsys.File
	err := fs.retry(func() (err error) {
		f, err = fs.fsys.Open(name, fsys.Create|fsys.Exclusive|fsys.Write)
		if errors.Is(err, os.ErrExist) {
			// Removed and not emptied: somebody may still read the old one.
			if err = fs.fsys.Remove(name); err == nil {
				f, err = fs.fsys.Open(name, fsys.Create|fsys.Exclusive|fsys.Write)
			}
		}
		return err
	})
	if err != nil {
		return nil, fs.opening.met(fs, "create", err)
	}
	return &file{fs: fs, f: f, count: fs.counter(name, category)}, nil
}

// ReuseForWrite implements vfs.FS: a log that Pebble recycles keeps its blocks and their stale records, which carry another log number.
func (fs *FS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if !isLog(oldname) || !isLog(newname) {
		return nil, fmt.Errorf("reuse %s as %s: only logs are reused: %w", oldname, newname, vfs.ErrUnsupported)
	}
	f, err := fs.reuseLog(oldname, newname)
	if err != nil {
		fs.fatal(fmt.Errorf("reuse metadata log: %w", err))
	}
	return f, nil
}

// Open implements vfs.FS.
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if isLog(name) {
		f, err := fs.openLog(name)
		if err == nil && fs.copying.Load() != nil {
			f = emptyLog{f}
		}
		return f, fs.opening.met(fs, "open", err)
	}
	f, err := fs.fsys.Open(name, 0)
	if err != nil {
		return nil, fs.opening.met(fs, "open", err)
	}
	file := &file{fs: fs, f: f, count: &fs.stats.Other}
	for _, opt := range opts {
		opt.Apply(file)
	}
	return file, nil
}

// OpenReadWrite implements vfs.FS.
func (fs *FS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if isLog(name) {
		return nil, fmt.Errorf("open %s for reading and writing: it is a log: %w", name, vfs.ErrUnsupported)
	}
	f, err := fs.fsys.Open(name, fsys.Create|fsys.Write)
	if err != nil {
		return nil, fs.opening.met(fs, "open", err)
	}
	file := &file{fs: fs, f: f, count: fs.counter(name, category)}
	for _, opt := range opts {
		opt.Apply(file)
	}
	return file, nil
}

// OpenDir implements vfs.FS.
func (fs *FS) OpenDir(name string) (vfs.File, error) {
	info, err := fs.fsys.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &os.PathError{Op: "open folder", Path: name, Err: unix.ENOTDIR}
	}
	return &dir{fs: fs, name: name}, nil
}

// Lock implements vfs.FS with flock on the file's own descriptor: closing another one does not drop it.
func (fs *FS) Lock(name string) (io.Closer, error) {
	f, err := fs.fsys.Open(name, fsys.Create|fsys.Write)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Link implements vfs.FS. Only checkpoints and ingestion link, and both copy where they cannot.
func (fs *FS) Link(oldname, newname string) error {
	if c := fs.copying.Load(); c != nil {
		return c.link(oldname, newname)
	}
	return fmt.Errorf("link %s as %s: %w", oldname, newname, vfs.ErrUnsupported)
}

// Rename implements vfs.FS. Pebble renames no logs.
func (fs *FS) Rename(oldname, newname string) error {
	if inLogFolder(oldname) || inLogFolder(newname) {
		return fmt.Errorf("rename %s to %s: logs have no names of their own: %w", oldname, newname, vfs.ErrUnsupported)
	}
	return fs.opening.met(fs, "rename", fs.retry(func() error { return fs.fsys.Rename(oldname, newname) }))
}

// MkdirAll implements vfs.FS. The engine's folders are its own, whatever perm says.
func (fs *FS) MkdirAll(name string, _ os.FileMode) error {
	return fs.opening.met(fs, "make folder", fs.fsys.MkdirAll(name))
}

// Remove implements vfs.FS.
func (fs *FS) Remove(name string) error {
	if isLog(name) {
		return fs.slots.remove(name)
	}
	return fs.fsys.Remove(name)
}

// RemoveAll implements vfs.FS.
func (fs *FS) RemoveAll(name string) error { return fs.fsys.RemoveAll(name) }

// List implements vfs.FS.
func (fs *FS) List(name string) ([]string, error) {
	if isLogFolder(name) {
		names, err := fs.slots.list(name)
		return names, fs.opening.met(fs, "list", err)
	}
	names, err := fs.fsys.ReadDir(name)
	return names, fs.opening.met(fs, "list", err)
}

// Stat implements vfs.FS.
func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	if isLog(name) {
		return fs.statLog(name)
	}
	info, err := fs.fsys.Stat(name)
	if err != nil {
		return nil, err
	}
	return fileInfo{info}, nil
}

// fileInfo has no device: Pebble asks for it to tell the disks of a log failover apart, which is not used.
type fileInfo struct{ os.FileInfo }

func (fileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// PathBase implements vfs.FS.
func (*FS) PathBase(path string) string { return filepath.Base(path) }

// PathJoin implements vfs.FS.
func (*FS) PathJoin(elem ...string) string { return filepath.Join(elem...) }

// PathDir implements vfs.FS.
func (*FS) PathDir(path string) string { return filepath.Dir(path) }

// GetDiskUsage implements vfs.FS.
func (fs *FS) GetDiskUsage(name string) (vfs.DiskUsage, error) {
	u, err := fs.fsys.Usage(name)
	if err != nil {
		return vfs.DiskUsage{}, err
	}
	return vfs.DiskUsage{AvailBytes: uint64(u.Available), TotalBytes: uint64(u.Total), UsedBytes: uint64(u.Total - u.Available)}, nil
}

// Unwrap implements vfs.FS.
func (*FS) Unwrap() vfs.FS { return nil }
