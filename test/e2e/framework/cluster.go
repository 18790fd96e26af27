package framework

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Options say which cluster, and how to reach into it.
type Options struct {
	Kubeconfig string
	// NodeExec is a command that runs what follows inside a node; {node} stands for its name: "docker exec {node}". Empty: nothing is killed.
	NodeExec string
	// Machine is a command that does something to the cluster's machines; {command} stands for what, arguments follow: "cluster {command} --dir DIR".
	// Empty: what disturbs nodes is skipped.
	Machine string
	// Namespace is where Rowan is installed.
	Namespace string
	// Image has a shell, dd and sha256sum, and is on every node.
	Image string
	// Seed of the kills.
	Seed uint64
	// Victim is the process that every flow loses, one of Victims; empty: each draws one.
	Victim string
	// KillWithin is how many steps of a flow the kill is drawn from; 0: as many as most have.
	KillWithin int
	// Artifacts is the folder that a failed test's state is written to; empty: the test's own.
	Artifacts string
}

// Cluster is a cluster that has Rowan.
type Cluster struct {
	Options
	Config *rest.Config
	client.WithWatch
}

// Open reaches a cluster.
func Open(o Options) (*Cluster, error) {
	if err := o.checkVictim(); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
	}
	config.QPS, config.Burst = 200, 400
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, snapshotv1.AddToScheme, groupsnapshotv1.AddToScheme, rowanv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("make scheme: %w", err)
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("reach cluster of %s: %w", o.Kubeconfig, err)
	}
	return &Cluster{Options: o, Config: config, WithWatch: c}, nil
}

// OnNode runs a command inside a node and gives what it printed.
func (c *Cluster) OnNode(ctx context.Context, node string, command ...string) (string, error) {
	if c.NodeExec == "" {
		return "", errors.New("no way into nodes: give -node-exec")
	}
	var args []string
	for _, word := range strings.Fields(c.NodeExec) {
		args = append(args, strings.ReplaceAll(word, "{node}", node))
	}
	args = append(args, command...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("run %s on node %s: %w: %s", strings.Join(command, " "), node, err, out)
	}
	return string(out), nil
}

// Capable says whether processes on a node may have a capability, by its number. A node that cannot be asked may.
func (f *Flow) Capable(node string, capability uint) bool {
	f.Helper()
	if f.NodeExec == "" {
		return true
	}
	out, err := f.OnNode(f.Context(), node, "awk", "/^CapBnd/ {print $2}", "/proc/self/status")
	must(f, err)
	bits, err := strconv.ParseUint(strings.TrimSpace(out), 16, 64)
	must(f, err)
	return bits&(1<<capability) != 0
}

// must ends the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
