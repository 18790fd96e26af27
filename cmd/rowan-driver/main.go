// Command rowan-driver is Rowan's CSI plugin. With --standalone it serves all CSI services of one node straight on that node's engine, without
// Kubernetes: for demonstrations, tests and other orchestrators.
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
	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// version is set when a release is linked: -ldflags "-X main.version=v1.2.3". It is never empty: the side-cars refuse a driver without one.
var version = "v0.0.0-dev"

// grace is how long calls under way may take after a signal to end.
const grace = 20 * time.Second

type options struct {
	standalone   bool
	endpoint     string
	engineSocket string
	node         string
	pool         string
	maxVolumes   int64
	overcommit   float64
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
	var o options
	hostname, _ := os.Hostname()
	cmd := &cobra.Command{
		Use:   "rowan-driver --standalone [flags]",
		Short: "The CSI plugin " + driver.Name,
		Long: "rowan-driver serves CSI (identity, controller and node services) on a unix socket.\n" +
			"With --standalone it does so for the pools of the engine on this node alone, without Kubernetes.",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&o.standalone, "standalone", false, "serve all CSI services straight on this node's engine")
	f.StringVar(&o.endpoint, "endpoint", "unix:///run/rowan/csi.sock", "the socket to serve CSI on, as unix:///absolute/path")
	f.StringVar(&o.engineSocket, "engine-socket", "/run/rowan/engine.sock", "the engine's socket")
	f.StringVar(&o.node, "node-name", hostname, "this node's name: its node ID, and the value of "+driver.TopologyKey)
	f.StringVar(&o.pool, "pool", "default", "the pool of volumes whose parameters name none")
	f.Int64Var(&o.maxVolumes, "max-volumes-per-node", 0, "how many volumes may be in use here; 0: no limit")
	f.Float64Var(&o.overcommit, "overcommit", volume.DefaultAdmission.Overcommit, "how much space a pool may promise, as a multiple of its size")
	logFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(logFlags)
	for _, name := range []string{"v", "vmodule"} {
		f.AddGoFlag(logFlags.Lookup(name))
	}
	return cmd
}

func (o options) check() error {
	switch {
	case !o.standalone:
		return errors.New("nothing to serve: --standalone is the only way to run that this version has")
	case o.node == "":
		return errors.New("--node-name is empty, and so is the host's name: set it")
	case o.pool == "":
		return errors.New("--pool is empty: name the pool that volumes go to")
	case o.maxVolumes < 0:
		return fmt.Errorf("--max-volumes-per-node %d: must not be negative", o.maxVolumes)
	case !(o.overcommit > 0):
		return fmt.Errorf("--overcommit %g: must be over 0", o.overcommit)
	}
	return nil
}

func run(ctx context.Context, o options) error {
	if err := o.check(); err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	engine, err := rpc.Dial(o.engineSocket)
	if err != nil {
		return err
	}
	service := volume.Open(local.New(engine, local.Config{
		Node: volume.NodeID(o.node), Pool: o.pool, Admission: volume.Admission{Overcommit: o.overcommit},
	}))
	listener, err := driver.Listen(o.endpoint)
	if err != nil {
		return errors.Join(err, engine.Close())
	}
	server := driver.NewServer(logger, driver.Services{
		Identity:   driver.NewIdentity(version, true, service.Health),
		Controller: driver.NewController(service),
		Node:       driver.NewNode(service, mount.New(), o.maxVolumes),
	})
	logger.Info("Serving", "driver", driver.Name, "version", version, "endpoint", o.endpoint, "node", o.node, "pool", o.pool, "engine", o.engineSocket)
	err = driver.Serve(ctx, listener, server, grace)
	logger.Info("Stopped")
	return errors.Join(err, engine.Close())
}
