package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// beside is what a pool's file system needs beside the data: the ballast, metadata, its own log.
	beside = gib
	// freeMin is what the temporary folder's file system must have: beside, which is really written, and some data.
	freeMin = 2 * gib
)

func (c Config) diskSize() int64 {
	if c.Disk != 0 {
		return c.Disk
	}
	return (c.Size+c.Size/10)/mib*mib + beside
}

// disk is an XFS file system in a file.
type disk struct {
	image, device, dir string
	mounted            bool
}

func newDisk(ctx context.Context, dir, image string, size int64) (d *disk, err error) {
	d = &disk{image: image, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return d, fmt.Errorf("make the disk's mount point: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return d, fmt.Errorf("ask for free space: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < freeMin {
		return d, fmt.Errorf("%s has %d MiB free and %d are needed: use another folder", dir, free/mib, int64(freeMin/mib))
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return d, fmt.Errorf("make the disk's file: %w", err)
	}
	if err := os.Truncate(image, size); err != nil {
		return d, fmt.Errorf("make the disk's file: %w", err)
	}
	if d.device, err = d.attach(ctx); err != nil {
		return d, err
	}
	if _, err := run(ctx, "mkfs.xfs", "-q", "-K", d.device); err != nil {
		return d, err
	}
	if err := unix.Mount(d.device, dir, "xfs", unix.MS_NOATIME, ""); err != nil {
		return d, fmt.Errorf("mount %s at %s: %w", d.device, dir, err)
	}
	d.mounted = true
	return d, nil
}

// attach puts a loop device over the file, with direct I/O where the file system below allows it, as a disk would do.
func (d *disk) attach(ctx context.Context) (string, error) {
	device, err := run(ctx, "losetup", "--find", "--show", "--direct-io=on", d.image)
	if err != nil {
		device, err = run(ctx, "losetup", "--find", "--show", d.image)
	}
	return device, err
}

func (d *disk) close() error {
	if d == nil {
		return nil
	}
	if d.mounted {
		if err := unmount(d.dir); err != nil {
			return err
		}
		d.mounted = false
	}
	if d.device != "" {
		if err := clearLoop(d.device); err != nil {
			return err
		}
		d.device = ""
	}
	return nil
}

// run runs a program and answers what it writes to its standard output.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// ringParent is a folder on a tmpfs, where a ring can be.
func ringParent() (string, error) {
	for _, dir := range []string{"/run", "/dev/shm"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC && int64(st.Bavail)*st.Bsize > 64*mib {
			return dir, nil
		}
	}
	return "", errors.New("neither /run nor /dev/shm is a tmpfs with 64 MiB free: the pool's ring needs one")
}
