package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach/attachtest"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
)

// TestMain serves an attachment instead of testing when it is started again by the SIGKILL test: arguments "serve", keeper's socket, id, image.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(32) // as the package's documentation asks
	if len(os.Args) == 5 && os.Args[1] == "serve" {
		a := New(Config{Keeper: os.Args[2]})
		if err := attachtest.Child(a, os.Args[3], os.Args[4], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// need skips a test where the machine lacks something, and says what.
func need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and loop devices")
	}
	if err := Available(); err != nil {
		t.Skip(err)
	}
}

// startKeeper runs a keeper in this process until the test ends.
func startKeeper(t testing.TB, socket string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- keeper.Serve(ctx, socket, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("keeper: %v", err)
	}
	stop = func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) && !errors.Is(err, keeper.ErrHandedOver) {
				t.Errorf("keeper: %v", err)
			}
			done <- err
		case <-time.After(attachtest.Patience):
			t.Error("keeper does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestConformance(t *testing.T) {
	need(t)
	sockets := map[string]string{} // one keeper for each test of the suite
	socket := func(t testing.TB) string {
		if sockets[t.Name()] == "" {
			sockets[t.Name()] = filepath.Join(t.TempDir(), "keeper.sock")
			startKeeper(t, sockets[t.Name()])
		}
		return sockets[t.Name()]
	}
	attachtest.Run(t, attachtest.Config{
		Survives: true,
		New:      func(t testing.TB) attachtest.Attacher { return New(Config{Keeper: socket(t)}) },
		Serve: func(t testing.TB, id, image string) *exec.Cmd {
			return exec.Command("/proc/self/exe", "serve", socket(t), id, image)
		},
	})
}

func TestConformanceWithoutKeeper(t *testing.T) {
	need(t)
	attachtest.Run(t, attachtest.Config{New: func(testing.TB) attachtest.Attacher { return New(Config{}) }})
}
