package metafs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// counter picks what a new file's bytes count as.
func (fs *FS) counter(name string, category vfs.DiskWriteCategory) *atomic.Uint64 {
	base := filepath.Base(name)
	switch {
	case strings.HasSuffix(base, ".sst"), strings.HasSuffix(base, ".blob"):
		if category == "pebble-memtable-flush" {
			return &fs.stats.Flush
		}
		return &fs.stats.Compaction
	case strings.HasPrefix(base, "MANIFEST"):
		return &fs.stats.Manifest
	}
	return &fs.stats.Other
}

// file is every file but a log that is being written: buffered by the page cache.
type file struct {
	fs    *FS
	f     fsys.File
	off   int64 // of the next Read or Write: Pebble uses a file for one of them, from one goroutine at a time
	count *atomic.Uint64
}

var _ vfs.File = (*file)(nil)

func (f *file) Read(p []byte) (int, error) {
	n, err := f.f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, f.fs.opening.met(f.fs, "read", err)
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.off)
	f.off += int64(n)
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	err := f.fs.retry(func() error {
		n, err := f.f.WriteAt(p[done:], off+int64(done))
		done += n
		return err
	})
	f.count.Add(uint64(done))
	return done, f.fs.opening.met(f.fs, "write", err)
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(p, off)
	return n, f.fs.opening.met(f.fs, "read", err)
}

func (f *file) Sync() error {
	if c := f.fs.copying.Load(); c.owns(f.f.Name()) && c.Unsynced {
		return nil
	}
	return f.fs.opening.met(f.fs, "sync", f.fs.retry(f.f.Sync))
}

func (f *file) SyncData() error             { return f.Sync() }
func (f *file) Close() error                { return f.fs.opening.met(f.fs, "close", f.f.Close()) }
func (f *file) Fd() uintptr                 { return f.f.Fd() }
func (f *file) Stat() (vfs.FileInfo, error) { return f.fs.Stat(f.f.Name()) }

// Preallocate does nothing: the extents would be unwritten, and the size is journalled with the sync all the same.
func (f *file) Preallocate(off, length int64) error { return nil }

// SyncTo starts writing the first bytes of the file back, so that the sync at its end is short. It promises nothing.
func (f *file) SyncTo(length int64) (bool, error) {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		_ = unix.SyncFileRange(int(fd), 0, length, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	}
	return false, nil
}

// Prefetch is a hint.
func (f *file) Prefetch(off, length int64) error {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		_ = unix.Fadvise(int(fd), off, length, unix.FADV_WILLNEED)
	}
	return nil
}

// dir is a folder opened for its sync. A failed one is fatal: Pebble panics on it, on a goroutine of its own.
type dir struct {
	fs   *FS
	name string
}

var _ vfs.File = (*dir)(nil)

// Sync of the logs' folder has nothing to do: a log is durable when it was created, so what Pebble asks for has been done. It matters, because a sync
// of a folder is a commit of the file system's journal, and Pebble's writers wait for this one whenever a memtable is full.
func (d *dir) Sync() error {
	if isLogFolder(d.name) {
		return nil
	}
	if d.fs.copying.Load().owns(d.name) {
		return nil // Finish does, and can return its error
	}
	if err := d.fs.retry(func() error { return d.fs.fsys.SyncDir(d.name) }); err != nil {
		d.fs.fatal(fmt.Errorf("sync folder of the metadata: %w", err))
	}
	return nil
}

func (d *dir) refuse(op string) error { return &os.PathError{Op: op, Path: d.name, Err: unix.EISDIR} }

func (d *dir) SyncData() error                    { return d.Sync() }
func (d *dir) SyncTo(int64) (bool, error)         { return false, nil }
func (d *dir) Close() error                       { return nil }
func (d *dir) Stat() (vfs.FileInfo, error)        { return d.fs.Stat(d.name) }
func (d *dir) Preallocate(int64, int64) error     { return nil }
func (d *dir) Prefetch(int64, int64) error        { return nil }
func (d *dir) Fd() uintptr                        { return vfs.InvalidFd }
func (d *dir) Read([]byte) (int, error)           { return 0, d.refuse("read") }
func (d *dir) ReadAt([]byte, int64) (int, error)  { return 0, d.refuse("read") }
func (d *dir) Write([]byte) (int, error)          { return 0, d.refuse("write") }
func (d *dir) WriteAt([]byte, int64) (int, error) { return 0, d.refuse("write") }
