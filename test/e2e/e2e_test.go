package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

var options framework.Options

func TestMain(m *testing.M) {
	flag.StringVar(&options.Kubeconfig, "kubeconfig", "", "the cluster")
	flag.StringVar(&options.NodeExec, "node-exec", "", "a command that runs what follows inside the node {node}; without it nothing is killed")
	flag.StringVar(&options.Machine, "machine", "", "a command that does {command} to a node: 'cluster {command} --dir DIR'; without it no node is disturbed")
	flag.StringVar(&options.Namespace, "rowan-namespace", "rowan-system", "where Rowan is installed")
	flag.StringVar(&options.Image, "image", "registry.k8s.io/e2e-test-images/busybox:1.37.0-1", "an image with a shell, on every node")
	flag.StringVar(&options.Artifacts, "artifacts", "", "the folder for what is left of failed tests")
	flag.Uint64Var(&options.Seed, "seed", 0, "draws the kills; 0: a new one")
	flag.StringVar(&options.Victim, "kill", "", "the process that every flow loses: "+strings.Join(framework.Victims(), ", ")+"; each draws one without")
	flag.IntVar(&options.KillWithin, "kill-within", 0, "draw the kill from so many of a flow's first steps; 0: from as many as most have")
	flag.Parse()
	if options.Seed == 0 {
		options.Seed = rand.Uint64()
	}
	if options.Kubeconfig != "" {
		fmt.Printf("seed %d\n", options.Seed)
	}
	os.Exit(m.Run())
}

var open = sync.OnceValues(func() (*framework.Cluster, error) { return framework.Open(options) })

// cluster is the cluster of this run.
func cluster(t *testing.T) *framework.Cluster {
	t.Helper()
	if options.Kubeconfig == "" {
		t.Skip("needs a cluster: make e2e")
	}
	c, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// flow is a test that runs beside others.
func flow(t *testing.T) *framework.Flow {
	t.Helper()
	c := cluster(t)
	t.Parallel()
	return c.Flow(t)
}
