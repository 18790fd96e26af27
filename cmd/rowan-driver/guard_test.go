package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this program be the guard, as rowan-driver is, and a command that a guard runs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == guardCommand {
		main()
		return
	}
	os.Exit(m.Run())
}

// The first process of a container runs the driver, passes signals on, and ends as it ended.
func TestGuardOver(t *testing.T) {
	notes := filepath.Join(t.TempDir(), "frozen")
	run := func(script string) *exec.Cmd {
		return exec.Command("/proc/self/exe", guardCommand, "--notes", notes, "--", "sh", "-c", script)
	}
	out, err := run("echo $" + guardedBy + "; exit 7").CombinedOutput()
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 || strings.TrimSpace(string(out)) != notes {
		t.Errorf("%v: %s", err, out)
	}
	if err := run("kill -9 $$").Run(); err == nil || err.(*exec.ExitError).ExitCode() != 128+9 {
		t.Error(err)
	}
	c := run("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
	pipe, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := pipe.Read(make([]byte, 10)); n == 0 {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil || err.(*exec.ExitError).ExitCode() != 3 {
		t.Error(err)
	}
}

// A driver that nobody guards starts a guard, and another when that ends; a guard ends with whom it guards.
func TestKeepGuard(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, err := freezer(ctx, filepath.Join(t.TempDir(), "frozen"))
	if err != nil || !f.Guarded() {
		t.Fatal(err)
	}
	guard, hold, err := startGuard(f.Notes)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- guard.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("it ended before: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := hold.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end with whom it guards")
	}
	t.Setenv(guardedBy, f.Notes)
	if f, err := freezer(ctx, f.Notes); err != nil || !f.Guarded() {
		t.Error("a parent that guards does not count", err)
	}
}
