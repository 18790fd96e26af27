package member

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// mount is where a device's file system is mounted.
type mount struct {
	device string // resolved: no symbolic link
	point  string
	ours   bool // at its place below MountDir: made by this process or one before it, and to be unmounted on Close
	fresh  bool // made by this very call
}

// mountOptions: a member's folder holds no programs, devices or anything else that a path walk should trust.
const mountOptions = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC

// unmountTime is how long unmounting is tried: requests of this process that were cancelled may hold the file system for a moment.
const unmountTime = 5 * time.Second

// unmount undoes what this process, or one before it, mounted.
func (m *mount) unmount() error {
	if !m.ours {
		return nil
	}
	deadline := time.Now().Add(unmountTime)
	for {
		err := unix.Unmount(m.point, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w; find who uses it with fuser -vm %s", m.point, err, m.point)
		}
		time.Sleep(lockPoll)
	}
	_ = os.Remove(m.point) // an empty folder left behind does no harm
	return nil
}

// mountAt mounts a device's XFS.
func mountAt(fsy fsys.FS, device, point string) error {
	if err := fsy.MkdirAll(point); err != nil {
		return fmt.Errorf("make mount point: %w", wrap(err))
	}
	if err := unix.Mount(device, point, "xfs", mountOptions, ""); err != nil {
		_ = os.Remove(point)
		return fmt.Errorf("mount %s at %s: %w; the kernel's log says why", device, point, err)
	}
	return nil
}

// mountEntry is a line of /proc/self/mountinfo (proc(5)).
type mountEntry struct {
	device  uint64
	root    string // "/" unless it is a bind mount of a folder
	point   string
	options []string // of the file system, not of this one mount
}

func mountTable() ([]mountEntry, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var entries []mountEntry
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if e, ok := parseMount(lines.Text()); ok {
			entries = append(entries, e)
		}
	}
	return entries, lines.Err()
}

func parseMount(line string) (mountEntry, bool) {
	head, tail, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(head), strings.Fields(tail)
	if !ok || len(fields) < 6 || len(rest) < 3 {
		return mountEntry{}, false
	}
	major, minor, _ := strings.Cut(fields[2], ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil {
		return mountEntry{}, false
	}
	return mountEntry{
		device: unix.Mkdev(uint32(ma), uint32(mi)), root: unescape(fields[3]), point: unescape(fields[4]), options: strings.Split(rest[2], ","),
	}, true
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	for _, c := range []byte{' ', '\t', '\n', '\\'} {
		s = strings.ReplaceAll(s, fmt.Sprintf("\\%03o", c), string(c))
	}
	return s
}

// checkBarriers refuses a file system that was told not to flush its device: nothing would survive a power cut.
func checkBarriers(device uint64) error {
	table, err := mountTable()
	if err != nil {
		return err
	}
	for _, e := range table {
		if e.device == device && (slices.Contains(e.options, "nobarrier") || slices.Contains(e.options, "barrier=0")) {
			return fmt.Errorf("%w: %s is mounted with nobarrier, so that flushes do not reach the device; mount it without", ErrUnsupported, e.point)
		}
	}
	return nil
}

// mountName is the folder below MountDir where a pool's device is mounted: the pool's name for its first member, and the index behind it for others.
func mountName(pool string, index uint32) string {
	if index == 0 {
		return pool
	}
	return fmt.Sprintf("%s.%d", pool, index)
}

// mountMember finds the member on a device, and mounts it at its place below mountDir unless it is mounted already.
func mountMember(fsy fsys.FS, path, mountDir string) (*mount, error) {
	if mountDir == "" {
		return nil, fmt.Errorf("%w: a block device needs a folder for mounts", ErrInvalid)
	}
	device, number, err := resolve(path)
	if err != nil {
		return nil, err
	}
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	for _, e := range table {
		if e.device == number && e.root == "/" {
			return mountedMember(fsy, device, e.point, mountDir)
		}
	}
	found, err := signature(device)
	if err != nil {
		return nil, err
	}
	if found.get("TYPE") != "xfs" {
		return nil, fmt.Errorf("%w: it holds %v", ErrNotFound, found)
	}
	name, err := probe(fsy, device, number, mountDir)
	if err != nil {
		return nil, err
	}
	m := &mount{device: device, point: filepath.Join(mountDir, name), ours: true, fresh: true}
	if err := checkPoint(m.point); err != nil {
		return nil, err
	}
	return m, mountAt(fsy, device, m.point)
}

// probePoint is where a device is mounted for the moment.
func probePoint(mountDir string, number uint64) string {
	return filepath.Join(mountDir, fmt.Sprintf(".probe-%d-%d", unix.Major(number), unix.Minor(number)))
}

// mountedMember uses a mount that is there: this node's engine died, or an administrator made it.
func mountedMember(fsy fsys.FS, device, point, mountDir string) (*mount, error) {
	name, err := mountNameAt(fsy, point)
	if err != nil {
		return nil, err
	}
	return &mount{device: device, point: point, ours: point == filepath.Join(mountDir, name)}, nil
}

// probe mounts a device for the moment, to read whose it is. (Moving that mount to its place would do with one, but a mount below a shared one, as
// systemd makes them all, cannot be moved.)
func probe(fsy fsys.FS, device string, number uint64, mountDir string) (name string, err error) {
	m := mount{device: device, point: probePoint(mountDir, number), ours: true}
	if err := mountAt(fsy, device, m.point); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	return mountNameAt(fsy, m.point)
}

func mountNameAt(fsy fsys.FS, point string) (string, error) {
	sb, err := readSuperblock(fsy, filepath.Join(point, folderOnDevice))
	if err != nil {
		return "", err
	}
	if err := checkName(sb.PoolName); err != nil {
		return "", fmt.Errorf("%w: superblock: %w", ErrCorrupt, err)
	}
	return mountName(sb.PoolName, sb.MemberIndex), nil
}

// checkName accepts names that can be a folder's, visible and in its place.
func checkName(name string) error {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsRune(name, '/') {
		return fmt.Errorf("%w: pool name %q cannot name a mount point", ErrInvalid, name)
	}
	return nil
}

// checkPoint refuses a mount point that something else is mounted at.
func checkPoint(point string) error {
	table, err := mountTable()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(table, func(e mountEntry) bool { return e.point == point }) {
		return fmt.Errorf("%w: something else is mounted at %s; unmount it, or choose another name for the pool", ErrInUse, point)
	}
	return nil
}

// resolve follows symbolic links, such as those of /dev/disk/by-id, to a block device, and gives its number.
func resolve(path string) (string, uint64, error) {
	device, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, fmt.Errorf("%w: there is no such device", ErrNotFound)
	}
	if err != nil {
		return "", 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return "", 0, fmt.Errorf("stat %s: %w", device, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", 0, fmt.Errorf("%w: %s is not a block device", ErrUnsupported, device)
	}
	return device, st.Rdev, nil
}
