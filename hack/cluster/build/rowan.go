package build

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/rowan-csi/rowan/hack/cluster/image"
)

// RowanImage is the name of the image of this tree's own programs.
const RowanImage = "rowan-csi/rowan:dev"

// rowanTools are the programs of other packages that rowan-engine and rowan-driver run, to make, check, mount and grow file systems, by their Debian
// package. The Dockerfile installs those packages: a test compares.
var rowanTools = map[string][]string{
	"e2fsprogs":  {"mkfs.ext4", "e2fsck", "resize2fs"},
	"xfsprogs":   {"mkfs.xfs", "xfs_growfs"},
	"util-linux": {"blkid", "wipefs"},
	"mount":      {"mount", "umount"},
}

// Rowan builds all commands of the module at root and writes an image of them, in /usr/local/bin, with the tools they run and their libraries. The
// image has no entry point: a container names one of the programs as its command.
func Rowan(ctx context.Context, root, name, archive string) error {
	dir, err := os.MkdirTemp("", "rowan-image-")
	if err != nil {
		return fmt.Errorf("build Rowan's image: %w", err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/...")
	cmd.Dir, cmd.Env = root, goEnvironment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build Rowan's programs: %w\n%s", err, out)
	}
	built, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	files, err := image.Programs(ctx, slices.Concat(slices.Collect(maps.Values(rowanTools))...)...)
	if err != nil {
		return fmt.Errorf("build Rowan's image: %w", err)
	}
	files = append(files, image.Merged()...)
	for _, b := range built {
		files = append(files, image.File{Path: "/usr/local/bin/" + b.Name(), Source: filepath.Join(dir, b.Name()), Mode: 0o755})
	}
	if _, err := os.Stat("/etc/mke2fs.conf"); err == nil { // what ext4's features are
		files = append(files, image.File{Path: "/etc/mke2fs.conf", Source: "/etc/mke2fs.conf"})
	}
	files = append(files, image.File{Path: "/etc/mtab", Link: "/proc/self/mounts"}, image.File{Path: "/tmp", Dir: true, Mode: 0o1777},
		image.File{Path: "/run", Dir: true}, image.File{Path: "/var/lib", Dir: true})
	return image.Image{Name: name, Files: files}.Write(archive)
}
