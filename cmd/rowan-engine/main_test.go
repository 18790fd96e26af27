package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

// asEngine makes the test's binary the program itself, so that what is tested is what would be run, keeper and second execution included.
const asEngine = "ROWAN_ENGINE_TEST_RUN"

// asImpatient sets how long a keeper may take.
const asImpatient = "ROWAN_ENGINE_TEST_KEEPER_START"

func TestMain(m *testing.M) {
	if os.Getenv(asEngine) != "" {
		if patience, err := time.ParseDuration(os.Getenv(asImpatient)); err == nil {
			keeperStart = patience
		}
		main()
		return
	}
	os.Exit(m.Run())
}

// node is a machine with one engine at a time, on real files and devices.
type node struct {
	t       *testing.T
	dir     string
	ring    string
	log     *os.File
	process *exec.Cmd
	ended   chan error
	client  *rpc.Client
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("attaching needs root")
	}
	if err := fuseloop.Available(); err != nil {
		t.Skipf("this machine cannot attach volumes: %v", err)
	}
	ring, err := os.MkdirTemp("/dev/shm", "rowan-test-")
	if err != nil {
		t.Skipf("the ring needs a tmpfs: %v", err)
	}
	n := &node{t: t, dir: t.TempDir(), ring: ring}
	t.Cleanup(func() { os.RemoveAll(ring) })
	if n.log, err = os.Create(filepath.Join(n.dir, "engine.log")); err != nil {
		t.Fatal(err)
	}
	if n.client, err = rpc.Dial(n.socket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end)
	return n
}

func (n *node) socket() string { return filepath.Join(n.dir, "engine.sock") }
func (n *node) keeper() string { return filepath.Join(n.dir, "keeper.sock") }

// start runs an engine and waits until it answers.
func (n *node) start(flags ...string) {
	n.t.Helper()
	n.run(flags...)
	n.within("the engine answers", n.answers)
}

func (n *node) answers() bool {
	_, err := n.client.Version(n.t.Context())
	return err == nil
}

// run starts an engine.
func (n *node) run(flags ...string) {
	n.t.Helper()
	n.process = exec.Command("/proc/self/exe", append([]string{
		"--socket", n.socket(), "--state-dir", filepath.Join(n.dir, "state"), "--ring-dir", n.ring, "--keeper-socket", n.keeper(),
	}, flags...)...)
	n.process.Env = append(os.Environ(), asEngine+"=1")
	n.process.Stdout, n.process.Stderr = n.log, n.log
	if err := n.process.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.ended = make(chan error, 1)
	go func(p *exec.Cmd, ended chan error) { ended <- p.Wait() }(n.process, n.ended)
}

// signal ends the engine and waits until it is gone.
func (n *node) signal(s unix.Signal) error {
	n.t.Helper()
	if err := n.process.Process.Signal(s); err != nil {
		n.t.Fatal(err)
	}
	select {
	case err := <-n.ended:
		n.process = nil
		return err
	case <-time.After(30 * time.Second):
		n.t.Fatalf("the engine did not end 30 s after %v", s)
		return nil
	}
}

func (n *node) within(what string, ok func() bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("not within 30 s: %s; the engine's log:\n%s", what, n.logged())
		}
	}
}

func (n *node) logged() string {
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// end detaches what is left and ends engine and keeper.
func (n *node) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if n.process != nil {
		attached, err := n.client.Attachments(ctx, "")
		for _, a := range attached {
			err = errors.Join(err, n.client.Detach(ctx, a.Pool, a.Volume))
		}
		if err != nil {
			n.t.Errorf("detach what is left: %v", err)
		}
		if err := n.signal(unix.SIGTERM); err != nil {
			n.t.Errorf("the engine ends with %v", err)
		}
	}
	if pid := n.keeperPID(); pid > 0 {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			n.t.Errorf("end the keeper: %v", err)
		}
	}
	n.client.Close()
	n.log.Close()
	if n.t.Failed() {
		n.t.Logf("the engine's log:\n%s", n.logged())
	}
}

