package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/hack/cluster/image"
)

// Pause is the image of the container that holds a pod's namespaces.
const Pause = "registry.k8s.io/pause:3.10.2"

// Names of the other images, as manifests write them.
const (
	SnapshotController = "registry.k8s.io/sig-storage/snapshot-controller:" + snapshotter
	CoreDNS            = "registry.k8s.io/coredns/coredns:" + coredns
	Busybox            = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
	Agnhost            = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
)

// served is an image whose program is one of ours.
type served struct {
	name, program string
	as            string // the program's path in the image
	cmd           []string
	shell         bool // has busybox's programs, too
}

var images = []served{
	{name: Pause, program: "nodeinit", as: "/pause"},
	{name: "registry.k8s.io/sig-storage/csi-provisioner:" + provisioner, program: "csi-provisioner", as: "/csi-provisioner"},
	{name: "registry.k8s.io/sig-storage/csi-snapshotter:" + snapshotter, program: "csi-snapshotter", as: "/csi-snapshotter"},
	{name: SnapshotController, program: "snapshot-controller", as: "/snapshot-controller"},
	{name: "registry.k8s.io/sig-storage/csi-resizer:" + resizer, program: "csi-resizer", as: "/csi-resizer"},
	{name: CoreDNS, program: "coredns", as: "/coredns"},
	{name: Agnhost, program: "agnhost", as: "/agnhost", cmd: []string{"pause"}, shell: true},
	{name: Busybox, cmd: []string{"sh"}, shell: true},
}

func imageNames() (names []string) {
	for _, i := range images {
		names = append(names, i.name)
	}
	return names
}

// archive is where an image's archive is.
func (c Cache) archive(name string) string {
	return filepath.Join(c.Dir, "images", strings.NewReplacer("/", "_", ":", "_").Replace(name)+".tar")
}

// Images are the archives of all images, the pause container's first.
func (c Cache) Images() (archives []string) {
	for _, name := range imageNames() {
		archives = append(archives, c.archive(name))
	}
	return archives
}

func (c Cache) buildImages(ctx context.Context, log io.Writer) error {
	for _, i := range images {
		if _, err := os.Stat(c.archive(i.name)); err == nil {
			continue
		}
		start := time.Now()
		made := image.Image{Name: i.name, Cmd: i.cmd}
		if i.program != "" {
			made.Files = append(made.Files, image.File{Path: i.as, Source: c.Program(i.program), Mode: 0o755})
			made.Entrypoint = []string{i.as}
		}
		if i.shell {
			files, err := shell(ctx)
			if err != nil {
				return fmt.Errorf("make image %s: %w", i.name, err)
			}
			made.Files = append(made.Files, files...)
		}
		if err := made.Write(c.archive(i.name)); err != nil {
			return err
		}
		fmt.Fprintf(log, "made image %s in %.0f s\n", i.name, time.Since(start).Seconds())
	}
	return nil
}

// shell is busybox under all its names, and what its programs expect of a root file system.
func shell(ctx context.Context) ([]image.File, error) {
	program, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its programs: %w", program, err)
	}
	files := []image.File{
		{Path: "/bin/busybox", Source: program, Mode: 0o755},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/root", Dir: true, Mode: 0o700},
		{Path: "/home", Dir: true},
		{Path: "/var", Dir: true},
		{Path: "/tmp", Dir: true, Mode: 0o1777},
	}
	for _, name := range strings.Fields(string(out)) {
		if name != "busybox" {
			files = append(files, image.File{Path: "/bin/" + name, Link: "busybox"})
		}
	}
	return files, nil
}

// busybox finds one that is static, for it will be alone in its image.
func busybox(ctx context.Context) (string, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("find busybox: install the package busybox-static")
	}
	files, err := image.Programs(ctx, program)
	if err != nil {
		return "", err
	}
	if len(files) != 1 {
		return "", fmt.Errorf("%s is not static: install the package busybox-static", program)
	}
	return program, nil
}

// copyManifests takes the definitions of snapshots and snapshot groups from their module.
func (c Cache) copyManifests(ctx context.Context) error {
	if _, err := os.Stat(c.Manifests()); err == nil {
		return nil
	}
	from, err := moduleDir(ctx, "github.com/kubernetes-csi/external-snapshotter/client/v8", snapshotAPI)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(from, "config", "crd", "*snapshot.storage.k8s.io_*.yaml"))
	if err != nil {
		return err
	}
	if len(files) < 6 {
		return fmt.Errorf("%s has %d definitions in config/crd; six were expected", from, len(files))
	}
	dir, err := os.MkdirTemp(c.Dir, ".crds-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), text, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(dir, c.Manifests())
}
