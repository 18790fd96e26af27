// Package kubelet registers a CSI driver with the kubelet of its node, as node-driver-registrar does beside other drivers.
//
// Contract: the driver's own socket is served first. The registration socket is then put into the kubelet's folder, which the kubelet watches, and reads
// whole when it starts: it calls GetInfo, and tells with NotifyRegistrationStatus how it went. A registration that the kubelet refused ends Serve, some time
// later, so that the process starts anew. The socket's file stays when Serve ends: the kubelet takes the driver out of its CSINode when it goes.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// ErrRefused: the kubelet did not take the registration.
var ErrRefused = errors.New("the kubelet refused the registration")

// refusedWait is how long a refused registration stays before Serve ends: the kubelet may try again by itself, and pods' volumes are served meanwhile.
const refusedWait = 30 * time.Second

// Registration is a driver's.
type Registration struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
	wait             time.Duration

	mu         sync.Mutex
	registered bool
	why        error // of not being registered
	refused    chan struct{}
}

// New makes a registration. endpoint is the path of the driver's socket on the host.
func New(driver, endpoint string) *Registration {
	return &Registration{
		driver: driver, endpoint: endpoint, wait: refusedWait, why: errors.New("the kubelet has not called yet"), refused: make(chan struct{}, 1),
	}
}

// Socket is the registration socket of a driver in the kubelet's folder.
func Socket(folder, driver string) string { return filepath.Join(folder, driver+"-reg.sock") }

// Registered is nil once the kubelet has taken the registration, and as long as it has not refused it since.
func (r *Registration) Registered() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.registered {
		return nil
	}
	return fmt.Errorf("driver %s is not registered: %w", r.driver, r.why)
}

// GetInfo implements the kubelet's protocol.
func (r *Registration) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.driver, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements the kubelet's protocol.
func (r *Registration) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.registered, r.why = s.GetPluginRegistered(), nil
	if !r.registered {
		r.why = fmt.Errorf("%w: %s", ErrRefused, s.GetError())
		select {
		case r.refused <- struct{}{}:
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// Serve answers the kubelet on the socket until ctx ends, or until a refused registration has not been taken for a while: then its error is ErrRefused.
func (r *Registration) Serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale registration socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("open registration socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("open registration socket: %w", err), l.Close())
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	err = r.watch(ctx, served)
	server.Stop()
	return err
}

// watch waits for the end of ctx, of the server, or of patience.
func (r *Registration) watch(ctx context.Context, served <-chan error) error {
	var late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve registration: %w", err)
		case <-r.refused:
			late = time.After(r.wait)
		case <-late:
			if err := r.Registered(); err != nil {
				return err
			}
			late = nil
		}
	}
}
