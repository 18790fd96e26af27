package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/rowan-csi/rowan/pkg/agent"
	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/freeze"
	"github.com/rowan-csi/rowan/pkg/kubelet"
)

// healthTimeout bounds the question whether the engine answers.
const healthTimeout = 5 * time.Second

// nodeOptions are --node's.
type nodeOptions struct {
	shared          *sharedOptions
	registrationDir string
	kubeletDir      string
	interval        time.Duration
}

func (o *nodeOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "--node: the kubelet's folder, on the host and here")
	f.StringVar(&o.registrationDir, "registration-dir", "", "--node: where the kubelet looks for plugins; empty: plugins_registry in --kubelet-dir")
	f.DurationVar(&o.interval, "poll-interval", 15*time.Second, "--node: how often pools are looked at for what only the engine knows")
}

func (o *nodeOptions) check() error {
	if o.registrationDir == "" {
		o.registrationDir = filepath.Join(o.kubeletDir, "plugins_registry")
	}
	switch {
	case o.shared.node == "":
		return errors.New("--node-name is empty, and so is the host's name: set it")
	case o.shared.maxVolumes < 0:
		return fmt.Errorf("--max-volumes-per-node %d: must not be negative", o.shared.maxVolumes)
	case !filepath.IsAbs(o.kubeletDir), !filepath.IsAbs(o.registrationDir):
		return fmt.Errorf("--kubelet-dir %q, --registration-dir %q: must be absolute paths", o.kubeletDir, o.registrationDir)
	case o.interval < time.Second:
		return fmt.Errorf("--poll-interval %v: at least 1s", o.interval)
	}
	return nil
}

// nodePlugin is what --node runs.
type nodePlugin struct {
	options      *nodeOptions
	engine       *rpc.Client
	freezer      *freeze.Freezer
	manager      manager.Manager
	agent        *agent.Agent
	registration *kubelet.Registration
}

// run serves the CSI node service and the agent that carries out this node's custom resources.
func (o *nodeOptions) run(ctx context.Context) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	ctrl.SetLogger(klog.FromContext(ctx))
	p := &nodePlugin{options: o}
	// Before anything else: what an earlier process left frozen is somebody's pod.
	if p.freezer, err = freezer(ctx, o.shared.frozenDir); err != nil {
		return err
	}
	if p.engine, err = rpc.Dial(o.shared.engineSocket); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.engine.Close()) }()
	if err := p.setUp(); err != nil {
		return err
	}
	// The kubelet asks the driver's own socket right after the registration's: so it is there first.
	listener, err := driver.Listen(o.shared.endpoint)
	if err != nil {
		return err
	}
	stopHTTP, err := o.shared.serveHTTP(p.ready)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, stopHTTP()) }()
	node := p.agent.Node()
	server := driver.NewServer(klog.FromContext(ctx), driver.Services{
		Identity: driver.NewIdentity(version, false, node.Health),
		Node:     driver.NewNode(node, mount.New(), driver.NodeOptions{Name: o.shared.node, MaxVolumes: o.shared.maxVolumes}),
		Observe:  measure,
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return driver.Serve(ctx, listener, server, grace) })
	g.Go(func() error { return p.manager.Start(ctx) })
	g.Go(func() error { return p.register(ctx) })
	g.Go(func() error {
		p.agent.Live(ctx, func() bool { return p.registration.Registered() == nil }, func(err error) {
			if ctx.Err() == nil {
				klog.FromContext(ctx).Info("To be tried again", "reason", err.Error())
			}
		})
		return nil
	})
	klog.FromContext(ctx).Info("Serving", "driver", driver.Name, "version", version, "endpoint", o.shared.endpoint, "node", o.shared.node,
		"engine", o.shared.engineSocket)
	err = g.Wait()
	klog.FromContext(ctx).Info("Stopped")
	return err
}

// setUp makes the manager and the agent.
func (p *nodePlugin) setUp() error {
	o := p.options
	config, namespace, err := o.shared.kube()
	if err != nil {
		return err
	}
	scheme, err := agent.Scheme()
	if err != nil {
		return fmt.Errorf("set up the API's kinds: %w", err)
	}
	p.manager, err = ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Cache: cache.Options{ByObject: agent.Selectors(o.shared.node), DefaultTransform: cache.TransformStripManagedFields()},
		Client:  client.Options{Cache: &client.CacheOptions{DisableFor: agent.Uncached()}},
		Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0", // serveHTTP has both
	})
	if err != nil {
		return fmt.Errorf("set up the agent: %w", err)
	}
	endpoint := strings.TrimPrefix(o.shared.endpoint, "unix://")
	p.agent, err = agent.New(p.manager.GetClient(), p.manager.GetAPIReader(), p.engine, p.manager.GetEventRecorder("rowan-agent"), agent.Config{
		Node: o.shared.node, Namespace: namespace, IdentityFile: filepath.Join(filepath.Dir(endpoint), "identity"), Interval: o.interval,
		Freeze: freezing(p.freezer),
	})
	if err != nil {
		return err
	}
	p.registration = kubelet.New(driver.Name, endpoint)
	if err := metrics.Registry.Register(p.agent.Metrics()); err != nil {
		return fmt.Errorf("set up metrics: %w", err)
	}
	return p.agent.SetUp(p.manager)
}

// ready says whether the kubelet knows the driver and the engine answers.
func (p *nodePlugin) ready(ctx context.Context) error {
	if err := p.registration.Registered(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	_, err := p.engine.Version(ctx)
	return err
}

// register waits until the node's identity is known, which the kubelet asks for and compares with the Node's label, and serves the registration.
func (p *nodePlugin) register(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		_, err := p.agent.KeepNode(ctx, false) // or the kubelet would refuse an identity that has changed
		if err == nil {
			break
		}
		klog.FromContext(ctx).Info("Cannot be registered yet", "reason", err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return p.registration.Serve(ctx, kubelet.Socket(p.options.registrationDir, driver.Name))
}
