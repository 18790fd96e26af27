package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/uring"
)

// OS is the real file system of a Linux host. Its errors are *fs.PathError, so errors.Is with fs.ErrNotExist, fs.ErrExist and a unix.Errno works.
func OS() FS { return osFS{} }

// OSWith is OS with direct files read and written through io, which may be nil.
func OSWith(io *uring.IO) FS { return osFS{io} }

type osFS struct{ io *uring.IO }

var _ FS = osFS{}

// defaultAlignment is assumed where the kernel (before 6.1) or the file system does not answer STATX_DIOALIGN: no device in use has larger sectors.
const defaultAlignment = 4096

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// retry repeats a call that a signal interrupted. The Go runtime's preemption signals make EINTR ordinary on slow file systems.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (o osFS) Open(name string, flags OpenFlags) (File, error) {
	mode, err := openMode(name, flags)
	if err != nil {
		return nil, err
	}
	var fd int
	err = retry(func() (err error) {
		fd, err = unix.Open(name, mode, 0o600)
		return err
	})
	if err != nil {
		if err == unix.EINVAL && flags&Direct != 0 {
			return nil, pathError("open", name, fmt.Errorf("its file system refuses direct I/O (O_DIRECT): %w", err))
		}
		return nil, pathError("open", name, err)
	}
	f := &osFile{fd: fd, name: name, align: 1, direct: flags&Direct != 0}
	if f.direct {
		f.io = o.io
		if f.align, err = dioAlign(fd); err != nil {
			_ = unix.Close(fd)
			return nil, pathError("open", name, err)
		}
	}
	return f, nil
}

func openMode(name string, flags OpenFlags) (int, error) {
	mode := unix.O_CLOEXEC | unix.O_RDONLY
	if flags&Write != 0 {
		mode = unix.O_CLOEXEC | unix.O_RDWR
	} else if flags&Truncate != 0 {
		return 0, pathError("open", name, fmt.Errorf("flag Truncate needs Write: %w", unix.EINVAL))
	}
	if flags&Create != 0 {
		mode |= unix.O_CREAT
	}
	if flags&Exclusive != 0 {
		if flags&Create == 0 {
			return 0, pathError("open", name, fmt.Errorf("flag Exclusive needs Create: %w", unix.EINVAL))
		}
		mode |= unix.O_EXCL
	}
	if flags&Direct != 0 {
		mode |= unix.O_DIRECT
	}
	if flags&Truncate != 0 {
		mode |= unix.O_TRUNC
	}
	return mode, nil
}

// dioAlign asks what direct I/O on this file must be aligned to: the larger of what memory and what offsets need.
func dioAlign(fd int) (int, error) {
	var st unix.Statx_t
	err := retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) })
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return defaultAlignment, nil
	}
	if st.Dio_offset_align == 0 {
		return 0, fmt.Errorf("direct I/O is not possible on this file (encrypted, verity, or data in the journal): %w", unix.EOPNOTSUPP)
	}
	return int(max(st.Dio_offset_align, st.Dio_mem_align)), nil
}

func (osFS) MkdirAll(name string) error            { return os.MkdirAll(name, 0o700) }
func (osFS) Remove(name string) error              { return os.Remove(name) }
func (osFS) RemoveAll(name string) error           { return os.RemoveAll(name) }
func (osFS) Rename(from, to string) error          { return os.Rename(from, to) }
func (osFS) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }

func (osFS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (osFS) Usage(name string) (Usage, error) {
	var s unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &s) }); err != nil {
		return Usage{}, pathError("statfs", name, err)
	}
	info, err := os.Stat(name)
	if err != nil {
		return Usage{}, err
	}
	u := statfsUsage(s)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		u.Device = st.Dev
	}
	return u, nil
}

// statfsUsage counts as df's per cent does: blocks that are kept back for root are neither in use nor there. (Images of machines keep back most of the disk
// at times; as in use, they would make a pool's share of what is left nothing.)
func statfsUsage(s unix.Statfs_t) Usage {
	unit := s.Frsize
	if unit == 0 {
		unit = s.Bsize
	}
	used := int64(s.Blocks) - int64(s.Bfree)
	return Usage{Type: typeName(int64(s.Type)), Total: (used + int64(s.Bavail)) * unit, Available: int64(s.Bavail) * unit}
}

// typeName names the file systems that somebody may put a pool on, so that a refusal can be read. The ext family shares one magic number; a kernel
// mounts all of it with the ext4 driver.
func typeName(magic int64) string {
	switch magic {
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case unix.RAMFS_MAGIC:
		return "ramfs"
	case zfsMagic:
		return "zfs"
	}
	return fmt.Sprintf("%#x", uint32(magic))
}

// zfsMagic is ZFS_SUPER_MAGIC of OpenZFS, which is outside the kernel's tree.
const zfsMagic = 0x2fc12fc1
