// Package mount is what the node service needs of Linux: file systems made, checked, mounted and grown, devices and directories bound to where a
// container finds them, and the mount table read back. It is a thin layer over k8s.io/mount-utils and the file systems' own tools.
//
// Contract: it never decides to make a file system; Format does so when told. What is mounted is read from the kernel's mount table on every call, so
// that a restarted process knows as much as the one before. Unmounting what is not mounted and removing what is gone is done. Errors carry the output
// of the tool that failed.
//
// Limits: ext4 and XFS. It needs CAP_SYS_ADMIN, and mkfs.ext4, resize2fs, e2fsck, mkfs.xfs, xfs_growfs, blkid, mount and umount in the path. A bind
// mount cannot make a device read-only: who must not write to a raw block volume attaches it read-only.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	utilexec "k8s.io/utils/exec"

	k8smount "k8s.io/mount-utils"
)

// Mounter does it on this machine. Its methods may be called at once from many goroutines; calls about one device or path are the caller's to
// serialize.
type Mounter struct {
	mounts    k8smount.Interface
	format    *k8smount.SafeFormatAndMount // for reading what is on a device, never for formatting
	mountinfo string
	run       func(ctx context.Context, name string, args ...string) (output string, err error)
}

// New is a Mounter of this process's mount namespace.
func New() *Mounter {
	// Without systemd scopes: they keep FUSE daemons alive, of which mount(8) starts none here.
	mounts := k8smount.NewWithoutSystemd("")
	return &Mounter{
		mounts:    mounts,
		format:    &k8smount.SafeFormatAndMount{Interface: mounts, Exec: utilexec.New()},
		mountinfo: "/proc/self/mountinfo",
		run:       runTool,
	}
}

// Mount mounts a device's file system at a directory, which is made if it is missing.
func (m *Mounter) Mount(ctx context.Context, device, dir, fsType string, options []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := m.mounts.Mount(device, dir, fsType, options); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", device, fsType, dir, err)
	}
	return nil
}

// BindDirectory shows the file system mounted at source at target, a directory that is made if it is missing. The mount keeps source's flags, such as
// nosuid, and adds ro if readOnly.
func (m *Mounter) BindDirectory(ctx context.Context, source, target string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("make target directory: %w", err)
	}
	return m.bind(source, target, readOnly)
}

// BindDevice shows a device's node at target, a file that is made if it is missing.
func (m *Mounter) BindDevice(ctx context.Context, device, target string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("make target's directory: %w", err)
	}
	f, err := os.OpenFile(target, os.O_CREATE, 0o660)
	if err != nil {
		return fmt.Errorf("make target file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make target file: %w", err)
	}
	return m.bind(device, target, readOnly)
}

func (m *Mounter) bind(source, target string, readOnly bool) error {
	if err := m.mounts.Mount(source, target, "", []string{"bind"}); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	// MOUNT_ATTR_RDONLY alone: a remount with options, as mount(8) does it, would drop the flags that it is not given.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	err := unix.MountSetattr(unix.AT_FDCWD, target, 0, &attr)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.12
		err = m.remountReadOnly(target)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make %s read-only: %w", target, err), m.mounts.Unmount(target))
	}
	return nil
}

// remountReadOnly adds ro to a bind mount's own flags.
func (m *Mounter) remountReadOnly(target string) error {
	e, err := m.at(target)
	if err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("%s is not mounted", target)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY)
	for _, o := range e.MountOptions {
		flags |= map[string]uintptr{
			"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
			"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		}[o]
	}
	return unix.Mount("", target, "", flags, "")
}

// Unmount undoes every mount at path.
func (m *Mounter) Unmount(ctx context.Context, path string) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		e, err := m.at(path)
		if err != nil || e == nil {
			return err
		}
		if err := m.mounts.Unmount(path); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Remove removes a target that Unmount left: an empty directory or a file.
func (m *Mounter) Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove target: %w", err)
	}
	return nil
}

// DeviceSize is the size of the device in bytes.
func (m *Mounter) DeviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, fmt.Errorf("size of device: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of device %s: %w", device, err)
	}
	return n, nil
}

// Usage is how full a file system is.
type Usage struct {
	Bytes, BytesUsed, BytesFree    int64
	Inodes, InodesUsed, InodesFree int64
}

// Usage is of the file system mounted at path. BytesFree is what is left to ordinary users.
func (m *Mounter) Usage(path string) (Usage, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", path, err)
	}
	return Usage{
		Bytes: int64(s.Blocks) * s.Bsize, BytesUsed: int64(s.Blocks-s.Bfree) * s.Bsize, BytesFree: int64(s.Bavail) * s.Bsize,
		Inodes: int64(s.Files), InodesUsed: int64(s.Files - s.Ffree), InodesFree: int64(s.Ffree),
	}, nil
}

// runTool answers what a tool printed, on both its outputs. Its error has the output in its text.
func runTool(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return text, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}
