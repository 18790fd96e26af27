// Command rowan-driver is Rowan's CSI plugin. With --node it serves the CSI node service and carries out the custom resources of its node. With --controller
// it serves the CSI controller service of a Kubernetes cluster, by those custom resources.
// With --standalone it serves all CSI services of one node straight on that node's engine, without Kubernetes: for demonstrations,
// tests and other orchestrators.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/driver"
)

// version is set when a release is linked: -ldflags "-X main.version=v1.2.3". It is never empty: the side-cars refuse a driver without one.
var version = "v0.0.0-dev"

// grace is how long calls under way may take after a signal to end.
const grace = 20 * time.Second

// mode is one of the ways to run.
type mode struct {
	name  string // of the flag that chooses it
	usage string
	run   func(context.Context) error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	klog.Flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rowan-driver:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rowan-driver --node|--controller|--standalone [flags]",
		Short: "The CSI plugin " + driver.Name,
		Long: "rowan-driver serves CSI on a unix socket.\n" +
			"With --node it serves the identity and node services of a Kubernetes node, and carries out that node's custom resources.\n" +
			"With --controller it serves the identity and controller services of a Kubernetes cluster: what is asked for becomes custom resources.\n" +
			"With --standalone it serves all services for the pools of the engine on this node alone, without Kubernetes.",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := cmd.Flags()
	f.SortFlags = false
	var shared sharedOptions
	node, controller, standalone := nodeOptions{shared: &shared}, controllerOptions{shared: &shared}, standaloneOptions{shared: &shared}
	modes := []mode{
		{"node", "serve the CSI node service of a Kubernetes node, and carry out its custom resources", node.run},
		{"controller", "serve the CSI controller service of a Kubernetes cluster", controller.run},
		{"standalone", "serve all CSI services straight on this node's engine", standalone.run},
	}
	chosen := make([]bool, len(modes))
	for i, m := range modes {
		f.BoolVar(&chosen[i], m.name, false, m.usage)
	}
	shared.flags(f)
	node.flags(f)
	controller.flags(f)
	standalone.flags(f)
	logFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(logFlags)
	for _, name := range []string{"v", "vmodule"} {
		f.AddGoFlag(logFlags.Lookup(name))
	}
	cmd.AddCommand(thawGuard())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := choose(modes, chosen)
		if err != nil {
			return err
		}
		return m.run(cmd.Context())
	}
	return cmd
}

// choose is the one mode that is asked for.
func choose(modes []mode, chosen []bool) (m mode, err error) {
	names := ""
	for i := range modes {
		names += " --" + modes[i].name
		if !chosen[i] {
			continue
		}
		if m.run != nil {
			return m, fmt.Errorf("--%s and --%s: a process runs one of them", m.name, modes[i].name)
		}
		m = modes[i]
	}
	if m.run == nil {
		return m, errors.New("nothing to serve: choose one of" + names)
	}
	return m, nil
}
