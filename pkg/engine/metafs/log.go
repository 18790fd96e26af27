package metafs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
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
	// spareName is not one of Pebble's, which therefore leaves it alone.
	spareName = "log.spare"
)

// createLog gives a prewritten file its name. Pebble syncs the folder after it.
func (fs *FS) createLog(name string) (*logFile, error) {
	dir := filepath.Dir(name)
	ready, err := fs.spare.take()
	if !ready && err == nil {
		err = fs.prewrite(dir)
	}
	if err != nil {
		return nil, err
	}
	f, err := fs.renameLog(filepath.Join(dir, spareName), name)
	if err != nil {
		return nil, err
	}
	fs.spare.prepare(func() error { return fs.prewrite(dir) })
	return f, nil
}

// renameLog makes a log of another file, which has only stale records and zeroes in it.
func (fs *FS) renameLog(oldname, newname string) (*logFile, error) {
	if err := fs.Rename(oldname, newname); err != nil {
		return nil, err
	}
	f, err := fs.fsys.Open(newname, fsys.Write|fsys.Direct)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &logFile{fs: fs, f: f, size: size / logBlock * logBlock, buf: fsys.AlignedBuffer(logBuffer)}, nil
}

// prewrite makes the spare: zeroes, durable, so that later syncs have neither a size nor an extent to journal.
func (fs *FS) prewrite(dir string) error {
	f, err := fs.fsys.Open(filepath.Join(dir, spareName), fsys.Create|fsys.Write|fsys.Direct|fsys.Truncate)
	if err != nil {
		return err
	}
	return errors.Join(fs.writeZeroes(f, 0, fs.cfg.LogBytes), f.Close())
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

// spare keeps one prewritten file ahead of its use.
type spare struct {
	mu     sync.Mutex
	busy   chan struct{} // closed when the preparation under way ends; nil: none was begun
	ready  bool
	closed bool
}

// take uses the spare up, waiting for one under preparation.
func (s *spare) take() (ready bool, err error) {
	s.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, fmt.Errorf("metadata file system: %w", fs.ErrClosed)
	}
	ready, s.ready = s.ready, false
	return ready, nil
}

func (s *spare) wait() {
	s.mu.Lock()
	busy := s.busy
	s.mu.Unlock()
	if busy != nil {
		<-busy
	}
}

// prepare makes the next spare in the background. If that does not work, the next log is made when it is needed, and tells why it cannot be.
func (s *spare) prepare(write func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	busy := make(chan struct{})
	s.busy = busy
	go func() {
		err := write()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ready = err == nil
		close(busy)
	}()
}

func (s *spare) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wait()
}

// logFile is a log that is being written.
type logFile struct {
	fs *FS
	f  fsys.File

	// mu guards what follows. Pebble calls Write and Sync one at a time; it costs nothing to not depend on it.
	mu     sync.Mutex
	buf    []byte // begins at file offset base, a multiple of logBlock
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
func (l *logFile) Stat() (vfs.FileInfo, error)        { return l.fs.Stat(l.f.Name()) }
func (l *logFile) Preallocate(int64, int64) error     { return nil }
func (l *logFile) Prefetch(int64, int64) error        { return nil }
func (l *logFile) Read([]byte) (int, error)           { return 0, l.refuse("read") }
func (l *logFile) ReadAt([]byte, int64) (int, error)  { return 0, l.refuse("read") }
func (l *logFile) WriteAt([]byte, int64) (int, error) { return 0, l.refuse("write at an offset") }

// Fd hides the descriptor, so that Pebble does not preallocate.
func (l *logFile) Fd() uintptr { return vfs.InvalidFd }

func (l *logFile) refuse(op string) error {
	return &fs.PathError{Op: op, Path: l.f.Name(), Err: fmt.Errorf("a log is only appended to: %w", vfs.ErrUnsupported)}
}
