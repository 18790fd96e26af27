package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	k8smount "k8s.io/mount-utils"
)

// Point is what is mounted at a path.
type Point struct {
	Mounted  bool
	Same     bool // it shows the device in question, by its file system or its node
	ReadOnly bool
	FSType   string // "" for a device's node
}

// Lookup says what is mounted at path, seen from the device ("" for none).
func (m *Mounter) Lookup(path, device string) (Point, error) {
	e, err := m.at(path)
	if err != nil || e == nil {
		return Point{}, err
	}
	p := Point{Mounted: true, ReadOnly: slices.Contains(e.MountOptions, "ro"), FSType: e.FsType}
	shown, isNode := e.shows()
	if isNode {
		p.FSType = ""
	}
	if device != "" {
		dev, err := deviceNumber(device)
		if err != nil {
			return Point{}, err
		}
		p.Same = shown == dev
	}
	return p, nil
}

// Targets lists where the device's whole file system, or its node, is mounted.
func (m *Mounter) Targets(device string) ([]string, error) {
	dev, err := deviceNumber(device)
	if err != nil {
		return nil, err
	}
	entries, err := m.entries()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		shown, isNode := e.shows()
		if shown == dev && (isNode || e.Root == "/") && !slices.Contains(paths, e.MountPoint) {
			paths = append(paths, e.MountPoint)
		}
	}
	return paths, nil
}

// entry is a line of the mount table, its mount point in plain text.
type entry struct{ k8smount.MountInfo }

// shows is the number of the device that the mount is about: of its file system, or of the node that is bound there.
func (e entry) shows() (dev uint64, isNode bool) {
	switch e.FsType {
	case "devtmpfs", "tmpfs": // where device nodes live
		var st unix.Stat_t
		if e.Root != "/" && unix.Lstat(e.MountPoint, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return st.Rdev, true
		}
	}
	return unix.Mkdev(uint32(e.Major), uint32(e.Minor)), false
}

// at is the topmost mount at path, nil if there is none.
func (m *Mounter) at(path string) (*entry, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up mount point: %w", err)
	}
	// The last element is not resolved: to look at it asks the file system mounted there, which may hang or be gone.
	path = filepath.Join(dir, filepath.Base(path))
	entries, err := m.entries()
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(entries) {
		if e.MountPoint == path {
			return &e, nil
		}
	}
	return nil, nil
}

func (m *Mounter) entries() ([]entry, error) {
	infos, err := k8smount.ParseMountInfo(m.mountinfo)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	entries := make([]entry, len(infos))
	for i, info := range infos {
		info.MountPoint = unescape(info.MountPoint)
		entries[i] = entry{info}
	}
	return entries, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func deviceNumber(device string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return 0, fmt.Errorf("look at device %s: %w", device, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", device)
	}
	return st.Rdev, nil
}
