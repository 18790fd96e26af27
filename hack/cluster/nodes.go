package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/hack/cluster/kube"
)

// nodeActions are what tests do to a node, by hand.
var nodeActions = map[string]struct {
	short string
	do    func(*kube.Node, context.Context) error
}{
	"kill-kubelet":  {"End a node's kubelet with SIGKILL; pods go on", (*kube.Node).KillKubelet},
	"start-kubelet": {"Start a node's kubelet again and wait until the node is Ready", started((*kube.Node).StartKubelet)},
	"stop-node":     {"End everything of a node, as if its power were cut; its files stay", (*kube.Node).Stop},
	"start-node":    {"Bring a stopped node back and wait until it is Ready", started((*kube.Node).Start)},
	"wipe-node":     {"Delete a stopped node's files: it comes back as newly installed", (*kube.Node).Wipe},
	"disconnect":    {"Cut a node off the network", (*kube.Node).Disconnect},
	"connect":       {"Put it back", (*kube.Node).Connect},
}

func started(start func(*kube.Node, context.Context) error) func(*kube.Node, context.Context) error {
	return func(n *kube.Node, ctx context.Context) error {
		if err := start(n, ctx); err != nil {
			return err
		}
		return n.WaitReady(ctx)
	}
}

func (t *tool) action(name string, a struct {
	short string
	do    func(*kube.Node, context.Context) error
}) *cobra.Command {
	return &cobra.Command{
		Use:   name + " NODE",
		Short: a.short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := t.find(args[0])
			if err != nil {
				return err
			}
			return a.do(n, cmd.Context())
		},
	}
}

// find is the node of a name or number.
func (t *tool) find(name string) (*kube.Node, error) {
	c, err := kube.Open(t.dir)
	if err != nil {
		return nil, err
	}
	return c.NodeNamed(name)
}

func (t *tool) node() *cobra.Command {
	return &cobra.Command{
		Use:   "node NODE -- COMMAND...",
		Short: "Run a command inside a node's namespaces",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("name a command: cluster node 1 -- ctr -n k8s.io images list")
			}
			n, err := t.find(args[0])
			if err != nil {
				return err
			}
			return attach(n.Command(cmd.Context(), args[1:]...))
		},
	}
}

func (t *tool) moveDisk() *cobra.Command {
	return &cobra.Command{
		Use:   "move-disk FROM TO",
		Short: "Move a stopped node's disk into another stopped node, in place of its own",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := t.find(args[0])
			if err != nil {
				return err
			}
			to, err := t.find(args[1])
			if err != nil {
				return err
			}
			return to.TakeDisk(cmd.Context(), from)
		},
	}
}
