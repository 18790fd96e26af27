package mount

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// The file systems.
const (
	ext4 = "ext4"
	xfs  = "xfs"
)

var (
	// ErrDamaged: the file system has errors that only a person can repair.
	ErrDamaged = errors.New("file system is damaged")
	// ErrMounted: the file system cannot grow while it is mounted, but can while it is not.
	ErrMounted = errors.New("cannot grow while mounted")
)

// Detect names what blkid finds on the device: a file system, a partition table in words, or "" when it finds nothing. Nothing found does not mean
// that nothing is there.
func (m *Mounter) Detect(ctx context.Context, device string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	found, err := m.format.GetDiskFormat(device)
	if err != nil {
		return "", fmt.Errorf("detect file system on %s: %w", device, err)
	}
	return found, nil
}

// Format makes a file system, whatever is on the device. fresh says that the device reads as zeroes throughout, which saves writing them.
func (m *Mounter) Format(ctx context.Context, device, fsType string, fresh bool) error {
	var args []string
	switch fsType {
	case ext4:
		args = ext4Args(device, fresh)
	case xfs:
		args = xfsArgs(m.xfsUsage(ctx), device, fresh)
	default:
		return fmt.Errorf("make file system %q: only ext4 and xfs are supported", fsType)
	}
	if _, err := m.run(ctx, "mkfs."+fsType, args...); err != nil {
		return fmt.Errorf("make file system: %w", err)
	}
	return nil
}

// ext4Features are all that Linux 5.10 mounts of what is on by default in some version of mke2fs; they are listed from "none" on, because an option
// that turns off a newer default is an error for an older mke2fs.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink," +
	"extra_isize,metadata_csum"

func ext4Args(device string, fresh bool) []string {
	// Blocks of 4 KiB even on small devices, where mke2fs would take 1 KiB: the engine would have to read before it writes.
	args := []string{"-q", "-F", "-b", "4096", "-m", "0", "-O", ext4Features}
	if fresh {
		args = append(args, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1")
	}
	return append(args, device)
}

// xfsOptions are the features that Linux 5.10 mounts, on or off explicitly. mkfs.xfs knows them since different versions.
var xfsOptions = []struct{ flag, option, value string }{
	{"-m", "crc", "1"}, {"-m", "finobt", "1"}, {"-m", "reflink", "1"}, {"-m", "rmapbt", "0"}, {"-m", "bigtime", "1"}, {"-m", "inobtcount", "1"},
	{"-m", "metadir", "0"}, {"-i", "sparse", "1"}, {"-i", "nrext64", "0"}, {"-i", "exchange", "0"}, {"-n", "parent", "0"},
}

// xfsArgs takes the usage text of mkfs.xfs for what it knows. (Its own lts_5.10.conf would do, but that of 6.1, in Debian 12, does not parse.)
func xfsArgs(usage, device string, fresh bool) []string {
	args := []string{"-q", "-f"}
	if fresh {
		args = append(args, "-K") // no discard
	}
	for _, o := range xfsOptions {
		if strings.Contains(usage, o.option+"=") {
			args = append(args, o.flag, o.option+"="+o.value)
		}
	}
	return append(args, device)
}

// xfsUsage is printed, with an error, when no device is named.
func (m *Mounter) xfsUsage(ctx context.Context) string {
	usage, _ := m.run(ctx, "mkfs.xfs")
	return usage
}

// Check repairs what can be repaired safely, before the file system is mounted. XFS does that by itself when it is mounted.
func (m *Mounter) Check(ctx context.Context, device, fsType string) error {
	if fsType != ext4 {
		return nil
	}
	return m.fsck(ctx, device)
}

func (m *Mounter) fsck(ctx context.Context, device string, more ...string) error {
	_, err := m.run(ctx, "e2fsck", append([]string{"-p", device}, more...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		switch code := exit.ExitCode(); {
		case code&4 != 0: // errors left uncorrected
			return fmt.Errorf("%w: repair %s with e2fsck -f, or restore a snapshot: %w", ErrDamaged, device, err)
		case code < 4: // repaired
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("check file system: %w", err)
	}
	return nil
}

// Grow makes the file system of the device, mounted at dir, as large as the device. One that is has nothing done to it. The kernel lets ext4 grow
// only for a process with CAP_SYS_RESOURCE: without it the error is ErrMounted.
func (m *Mounter) Grow(ctx context.Context, device, dir, fsType string) error {
	var err error
	switch fsType {
	case ext4:
		var output string
		if output, err = m.run(ctx, "resize2fs", device); strings.Contains(output, "Permission denied to resize") {
			err = fmt.Errorf("%w, for lack of CAP_SYS_RESOURCE: grant it, or unmount the volume everywhere and mount it again: %w", ErrMounted, err)
		}
	case xfs:
		_, err = m.run(ctx, "xfs_growfs", "-d", dir)
	default:
		return fmt.Errorf("grow file system %q at %s: only ext4 and xfs are supported", fsType, dir)
	}
	if err != nil {
		return fmt.Errorf("grow file system at %s: %w", dir, err)
	}
	return nil
}

// GrowUnmounted is Grow for a file system that ErrMounted was answered for, not mounted now. It checks the whole of it, which takes its time.
func (m *Mounter) GrowUnmounted(ctx context.Context, device, fsType string) error {
	if fsType != ext4 {
		return fmt.Errorf("grow unmounted file system %q on %s: only ext4 can", fsType, device)
	}
	if err := m.fsck(ctx, device, "-f"); err != nil {
		return err
	}
	if _, err := m.run(ctx, "resize2fs", device); err != nil {
		return fmt.Errorf("grow file system on %s: %w", device, err)
	}
	return nil
}
