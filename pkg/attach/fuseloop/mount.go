package fuseloop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/fusectl"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
)

// mount is a FUSE file system that is mounted nowhere: it lives by the descriptors of its one file. So there is no folder to make or to leave
// behind, no other mount namespace can get a copy of it, and nobody's df or find walks into it.
type mount struct {
	fuse *os.File // /dev/fuse
	root *os.File // the root folder, until the file is open
}

// newMount makes a FUSE connection and its mount. The kernel has sent INIT when it returns.
func newMount() (*mount, error) {
	fuse, err := openFuse()
	if err != nil {
		return nil, err
	}
	root, err := mountRoot(fuse)
	if err != nil {
		return nil, errors.Join(err, fuse.Close())
	}
	return &mount{fuse: fuse, root: root}, nil
}

func openFuse() (*os.File, error) {
	f, err := loopdev.OpenPlain("/dev/fuse", unix.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse (is the fuse module loaded?): %w", err)
	}
	return f, nil
}

func mountRoot(fuse *os.File) (*os.File, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	options := [][2]string{{"source", "rowan"}, {"fd", strconv.Itoa(int(fuse.Fd()))}, {"rootmode", "40000"},
		{"user_id", strconv.Itoa(os.Getuid())}, {"group_id", strconv.Itoa(os.Getgid())}}
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("set %s=%s of a fuse mount: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create a fuse file system: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsmount fuse: %w", err)
	}
	return os.NewFile(uintptr(root), "fuse root"), nil
}

// identity is what tells a file from every other one on the machine.
type identity struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func identify(f *os.File) (identity, error) {
	var st unix.Statx_t
	// DONT_SYNC: the server, this process, is not asked.
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return identity{}, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	return identity{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, nil
}

// alive tells whether the connection behind a /dev/fuse descriptor still has a mount.
func alive(fuse *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(fuse.Fd()), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && fds[0].Revents&unix.POLLERR == 0
		}
	}
}

// abortConnection makes every request of a file's FUSE connection fail, now and later.
func abortConnection(id identity) error {
	c, err := fusectl.Open()
	if err != nil {
		return err
	}
	return errors.Join(c.Abort(unix.Minor(id.Dev)), c.Close())
}

// fileName makes of an attachment's id the name that losetup shows. It ends in a random number, so that a loop device is known by it for ever:
// another attachment of the same id, or of one that looks alike, has another name.
func fileName(id string) string { return fmt.Sprintf("%s%016x", namePrefix(id), rand.Uint64()) }

func namePrefix(id string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '_'
	}, id)
	return "rowan-" + clean[:min(len(clean), 128)] + "-"
}
