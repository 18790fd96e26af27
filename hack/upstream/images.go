package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rowan-csi/rowan/hack/cluster/image"
	"github.com/rowan-csi/rowan/hack/cluster/kube"
)

// Images that a few specs name, beside those that every cluster of hack/cluster has. Neither server nor DNS tool of theirs is used by a storage test:
// both are a Debian with a shell to it. So is what stands in for them here: this machine's GNU programs with their libraries.
var standIns = []string{"registry.k8s.io/e2e-test-images/nginx:1.15-4", "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0"}

// shellPrograms are what the specs run in those images (testsuites/volumes.go, testsuites/multivolume.go and storage/utils).
var shellPrograms = []string{"/bin/sh", "base64", "blockdev", "cat", "chmod", "dd", "echo", "grep", "head", "ls", "rm", "sha256sum", "sleep", "stat",
	"sync", "test", "tail", "touch"}

// loadImages makes the stand-ins and loads them into the cluster in a folder of hack/cluster.
func loadImages(ctx context.Context, cluster string) error {
	c, err := kube.Open(cluster)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rowan-upstream-")
	if err != nil {
		return fmt.Errorf("make images: %w", err)
	}
	defer os.RemoveAll(dir)
	files, err := shellFiles(ctx)
	if err != nil {
		return fmt.Errorf("make images: %w", err)
	}
	var archives []string
	for _, name := range standIns {
		archive := filepath.Join(dir, filepath.Base(name)+".tar")
		if err := (image.Image{Name: name, Files: files, Cmd: []string{"/bin/sh"}}).Write(archive); err != nil {
			return err
		}
		archives = append(archives, archive)
	}
	if err := c.Load(ctx, archives...); err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	return nil
}

func shellFiles(ctx context.Context) ([]image.File, error) {
	files, err := image.Programs(ctx, shellPrograms...)
	if err != nil {
		return nil, err
	}
	files = append(files, image.Merged()...)
	return append(files, image.File{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\n")},
		image.File{Path: "/etc/group", Data: []byte("root:x:0:\n")}, image.File{Path: "/tmp", Dir: true, Mode: 0o1777},
		image.File{Path: "/root", Dir: true, Mode: 0o700}, image.File{Path: "/mnt", Dir: true}), nil
}

// kubectl is the program that specs call: the cluster's own, where there is one of hack/cluster.
func kubectl(s suite) (string, error) {
	if path := s.cache.Program("kubectl"); exists(path) {
		return path, nil
	}
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return "", errors.New("find kubectl, which specs call: install it, or run `go run ./hack/cluster build`")
	}
	return path, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
