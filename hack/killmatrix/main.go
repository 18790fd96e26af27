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
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

const suite = "./test/e2e"

// errMissed means that a bar was missed; what was printed says which.
var errMissed = errors.New("a bar was missed")

type options struct {
	kubeconfig, nodeExec, subject, results, only, processes string
	procs                                                   int
	seed                                                    uint64
	fresh                                                   bool
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "the cluster's kubeconfig")
	flag.StringVar(&o.nodeExec, "node-exec", "", "a command that runs what follows inside the node {node}")
	flag.StringVar(&o.subject, "subject", "", "a file that is what is tested (the image's archive): results of another one are not gone on with")
	flag.StringVar(&o.results, "results", ".cache/e2e-kill", "folder for results")
	flag.StringVar(&o.only, "run", "^Test", "flows to run, a regular expression")
	flag.StringVar(&o.processes, "processes", strings.Join(framework.Victims(), ","), "processes to kill")
	flag.IntVar(&o.procs, "procs", 8, "how many flows run side by side")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "draws the steps")
	flag.BoolVar(&o.fresh, "fresh", false, "begin anew, whatever passed before")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := o.do(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "killmatrix:", err)
		os.Exit(1)
	}
}

func (o options) do(ctx context.Context) error {
	if o.kubeconfig == "" || o.nodeExec == "" {
		return errors.New("no cluster: name it with -kubeconfig and -node-exec")
	}
	flows, err := list(ctx, o.only)
	if err != nil {
		return err
	}
	done, err := open(o.results, o.subject, o.fresh)
	if err != nil {
		return err
	}
	fmt.Printf("seed %d; %d flows have passed with a kill before\n", o.seed, done.count())
	m := newMatrix(flows, strings.Split(o.processes, ","))
	for _, process := range m.processes {
		for within := framework.MostSteps; within > 0; within /= 2 {
			todo := m.todo(process, done)
			if len(todo) == 0 {
				break
			}
			if err := o.run(ctx, m, done, process, within, todo); err != nil {
				return err
			}
		}
	}
	if m.print(os.Stdout, done) {
		return errMissed
	}
	return nil
}

// list the flows that match.
func list(ctx context.Context, only string) ([]string, error) {
	choose, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("read -run: %w", err)
	}
	out, err := exec.CommandContext(ctx, "go", "test", "-list", "^Test", suite).Output()
	if err != nil {
		return nil, fmt.Errorf("list flows: %w", err)
	}
	var flows []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") && choose.MatchString(name) {
			flows = append(flows, name)
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("no flow matches %q", only)
	}
	return flows, nil
}

// run some flows with one process as their victim, and take note of what comes of each as it ends.
func (o options) run(ctx context.Context, m *matrix, done *results, process string, within int, flows []string) error {
	fmt.Printf("%s: %d flows, killed within their first %d steps\n", process, len(flows), within)
	artifacts := filepath.Join(o.results, "artifacts", process)
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-timeout", "2h", "-parallel", strconv.Itoa(o.procs), "-run",
		"^("+strings.Join(flows, "|")+")$", suite, "-args", "-kubeconfig", o.kubeconfig, "-node-exec", o.nodeExec, "-artifacts", artifacts,
		"-seed", strconv.FormatUint(o.seed, 10), "-kill", process, "-kill-within", strconv.Itoa(within))
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the flows: %w", err)
	}
	ended := 0
	readErr := read(out, func(f *flow) error {
		ended++
		fmt.Printf("  %s %s: %s (%.0f s)\n", process, f.name, f.state(), f.seconds)
		return m.note(process, f, done)
	})
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil && ended > 0 { // flows have failed, which is told at the end
		err = nil
	}
	if err = errors.Join(readErr, err); err != nil {
		return fmt.Errorf("run the flows: %w", err)
	}
	if ended < len(flows) {
		return fmt.Errorf("%d of %d flows had no end", len(flows)-ended, len(flows))
	}
	return nil
}
