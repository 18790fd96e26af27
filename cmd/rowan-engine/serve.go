package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// predecessorTimeout is how long a new engine waits for the last one's end.
const predecessorTimeout = 30 * time.Second

// pools are the options of every pool. To the engine 0 means a default, to those who type a flag it means none.
func (o options) pools(io *uring.IO, seen *observer) engine.Options {
	p := engine.Options{
		RingDir: o.ringDir, MountDir: o.mountDir, MapCache: int64(o.mapCache), IO: io, Observer: seen,
		WarnAt: o.warnAt, RefuseAt: o.refuseAt, SpaceWait: o.spaceWait,
		ChecksumRate: int64(o.checksumRate), ChecksumDelay: o.checksumDelay, ScrubEvery: o.scrubEvery, ScrubRate: int64(o.scrubRate),
	}
	if p.ChecksumRate == 0 {
		p.ChecksumRate = -1
	}
	if p.ChecksumDelay == 0 {
		p.ChecksumDelay = -1
	}
	if p.ScrubRate == 0 {
		p.ScrubRate = -1
	}
	return p
}

// serve runs the engine until ctx ends.
func serve(ctx context.Context, o options) (err error) {
	if err := becomeFlusher(); err != nil {
		klog.InfoS("memory reclaim may wait for this process while it waits for memory", "err", err)
	}
	setUpProcess(int64(o.memoryLimit))
	klog.InfoS("rowan-engine starts", "version", buildVersion(), "socket", o.socket, "stateDir", o.stateDir)
	if err := ensureKeeper(ctx, o); err != nil {
		return err
	}
	if err := fuseloop.Available(); err != nil {
		klog.InfoS("volumes cannot be attached on this machine", "err", err)
	}
	if o.mountDir == "" {
		o.mountDir = filepath.Join(o.stateDir, "mnt")
	}
	attacher := fuseloop.New(fuseloop.Config{
		Keeper: o.keeperSocket,
		Event:  func(message string, kv ...any) { klog.InfoS(message, kv...) },
	})
	io, err := uring.NewIO(uring.Mode(o.ioUring))
	if err != nil {
		klog.InfoS("data is read and written by system calls, which costs more processor time", "err", err)
	}
	defer func() { err = errors.Join(err, io.Close()) }()
	waiting, cancel := context.WithTimeout(ctx, predecessorTimeout)
	defer cancel()
	seen := &observer{}
	h, err := host.New(waiting, host.Config{
		Engine: host.Real{}, Attacher: attacher, StateDir: o.stateDir,
		Options: o.pools(io, seen),
	})
	if err != nil {
		return err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.Background(), o.stopTimeout)
		defer cancel()
		err = errors.Join(err, h.Stop(ending))
		klog.InfoS("rowan-engine has stopped; devices stay and wait for the next engine")
	}()
	if o.pprofSocket != "" {
		if err := profiles(ctx, o.pprofSocket, seen); err != nil {
			return err
		}
	}
	return answer(ctx, h, o)
}

// answer serves the socket until ctx ends and calls under way are done.
func answer(ctx context.Context, h *host.Host, o options) error {
	l, err := rpc.Listen(o.socket)
	if err != nil {
		return err
	}
	if err := h.Start(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	server := rpc.NewServer(h, buildVersion())
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	klog.InfoS("answering", "socket", o.socket)
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", o.socket, err)
	case <-ctx.Done():
	}
	klog.InfoS("stopping")
	ending, cancel := context.WithTimeout(context.Background(), o.stopTimeout)
	defer cancel()
	server.Stop(ending)
	return <-served
}

// profiles serves Go's profiles until ctx ends.
func profiles(ctx context.Context, socket string, figures http.Handler) error {
	l, err := rpc.Listen(socket)
	if err != nil {
		return fmt.Errorf("serve profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/debug/figures", figures)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "profiles are served no more")
		}
	}()
	return nil
}
