package fsys

import (
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// memFile is an open file of a Mem.
type memFile struct {
	fs     *Mem
	node   *memNode
	name   string
	flags  OpenFlags
	closed bool
}

var _ File = (*memFile)(nil)

// memAlign is what direct files ask for: the smallest there is, so that a caller's own rounding shows.
const memAlign = sectorSize

// enter takes the file system's lock; on an error it is not held.
func (f *memFile) enter(op string, write bool) error {
	f.fs.mu.Lock()
	switch {
	case f.closed:
		f.fs.mu.Unlock()
		return pathError(op, f.name, fs.ErrClosed)
	case write && f.flags&Write == 0:
		f.fs.mu.Unlock()
		return pathError(op, f.name, unix.EBADF)
	}
	return nil
}

func (f *memFile) check(op string, p []byte, off int64) error {
	if off < 0 {
		return pathError(op, f.name, unix.EINVAL)
	}
	if f.flags&Direct != 0 && len(p) > 0 && (off%memAlign != 0 || !IsAligned(p, memAlign)) {
		return pathError(op, f.name, fmt.Errorf("%d bytes at %d, or their memory, are not aligned to %d: %w", len(p), off, memAlign, unix.EINVAL))
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.check("read", p, off); err != nil {
		return 0, err
	}
	if err := f.enter("read", false); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	n := f.node.data.read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(OpWrite, stepWritten, p, off)
}

func (f *memFile) WriteAtDurable(p []byte, off int64) (int, error) {
	return f.write(OpWriteDurable, stepWrittenDurably, p, off)
}

func (f *memFile) write(op Op, end StepKind, p []byte, off int64) (int, error) {
	if err := f.check(string(op), p, off); err != nil {
		return 0, err
	}
	if err := f.enter(string(op), true); err != nil {
		return 0, err
	}
	s := Step{Kind: stepWrite, Off: off, Len: int64(len(p)), Data: p, Direct: f.flags&Direct != 0, Operation: f.fs.operation()}
	f.fs.do(s, f.node, nil)
	f.leave(op)
	f.end(Step{Kind: end, Off: off, Len: s.Len, Operation: s.Operation})
	return len(p), nil
}

func (f *memFile) end(s Step) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.fs.do(s, f.node, nil)
}

// leave drops the lock and calls the hook, while the operation may still be torn.
func (f *memFile) leave(op Op) {
	during := f.fs.during
	f.fs.mu.Unlock()
	if during != nil {
		during(op, f.name)
	}
}

func (f *memFile) Sync() error {
	if err := f.enter("fdatasync", false); err != nil {
		return err
	}
	s := Step{Kind: stepSync, Operation: f.fs.operation()}
	f.fs.do(s, f.node, nil)
	f.leave(OpSync)
	f.end(Step{Kind: stepSynced, Operation: s.Operation})
	return nil
}

func (f *memFile) Size() (int64, error) {
	if err := f.enter("stat", false); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	return f.node.data.size, nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.enter("truncate", true); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if size < 0 {
		return pathError("truncate", f.name, unix.EINVAL)
	}
	f.fs.do(Step{Kind: stepTruncate, Off: size}, f.node, nil)
	return nil
}

func (f *memFile) Allocate(off, length int64) error {
	if err := f.enter("allocate", true); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if off < 0 || length <= 0 {
		return pathError("allocate", f.name, unix.EINVAL)
	}
	f.fs.do(Step{Kind: stepAllocate, Off: off, Len: length}, f.node, nil)
	return nil
}

func (f *memFile) Punch(off, length int64) error {
	if err := f.enter("punch", true); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if off < 0 || length <= 0 {
		return pathError("punch", f.name, unix.EINVAL)
	}
	f.fs.do(Step{Kind: stepPunch, Off: off, Len: length}, f.node, nil)
	return nil
}

func (f *memFile) Lock() error {
	if err := f.enter("lock", false); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if f.node.holder != nil && f.node.holder != f {
		return pathError("lock", f.name, ErrLocked)
	}
	f.node.holder = f
	return nil
}

func (f *memFile) Alignment() int {
	if f.flags&Direct != 0 {
		return memAlign
	}
	return 1
}

func (f *memFile) Name() string { return f.name }
func (f *memFile) Fd() uintptr  { return ^uintptr(0) }

func (f *memFile) Close() error {
	if err := f.enter("close", false); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	f.closed = true
	if f.node.holder == f {
		f.node.holder = nil
	}
	return nil
}
