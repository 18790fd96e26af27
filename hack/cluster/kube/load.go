package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/hack/cluster/image"
)

// Load imports archives of images on every node that runs, and later on those that come up without images.
func (c *Cluster) Load(ctx context.Context, archives ...string) error {
	for _, a := range archives {
		if err := c.keep(a); err != nil {
			return fmt.Errorf("load %s: %w", a, err)
		}
	}
	return c.each(func(n *Node) error {
		if _, err := c.init(n.number); errors.Is(err, ErrDown) {
			return nil
		}
		return n.Load(ctx, archives...)
	})
}

// Load imports archives of images on this node alone.
func (n *Node) Load(ctx context.Context, archives ...string) error {
	for _, a := range archives {
		if err := n.load(ctx, a); err != nil {
			return fmt.Errorf("load %s on %s: %w", filepath.Base(a), n.Name(), err)
		}
	}
	return nil
}

// load takes the archive by standard input: it is the machine's file, and a node sees only some of the machine's folders.
func (n *Node) load(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := n.Command(ctx, "ctr", "--namespace", "k8s.io", "image", "import", "-")
	cmd.Stdin = f
	_, err = run(cmd)
	return err
}

// keep notes an archive that was loaded: a node that is wiped gets it again, as it would pull it.
func (c *Cluster) keep(archive string) error {
	name, err := image.Name(archive)
	if err != nil {
		return err
	}
	at := c.path("images", strings.NewReplacer("/", "_", ":", "_").Replace(name)+".tar")
	part := at + ".part"
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Linked, not copied: whoever writes archives puts a new file in the old one's place.
	return errors.Join(linkFile(archive, part), os.Rename(part, at))
}

// kept are the archives that were loaded.
func (c *Cluster) kept() []string {
	archives, _ := filepath.Glob(c.path("images", "*.tar"))
	slices.Sort(archives)
	return archives
}
