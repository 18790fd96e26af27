package metafs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

const (
	// logBlock is what log writes are multiples of: the file system's block, so that a write never makes the device or the file system read first.
	logBlock = 4096
	// logBuffer holds what gathers between syncs; the engine's batches end below it. What is more is made durable ahead of its sync.
	logBuffer = 1<<20 + 64<<10
	// logGrowth is how much a log that outgrows what was prewritten gets at a time.
	logGrowth = 1 << 20
)

// createLog puts a new log into a slot. It is durable when this returns: see the package's comment.
func (fs *FS) createLog(name string) (*logFile, error) {
	log, err := fs.slots.unused(name)
	if err != nil {
		return nil, err
	}
	path, err := fs.slots.take(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	l, err := fs.assign(path, name, 0, log)
	if err != nil {
		return nil, err
	}
	fs.slots.prepare()
	return l, nil
}

// reuseLog makes a new log of one that Pebble has recycled.
func (fs *FS) reuseLog(oldname, newname string) (*logFile, error) {
	log, err := fs.slots.unused(newname)
	if err != nil {
		return nil, err
	}
	path, err := fs.slots.find(oldname)
	if err != nil {
		return nil, err
	}
	old, err := parseLog(oldname)
	if err != nil {
		return nil, err
	}
	return fs.assign(path, newname, old, log)
}

// assign writes a slot's header for a new log. Promise: no record of a log is written before its header is durable, so a crash never leaves records
// whose number Pebble would give once more, and never a log without its records; until the header is durable the slot holds what it held, a log that
// is not needed or none. A header is within one sector, so it is the old one or the new one.
func (fs *FS) assign(path, name string, old, log uint64) (*logFile, error) {
	f, err := fs.fsys.Open(path, fsys.Write|fsys.Direct)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	buf := fsys.AlignedBuffer(logBuffer)
	encodeHeader(buf[:slotHeader], log)
	write := f.WriteAtDurable
	if fs.mutation == mutateHeader {
		write = f.WriteAt
	}
	if err := fs.retry(func() error { _, err := write(buf[:slotHeader], 0); return err }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	fs.stats.LogWrites.Add(1)
	fs.stats.LogPadding.Add(slotHeader)
	fs.slots.given(path, old, log)
	return &logFile{fs: fs, f: f, name: name, base: slotHeader, size: size / logBlock * logBlock, buf: buf}, nil
}

// prewrite makes a slot: zeroes, durable, so that later syncs have neither a size nor an extent to journal; then its name, durable before anybody may
// write a header. Until the zeroes are durable it has another name, so that one that a crash cut short is known.
func (fs *FS) prewrite(path string) error {
	made := strings.TrimSuffix(path, logSuffix) + newSuffix
	var f fsys.File
	if err := fs.retry(func() (err error) {
		f, err = fs.fsys.Open(made, fsys.Create|fsys.Exclusive|fsys.Write|fsys.Direct)
		return err
	}); err != nil {
		return err
	}
	err := errors.Join(fs.writeZeroes(f, 0, slotHeader+fs.cfg.LogBytes), f.Close())
	if err == nil {
		err = fs.retry(func() error { return fs.fsys.Rename(made, path) })
	}
	if err != nil {
		return errors.Join(err, fs.fsys.Remove(made))
	}
	if fs.mutation == mutateSlotName {
		return nil
	}
	if err := fs.retry(func() error { return fs.fsys.SyncDir(filepath.Dir(path)) }); err != nil {
		return errors.Join(err, fs.fsys.Remove(path))
	}
	return nil
}

func (fs *FS) writeZeroes(f fsys.File, off, length int64) error {
	zeroes := fsys.AlignedBuffer(int(min(length, logGrowth)))
	return fs.retry(func() error {
		for done := int64(0); done < length; done += int64(len(zeroes)) {
			p := zeroes[:min(length-done, int64(len(zeroes)))]
			if _, err := f.WriteAt(p, off+done); err != nil {
				return err
			}
			fs.stats.LogPrewrite.Add(uint64(len(p)))
		}
		return f.Sync()
	})
}

// openLog opens a log for reading, without the slot's header.
func (fs *FS) openLog(name string) (vfs.File, error) {
	path, err := fs.slots.find(name)
	if err != nil {
		return nil, err
	}
	f, err := fs.fsys.Open(path, 0)
	if err != nil {
		return nil, err
	}
	return &file{fs: fs, f: slotReader{f, name}, count: &fs.stats.Other}, nil
}

func (fs *FS) statLog(name string) (vfs.FileInfo, error) {
	path, err := fs.slots.find(name)
	if err != nil {
		return nil, err
	}
	info, err := fs.fsys.Stat(path)
	if err != nil {
		return nil, err
	}
	return logInfo{fileInfo{info}, filepath.Base(name)}, nil
}

// slotReader is the log in a slot.
type slotReader struct {
	fsys.File
	name string
}

func (r slotReader) Name() string { return r.name }

// Fd hides the descriptor, whose offsets are others.
func (slotReader) Fd() uintptr { return vfs.InvalidFd }

func (r slotReader) ReadAt(p []byte, off int64) (int, error) { return r.File.ReadAt(p, off+slotHeader) }

func (r slotReader) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("write %s: it is open for reading: %w", r.name, vfs.ErrUnsupported)
}

type logInfo struct {
	fileInfo
	name string
}

func (i logInfo) Name() string { return i.name }
func (i logInfo) Size() int64  { return max(0, i.fileInfo.Size()-slotHeader) }

// logFile is a log that is being written.
type logFile struct {
	fs   *FS
	f    fsys.File // the slot
	name string    // the log's

	// mu guards what follows. Pebble calls Write and Sync one at a time; it costs nothing to not depend on it.
	mu     sync.Mutex
	buf    []byte // begins at the slot's offset base, a multiple of logBlock
	base   int64
	synced int   // bytes of buf that are durable; less than a block
	n      int   // bytes of buf that were written to it
	size   int64 // prewritten
}

var _ vfs.File = (*logFile)(nil)

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for done := 0; done < len(p); {
		if l.n == len(l.buf) {
			l.flush()
		}
		n := copy(l.buf[l.n:], p[done:])
		l.n += n
		done += n
	}
	l.fs.stats.LogPayload.Add(uint64(len(p)))
	return len(p), nil
}

