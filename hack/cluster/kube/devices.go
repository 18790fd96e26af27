package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/fusectl"
)

// devices is what is found of a node's block devices and file systems before its processes end, because after that nothing tells whose they were:
// loop devices are the machine's. It is written down before the first process is killed, so that a Down after a crash of Down knows, too.
type devices struct {
	Files   []string // base names of the open files of FUSE file systems; Rowan's hold a random number
	Numbers []uint64 // devices of file systems that only the node has mounted
	FUSE    []uint32 // connections
}

func devicesFile(dir string, number int) string {
	return filepath.Join(dir, nodeName(number), "devices.json")
}

func readDevices(file string) (d devices, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return d, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	return d, err
}

// gather finds the devices of processes that are stopped. It asks no FUSE server, for they are among them.
func gather(list []process, d *devices) error {
	ours, err := mountedDevices("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	c, err := fusectl.Open()
	if err != nil && !errors.Is(err, unix.ENODEV) { // a kernel without FUSE has no connections
		return err
	}
	if c != nil {
		defer func() { _ = c.Close() }()
	}
	for _, p := range list {
		dir := fmt.Sprintf("/proc/%d", p.pid)
		theirs, err := mountedDevices(filepath.Join(dir, "mountinfo"))
		if err != nil {
			continue // it has ended
		}
		for number := range theirs {
			if !ours[number] {
				d.Numbers = append(d.Numbers, number)
			}
		}
		fds, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
		for _, fd := range fds {
			d.look(c, fd)
		}
	}
	for _, number := range d.Numbers {
		if minor := unix.Minor(number); isConnection(c, unix.Major(number), minor) {
			d.FUSE = append(d.FUSE, minor)
		}
	}
	return nil
}

// look takes note of a descriptor if it is a file of a FUSE file system. Rowan's are mounted nowhere, so descriptors alone lead to them.
func (d *devices) look(c *fusectl.Control, fd string) {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, fd, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil {
		return
	}
	if !isConnection(c, st.Dev_major, st.Dev_minor) {
		return
	}
	if name, err := os.Readlink(fd); err == nil {
		d.Files = append(d.Files, filepath.Base(name))
	}
	d.FUSE = append(d.FUSE, st.Dev_minor)
}

// isConnection tells whether a file system's device is that of a FUSE connection.
func isConnection(c *fusectl.Control, major, minor uint32) bool {
	return c != nil && major == 0 && c.Has(minor)
}

// abort makes all requests to the node's FUSE servers fail.
func (d *devices) abort() error {
	if len(d.FUSE) == 0 {
		return nil
	}
	c, err := fusectl.Open()
	if err != nil {
		return err
	}
	var errs []error
	for _, number := range d.FUSE {
		if err := c.Abort(number); err != nil && !errors.Is(err, unix.ENOENT) { // it has gone meanwhile, with its last process
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, c.Close())...)
}

// mountedDevices are the devices of the file systems in a mount table.
func mountedDevices(mountinfo string) (map[uint64]bool, error) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	found := map[uint64]bool{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); err != nil {
			return nil, fmt.Errorf("read %s: %q: %w", mountinfo, fields[2], err)
		}
		found[unix.Mkdev(major, minor)] = true
	}
	return found, nil
}

// loop is a loop device in use.
type loop struct {
	name string // loop0
	file string // base name of the file below it
	info *unix.LoopInfo64
}

// loops lists the machine's.
func loops() (list []loop) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			list = append(list, loop{name: filepath.Base(filepath.Dir(filepath.Dir(f))), file: filepath.Base(strings.TrimSpace(string(text)))})
		}
	}
	return list
}

// number is the loop device's own device number.
func (l loop) number() uint64 {
	minor, _ := strconv.Atoi(strings.TrimPrefix(l.name, "loop"))
	return unix.Mkdev(7, uint32(minor))
}

// clear detaches the loop device; the kernel does so when its last opener lets go.
func (l loop) clear() error {
	err := l.ioctl(func(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) })
	if errors.Is(err, unix.ENXIO) {
		return nil // it was detached meanwhile
	}
	return err
}

func (l loop) ioctl(do func(fd int) error) error {
	fd, err := unix.Open("/dev/"+l.name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		err = errors.Join(do(fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("loop device %s: %w", l.name, err)
	}
	return nil
}

// ofNode picks the loop devices that a node's pods left: over files of its FUSE servers, over files of its own folder or file systems, and over those
// loop devices (the kubelet puts one over each raw block volume).
func (d *devices) ofNode(folder string, list []loop) (picked []loop, err error) {
	own := map[uint64]bool{}
	for _, number := range d.Numbers {
		own[number] = true
	}
	fuse := map[string]bool{}
	for _, name := range d.Files {
		fuse[name] = true
	}
	var rest []loop
	for _, l := range list {
		switch {
		case fuse[l.file]:
			picked, own[l.number()] = append(picked, l), true
		case strings.HasPrefix(l.file, "rowan-"):
			// Another's. Asking for its file's number could wait for its server.
		default:
			rest = append(rest, l)
		}
	}
	if len(rest) == 0 {
		return picked, nil
	}
	files, number, err := filesBelow(folder)
	if err != nil {
		return nil, err
	}
	for i := range rest {
		l := &rest[i]
		// The path is that of some mount namespace; device and inode are the file's.
		if l.ioctl(func(fd int) (err error) { l.info, err = unix.IoctlLoopGetStatus64(fd); return err }) != nil {
			continue // detached meanwhile
		}
		if own[l.info.Device] || own[l.number()] || l.info.Device == number && files[file{l.file, l.info.Inode}] {
			picked, own[l.number()] = append(picked, *l), true
		}
	}
	for grew := true; grew; { // loop devices over those
		grew = false
		for _, l := range rest {
			if l.info != nil && own[l.info.Rdevice] && !own[l.number()] {
				picked, own[l.number()], grew = append([]loop{l}, picked...), true, true
			}
		}
	}
	return picked, nil
}

// file is what a loop device tells of the one below it.
type file struct {
	name  string // base name
	inode uint64
}

// filesBelow are the regular files below a folder, and the folder's device.
func filesBelow(folder string) (map[file]bool, uint64, error) {
	files := map[file]bool{}
	var top unix.Stat_t
	if err := unix.Stat(folder, &top); errors.Is(err, unix.ENOENT) {
		return files, 0, nil
	} else if err != nil {
		return nil, 0, fmt.Errorf("look at %s: %w", folder, err)
	}
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // files come and go
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			files[file{filepath.Base(path), st.Ino}] = true
		}
		return nil
	})
	return files, top.Dev, err
}
