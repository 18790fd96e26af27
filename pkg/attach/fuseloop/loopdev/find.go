package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// Folder is where the device nodes are, /dev.
type Folder string

// None is the number of a device that is not there.
const None = -1

// Path is the node of loop device n.
func (l Folder) Path(n int) string { return filepath.Join(string(l), fmt.Sprintf("loop%d", n)) }

// Node returns the path of loop device n, and makes the node where it is missing: a container's /dev does not get new ones by itself.
func (l Folder) Node(n int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return "", fmt.Errorf("find the number of loop%d: %w", n, err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("parse the number %q of loop%d: %w", b, n, err)
	}
	path, want := l.Path(n), unix.Mkdev(major, minor)
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(want)); err != nil && !errors.Is(err, unix.EEXIST) {
			return "", fmt.Errorf("make the node %s: %w", path, err)
		}
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != want:
		return "", fmt.Errorf("%s is not the block device %d:%d: remove it", path, major, minor)
	}
	return path, nil
}

// bound tells whether loop device n has the file of that name behind it. Names are never used twice (fileName), so the name alone decides. sysfs
// knows it without a question to the file system behind the device: LOOP_GET_STATUS64 may ask for the file's attributes, and after a restart it would
// be this very process, not serving yet, that had to answer. It needs no opening of the device either, which could keep others from clearing it.
func (l Folder) bound(n int, name string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", n))
	return err == nil && strings.HasSuffix(strings.TrimSuffix(string(b), "\n"), "/"+name)
}

// Find looks for the loop device that has the file of that name: first the one it was last, then all. None when there is none.
func (l Folder) Find(last int, name string) (int, error) {
	if last >= 0 && l.bound(last, name) {
		return last, nil
	}
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return None, fmt.Errorf("list loop devices: %w", err)
	}
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		if !l.bound(n, name) {
			continue
		}
		if _, err := l.Node(n); err != nil {
			return None, err
		}
		return n, nil
	}
	return None, nil
}

// Check makes sure that the device keeps its promises: without "write back" the kernel sends no flush.
func (l Folder) Check(n int, readOnly bool) error {
	var bad []string
	checks := []struct{ file, want string }{{"loop/dio", "1"}}
	if !readOnly {
		checks = append(checks, struct{ file, want string }{"queue/write_cache", "write back"}, struct{ file, want string }{"queue/discard_max_bytes", ""})
	}
	for _, c := range checks {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/%s", n, c.file))
		if err != nil {
			return fmt.Errorf("check loop%d: %w", n, err)
		}
		got := strings.TrimSpace(string(b))
		if (c.want != "" && got != c.want) || got == "0" {
			bad = append(bad, fmt.Sprintf("%s is %q", c.file, got))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("loop%d cannot be used: %w: %s", n, attach.ErrUnavailable, strings.Join(bad, ", "))
	}
	return nil
}

// Size is what the device shows, in bytes.
func (l Folder) Size(n int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/size", n))
	if err != nil {
		return 0, fmt.Errorf("look at the size of loop%d: %w", n, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse the size of loop%d: %w", n, err)
	}
	return sectors * 512, nil
}