// Sync makes everything durable that was written before. An error does not come back from here: see the package's comment.
func (l *logFile) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	return nil
}

func (l *logFile) flush() {
	if l.n == l.synced {
		return
	}
	end := (l.n + logBlock - 1) / logBlock * logBlock
	clear(l.buf[l.n:end])
	if err := l.writeOut(l.buf[:end]); err != nil {
		l.fs.fatal(fmt.Errorf("write metadata log: %w", err))
	}
	l.fs.stats.LogWrites.Add(1)
	l.fs.stats.LogPadding.Add(uint64(end - (l.n - l.synced)))
	// The block with the end stays, to be written once more with what comes behind it.
	whole := l.n / logBlock * logBlock
	copy(l.buf, l.buf[whole:l.n])
	l.base += int64(whole)
	l.n -= whole
	l.synced = l.n
}

func (l *logFile) writeOut(p []byte) error {
	if end := l.base + int64(len(p)); end > l.size {
		grow := (end - l.size + logGrowth - 1) / logGrowth * logGrowth
		if err := l.fs.writeZeroes(l.f, l.size, grow); err != nil {
			return err
		}
		l.size += grow
	}
	return l.fs.retry(func() error {
		_, err := l.f.WriteAtDurable(p, l.base)
		return err
	})
}

// Close keeps what was not synced from being lost by a mere close, as the page cache would.
func (l *logFile) Close() error {
	_ = l.Sync()
	return l.f.Close()
}

func (l *logFile) SyncData() error                    { return l.Sync() }
func (l *logFile) SyncTo(int64) (bool, error)         { return true, l.Sync() }
func (l *logFile) Stat() (vfs.FileInfo, error)        { return l.fs.Stat(l.name) }
func (l *logFile) Preallocate(int64, int64) error     { return nil }
func (l *logFile) Prefetch(int64, int64) error        { return nil }
func (l *logFile) Read([]byte) (int, error)           { return 0, l.refuse("read") }
func (l *logFile) ReadAt([]byte, int64) (int, error)  { return 0, l.refuse("read") }
func (l *logFile) WriteAt([]byte, int64) (int, error) { return 0, l.refuse("write at an offset") }

// Fd hides the descriptor, so that Pebble does not preallocate.
func (l *logFile) Fd() uintptr { return vfs.InvalidFd }

func (l *logFile) refuse(op string) error {
	return &fs.PathError{Op: op, Path: l.name, Err: fmt.Errorf("a log is only appended to: %w", vfs.ErrUnsupported)}
}
