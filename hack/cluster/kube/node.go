package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

// Node is one of a cluster's nodes.
type Node struct {
	c      *Cluster
	number int
}

// endTime is how long a killed process may take to end.
const endTime = 30 * time.Second

// Name is the node's name in Kubernetes, and its host name.
func (n *Node) Name() string { return nodeName(n.number) }

// Address is the node's internal address.
func (n *Node) Address() string { return n.c.address(n.number) }

// Folder is where the machine has a node's /var/lib, without what is on its disk.
func (n *Node) Folder() string { return n.c.path(n.Name(), "lib") }

// Command runs in the node's namespaces. Ending its context ends nsenter(1), not what that has started.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return n.c.command(ctx, n.number, args...)
}

// startRuntime brings up a node whose namespaces are gone, but not its kubelet, which needs the API server.
func (n *Node) startRuntime(ctx context.Context) error {
	c := n.c
	_, err := os.Stat(n.file("lib/containerd"))
	fresh := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(n.file("lib"), 0o755); err != nil {
		return err
	}
	if err := linkStore(c.cache.Store(), n.file("lib/containerd")); err != nil {
		return err
	}
	if err := n.makeDisk(ctx); err != nil {
		return err
	}
	if err := c.startNamespaces(ctx, n.number); err != nil {
		return err
	}
	if err := n.mountDisk(ctx); err != nil {
		return err
	}
	if err := c.plugNode(ctx, n.number); err != nil {
		return err
	}
	if err := n.makeCgroups(); err != nil {
		return err
	}
	if err := n.writeConfigs(); err != nil {
		return err
	}
	if err := c.daemon(ctx, n.number, c.cache.Program("containerd"), "--config", n.file("containerd.toml")); err != nil {
		return err
	}
	err = c.await(ctx, n.number, "containerd", "containerd answers on "+n.Name(), func() error {
		_, err := run(n.Command(ctx, "ctr", "version"))
		return err
	})
	if err != nil || !fresh {
		return err
	}
	return n.Load(ctx, c.kept()...)
}

// each does something on all nodes at once.
func (c *Cluster) each(do func(*Node) error) error {
	nodes := c.Nodes()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = do(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// StartKubelet starts the kubelet, which must not run. It does not wait for the node to be Ready.
func (n *Node) StartKubelet(ctx context.Context) error {
	if runs, err := n.c.programs(n.number, "kubelet"); err != nil {
		return err
	} else if len(runs) > 0 {
		return fmt.Errorf("start the kubelet of %s: it runs already", n.Name())
	}
	// WaitReady believes nothing that was said before this.
	if err := os.WriteFile(n.file("kubelet-started"), []byte(time.Now().UTC().Format(time.RFC3339Nano)), 0o644); err != nil {
		return err
	}
	return n.c.daemon(ctx, n.number, n.c.cache.Program("kubelet"), "--config="+n.file("kubelet.json"), "--kubeconfig="+n.c.path(n.Name()+".conf"),
		"--hostname-override="+n.Name(), "--node-ip="+n.Address(), "--root-dir="+n.c.kubeletDir())
}

func (n *Node) startProxy(ctx context.Context) error {
	return n.c.daemon(ctx, n.number, n.c.cache.Program("kube-proxy"), "--config="+n.file("proxy.json"), "--hostname-override="+n.Name())
}

// KillKubelet ends the kubelet with SIGKILL. Pods go on.
func (n *Node) KillKubelet(ctx context.Context) error {
	killed, err := n.Kill(ctx, "kubelet")
	if err == nil && killed == 0 {
		err = fmt.Errorf("kill the kubelet of %s: %w", n.Name(), ErrDown)
	}
	return err
}

// Kill ends all processes of the node, those in containers included, that run a program of that name, with SIGKILL. It returns how many when they
// have ended; none is no error.
func (n *Node) Kill(ctx context.Context, program string) (int, error) {
	found, err := n.c.programs(n.number, program)
	if err != nil {
		return 0, err
	}
	for _, p := range found {
		if err := p.signal(unix.SIGKILL); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return len(found), until(ctx, fmt.Sprintf("%s ends on %s", program, n.Name()), func() error {
		for _, p := range found {
			if !p.gone() {
				return fmt.Errorf("process %d is still there", p.pid)
			}
		}
		return nil
	})
}

// Runs says whether the node's namespaces are there, and how many processes are in them.
func (n *Node) Runs() (processCount int, err error) {
	root, err := n.c.init(n.number)
	if errors.Is(err, ErrDown) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	list, err := processes()
	return len(below(list, root)), err
}

// Disconnect cuts the node off the network: it is up, and nobody sees it.
func (n *Node) Disconnect(ctx context.Context) error {
	return n.c.ip(ctx, 0, fmt.Sprintf("link set to-%d down", n.number))
}

// Connect puts it back.
func (n *Node) Connect(ctx context.Context) error {
	return n.c.ip(ctx, 0, fmt.Sprintf("link set to-%d up", n.number))
}

// WaitReady waits until the kubelet that runs now calls the node Ready.
func (n *Node) WaitReady(ctx context.Context) error {
	api, err := n.c.api()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(n.file("kubelet-started"))
	if err != nil {
		return fmt.Errorf("the kubelet of %s was never started: %w", n.Name(), err)
	}
	since, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		return err
	}
	return n.c.await(ctx, n.number, "kubelet", n.Name()+" is Ready", func() error { return api.ready(ctx, n.Name(), since) })
}

func (n *Node) file(name string) string { return n.c.path(n.Name(), name) }

// writeConfigs writes what the node's programs read.
func (n *Node) writeConfigs() error {
	values := strings.NewReplacer("@CGROUP@", cgroupName(n.c.state.Index, n.number), "@CA@", n.c.pki("ca.crt"), "@CRT@", n.c.pki(n.Name()+".crt"),
		"@KEY@", n.c.pki(n.Name()+".key"), "@DNS@", dnsIP, "@PAUSE@", build.Pause, "@CNI@", n.file("cni"), "@PODS@", pods(n.number),
		"@KUBECONFIG@", n.c.path("proxy.conf"), "@KUBELET@", n.c.kubeletDir())
	for name, text := range map[string]string{
		"containerd.toml": containerdConfig, "cni/10-pods.conflist": cniConfig, "kubelet.json": kubeletConfig, "proxy.json": proxyConfig,
	} {
		if err := os.MkdirAll(filepath.Dir(n.file(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(n.file(name), []byte(values.Replace(text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}
