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

// TestMain does something else than test when it is started again: as the SIGKILL test's server (arguments "serve", keeper's socket, id, image), as
// the process that dies in TestKilledWhileItWaits ("die", and die's), or as one that reads ahead ("readahead", a device).
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(32) // as the package's documentation asks
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 4 && args[0] == "serve":
		err = attachtest.Child(New(Config{Keeper: args[1]}), args[2], args[3], os.Stdin, os.Stdout)
	case len(args) == 6 && args[0] == "die":
		err = die(args[1], args[2], args[3], args[4], args[5])
	case len(args) == 2 && args[0] == "readahead":
		err = willNeed(args[1])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
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
	go func() { done <- keeper.Serve(ctx, socket, func() { close(ready) }, nil) }()
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
