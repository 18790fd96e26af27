// Command cluster runs a real Kubernetes of several nodes on this machine, from Go modules: no registry, no virtual machines, no containers of
// another tool. Without arguments it says what it can do; docs/cluster.md has more.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/cluster/build"
	"github.com/rowan-csi/rowan/hack/cluster/kube"
	"github.com/rowan-csi/rowan/pkg/bytesize"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var passed passedOn
	if errors.As(err, &passed) {
		os.Exit(passed.code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// tool is what the commands share.
type tool struct {
	dir   string
	cache build.Cache
}

func command() *cobra.Command {
	t := &tool{}
	var version string
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes on this machine",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			dir, err := os.UserCacheDir()
			if err == nil {
				t.cache, err = build.Locate(dir, version)
			}
			return err
		},
	}
	root.PersistentFlags().StringVar(&t.dir, "dir", defaultDir(), "the cluster's folder; ROWAN_CLUSTER sets another default")
	root.PersistentFlags().StringVar(&version, "kubernetes", build.Kubernetes, "version of Kubernetes, for build and up; v1.32.0 or newer")
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(t.build(), t.up(), t.down(), t.status(), t.client("kubectl", (*kube.Cluster).Kubectl), t.client("helm", (*kube.Cluster).Helm),
		t.node(), t.image(), t.rowan(), t.load(), t.logs(), t.moveDisk())
	for name, do := range nodeActions {
		root.AddCommand(t.action(name, do))
	}
	return root
}

func defaultDir() string {
	if dir := os.Getenv("ROWAN_CLUSTER"); dir != "" {
		return dir
	}
	return "/var/tmp/rowan-cluster" // /tmp is in memory on many machines
}

func (t *tool) build() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build Kubernetes, containerd, the side-cars and their images, once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.cache.Build(cmd.Context(), os.Stdout); err != nil {
				return err
			}
			fmt.Println("built:", t.cache.Dir)
			return nil
		},
	}
}

func (t *tool) up() *cobra.Command {
	cfg := kube.Config{Log: os.Stdout}
	var disk string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up; build what is not built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if disk != "0" {
				var err error
				if cfg.Disk, err = bytesize.Parse(disk); err != nil {
					return fmt.Errorf("--disk: %w", err)
				}
			}
			if err := kube.Check(); err != nil {
				return err
			}
			if err := t.cache.Build(cmd.Context(), os.Stdout); err != nil {
				return err
			}
			cfg.Dir, cfg.Programs = t.dir, t.cache
			c, err := kube.Up(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Println("export KUBECONFIG=" + c.Kubeconfig())
			return nil
		},
	}
	cmd.Flags().StringVar(&disk, "disk", bytesize.Format(kube.DefaultDisk),
		"size of each node's disk, a sparse file, where pools are; 0: they are on this machine's file system")
	cmd.Flags().StringVar(&cfg.Kubelet, "kubelet-dir", kube.DefaultKubeletDir, "the kubelets' folder, below /var/lib, as other distributions have it")
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", 3, "how many nodes")
	cmd.Flags().BoolVar(&cfg.Snapshots, "snapshots", true, "install the snapshot API and its controller")
	cmd.Flags().StringSliceVar(&cfg.Images, "image", nil, "archive of an image to load into every node; may be repeated")
	return cmd
}

func (t *tool) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take the cluster down; nothing is left of it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return kube.Down(cmd.Context(), t.dir) },
	}
}

func (t *tool) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := kube.Open(t.dir)
			if err != nil {
				return err
			}
			fmt.Printf("folder      %s\nkubeconfig  %s\nlogs        %s\n", c.Dir(), c.Kubeconfig(), c.LogDir())
			for _, n := range c.Nodes() {
				count, err := n.Runs()
				if err != nil {
					return err
				}
				state := fmt.Sprintf("up, %d processes", count)
				if count == 0 {
					state = "stopped"
				}
				fmt.Printf("%-11s %s, %s\n", n.Name(), n.Address(), state)
			}
			return attach(c.Kubectl(cmd.Context(), "get", "nodes", "--output=wide"))
		},
	}
}

// client runs a client of Kubernetes with all of its own arguments.
func (t *tool) client(name string, make func(*kube.Cluster, context.Context, ...string) *exec.Cmd) *cobra.Command {
	return &cobra.Command{
		Use:                name + " ARG...",
		Short:              "Run " + name + " as the cluster's administrator",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args = t.ownDir(args)
			c, err := kube.Open(t.dir)
			if err != nil {
				return err
			}
			return attach(make(c, cmd.Context(), args...))
		},
	}
}

// ownDir takes --dir from the start of arguments that are another program's.
func (t *tool) ownDir(args []string) []string {
	if len(args) >= 2 && args[0] == "--dir" {
		t.dir = args[1]
		return args[2:]
	}
	return args
}

// passedOn is the end of kubectl, helm or a node's command, which has said itself why.
type passedOn struct{ code int }

func (p passedOn) Error() string { return fmt.Sprintf("exit status %d", p.code) }

// attach runs a command on this terminal.
func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return passedOn{exit.ExitCode()}
	}
	return err
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find this module: %w; run the command in it", err)
	}
	return filepath.Clean(string(out[:len(out)-1])), nil
}
