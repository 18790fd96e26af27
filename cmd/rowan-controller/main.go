// Command rowan-controller looks after what is not one node's business: which nodes have pools, nodes that are gone, disks that moved, where a
// restored volume is made, and snapshots by policy. Any number of replicas run; one of them, which holds the lease, works.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // policies name zones, and the image has none

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/rowan-csi/rowan/pkg/controller"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// version is set when a release is linked: -ldflags "-X main.version=v1.2.3".
var version = "v0.0.0-dev"

const (
	name = "rowan-controller"
	// podNamespace is where a pod's own namespace is written.
	podNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

type options struct {
	kit.Config
	leaderElect    bool
	healthAddress  string
	metricsAddress string
	qps            float32
	burst          int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	klog.Flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := options{Config: kit.DefaultConfig}
	cmd := &cobra.Command{
		Use:           name + " [flags]",
		Short:         "Rowan's controllers of pools, lost nodes, placement and snapshot policies",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.Namespace, "namespace", "", "the namespace of the release: of the agents' leases and of this process's own; default: the pod's")
	f.BoolVar(&o.leaderElect, "leader-elect", false, "work only while holding the lease "+name+": needed where there are several replicas")
	f.StringVar(&o.healthAddress, "health-address", ":9809", "the address to serve /healthz and /readyz on")
	f.StringVar(&o.metricsAddress, "metrics-address", ":9810", "the address to serve /metrics on; 0: none")
	f.DurationVar(&o.NodeLostAfter, "node-lost-after", o.NodeLostAfter,
		"how long a Node must be gone and its agent silent, until its volumes are NodeLost")
	f.DurationVar(&o.UnselectedAfter, "unselected-after", o.UnselectedAfter,
		"how long a PoolSet must not have chosen a node, until that node's empty pool is given up")
	f.BoolVar(&o.SnapshotPolicies, "snapshot-policies", o.SnapshotPolicies,
		"carry out SnapshotPolicies and ClusterSnapshotPolicies, once the definitions of VolumeSnapshots are installed")
	f.Float32Var(&o.qps, "kube-api-qps", 100, "requests a second to the API server")
	f.IntVar(&o.burst, "kube-api-burst", 200, "requests to the API server at once")
	logFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(logFlags)
	for _, flagName := range []string{"v", "vmodule"} {
		f.AddGoFlag(logFlags.Lookup(flagName))
	}
	cmd.AddCommand(applyCommand(), checkUninstallCommand())
	return cmd
}

// complete fills in what was not said, and refuses what cannot be.
func (o *options) complete() error {
	if o.Namespace == "" {
		b, err := os.ReadFile(podNamespace)
		if err != nil {
			return fmt.Errorf("--namespace is empty, and this is no pod that knows its own (%w): set it", err)
		}
		o.Namespace = strings.TrimSpace(string(b))
	}
	switch {
	case o.NodeLostAfter < time.Minute:
		return fmt.Errorf("--node-lost-after %s: must be a minute at least, for a node that restarts is not lost", o.NodeLostAfter)
	case o.UnselectedAfter < 0:
		return fmt.Errorf("--unselected-after %s: must not be negative", o.UnselectedAfter)
	case !(o.qps > 0) || o.burst < 1:
		return errors.New("--kube-api-qps and --kube-api-burst must be over 0")
	}
	return nil
}

func run(ctx context.Context, o options) error {
	if err := o.complete(); err != nil {
		return err
	}
	ctrl.SetLogger(klog.Background())
	cluster, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	cluster.QPS, cluster.Burst = o.qps, o.burst
	m, err := o.manager(cluster)
	if err != nil {
		return err
	}
	k := &kit.Kit{Config: o.Config, Client: m.GetClient(), Live: m.GetAPIReader(), Events: m.GetEventRecorder(name), Clock: clock.RealClock{}}
	if err := controller.Register(ctx, m, k); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Starting", "version", version, "namespace", o.Namespace, "leaderElect", o.leaderElect, "nodeLostAfter", o.NodeLostAfter)
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("run the controllers: %w", err)
	}
	klog.FromContext(ctx).Info("Stopped")
	return nil
}

func (o *options) manager(cluster *rest.Config) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := controller.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("make the scheme: %w", err)
	}
	m, err := ctrl.NewManager(cluster, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         controller.CacheOptions(o.Namespace),
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              name,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true, // run ends with the manager, and nothing is written after
		HealthProbeBindAddress:        o.healthAddress,
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
	})
	if err != nil {
		return nil, fmt.Errorf("make the manager: %w", err)
	}
	if err := m.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("add the health check: %w", err)
	}
	if err := m.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("add the readiness check: %w", err)
	}
	return m, nil
}
