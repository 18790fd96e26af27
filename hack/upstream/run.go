package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runner runs specs with ginkgo.
type runner struct {
	tests, ginkgo, kubectl, kubeconfig, manifest string
	procs                                        int
	store                                        store
	out                                          io.Writer
}

// run runs the specs of a file of names, in parallel processes, and tells of outcomes as they come. That specs failed is no error of run's.
func (r runner) run(ctx context.Context, names []string) error {
	list := filepath.Join(r.store.dir, fmt.Sprintf("run-%d", os.Getpid())) // shards may share the folder
	if err := os.WriteFile(list, []byte(strings.Join(names, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("write the specs to run: %w", err)
	}
	defer os.Remove(list)
	before, err := r.store.read()
	if err != nil {
		return err
	}
	start := time.Now()
	log, err := os.Create(filepath.Join(r.store.logs(), start.UTC().Format("20060102-150405")+".log"))
	if err != nil {
		return fmt.Errorf("make the run's log: %w", err)
	}
	defer log.Close()
	fmt.Fprintf(r.out, "%d specs by %d processes; log: %s\n", len(names), r.procs, log.Name())
	// Ginkgo's own time limit is an hour unless told otherwise; the caller's context is the limit here.
	cmd := exec.CommandContext(ctx, r.ginkgo, "--procs", fmt.Sprint(r.procs), "--timeout=48h", "--no-color", "--output-interceptor-mode=none",
		r.tests, "--",
		"-upstream.dir", r.manifest, "-upstream.run", list, "-upstream.results", r.store.results(), "-upstream.failures", r.store.failures(),
		"-kubeconfig", r.kubeconfig, "-kubectl-path", r.kubectl, "-provider", "skeleton", "-report-dir", r.store.logs())
	cmd.Stdout, cmd.Stderr = log, log
	// Interrupted, ginkgo lets specs clean up and writes what it knows. A group of its own: the terminal's interrupt would reach the processes twice.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) }
	cmd.WaitDelay = 5 * time.Minute
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start ginkgo: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ended := r.follow(done, start, len(before), len(names))
	after, err := r.store.read()
	if err != nil {
		return err
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("run specs: %w; the same command goes on where this one stopped", context.Cause(ctx))
	case ended != nil && !errors.As(ended, &exit):
		return fmt.Errorf("run ginkgo: %w", ended)
	case ended != nil && len(after) == len(before):
		return fmt.Errorf("no spec ran: %w; the end of %s:\n%s", ended, log.Name(), tail(log.Name(), 20))
	}
	return nil
}

// follow tells what failed as soon as it is known, and twice a minute how far it is, until ginkgo has ended.
func (r runner) follow(done <-chan error, start time.Time, seen, total int) error {
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	first, told := seen, start
	counts := map[string]int{}
	tell := func() {
		list, err := r.store.read()
		if err != nil {
			return // run reads it again at the end, and says so
		}
		for _, o := range list[min(seen, len(list)):] {
			counts[o.State]++
			if o.failed() {
				fmt.Fprintf(r.out, "%s after %.0f s: %s\n    %s\n    %s\n", o.State, o.Seconds, o.Name, firstLine(o.Reason), o.Output)
			}
		}
		seen = max(seen, len(list))
	}
	for {
		select {
		case err := <-done:
			tell()
			return err
		case <-poll.C:
			tell()
			if time.Since(told) >= 30*time.Second {
				told = time.Now()
				bad := seen - first - counts[passedState] - counts[skippedState]
				fmt.Fprintf(r.out, "[%5.0f s] %d of %d: %d passed, %d skipped, %d not\n", time.Since(start).Seconds(), seen-first, total, counts[passedState],
					counts[skippedState], bad)
			}
		}
	}
}

func tail(file string, lines int) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
