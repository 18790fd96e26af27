package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

// storeConfig is a containerd that does nothing but take images in.
const storeConfig = `version = 3
root = "@ROOT@"
state = "@STATE@"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = "@STATE@/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
  path = "@ROOT@/opt"
`

// makeStore imports the cluster's images once, into a folder that every node's containerd starts from: importing them on each node wrote 0.8 GB a
// node.
func makeStore(ctx context.Context, cache build.Cache, log io.Writer) (err error) {
	if _, err := os.Stat(cache.Store()); err == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("prepare the images: %w", err)
		}
	}()
	unlock, err := cache.Lock(ctx, log)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(cache.Store()); err == nil {
		return nil // made by another while this one waited
	}
	parts, _ := filepath.Glob(filepath.Join(cache.Dir, ".containerd-*")) // of one that was killed
	for _, p := range parts {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	root, err := os.MkdirTemp(cache.Dir, ".containerd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	start := time.Now()
	if err := fillStore(ctx, cache, root); err != nil {
		return err
	}
	fmt.Fprintf(log, "prepared the images in %.0f s\n", time.Since(start).Seconds())
	return errors.Join(os.Chmod(root, 0o711), os.Rename(root, cache.Store()))
}

// fillStore runs a containerd in a mount and pid namespace of its own, so that its mounts end with it.
func fillStore(ctx context.Context, cache build.Cache, root string) (err error) {
	state, err := os.MkdirTemp("", "rowan-images-") // a socket's path has to be short
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	config := filepath.Join(state, "config.toml")
	text := strings.NewReplacer("@ROOT@", root, "@STATE@", state).Replace(storeConfig)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	logFile := filepath.Join(state, "log")
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		cache.Program("containerd"), "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, stopStore(cmd)); err != nil {
			err = fmt.Errorf("%w\nthe end of containerd's log:\n%s", err, tail(logFile))
		}
	}()
	ctr := func(args ...string) error {
		_, err := run(exec.CommandContext(ctx, cache.Program("ctr"), append([]string{"--address", filepath.Join(state, "containerd.sock")}, args...)...))
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := until(waiting, "containerd answers", func() error { return ctr("version") }); err != nil {
		return err
	}
	for _, archive := range cache.Images() {
		if err := ctr("--namespace", "k8s.io", "image", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

// stopStore ends containerd in order and waits for it.
func stopStore(cmd *exec.Cmd) error {
	list, err := processes()
	for _, p := range below(list, cmd.Process.Pid) {
		if p.name() == "containerd" {
			err = errors.Join(err, p.signal(unix.SIGTERM))
		}
	}
	timer := time.AfterFunc(endTime, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // containerd that was told to end says so with its status
	return err
}

// linkStore gives a node that has none a containerd folder with all images. What is never written to again is shared: blobs, and the files of layers,
// over which containers have layers of their own. Databases are copied.
func linkStore(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	part := to + ".part" // of one that was killed
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := filepath.Join(part, strings.TrimPrefix(path, from))
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return errors.Join(os.Mkdir(at, 0o700), os.Chmod(at, info.Mode()))
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			return errors.Join(err, os.Symlink(target, at))
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a folder nor a link", path)
		case strings.HasSuffix(path, ".db"):
			return copyFile(path, at)
		default:
			return linkFile(path, at)
		}
	})
	if err != nil {
		return fmt.Errorf("give a node its images: %w", err)
	}
	return os.Rename(part, to)
}

// linkFile makes a file appear in another place, without its bytes where both are on one file system.
func linkFile(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EMLINK) {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return errors.Join(copyFile(from, to), os.Chmod(to, info.Mode()))
}
