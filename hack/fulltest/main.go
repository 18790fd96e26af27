// Command fulltest fills pools to the last block, and the file system under them, and shows that nothing is lost and that writes go on when space
// comes back: by a deleted snapshot, by growth, or because a neighbour left. It makes ext4 in a file, on a loop device, and so runs as root. It
// prints a figure a line, with its bar, and exits with 1 when one is missed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/bench"
)

const imageSize = 3 << 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fulltest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it makes a loop device and mounts it: run it as root")
	}
	g, err := newGround()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	report := bench.Report{Machine: bench.Machine(), Method: "ext4 on a loop device; every block is stamped with what was written last, and read again"}
	for _, part := range []func(context.Context, *ground) ([]bench.Figure, error){fullPool, fullFileSystem} {
		figures, err := part(ctx, g)
		report.Figures = append(report.Figures, figures...)
		if err != nil {
			return errors.Join(err, report.Print(os.Stdout))
		}
	}
	if err := report.Print(os.Stdout); err != nil {
		return err
	}
	var missed []string
	for _, f := range report.Missed() {
		missed = append(missed, f.Name)
	}
	if len(missed) > 0 {
		return fmt.Errorf("bars missed: %s", strings.Join(missed, ", "))
	}
	return nil
}

// ground is the file system that is filled, and a folder for rings.
type ground struct{ dir, device, mount, ring string }

func newGround() (g *ground, err error) {
	g = &ground{}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.remove())
		}
	}()
	if g.dir, err = os.MkdirTemp("", "rowan-full-"); err != nil {
		return g, err
	}
	if g.ring, err = os.MkdirTemp("/dev/shm", "rowan-full-"); err != nil {
		return g, err
	}
	image, point := filepath.Join(g.dir, "image"), filepath.Join(g.dir, "mnt")
	if err = errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, imageSize), os.Mkdir(point, 0o700)); err != nil {
		return g, err
	}
	if g.device, err = tool("losetup", "--find", "--show", image); err != nil {
		return g, err
	}
	if _, err = tool("mkfs.ext4", "-q", "-m", "0", g.device); err != nil {
		return g, err
	}
	if err = unix.Mount(g.device, point, "ext4", unix.MS_NOATIME, ""); err != nil {
		return g, fmt.Errorf("mount %s: %w", g.device, err)
	}
	g.mount = point
	return g, nil
}

func (g *ground) remove() (err error) {
	if g.mount != "" {
		err = unix.Unmount(g.mount, 0)
	}
	if g.device != "" {
		_, derr := tool("losetup", "--detach", g.device)
		err = errors.Join(err, derr)
	}
	for _, dir := range []string{g.dir, g.ring} {
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

func tool(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// hog is a neighbour: a file that takes all the space there is.
func (g *ground) hog() (file string, err error) {
	file = filepath.Join(g.mount, "hog")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for size, step := int64(0), int64(imageSize); step >= 4096; {
		switch err := unix.Fallocate(int(f.Fd()), 0, size, step); {
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case err != nil:
			return "", fmt.Errorf("fill the file system: %w", err)
		default:
			size += step
		}
	}
	return file, nil
}
