package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// createDevice makes XFS on a blank block device, mounts it below MountDir (mountName) and makes the member in a folder of it.
func createDevice(fsy fsys.FS, spec Spec) (*Member, error) {
	if spec.MountDir == "" {
		return nil, fmt.Errorf("%w: a block device needs a folder for mounts", ErrInvalid)
	}
	if err := checkName(spec.PoolName); err != nil {
		return nil, err
	}
	device, number, err := resolve(spec.Device)
	if err != nil {
		return nil, err
	}
	point := filepath.Join(spec.MountDir, mountName(spec.PoolName, spec.Index))
	left, err := leftOn(fsy, device, number, point)
	if err != nil {
		return nil, err
	}
	size, err := checkFree(device)
	if err != nil {
		return nil, err
	}
	if size < MinDevice {
		return nil, fmt.Errorf("%w: the device has %d MiB; a member needs %d MiB", ErrInvalid, size>>20, MinDevice>>20)
	}
	if _, err := spec.sizeIn(fsys.Usage{Total: size, Available: size}); err != nil {
		return nil, err // sooner than mkfs
	}
	if err := checkPoint(point); err != nil {
		return nil, err
	}
	if err := makeBlank(device, spec.Wipe || left); err != nil {
		return nil, err
	}
	if err := makeXFS(device); err != nil {
		return nil, errors.Join(err, wipe(device))
	}
	m, err := createMounted(fsy, spec, device, point)
	if err != nil {
		return nil, errors.Join(err, wipe(device)) // it was blank, or its owner gave it up
	}
	return m, nil
}

// leftOn tells whether all that a device holds is what an interrupted Create left: the file system that makeXFS makes, with nothing in it or an unfinished
// member. It may be mounted still, and only at point: if nobody uses that mount, it is unmounted.
func leftOn(fsy fsys.FS, device string, number uint64, point string) (bool, error) {
	table, err := mountTable()
	if err != nil {
		return false, err
	}
	mounts := slices.DeleteFunc(table, func(e mountEntry) bool { return e.device != number })
	found, err := signature(device)
	if err != nil || found.get("TYPE") != "xfs" || found.get("LABEL") != xfsLabel || len(mounts) > 1 {
		return false, err
	}
	m := mount{device: device, point: point, ours: true}
	if len(mounts) == 0 {
		m.point = probePoint(filepath.Dir(point), number)
		if err := mountAt(fsy, device, m.point); err != nil {
			return false, nil // not ours to judge: the caller refuses what is not blank
		}
	} else if mounts[0].point != point {
		return false, nil
	}
	left := holdsNothing(fsy, m.point)
	if len(mounts) > 0 && !left {
		return false, nil
	}
	return left, m.unmount()
}

// holdsNothing: the file system mounted there holds at most an unfinished member.
func holdsNothing(fsy fsys.FS, point string) bool {
	names, err := fsy.ReadDir(point)
	if err != nil || len(names) > 1 || len(names) == 1 && names[0] != folderOnDevice {
		return false
	}
	if len(names) == 1 {
		_, err = checkEmpty(fsy, filepath.Join(point, folderOnDevice))
	}
	return err == nil
}

func createMounted(fsy fsys.FS, spec Spec, device, point string) (*Member, error) {
	mnt := &mount{device: device, point: point, ours: true, fresh: true}
	if err := mountAt(fsy, device, point); err != nil {
		return nil, err
	}
	spec.Directory = filepath.Join(point, folderOnDevice)
	m, err := createFolder(fsy, spec)
	if err != nil {
		return nil, errors.Join(err, mnt.unmount())
	}
	m.mount = mnt
	return m, nil
}

// checkFree asks the kernel for the device for itself, which fails where a mount, a RAID, a volume group or another such program has it, and gives the
// device's size.
func checkFree(device string) (int64, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return 0, fmt.Errorf("%w: %s is %s; free it first", ErrInUse, device, holder(device))
	case errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES):
		return 0, fmt.Errorf("%w: %s is read-only: %w", ErrNotWritable, device, err)
	case err != nil:
		return 0, fmt.Errorf("open %s: %w", device, err)
	}
	defer unix.Close(fd)
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return 0, fmt.Errorf("ask for the size of %s: %w", device, err)
	}
	return size, nil
}

// holder says who has a device, as far as can be seen from here.
func holder(device string) string {
	if _, number, err := resolve(device); err == nil {
		if table, err := mountTable(); err == nil {
			if i := slices.IndexFunc(table, func(e mountEntry) bool { return e.device == number }); i >= 0 {
				return "mounted at " + table[i].point
			}
		}
	}
	if entries, err := os.ReadDir(filepath.Join("/sys/class/block", filepath.Base(device), "holders")); err == nil && len(entries) > 0 {
		return "part of " + entries[0].Name()
	}
	return "in use: one of its partitions is, or another program has opened it for itself"
}

