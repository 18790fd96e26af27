package fsys

import "io/fs"

// Op names a kind of call.
type Op string

const (
	OpOpen         Op = "open"
	OpMkdirAll     Op = "mkdir"
	OpRemove       Op = "remove"
	OpRemoveAll    Op = "remove-all"
	OpRename       Op = "rename"
	OpReadDir      Op = "read-dir"
	OpStat         Op = "stat"
	OpSyncDir      Op = "sync-dir"
	OpUsage        Op = "usage"
	OpRead         Op = "read"
	OpWrite        Op = "write"
	OpWriteDurable Op = "write-durable"
	OpSync         Op = "sync"
	OpSize         Op = "size"
	OpTruncate     Op = "truncate"
	OpAllocate     Op = "allocate"
	OpPunch        Op = "punch"
	OpLock         Op = "lock"
	OpClose        Op = "close"
)

// Call is one call of an FS or File.
type Call struct {
	Op       Op
	Name     string // of the file or folder, as it was opened
	To       string // of OpRename
	Flags    OpenFlags
	Off, Len int64 // of reads, writes, OpAllocate, OpPunch; Off: the new size of OpTruncate

	part *int64 // of reads and writes: do so many bytes only
}

// hooked runs every call of an FS through around, which calls do at most once.
type hooked struct {
	fs     FS
	around func(c Call, do func() error) error
}

var _ FS = hooked{}

func (h hooked) Open(name string, flags OpenFlags) (file File, err error) {
	err = h.around(Call{Op: OpOpen, Name: name, Flags: flags}, func() (err error) {
		file, err = h.fs.Open(name, flags)
		return err
	})
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, err
	}
	return hookedFile{File: file, h: h}, nil
}

func (h hooked) MkdirAll(name string) error {
	return h.around(Call{Op: OpMkdirAll, Name: name}, func() error { return h.fs.MkdirAll(name) })
}

func (h hooked) Remove(name string) error {
	return h.around(Call{Op: OpRemove, Name: name}, func() error { return h.fs.Remove(name) })
}

func (h hooked) RemoveAll(name string) error {
	return h.around(Call{Op: OpRemoveAll, Name: name}, func() error { return h.fs.RemoveAll(name) })
}

func (h hooked) Rename(from, to string) error {
	return h.around(Call{Op: OpRename, Name: from, To: to}, func() error { return h.fs.Rename(from, to) })
}

func (h hooked) ReadDir(name string) (names []string, err error) {
	err = h.around(Call{Op: OpReadDir, Name: name}, func() (err error) {
		names, err = h.fs.ReadDir(name)
		return err
	})
	return names, err
}

func (h hooked) Stat(name string) (info fs.FileInfo, err error) {
	err = h.around(Call{Op: OpStat, Name: name}, func() (err error) {
		info, err = h.fs.Stat(name)
		return err
	})
	return info, err
}

func (h hooked) SyncDir(name string) error {
	return h.around(Call{Op: OpSyncDir, Name: name}, func() error { return h.fs.SyncDir(name) })
}

func (h hooked) Usage(name string) (u Usage, err error) {
	err = h.around(Call{Op: OpUsage, Name: name}, func() (err error) {
		u, err = h.fs.Usage(name)
		return err
	})
	return u, err
}

// hookedFile passes Alignment, Name and Fd through.
type hookedFile struct {
	File
	h hooked
}

func (f hookedFile) bytes(op Op, p []byte, off int64, call func([]byte, int64) (int, error)) (n int, err error) {
	part := int64(len(p))
	err = f.h.around(Call{Op: op, Name: f.Name(), Off: off, Len: int64(len(p)), part: &part}, func() (err error) {
		n, err = call(p[:part], off)
		return err
	})
	return n, err
}

func (f hookedFile) ReadAt(p []byte, off int64) (int, error) {
	return f.bytes(OpRead, p, off, f.File.ReadAt)
}

func (f hookedFile) WriteAt(p []byte, off int64) (int, error) {
	return f.bytes(OpWrite, p, off, f.File.WriteAt)
}

func (f hookedFile) WriteAtDurable(p []byte, off int64) (int, error) {
	return f.bytes(OpWriteDurable, p, off, f.File.WriteAtDurable)
}

func (f hookedFile) Sync() error { return f.h.around(Call{Op: OpSync, Name: f.Name()}, f.File.Sync) }

func (f hookedFile) Size() (size int64, err error) {
	err = f.h.around(Call{Op: OpSize, Name: f.Name()}, func() (err error) {
		size, err = f.File.Size()
		return err
	})
	return size, err
}

func (f hookedFile) Truncate(size int64) error {
	return f.h.around(Call{Op: OpTruncate, Name: f.Name(), Off: size}, func() error { return f.File.Truncate(size) })
}

func (f hookedFile) Allocate(off, length int64) error {
	return f.h.around(Call{Op: OpAllocate, Name: f.Name(), Off: off, Len: length}, func() error { return f.File.Allocate(off, length) })
}

func (f hookedFile) Punch(off, length int64) error {
	return f.h.around(Call{Op: OpPunch, Name: f.Name(), Off: off, Len: length}, func() error { return f.File.Punch(off, length) })
}

func (f hookedFile) Lock() error  { return f.h.around(Call{Op: OpLock, Name: f.Name()}, f.File.Lock) }
func (f hookedFile) Close() error { return f.h.around(Call{Op: OpClose, Name: f.Name()}, f.File.Close) }
