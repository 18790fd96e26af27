package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"
)

// Services are what a plugin serves. Nil ones are not.
type Services struct {
	Identity   csi.IdentityServer
	Controller csi.ControllerServer
	Group      csi.GroupControllerServer
	Node       csi.NodeServer
	// Observe, if any, is told of every call that was answered: its method without the service's name, its code, and how long it took.
	Observe func(method string, code codes.Code, took time.Duration)
}

// NewServer makes a gRPC server of the services. Calls are logged to logger.
func NewServer(logger klog.Logger, s Services) *grpc.Server {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(withCodes, s.observed, logCalls(logger)))
	csi.RegisterIdentityServer(server, s.Identity)
	if s.Controller != nil {
		csi.RegisterControllerServer(server, s.Controller)
	}
	if s.Group != nil {
		csi.RegisterGroupControllerServer(server, s.Group)
	}
	if s.Node != nil {
		csi.RegisterNodeServer(server, s.Node)
	}
	return server
}

// observed tells of a call's end.
func (s Services) observed(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if s.Observe == nil {
		return handler(ctx, req)
	}
	start := time.Now()
	resp, err := handler(ctx, req)
	s.Observe(path.Base(info.FullMethod), codeOf(err), time.Since(start))
	return resp, err
}

// Listen opens the unix socket that an endpoint (unix:///path) names. A socket that a dead process left is replaced, one that is answered on is not.
// The file stays when the listener is closed: the kubelet takes a missing socket for a driver that was removed.
func Listen(endpoint string) (net.Listener, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("endpoint %q: must be unix:///absolute/path", endpoint)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("endpoint %q: another process answers there: stop it first", endpoint), conn.Close())
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("endpoint %q: there is something that is not a socket: remove it", endpoint)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("endpoint %q: remove stale socket: %w", endpoint, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint %q: %w", endpoint, err), l.Close())
	}
	return l, nil
}

// Serve answers calls until ctx ends; then calls under way may finish for the time of grace.
func Serve(ctx context.Context, l net.Listener, server *grpc.Server, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve CSI: %w", err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(grace, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
	if err := <-served; err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	return nil
}
