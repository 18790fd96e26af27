package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DefaultDisk is the size of a node's disk that is usual: larger than what tests write, and on most machines sparse.
const DefaultDisk = 32 << 30

// minDisk is what mkfs.xfs wants.
const minDisk = 300 << 20

// poolsDir is where a node sees its disk. A pool there sees that disk's size and free space, and not how full the machine's is just now.
const poolsDir = "/var/lib/rowan"

func (n *Node) diskFile() string { return n.file("disk.img") }

// makeDisk makes the node's disk, an XFS file system in a sparse file, where it has none.
func (n *Node) makeDisk(ctx context.Context) error {
	size := n.c.state.Disk
	if size == 0 {
		return nil
	}
	if _, err := os.Stat(n.diskFile()); err == nil {
		return nil
	}
	part := n.diskFile() + ".part"
	if err := errors.Join(os.WriteFile(part, nil, 0o600), os.Truncate(part, size)); err != nil {
		return fmt.Errorf("make the disk of %s: %w", n.Name(), err)
	}
	if _, err := run(exec.CommandContext(ctx, "mkfs.xfs", "-q", "-f", "-K", part)); err != nil {
		return fmt.Errorf("make the disk of %s: %w", n.Name(), err)
	}
	return os.Rename(part, n.diskFile())
}

// mountDisk mounts the disk in the node, before anything else of it runs. The loop device is found again by the file below it when the node ends.
func (n *Node) mountDisk(ctx context.Context) error {
	if n.c.state.Disk == 0 {
		return nil
	}
	device, err := run(exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", n.diskFile()))
	if err != nil { // the file system below cannot
		device, err = run(exec.CommandContext(ctx, "losetup", "--find", "--show", n.diskFile()))
	}
	if err != nil {
		return fmt.Errorf("attach the disk of %s: %w", n.Name(), err)
	}
	device = device[strings.LastIndexByte(device, '\n')+1:]
	// discard: what a pool frees goes back to the machine.
	_, err = run(n.Command(ctx, "sh", "-c", `mkdir -p "$2" && mount -t xfs -o noatime,discard "$1" "$2"`, "sh", device, poolsDir))
	if err != nil {
		return fmt.Errorf("mount the disk of %s: %w", n.Name(), err)
	}
	return nil
}

// TakeDisk moves another node's disk, with the pools on it, into this one; this node's own is thrown away. Both are stopped. The other node gets a
// new disk when it starts. Rings go along: on another machine an engine would find another boot id and need none; here the boot is the same, and what
// was written and not flushed is in the ring (see RingsKept).
func (n *Node) TakeDisk(ctx context.Context, other *Node) error {
	for _, node := range []*Node{n, other} {
		if _, err := n.c.init(node.number); !errors.Is(err, ErrDown) {
			return errors.Join(fmt.Errorf("move a disk: %s runs; stop it first", node.Name()), err)
		}
	}
	if err := os.Rename(other.diskFile(), n.diskFile()); err != nil {
		return fmt.Errorf("move a disk from %s to %s: %w", other.Name(), n.Name(), err)
	}
	from, to := filepath.Join(n.c.ringsDir(), other.Name()), filepath.Join(n.c.ringsDir(), n.Name())
	if _, err := run(n.c.command(ctx, 0, "sh", "-c", `rm -rf "$2" && if [ -e "$1" ]; then mv "$1" "$2"; fi`, "sh", from, to)); err != nil {
		return fmt.Errorf("move a disk from %s to %s: with its rings: %w", other.Name(), n.Name(), err)
	}
	return nil
}
