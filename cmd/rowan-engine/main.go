// Command rowan-engine is the data plane of a node: it owns the pools, serves the attached devices, and answers on a unix socket. SIGTERM ends it in
// order and leaves every device in place for the next engine. `rowan-engine keeper` is the small process that holds the devices meanwhile.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// version is set by the build (-ldflags -X main.version=…).
var version string

// options are the flags.
type options struct {
	socket, stateDir, ringDir, mountDir, keeperSocket, pprofSocket string
	mapCache, memoryLimit, checksumRate, scrubRate                 size
	checksumDelay, scrubEvery                                      time.Duration
	ioUring                                                        ringMode
	startKeeper                                                    bool
	stopTimeout, spaceWait                                         time.Duration
	warnAt, refuseAt                                               float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command().ExecuteContext(ctx)
	if err != nil {
		klog.ErrorS(err, "rowan-engine ends")
	}
	klog.Flush()
	if err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := options{mapCache: 128 << 20, memoryLimit: 1 << 30, checksumRate: engine.DefaultChecksumRate, scrubRate: engine.DefaultScrubRate}
	serve := func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), o) }
	root := &cobra.Command{
		Use:           "rowan-engine",
		Short:         "Serve this node's pools and attached volumes",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          serve,
	}
	f := root.PersistentFlags()
	f.StringVar(&o.keeperSocket, "keeper-socket", "/run/rowan/keeper.sock", "the keeper's socket; empty: no keeper, devices end with the engine")
	verbosity := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(verbosity)
	f.AddGoFlag(verbosity.Lookup("v"))

	f = root.Flags()
	f.StringVar(&o.socket, "socket", "/run/rowan/engine.sock", "where to answer; mode 0600")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/rowan", "folder of the list of pools to open, and of the mounts of pools on devices")
	f.StringVar(&o.ringDir, "ring-dir", "/run/rowan/rings", "folder of the pools' rings, on a tmpfs of the host that outlives the engine")
	f.StringVar(&o.mountDir, "mount-dir", "", "folder where pools on devices are mounted (default: mnt in --state-dir)")
	f.Var(&o.mapCache, "map-cache", "memory for each pool's flattened map")
	f.Var(&o.ioUring, "io-uring", "read and write data through io_uring: auto (while processors are short), always or never")
	f.Var(&o.checksumRate, "checksum-rate", "how much is read a second to make checksums of frozen blocks; 0: none are made")
	f.DurationVar(&o.checksumDelay, "checksum-delay", engine.DefaultChecksumDelay, "how long after a snapshot its blocks get their checksums")
	f.DurationVar(&o.scrubEvery, "scrub-every", 0, "how often every pool is scrubbed, from the start of the engine on (0: on request)")
	f.Var(&o.scrubRate, "scrub-rate", "how much such a scrub reads a second")
	f.Var(&o.memoryLimit, "memory-limit", "soft limit of the Go heap (GOMEMLIMIT overrides it)")
	f.BoolVar(&o.startKeeper, "start-keeper", true, "start a keeper of our own where none answers; it outlives the engine")
	f.DurationVar(&o.stopTimeout, "stop-timeout", 25*time.Second, "how long requests under way may take at the end")
	f.Float64Var(&o.warnAt, "warn-at", engine.DefaultWarnAt, "the part of a pool's space in use from which on its log warns; over 1: never")
	f.Float64Var(&o.refuseAt, "refuse-at", engine.DefaultRefuseAt, "the part from which on a pool takes no new volumes and snapshots; over 1: never")
	f.DurationVar(&o.spaceWait, "space-wait", engine.DefaultSpaceWait, "how long writes wait for space in a full pool before they get ENOSPC")
	f.StringVar(&o.pprofSocket, "pprof-socket", "", "serve figures (/debug/figures) and Go profiles on this unix socket")

	named := &cobra.Command{Use: "serve", Short: "Serve (what it does without a command)", Args: cobra.NoArgs, RunE: serve}
	named.Flags().AddFlagSet(f)
	root.AddCommand(
		named,
		&cobra.Command{
			Use: "keeper", Short: "Hold the devices of engines that come and go", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return keep(cmd.Context(), o.keeperSocket) },
		},
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), buildVersion()) },
		},
	)
	return root
}

// buildVersion is what the build set, or else what Go noted of the source.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
