package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/rowan-csi/rowan/pkg/volume"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "csi.sock")
	for _, endpoint := range []string{"", "tcp://:1", "unix://csi.sock", path} {
		if _, err := Listen(endpoint); err == nil {
			t.Errorf("%q is accepted", endpoint)
		}
	}
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	if _, err := Listen("unix://" + path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket is removed at the end: %v", err)
	}
	if l, err = Listen("unix://" + path); err != nil { // a stale one is replaced
		t.Fatal(err)
	}
	_ = l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix://" + file); err == nil {
		t.Error("a file is replaced")
	}
}

// slow answers a deletion when it is told to.
type slow struct {
	csi.UnimplementedControllerServer
	entered, leave chan struct{}
}

func (s *slow) DeleteVolume(ctx context.Context, _ *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	close(s.entered)
	select {
	case <-s.leave:
		return &csi.DeleteVolumeResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func startSlow(t *testing.T, grace time.Duration) (s *slow, call, served chan error, stop context.CancelFunc) {
	t.Helper()
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	l, err := Listen(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	s = &slow{entered: make(chan struct{}), leave: make(chan struct{})}
	server := NewServer(klog.Background(), Services{Identity: NewIdentity("1", true, nil), Controller: s})
	ctx, stop := context.WithCancel(context.Background())
	served, call = make(chan error, 1), make(chan error, 1)
	go func() { served <- Serve(ctx, l, server, grace) }()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); stop() })
	go func() {
		_, err := csi.NewControllerClient(conn).DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: "x"})
		call <- err
	}()
	<-s.entered
	return s, call, served, stop
}

func TestGracefulStop(t *testing.T) {
	s, call, served, stop := startSlow(t, time.Minute)
	stop()
	close(s.leave)
	if err := <-call; err != nil {
		t.Errorf("a call under way: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("served: %v", err)
	}
}

func TestStopAfterGrace(t *testing.T) {
	_, call, served, stop := startSlow(t, time.Millisecond)
	stop()
	if err := <-call; err == nil {
		t.Error("a call that hangs is answered")
	}
	if err := <-served; err != nil {
		t.Errorf("served: %v", err)
	}
}

func TestServeFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := Serve(t.Context(), l, grpc.NewServer(), time.Second); err == nil {
		t.Error("a closed listener is served")
	}
}

// TestLog is that calls are logged with what they are about, and never with secrets.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out), textlogger.Verbosity(10)))
	intercept := logCalls(logger)
	call := func(method string, req any, err error) {
		info := &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Controller/" + method}
		_, _ = intercept(t.Context(), req, info, func(ctx context.Context, _ any) (any, error) {
			klog.FromContext(ctx).Info("inside")
			return &csi.CreateVolumeResponse{}, err
		})
	}
	call("CreateVolume", &csi.CreateVolumeRequest{
		Name: "pvc-1", Secrets: map[string]string{"password": "hunter2"}, Parameters: map[string]string{"pool": "fast"},
		VolumeCapabilities: []*csi.VolumeCapability{{}},
	}, nil)
	call("NodeStageVolume", &csi.NodeStageVolumeRequest{VolumeId: "vol-1", Secrets: map[string]string{"key": "hunter2"}}, volume.ErrInvalid)
	call("DeleteSnapshot", &csi.DeleteSnapshotRequest{SnapshotId: "snap-1"}, errors.New("broken"))
	text := out.String()
	if strings.Contains(text, "hunter2") || strings.Contains(text, "password") {
		t.Errorf("secrets are logged:\n%s", text)
	}
	for _, want := range []string{
		`name="pvc-1"`, `\"fast\"`, `method="CreateVolume"`, `call=1`, `volume="vol-1"`, `code="InvalidArgument"`, `snapshot="snap-1"`, `err="broken"`,
		`"inside" method="CreateVolume" call=1 name="pvc-1"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
}

func TestObserve(t *testing.T) {
	var seen []string
	s := Services{Observe: func(method string, code codes.Code, took time.Duration) {
		seen = append(seen, fmt.Sprint(method, " ", code, " ", took >= 0))
	}}
	info := &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Controller/CreateSnapshot"}
	for _, err := range []error{nil, fmt.Errorf("x: %w", volume.ErrNoSpace)} {
		if _, got := s.observed(t.Context(), nil, info, func(context.Context, any) (any, error) { return nil, err }); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	if want := []string{"CreateSnapshot OK true", "CreateSnapshot ResourceExhausted true"}; !slices.Equal(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
}
