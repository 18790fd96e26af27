// Command e2e runs end-to-end tests on a cluster of its own: it brings one up with hack/cluster, installs the chart into it as users do, runs a test
// command, collects logs and events if that failed, and takes the cluster down.
//
//	go run ./hack/e2e [flags] -- COMMAND...
//
// In COMMAND's words {kubeconfig}, {artifacts} and {cluster} (its folder) stand for what they name, {node-exec} and {machine} for the commands that test/e2e asks for.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	r := &run{namespace: "rowan-system", release: "rowan"}
	flag.StringVar(&r.dir, "dir", "", "the cluster's folder (default: a new one, removed at the end)")
	flag.IntVar(&r.nodes, "nodes", 3, "how many nodes")
	flag.StringVar(&r.kubernetes, "kubernetes", "", "the version of Kubernetes (default: hack/cluster's)")
	flag.StringVar(&r.artifacts, "artifacts", ".cache/e2e", "the folder for logs")
	flag.StringVar(&r.values, "values", "", "a file of values for the chart")
	flag.BoolVar(&r.keep, "keep", false, "leave the cluster there at the end, for a look at it")
	flag.DurationVar(&r.timeout, "timeout", time.Hour, "how long all may take; the cluster is taken down after it")
	flag.Parse()
	r.command = flag.Args()
	signals, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(signals, r.timeout)
	err := r.do(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

// run is one cluster's life.
type run struct {
	dir, artifacts, values string
	namespace, release     string
	kubernetes             string
	nodes                  int
	keep                   bool
	timeout                time.Duration
	command                []string

	bin, kubeconfig string
	begun           time.Time
}

func (r *run) do(ctx context.Context) (err error) {
	if len(r.command) == 0 {
		return errors.New("no command to run: e2e [flags] -- COMMAND")
	}
	r.begun = time.Now()
	if r.artifacts, err = filepath.Abs(r.artifacts); err != nil {
		return err
	}
	if err := os.RemoveAll(r.artifacts); err != nil {
		return fmt.Errorf("make way for logs: %w", err)
	}
	if err := os.MkdirAll(r.artifacts, 0o755); err != nil {
		return fmt.Errorf("make folder for logs: %w", err)
	}
	if r.dir == "" {
		if r.dir, err = os.MkdirTemp("/var/tmp", "rowan-e2e-"); err != nil {
			return fmt.Errorf("make the cluster's folder: %w", err)
		}
		if !r.keep {
			defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
		}
	}
	r.bin = filepath.Join(r.artifacts, "cluster")
	if err := r.exec(ctx, "go", "build", "-o", r.bin, "./hack/cluster"); err != nil {
		return err
	}
	image := filepath.Join(r.artifacts, "rowan.tar")
	if err := r.cluster(ctx, "rowan", "--output", image); err != nil {
		return err
	}
	defer func() {
		if r.keep {
			fmt.Printf("the cluster stays: export KUBECONFIG=%s; %s --dir %s down\n", r.kubeconfig, r.bin, r.dir)
			return
		}
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, r.cluster(down, "down"))
	}()
	if err := r.cluster(ctx, "up", fmt.Sprint("--nodes=", r.nodes), "--image", image); err != nil {
		return err
	}
	r.kubeconfig = filepath.Join(r.dir, "admin.conf")
	if err := r.install(ctx); err != nil {
		return errors.Join(err, r.collect(ctx))
	}
	r.say("installed; runs the tests")
	if err := r.test(ctx); err != nil {
		return errors.Join(err, r.collect(ctx))
	}
	r.say("done")
	return nil
}

// install installs the chart as users do, and waits until every pool serves.
func (r *run) install(ctx context.Context) error {
	r.say("installs the chart")
	args := []string{"helm", "--dir", r.dir, "upgrade", "--install", r.release, "charts/rowan", "--namespace", r.namespace, "--create-namespace",
		"--set", "image.registry=", "--set", "image.repository=rowan-csi/rowan", "--set", "image.tag=dev", "--set", "image.pullPolicy=Never", "--wait", "--timeout", "5m"}
	if r.values != "" {
		args = append(args, "--values", r.values)
	}
	if err := r.exec(ctx, r.bin, args...); err != nil {
		return err
	}
	wait := func(args ...string) error {
		return r.exec(ctx, r.bin, append([]string{"kubectl", "--dir", r.dir, "wait", "--timeout=3m"}, args...)...)
	}
	if err := wait("--for=jsonpath={.status.ready}="+fmt.Sprint(r.nodes), "poolset/default"); err != nil {
		return err
	}
	return wait("--for=condition=Ready", "pools.rowan.storage", "--all")
}

func (r *run) test(ctx context.Context) error {
	words := make([]string, len(r.command))
	values := strings.NewReplacer("{kubeconfig}", r.kubeconfig, "{artifacts}", r.artifacts, "{cluster}", r.dir,
		"{machine}", fmt.Sprintf("%s {command} --dir %s", r.bin, r.dir),
		"{node-exec}", fmt.Sprintf("%s --dir %s node {node} --", r.bin, r.dir))
	for i, w := range r.command {
		words[i] = values.Replace(w)
	}
	return r.exec(ctx, words[0], words[1:]...)
}

// collect writes what Rowan's processes said and what happened to the artifacts.
func (r *run) collect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	kubectl := func(file string, args ...string) error {
		f, err := os.Create(filepath.Join(r.artifacts, file))
		if err != nil {
			return err
		}
		defer f.Close()
		cmd := exec.CommandContext(ctx, r.bin, append([]string{"kubectl", "--dir", r.dir}, args...)...)
		cmd.Stdout, cmd.Stderr = f, f
		return errors.Join(cmd.Run(), f.Close())
	}
	out, err := exec.CommandContext(ctx, r.bin, "kubectl", "--dir", r.dir, "-n", r.namespace, "get", "pods", "-o", "name").Output()
	if err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	for _, pod := range strings.Fields(string(out)) {
		name := strings.TrimPrefix(pod, "pod/")
		err = errors.Join(err, kubectl(name+".log", "-n", r.namespace, "logs", "--all-containers", "--prefix", "--tail=-1", pod))
		_ = kubectl(name+".previous.log", "-n", r.namespace, "logs", "--all-containers", "--prefix", "--previous", "--tail=-1", pod) // where there is one
		err = errors.Join(err, kubectl(name+".txt", "-n", r.namespace, "describe", pod))
	}
	err = errors.Join(err, kubectl("events.txt", "get", "events", "-A", "--sort-by=.lastTimestamp"),
		kubectl("objects.yaml", "get", "rowan,pv,volumesnapshotcontents", "-o", "yaml"), kubectl("pods.txt", "get", "pods", "-A", "-o", "wide"))
	fmt.Println("logs:", r.artifacts)
	return err
}

func (r *run) cluster(ctx context.Context, args ...string) error {
	own := []string{args[0], "--dir", r.dir}
	if r.kubernetes != "" {
		own = append(own, "--kubernetes", r.kubernetes)
	}
	return r.exec(ctx, r.bin, append(own, args[1:]...)...)
}

// exec runs a command on this terminal. An interrupt reaches it as a signal that it can clean up on.
func (r *run) exec(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(append([]string{filepath.Base(name)}, args...), " "), err)
	}
	return nil
}

func (r *run) say(what string) { fmt.Printf("[%4.0f s] %s\n", time.Since(r.begun).Seconds(), what) }
