package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupName is a node's cgroup, and that of the whole cluster where the number is 0.
func cgroupName(index, number int) string {
	name := fmt.Sprintf("/rowan-cluster-%d", index)
	if number != 0 {
		name = filepath.Join(name, nodeName(number))
	}
	return name
}

// hierarchies are the trees of cgroups: one of v2, or one for each controller of v1.
func hierarchies() (roots []string, v2 bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, false, fmt.Errorf("look at %s: %w", cgroupRoot, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupRoot}, true, nil
	}
	files, err := filepath.Glob(filepath.Join(cgroupRoot, "*", "cgroup.clone_children"))
	for _, f := range files {
		roots = append(roots, filepath.Dir(f))
	}
	if err == nil && len(roots) == 0 {
		err = fmt.Errorf("%s holds no cgroups: mount them", cgroupRoot)
	}
	return roots, false, err
}

// makeCgroups makes the cgroup that the kubelet puts its pods below.
func (n *Node) makeCgroups() error {
	roots, v2, err := hierarchies()
	if err != nil {
		return err
	}
	name := cgroupName(n.c.state.Index, n.number)
	for _, root := range roots {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return fmt.Errorf("make the cgroup of %s: %w", n.Name(), err)
		}
	}
	if !v2 {
		return nil
	}
	// In v2 a controller reaches a cgroup only if every one above it hands it on.
	text, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, dir := range []string{"/", cgroupName(n.c.state.Index, 0), name} {
		for _, controller := range strings.Fields(string(text)) {
			if err := os.WriteFile(filepath.Join(cgroupRoot, dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
				return fmt.Errorf("hand the controller %s on below cgroup %s: %w", controller, dir, err)
			}
		}
	}
	return nil
}

// removeCgroups removes a cgroup and those below it, which can be removed a moment after their last process has gone. It looks in every tree: on a
// machine with v1, runc makes some in that of v2 as well.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := filepath.Glob(filepath.Join(cgroupRoot, "*"))
	if err != nil {
		return err
	}
	roots = append(roots, cgroupRoot)
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return until(ctx, "cgroup "+name+" is removed", func() error {
		var errs []error
		for _, root := range roots {
			errs = append(errs, removeCgroup(filepath.Join(root, name)))
		}
		return errors.Join(errs...)
	})
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	})
	for _, d := range slices.Backward(dirs) { // the deepest first
		if rerr := unix.Rmdir(d); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", d, rerr))
		}
	}
	return err
}