// keeperPID is the keeper's process, or 0, told by who holds the other end of its socket.
func (n *node) keeperPID() int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: n.keeper()}); err != nil {
		return 0
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// pool makes pool p with volume v, or skips where the folder cannot hold one.
func (n *node) pool() {
	n.t.Helper()
	_, err := n.client.CreatePool(n.t.Context(), engine.PoolSpec{Name: "p", Directory: filepath.Join(n.dir, "p"), Size: 1 << 30})
	if errors.Is(err, engine.ErrUnsupported) {
		n.t.Skipf("the test's folder cannot hold a pool: %v", err)
	}
	n.ok(err)
	_, err = n.client.CreateVolume(n.t.Context(), "p", engine.VolumeSpec{Name: "v", Size: 128 << 20})
	n.ok(err)
}

func (n *node) ok(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) check() {
	n.t.Helper()
	r, err := n.client.Check(n.t.Context(), "p")
	n.ok(err)
	if len(r.Problems) > 0 {
		n.t.Fatalf("check: %s", strings.Join(r.Problems, "\n"))
	}
}

// TestEngineOutlivesItself: one device under verified I/O, engines that are killed and stopped one after the other.
func TestEngineOutlivesItself(t *testing.T) {
	n := newNode(t)
	n.start()
	n.pool()
	ctx := t.Context()
	device, err := n.client.Attach(ctx, "p", "v", false)
	n.ok(err)
	keeper := n.keeperPID()
	io := newLoad(t, device, 128<<20)
	for i, s := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		io.progress()
		if _, err := n.client.CreateSnapshot(ctx, "p", engine.SnapshotSpec{Name: fmt.Sprint("s", i), Volume: "v"}); err != nil {
			t.Fatal(err)
		}
		if err := n.signal(s); s == unix.SIGTERM && err != nil {
			t.Fatalf("the engine ends with %v", err)
		}
		n.start()
		// The device answers as soon as its pool is open, whether or not anybody asks.
		io.progress()
		if again, err := n.client.Attach(ctx, "p", "v", false); err != nil || again != device {
			t.Fatalf("attached as %s, %v; was %s", again, err, device)
		}
	}
	io.verify()
	if now := n.keeperPID(); now != keeper || now == 0 {
		t.Errorf("the keeper was process %d and is %d", keeper, now)
	}
	n.check()

	_, err = n.client.GrowVolume(ctx, "p", "v", 256<<20)
	n.ok(err)
	if size := deviceSize(t, device); size != 256<<20 {
		t.Errorf("the device has %d bytes", size)
	}
	if err := n.client.DeleteVolume(ctx, "p", "v"); !errors.Is(err, engine.ErrInUse) {
		t.Errorf("delete an attached volume: %v", err)
	}
	if err := n.client.Detach(ctx, "p", "v"); !errors.Is(err, engine.ErrInUse) {
		t.Errorf("detach a device that is open: %v", err)
	}
	io.close()
	n.ok(n.client.Detach(ctx, "p", "v"))
	_, err = n.client.RollbackVolume(ctx, "p", "v", "s0", "")
	n.ok(err)
	n.check()
	n.ok(n.client.DeleteVolume(ctx, "p", "v"))
	for i := range 5 {
		n.ok(n.client.DeleteSnapshot(ctx, "p", fmt.Sprint("s", i)))
	}
	n.within("all space comes back", func() bool {
		p, err := n.client.Pool(ctx, "p")
		n.ok(err)
		return p.Used == 0 && p.Jobs == 0
	})
	n.check()
}

// TestPoolComesBackLater: a pool that is away holds up nobody, and its devices come back with it.
func TestPoolComesBackLater(t *testing.T) {
	n := newNode(t)
	n.start()
	n.pool()
	ctx := t.Context()
	device, err := n.client.Attach(ctx, "p", "v", false)
	n.ok(err)
	_, err = n.client.CreatePool(ctx, engine.PoolSpec{Name: "q", Directory: filepath.Join(n.dir, "q"), Size: 256 << 20})
	n.ok(err)
	n.ok(n.signal(unix.SIGTERM))
	n.ok(os.Rename(filepath.Join(n.dir, "p"), filepath.Join(n.dir, "away")))
	n.start()
	_, err = n.client.Volumes(ctx, "q")
	n.ok(err)
	_, err = n.client.Volumes(ctx, "p")
	if !errors.Is(err, host.ErrNotOpen) || !errors.Is(err, engine.ErrNotFound) {
		t.Fatalf("a pool that is away: %v", err)
	}
	p, err := n.client.Pool(ctx, "p")
	if err != nil || p.State != host.StateUnavailable || p.Reason == "" {
		t.Fatalf("a pool that is away: %+v, %v", p, err)
	}
	if l, err := n.client.Attachments(ctx, "p"); err != nil || len(l) != 1 || l[0].Device != device || l[0].Stalled == "" {
		t.Fatalf("attachments: %+v, %v", l, err)
	}
	n.ok(os.Rename(filepath.Join(n.dir, "away"), filepath.Join(n.dir, "p")))
	_, err = n.client.OpenPool(ctx, host.OpenSpec{Name: "p"})
	n.ok(err)
	io := newLoad(t, device, 128<<20)
	io.progress()
	io.verify()
	io.close()
}

// TestOneEngine: a second engine of the same folders gives up, and the first goes on.
func TestOneEngine(t *testing.T) {
	n := newNode(t)
	n.start("--pprof-socket", filepath.Join(n.dir, "pprof.sock"))
	second := exec.CommandContext(t.Context(), "/proc/self/exe", "--socket", n.socket(), "--state-dir", filepath.Join(n.dir, "other"),
		"--ring-dir", n.ring, "--keeper-socket", n.keeper())
	second.Env = append(os.Environ(), asEngine+"=1")
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process") {
		t.Errorf("a second engine on one socket: %v\n%s", err, out)
	}
	if _, err := n.client.Version(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "pprof.sock")); err != nil {
		t.Error(err)
	}
}
