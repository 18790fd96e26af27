package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

var (
	// ErrExists means that the folder has a cluster already.
	ErrExists = errors.New("there is a cluster already")
	// ErrNone means that the folder has no cluster.
	ErrNone = errors.New("there is no cluster")
	// ErrDown means that what was asked for is not running.
	ErrDown = errors.New("not running")
)

// MaxNodes is how many nodes a cluster can have; their addresses end in 11 to 209.
const MaxNodes = 199

// Config says what to bring up.
type Config struct {
	Dir       string      // the cluster's folder; absent or empty
	Nodes     int         // 1 to MaxNodes
	Programs  build.Cache // complete
	Disk      int64       // bytes of each node's own disk at /var/lib/rowan, in a sparse file; 0: pools are on the machine's file system
	Kubelet   string      // the kubelets' folder, below /var/lib; "": DefaultKubeletDir
	Images    []string    // archives loaded into every node beside the cluster's own
	Snapshots bool        // install the snapshot API and its controller
	Log       io.Writer   // progress, a line each; nil: none
}

// Cluster is one that was brought up. Its methods may be called from several goroutines.
type Cluster struct {
	dir   string
	state state
	cache build.Cache
	log   io.Writer
}

// state is what a later process must know of a cluster; it is in the folder's cluster.json, written before the first thing is made.
type state struct {
	Nodes int
	Index int    // tells clusters of this machine apart: network, link, cgroup
	Cache string // folder of the programs
	Disk  int64  // bytes of each node's disk; 0: none

	KubeletDir string
}

func stateFile(dir string) string { return filepath.Join(dir, "cluster.json") }

// Open finds the cluster in a folder, whether all of it runs or not.
func Open(dir string) (*Cluster, error) {
	dir, err := settle(dir)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(stateFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s: bring one up with `go run ./hack/cluster up`, or name its folder with --dir", ErrNone, dir)
	}
	c := &Cluster{dir: dir, log: io.Discard}
	if err == nil {
		err = json.Unmarshal(text, &c.state)
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster in %s: %w", dir, err)
	}
	c.cache = build.Cache{Dir: c.state.Cache}
	return c, nil
}

func (c *Cluster) save() error {
	text, err := json.Marshal(c.state)
	if err != nil {
		return err
	}
	part := stateFile(c.dir) + ".part"
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return fmt.Errorf("save the cluster's state: %w", err)
	}
	return os.Rename(part, stateFile(c.dir))
}

// settle is a folder's path without symbolic links, whether it is there or not.
func settle(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	above, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return dir, nil
	}
	return filepath.Join(above, filepath.Base(dir)), err
}

// Dir is the cluster's folder.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the path of the administrator's; it works from the machine and from the nodes.
func (c *Cluster) Kubeconfig() string { return c.path("admin.conf") }

// LogDir has a log for each process of Kubernetes and containerd.
func (c *Cluster) LogDir() string { return c.path("log") }

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// Kubectl is the command kubectl, as administrator. It keeps its cache in the cluster's folder.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return c.client(ctx, "kubectl", args...)
}

// Helm is the command helm, as administrator.
func (c *Cluster) Helm(ctx context.Context, args ...string) *exec.Cmd {
	return c.client(ctx, "helm", args...)
}

func (c *Cluster) client(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.cache.Program(program), args...)
	cmd.Env = c.Environment(os.Environ())
	return cmd
}

// Environment adds to an environment what kubectl, helm and other clients need to reach this cluster.
func (c *Cluster) Environment(environ []string) []string {
	home := c.path("client")
	return append(environ, "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(home, "kubectl"),
		"HELM_CACHE_HOME="+filepath.Join(home, "helm-cache"), "HELM_CONFIG_HOME="+filepath.Join(home, "helm-config"),
		"HELM_DATA_HOME="+filepath.Join(home, "helm-data"), "PATH="+c.cache.Bin()+":"+os.Getenv("PATH"))
}

// DefaultKubeletDir is where nearly all distributions have the kubelet's folder.
const DefaultKubeletDir = "/var/lib/kubelet"

func (c *Cluster) kubeletDir() string {
	if c.state.KubeletDir == "" {
		return DefaultKubeletDir
	}
	return c.state.KubeletDir
}

// Nodes are all of the cluster's nodes.
func (c *Cluster) Nodes() (nodes []*Node) {
	for n := 1; n <= c.state.Nodes; n++ {
		nodes = append(nodes, c.Node(n))
	}
	return nodes
}

// Node is the node of that number, from 1 on.
func (c *Cluster) Node(n int) *Node { return &Node{c: c, number: n} }

// NodeNamed is the node of that name or number.
func (c *Cluster) NodeNamed(name string) (*Node, error) {
	for _, n := range c.Nodes() {
		if name == n.Name() || "node-"+name == n.Name() {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no node %s; there are node-1 to node-%d", name, c.state.Nodes)
}

func (c *Cluster) printf(format string, args ...any) { fmt.Fprintf(c.log, format+"\n", args...) }

// run runs a command and answers what it writes; that is in its error, too.
func run(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, text)
	}
	return text, nil
}
