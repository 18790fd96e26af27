package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Start brings a stopped node back, with the folders it had. It does not wait for the node to be Ready.
func (n *Node) Start(ctx context.Context) error {
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	if err := n.StartKubelet(ctx); err != nil {
		return err
	}
	return n.startProxy(ctx)
}

// Stop ends everything of the node at once, as if its power were cut. A node that is stopped already is no error.
func (n *Node) Stop(ctx context.Context) error {
	if err := n.c.end(ctx, n.number); err != nil {
		return fmt.Errorf("stop %s: %w", n.Name(), err)
	}
	return nil
}

// Wipe makes a stopped node a machine that was never used: with Start it comes back as newly installed, under its old name.
func (n *Node) Wipe(ctx context.Context) error {
	if _, err := n.c.init(n.number); !errors.Is(err, ErrDown) {
		return errors.Join(fmt.Errorf("wipe %s: it runs; stop it first", n.Name()), err)
	}
	for _, file := range []string{n.file("lib"), n.file("log"), n.diskFile()} {
		if err := os.RemoveAll(file); err != nil {
			return fmt.Errorf("wipe %s: %w", n.Name(), err)
		}
	}
	_, err := run(n.c.command(ctx, 0, "rm", "-rf", filepath.Join(n.c.ringsDir(), n.Name())))
	return err
}
