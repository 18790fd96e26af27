package fsys

import (
	"errors"
	"io"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/uring"
)

// osFile is a bare descriptor and not an *os.File: that one goes on after a short direct read with an unaligned one, which the kernel refuses, and
// has no call with per-write flags.
type osFile struct {
	name   string
	align  int
	direct bool
	io     *uring.IO // nil: system calls

	// mu is held for reading by every call that uses fd, so that Close waits for them: a number closed under a running call may by then be another
	// file's.
	mu     sync.RWMutex
	fd     int
	closed bool
}

var _ File = (*osFile)(nil)

// with runs call on the descriptor, again when a signal interrupted it.
func (f *osFile) with(op string, call func(fd int) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	return pathError(op, f.name, retry(func() error { return call(f.fd) }))
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, pathError("read", f.name, fs.ErrClosed)
	}
	done := 0
	for done < len(p) {
		n, err := f.io.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("read", f.name, err)
		}
		done += n
		// A direct read ends short and unaligned only at the end of the file.
		if n == 0 || (f.direct && done < len(p) && done%f.align != 0) {
			return done, io.EOF
		}
	}
	return done, nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write("write", p, func(fd int, p []byte, done int) (int, error) { return f.io.Pwrite(fd, p, off+int64(done)) })
}

func (f *osFile) WriteAtDurable(p []byte, off int64) (int, error) {
	return f.write("write durably", p, func(fd int, p []byte, done int) (int, error) {
		return unix.Pwritev2(fd, [][]byte{p}, off+int64(done), unix.RWF_DSYNC)
	})
}

func (f *osFile) write(op string, p []byte, call func(fd int, p []byte, done int) (int, error)) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, pathError(op, f.name, fs.ErrClosed)
	}
	done := 0
	for done < len(p) {
		n, err := call(f.fd, p[done:], done)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError(op, f.name, err)
		}
		if n == 0 {
			return done, pathError(op, f.name, io.ErrShortWrite)
		}
		done += n
		if f.direct && done < len(p) && done%f.align != 0 {
			return done, pathError(op, f.name, io.ErrShortWrite) // going on would be refused as unaligned, and hide this
		}
	}
	return done, nil
}

func (f *osFile) Sync() error { return f.with("fdatasync", unix.Fdatasync) }

func (f *osFile) Size() (int64, error) {
	var st unix.Stat_t
	err := f.with("stat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Size, err
}

func (f *osFile) Truncate(size int64) error {
	return f.with("truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

func (f *osFile) Allocate(off, length int64) error {
	return f.with("allocate", func(fd int) error { return unix.Fallocate(fd, 0, off, length) })
}

func (f *osFile) Punch(off, length int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return f.with("punch", func(fd int) error { return unix.Fallocate(fd, mode, off, length) })
}

func (f *osFile) Lock() error {
	err := f.with("lock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return pathError("lock", f.name, ErrLocked)
	}
	return err
}

func (f *osFile) Alignment() int { return f.align }
func (f *osFile) Name() string   { return f.name }

func (f *osFile) Fd() uintptr {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return ^uintptr(0)
	}
	return uintptr(f.fd)
}

func (f *osFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	// Linux has let go of the descriptor even when a signal interrupted the call: a second close could hit another file.
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR {
		return pathError("close", f.name, err)
	}
	return nil
}
