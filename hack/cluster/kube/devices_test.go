package kube

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/fusectl"
)

// A FUSE file system that is mounted nowhere, as Rowan's are, is found by a descriptor and can be aborted, wherever the control file system is mounted or
// not: without that, nodes that are stopped leave loop devices, and processes that wait for their own server.
func TestConnectionsWithoutControlMount(t *testing.T) {
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		t.Skipf("needs root and FUSE: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fuse)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := mountNowhere(fuse)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	c, err := fusectl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var d devices
	d.look(c, fmt.Sprintf("/proc/self/fd/%d", root))
	if len(d.FUSE) != 1 || len(d.Files) != 1 {
		t.Fatalf("found %+v", d)
	}
	if err := d.abort(); err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Fd: int32(fuse), Events: unix.POLLOUT}}
	if _, err := unix.Poll(fds, 0); err != nil || fds[0].Revents&unix.POLLERR == 0 {
		t.Errorf("the connection lives on: %#x, %v", fds[0].Revents, err)
	}
}

func mountNowhere(fuse int) (root int, err error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for key, value := range map[string]string{"fd": strconv.Itoa(fuse), "rootmode": "040000", "user_id": "0", "group_id": "0"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, fmt.Errorf("set %s: %w", key, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create: %w", err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}
