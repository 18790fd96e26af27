package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
)

const (
	keeperAnswer = 2 * time.Second // a keeper that lives answers in less
	keeperRetry  = 20 * time.Millisecond
)

// keeperStart is how long a keeper that was just started may take to answer.
var keeperStart = 10 * time.Second

// keep is the subcommand.
func keep(ctx context.Context, socket string) error {
	if socket == "" {
		return errors.New("run the keeper: --keeper-socket is empty")
	}
	raiseFileLimit()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("make the socket's folder: %w", err)
	}
	klog.InfoS("keeper starts", "version", buildVersion(), "socket", socket)
	err := keeper.Serve(ctx, socket, func() { klog.InfoS("keeper answers", "socket", socket) },
		func(message string, kv ...any) { klog.InfoS(message, kv...) })
	if errors.Is(err, keeper.ErrHandedOver) {
		klog.InfoS("keeper ends: its successor has everything")
		return nil
	}
	if ctx.Err() != nil {
		return nil // told to end
	}
	return fmt.Errorf("run the keeper: %w", err)
}

// ensureKeeper starts a keeper where none answers, if it may.
func ensureKeeper(ctx context.Context, o options) error {
	if o.keeperSocket == "" || keeperAnswers(ctx, o.keeperSocket) == nil {
		return nil
	}
	if !o.startKeeper {
		return awaitKeeper(ctx, o.keeperSocket)
	}
	if err := startKeeper(o); err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	return waitForKeeper(ctx, o.keeperSocket)
}

// startKeeper runs this program as a keeper in a session of its own, so that it outlives us.
func startKeeper(o options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.stateDir, 0o700); err != nil {
		return err
	}
	name := filepath.Join(o.stateDir, "keeper.log")
	log, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "keeper", "--keeper-socket", o.keeperSocket)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	klog.InfoS("keeper started", "pid", cmd.Process.Pid, "log", name)
	go cmd.Wait() // while we live, it is not to become a zombie
	return nil
}

// awaitKeeper waits for a keeper that is somebody else's to start, however long that takes: an engine that ended instead would be started again later and
// later, by whoever starts engines, and the node's volumes would wait for that as well.
func awaitKeeper(ctx context.Context, socket string) error {
	klog.InfoS("waiting for the keeper", "socket", socket)
	for {
		err := waitForKeeper(ctx, socket)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("told to end before there was a keeper: %w", err)
		}
		klog.InfoS("still waiting for the keeper", "socket", socket, "err", err)
	}
}

func waitForKeeper(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, keeperStart)
	defer cancel()
	tick := time.NewTicker(keeperRetry)
	defer tick.Stop()
	for {
		err := keeperAnswers(ctx, socket)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no keeper answers on %s: run rowan-engine keeper, or let the engine (--start-keeper): %w", socket, err)
		}
	}
}

func keeperAnswers(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, keeperAnswer)
	defer cancel()
	_, err := keeper.NewClient(socket).List(ctx)
	return err
}
