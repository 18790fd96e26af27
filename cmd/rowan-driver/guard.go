package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/freeze"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

const (
	// guardCommand is the command of the process that thaws what this one may leave frozen.
	guardCommand = "thaw-guard"
	// guardedBy is set for a process whose parent is its guard.
	guardedBy = "ROWAN_THAW_GUARD"
	// guardAgain is how soon a guard that ended is started again.
	guardAgain = time.Second
)

// thawGuard is that command. With a command behind -- it runs it, and guards it: so a container's first process is the guard, and outlives the driver for
// as long as there is something to thaw. Without, it guards whoever holds the other end of its standard input.
func thawGuard() *cobra.Command {
	notes := ""
	cmd := &cobra.Command{
		Use:   guardCommand + " --notes FOLDER [-- COMMAND ARGUMENT...]",
		Short: "Thaw file systems that the driver left frozen",
		Long: "thaw-guard thaws what is frozen for over 5 s, and all that is frozen once the driver has ended, however it ended. The driver starts one for\n" +
			"itself. In a container, where the first process takes all others along, it is the first process, and runs the driver.",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if notes == "" {
				return errors.New("--notes is empty: name the folder of the notes")
			}
			if len(args) > 0 {
				return guardOver(notes, args)
			}
			gone := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin) // it ends when the other end is closed, by whatever
				close(gone)
			}()
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // its end is that of the driver
			freeze.Guard(context.Background(), notes, gone, told)
			return nil
		},
	}
	cmd.Flags().StringVar(&notes, "notes", "", "the folder where the driver notes what it freezes, on a tmpfs")
	return cmd
}

// told logs what a guard did.
func told(thawed int, err error) {
	if err != nil {
		klog.Background().Error(err, "Could not thaw")
	}
	if thawed > 0 {
		klog.Background().Info("Thawed what was left frozen", "fileSystems", thawed)
	}
}

// guardOver runs a command, thaws what it leaves frozen, and ends as it ended.
func guardOver(notes string, args []string) error {
	child := exec.Command(args[0], args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = append(os.Environ(), guardedBy+"="+notes)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := child.Start(); err != nil {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	go func() {
		for s := range signals {
			_ = child.Process.Signal(s) // it may have ended
		}
	}()
	gone := make(chan struct{})
	var ended error
	go func() {
		ended = child.Wait()
		close(gone)
	}()
	freeze.Guard(context.Background(), notes, gone, told)
	var status *exec.ExitError
	if errors.As(ended, &status) {
		if w, ok := status.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			os.Exit(128 + int(w.Signal()))
		}
		os.Exit(status.ExitCode())
	}
	return ended
}

// freezing is a freezer as the services take it.
func freezing(f *freeze.Freezer) local.Freeze {
	return func(ctx context.Context, devices []string) (time.Time, func() error, error) {
		z, err := f.Devices(ctx, devices)
		if err != nil {
			return time.Time{}, nil, err
		}
		return z.Until(), z.Thaw, nil
	}
}

// freezer thaws what an earlier process left frozen, before anything else, and sees to it that a guard runs while ctx lasts.
func freezer(ctx context.Context, notes string) (*freeze.Freezer, error) {
	thawed, err := freeze.ThawAll(notes)
	if err != nil { // the guard tries on; volumes are served meanwhile
		klog.FromContext(ctx).Error(err, "Could not thaw what was left frozen")
	}
	if thawed > 0 {
		klog.FromContext(ctx).Info("Thawed what an earlier process left frozen", "fileSystems", thawed)
	}
	f := &freeze.Freezer{Notes: notes, Guarded: func() bool { return true }, Mounts: mount.New().Targets}
	if os.Getenv(guardedBy) == notes {
		return f, nil // by the parent
	}
	var alive atomic.Bool
	f.Guarded = alive.Load
	started := make(chan error, 1)
	go keepGuard(ctx, notes, &alive, started)
	return f, <-started
}

// keepGuard starts a guard, and another when it ends.
func keepGuard(ctx context.Context, notes string, alive *atomic.Bool, started chan<- error) {
	for first := true; ctx.Err() == nil; first = false {
		guard, hold, err := startGuard(notes)
		alive.Store(err == nil)
		if first {
			started <- err
		}
		if err == nil {
			err = guard.Wait()
			alive.Store(false)
			_ = hold.Close()
		}
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "The guard that thaws ended; it is started again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(guardAgain):
		}
	}
}

// startGuard starts one that ends when hold is closed: by this process's end at the latest.
func startGuard(notes string) (guard *exec.Cmd, hold io.Closer, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("start the guard that thaws: %w", err)
	}
	guard = exec.Command(self, guardCommand, "--notes", notes)
	guard.Stdout, guard.Stderr = os.Stdout, os.Stderr
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends this process's group does not end it
	if hold, err = guard.StdinPipe(); err == nil {
		err = guard.Start()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("start the guard that thaws: %w", err)
	}
	return guard, hold, nil
}
