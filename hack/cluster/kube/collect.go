package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// collectTime bounds each question of Collect: a cluster that is looked at is often a broken one.
const collectTime = 30 * time.Second

// Collect copies into a folder what tells why something in the cluster went wrong: all processes' logs, events, the state of everything that can be
// listed, and the logs of all containers, those before a restart included. It goes on where a part cannot be had; the error names those parts.
func (c *Cluster) Collect(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("collect what happened: %w", err)
	}
	errs := []error{copyFiles(c.LogDir(), filepath.Join(dir, "processes"))}
	errs = append(errs, c.collect(ctx, filepath.Join(dir, "events.txt"), "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"))
	kinds, err := c.kinds(ctx)
	errs = append(errs, err)
	if len(kinds) > 0 {
		errs = append(errs, c.collect(ctx, filepath.Join(dir, "objects.yaml"), "get", strings.Join(kinds, ","), "--all-namespaces", "--output=yaml"),
			c.collect(ctx, filepath.Join(dir, "objects.txt"), "get", strings.Join(kinds, ","), "--all-namespaces", "--output=wide"))
	}
	for _, n := range c.Nodes() {
		pods := filepath.Join(n.file("log"), "pods") // as the kubelet writes them: one file for each container and try
		if _, err := os.Stat(pods); err == nil {
			errs = append(errs, copyFiles(pods, filepath.Join(dir, "pods-"+n.Name())))
		}
	}
	return errors.Join(errs...)
}

// kinds are all that can be listed, secrets aside.
func (c *Cluster) kinds(ctx context.Context) (kinds []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	out, err := c.Kubectl(ctx, "api-resources", "--verbs=list", "--output=name").Output()
	for _, kind := range strings.Fields(string(out)) {
		if kind != "secrets" && !strings.HasPrefix(kind, "events") && kind != "componentstatuses" {
			kinds = append(kinds, kind)
		}
	}
	if err != nil {
		err = fmt.Errorf("list the kinds of objects: %w", err)
	}
	return kinds, err
}

func (c *Cluster) collect(ctx context.Context, file string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	out, err := c.Kubectl(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return errors.Join(err, os.WriteFile(file, out, 0o644))
}

func copyFiles(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyFile(path, filepath.Join(to, rest))
	})
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
