package kubelet

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// dial is the kubelet's side.
func dial(t *testing.T, socket string) registration.RegistrationClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///driver", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return registration.NewRegistrationClient(conn)
}

func TestRegistration(t *testing.T) {
	dir := t.TempDir()
	socket := Socket(dir, "csi.example")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // what a dead process left
		t.Fatal(err)
	}
	r := New("csi.example", "/var/lib/kubelet/plugins/csi.example/csi.sock")
	r.wait = time.Millisecond
	if r.Registered() == nil {
		t.Error("registered before the kubelet called")
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, socket) }()
	c := dial(t, socket)
	info, err := c.GetInfo(ctx, &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.Type != "CSIPlugin" || info.Name != "csi.example" || info.Endpoint != r.endpoint || len(info.SupportedVersions) != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := c.NotifyRegistrationStatus(ctx, &registration.RegistrationStatus{PluginRegistered: true}); err != nil || r.Registered() != nil {
		t.Errorf("%v, %v", err, r.Registered())
	}
	// A kubelet that restarts and refuses us: we are not ready, and end after a while to try anew. The file stays.
	_, _ = c.NotifyRegistrationStatus(ctx, &registration.RegistrationStatus{Error: "label collision"})
	if err := <-served; !errors.Is(err, ErrRefused) || !errors.Is(r.Registered(), ErrRefused) {
		t.Errorf("%v, %v", err, r.Registered())
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the socket is gone: %v", err)
	}

	// Anew, until the process is told to end.
	r = New("csi.example", "/csi.sock")
	ctx, stop = context.WithTimeout(t.Context(), 20*time.Second)
	go func() { served <- r.Serve(ctx, socket) }()
	if _, err := dial(t, socket).GetInfo(ctx, &registration.InfoRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the socket is gone: %v", err)
	}
}