// makeBlank sees to it that a device holds nothing known to libblkid.
func makeBlank(device string, wipeIt bool) error {
	found, err := signature(device)
	if err != nil || found == nil {
		return err
	}
	if !wipeIt {
		return fmt.Errorf("%w: it holds %v; if that can go, ask for it to be wiped", ErrNotBlank, found)
	}
	if err := wipe(device); err != nil {
		return err
	}
	if found, err = signature(device); err != nil {
		return err
	}
	if found != nil {
		return fmt.Errorf("%w: after wiping it still holds %v; overwrite its beginning and end", ErrNotBlank, found)
	}
	return nil
}

func wipe(device string) error {
	_, _, err := run(device, "wipefs", "util-linux", "--all", "--quiet", device)
	return err
}

// tags are what blkid found on a device, NAME=value; none means blank.
type tags []string

func (t tags) get(name string) string {
	for _, tag := range t {
		if value, ok := strings.CutPrefix(tag, name+"="); ok {
			return value
		}
	}
	return ""
}

func (t tags) String() string {
	var parts []string
	switch {
	case t == nil:
		return "nothing"
	case t.get("TYPE") != "":
		parts = append(parts, t.get("TYPE"))
	case t.get("PTTYPE") != "":
		parts = append(parts, "a partition table ("+t.get("PTTYPE")+")")
	default:
		return strings.Join(t, " ")
	}
	for _, name := range []string{"LABEL", "UUID", "PTUUID"} {
		if v := t.get(name); v != "" {
			parts = append(parts, strings.ToLower(name)+" "+v)
		}
	}
	return strings.Join(parts, ", ")
}

// signature asks libblkid, at the device and not in its cache, what a device holds. Only what is known has a name; random bytes count as blank.
func signature(device string) (tags, error) {
	out, code, err := run(device, "blkid", "util-linux", "--probe", "--output", "export", device)
	const nothing, several = 2, 8 // exit codes, blkid(8)
	switch {
	case code == nothing:
		return nil, nil
	case code == several:
		return tags{"the signatures of several file systems or partition tables (wipefs lists them)"}, nil
	case err != nil:
		return nil, err
	}
	var found tags
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "DEVNAME=") {
			found = append(found, line)
		}
	}
	return found, nil
}

// xfsLabel is the label of file systems that makeXFS makes.
const xfsLabel = "rowan"

// makeXFS makes the file system. It has no shared extents (reflink), which a pool does not use and pays for with larger transactions, and nothing that
// kernel 5.10 cannot mount: mkfs and kernel are of different ages where the engine runs in a container. The sector size is left to mkfs, which takes
// the device's physical one.
func makeXFS(device string) error {
	args := []string{"-q", "-L", xfsLabel, "-m", "crc=1,finobt=1,reflink=0,rmapbt=0"}
	version, _, err := run(device, "mkfs.xfs", "xfsprogs", "-V")
	if err != nil {
		return err
	}
	extra := newerOptions(version)
	_, _, err = run(device, "mkfs.xfs", "xfsprogs", append(append(args, extra...), device)...)
	if err != nil && len(extra) > 0 && strings.Contains(err.Error(), "unknown option") {
		// A distribution's mkfs may lack what its version number promises; what it cannot switch off it does not switch on.
		_, _, err = run(device, "mkfs.xfs", "xfsprogs", append(args, device)...)
	}
	return err
}

// growXFS makes a mounted file system as large as its device. Where it is that already, nothing happens.
func growXFS(mnt *mount) error {
	_, _, err := run(mnt.device, "xfs_growfs", "xfsprogs", "-d", mnt.point)
	return err
}

var versionPattern = regexp.MustCompile(`(\d+)\.(\d+)`)

// newerOptions switches off what mkfs.xfs of that version may switch on and kernel 5.10 cannot mount.
func newerOptions(version string) []string {
	v := versionPattern.FindStringSubmatch(version)
	if v == nil {
		return nil
	}
	major, _ := strconv.Atoi(v[1])
	minor, _ := strconv.Atoi(v[2])
	atLeast := func(ma, mi int) bool { return major > ma || major == ma && minor >= mi }
	var options []string
	if atLeast(5, 19) {
		options = append(options, "-i", "nrext64=0")
	}
	if atLeast(6, 10) {
		options = append(options, "-i", "exchange=0", "-n", "parent=0")
	}
	return options
}

// toolTime is how long a program may take: mkfs discards the whole device first.
const toolTime = 10 * time.Minute

// run runs a program and gives its output and exit code (-1 where it did not get that far). It looks in the system's folders, too, which are not on
// every process's path.
func run(device, program, pkg string, args ...string) (string, int, error) {
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, program))
		}
	}
	if err != nil {
		return "", -1, fmt.Errorf("%w: %s; install %s", ErrTool, program, pkg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		code := -1
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), code, fmt.Errorf("run %s on %s: %w: %s", program, device, err, said)
	}
	return stdout.String(), 0, nil
}
