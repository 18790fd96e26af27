package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// needed are the programs of other packages that a cluster runs; hack/setup.sh cluster installs them.
var needed = []string{"nsenter", "unshare", "setsid", "ip", "runc", "iptables", "conntrack", "mount", "losetup", "mkfs.xfs", "/usr/lib/cni/ptp"}

// Check says what this machine lacks; nil if a cluster can run here.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: namespaces, mounts and cgroups")
	}
	var missing []string
	for _, program := range needed {
		if _, err := exec.LookPath(program); err != nil {
			if _, err := os.Stat(filepath.Join("/usr/sbin", program)); err != nil {
				missing = append(missing, program)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s; install them with `hack/setup.sh cluster`", strings.Join(missing, ", "))
	}
	_, _, err := hierarchies()
	return err
}

// Up brings a cluster up. When it fails, what it made stays for a look at its logs, until Down.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	c, err := claim(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.up(ctx, cfg); err != nil {
		return c, fmt.Errorf("bring up the cluster in %s: %w", c.dir, err)
	}
	return c, nil
}

// hidden are the folders that a node has of its own, or that nodes share with the machine only in part. The cluster's files cannot be there.
var hidden = []string{"/run", "/var/lib", "/var/log", "/proc", "/sys", "/dev"}

// claim takes the folder and a network for a cluster, and makes its control plane's namespaces, by whose link others see that the network is taken.
func claim(ctx context.Context, cfg Config) (*Cluster, error) {
	dir, err := settle(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return nil, fmt.Errorf("a cluster has 1 to %d nodes, not %d", MaxNodes, cfg.Nodes)
	}
	if cfg.Disk != 0 && cfg.Disk < minDisk {
		return nil, fmt.Errorf("a node's disk has at least %d MiB, not %d bytes", minDisk>>20, cfg.Disk)
	}
	if cfg.Kubelet != "" && (!strings.HasPrefix(cfg.Kubelet, "/var/lib/") || filepath.Clean(cfg.Kubelet) != cfg.Kubelet) {
		return nil, fmt.Errorf("the kubelet's folder %s is not below /var/lib, which is what a node has of its own", cfg.Kubelet)
	}
	for _, folder := range []string{dir, cfg.Programs.Dir} {
		for _, h := range hidden {
			if strings.HasPrefix(folder+"/", h+"/") {
				return nil, fmt.Errorf("%s is in %s, of which a node has its own: use another folder", folder, h)
			}
		}
	}
	if missing := cfg.Programs.Missing(); len(missing) > 0 {
		return nil, fmt.Errorf("not built yet: %s; run `go run ./hack/cluster build`", strings.Join(missing, ", "))
	}
	c := &Cluster{dir: dir, cache: cfg.Programs, log: cfg.Log}
	if c.log == nil {
		c.log = io.Discard
	}
	if err := makeStore(ctx, c.cache, c.log); err != nil {
		return nil, err
	}
	unlock, err := lockMachine(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cluster's folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(stateFile(dir)); err == nil {
		return nil, fmt.Errorf("%w in %s: use it, or take it down with `go run ./hack/cluster down --dir %s`", ErrExists, dir, dir)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty: a cluster's folder is removed with it; name one that is absent or empty", dir)
	}
	index, err := freeIndex()
	if err != nil {
		return nil, err
	}
	c.state = state{Nodes: cfg.Nodes, Index: index, Cache: cfg.Programs.Dir, Disk: cfg.Disk, KubeletDir: cfg.Kubelet}
	if err := c.save(); err != nil {
		return nil, err
	}
	if err := saveSettings(); err != nil {
		return nil, err
	}
	if err := c.startNamespaces(ctx, 0); err != nil {
		return nil, err
	}
	return c, c.plug(ctx)
}

func (c *Cluster) up(ctx context.Context, cfg Config) error {
	start := time.Now()
	for _, archive := range cfg.Images {
		if err := c.keep(archive); err != nil {
			return err
		}
	}
	if err := c.makePKI(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var control, runtimes error
	served := make(chan struct{}) // the API server answers, or will not
	wg.Go(func() {
		control = c.startControlPlane(ctx)
		close(served)
		c.printf("the API server answers after %.0f s", time.Since(start).Seconds())
	})
	wg.Go(func() {
		runtimes = c.each(func(n *Node) error {
			if err := n.startRuntime(ctx); err != nil {
				return err
			}
			<-served // a kubelet that finds no API server asks again after seconds
			if err := n.StartKubelet(ctx); err != nil {
				return err
			}
			return n.startProxy(ctx)
		})
	})
	wg.Wait()
	if err := errors.Join(control, runtimes); err != nil {
		return err
	}
	if err := errors.Join(c.awaitDefaults(ctx), c.each(func(n *Node) error { return n.WaitReady(ctx) })); err != nil {
		return err
	}
	c.printf("%d nodes are Ready after %.0f s", c.state.Nodes, time.Since(start).Seconds())
	if err := c.installAddons(ctx, cfg.Snapshots); err != nil {
		return err
	}
	c.printf("up after %.0f s", time.Since(start).Seconds())
	return nil
}
