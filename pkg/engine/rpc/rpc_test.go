package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/host/hosttest"
)

// endpoint is a served host of an engine in memory, and a client of it.
type endpoint struct {
	engine   *hosttest.Engine
	attacher *hosttest.Attacher
	host     *host.Host
	server   *Server
	client   *Client
	socket   string
	served   chan error
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	dir := t.TempDir()
	e := &endpoint{engine: &hosttest.Engine{}, attacher: &hosttest.Attacher{}, socket: filepath.Join(dir, "engine.sock")}
	var err error
	if e.client, err = Dial(e.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.client.Close() })
	e.start(t, filepath.Join(dir, "state"))
	t.Cleanup(func() { e.stop(t) })
	return e
}

func (e *endpoint) start(t *testing.T, state string) {
	t.Helper()
	var err error
	e.host, err = host.New(t.Context(), host.Config{Engine: e.engine, Attacher: e.attacher, StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.host.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(e.socket)
	if err != nil {
		t.Fatal(err)
	}
	server, served := NewServer(e.host, "v1.2.3"), make(chan error, 1)
	e.server, e.served = server, served
	go func() { served <- server.Serve(l) }()
}

func (e *endpoint) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	e.server.Stop(ctx)
	if err := <-e.served; err != nil {
		t.Error(err)
	}
	if err := e.host.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func (e *endpoint) pool(t *testing.T) {
	t.Helper()
	if _, err := e.client.CreatePool(t.Context(), engine.PoolSpec{Name: "p", Directory: "/pools/p"}); err != nil {
		t.Fatal(err)
	}
}

// must takes a call's answer and ends the test on its error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryCall(t *testing.T) {
	e := newEndpoint(t)
	c, ctx := e.client, t.Context()
	if v := must(c.Version(ctx))(t); v != "v1.2.3" {
		t.Errorf("version %q", v)
	}
	p := must(c.CreatePool(ctx, engine.PoolSpec{Name: "p", Directory: "/pools/p", Size: 1 << 30}))(t)
	if got := must(c.Pool(ctx, "p"))(t); !reflect.DeepEqual(got, p) || p.Size != 1<<30 || p.State != "Ready" {
		t.Errorf("pool %+v, made as %+v", got, p)
	}
	if l := must(c.Pools(ctx))(t); len(l) != 1 || !reflect.DeepEqual(l[0], p) {
		t.Errorf("pools %+v", l)
	}
	v := must(c.CreateVolume(ctx, "p", engine.VolumeSpec{Name: "v", Size: 1 << 20, Labels: map[string]string{"a": "1", "b": "2"}}))(t)
	if !v.CreatedAt.Equal(hosttest.Epoch) || v.Labels["a"] != "1" {
		t.Errorf("volume %+v", v)
	}
	v = must(c.SetVolumeLabels(ctx, "p", "v", map[string]string{"a": "", "c": "3"}))(t)
	if len(v.Labels) != 2 || v.Labels["c"] != "3" {
		t.Errorf("labels %v", v.Labels)
	}
	dev := must(c.Attach(ctx, "p", "v", true))(t)
	if l := must(c.Attachments(ctx, ""))(t); len(l) != 1 || l[0].Device != dev || !l[0].ReadOnly {
		t.Errorf("attachments %+v", l)
	}
	if v = must(c.GrowVolume(ctx, "p", "v", 2<<20))(t); v.Size != 2<<20 || !v.Open {
		t.Errorf("grown: %+v", v)
	}
	s := must(c.CreateSnapshot(ctx, "p", engine.SnapshotSpec{Name: "s", Volume: "v", Labels: map[string]string{"x": "y"}}))(t)
	if got := must(c.Snapshot(ctx, "p", "s"))(t); got.ID != s.ID || got.Labels["x"] != "y" || got.Size != 2<<20 {
		t.Errorf("snapshot %+v", got)
	}
	if l := must(c.Snapshots(ctx, "p", "v"))(t); len(l) != 1 {
		t.Errorf("snapshots %+v", l)
	}
	if l := must(c.Snapshots(ctx, "p", "other"))(t); len(l) != 0 {
		t.Errorf("snapshots %+v", l)
	}
	must(c.CreateVolume(ctx, "p", engine.VolumeSpec{Name: "v2", Size: 1 << 20}))(t)
	g := must(c.CreateSnapshotGroup(ctx, "p", engine.SnapshotGroupSpec{Name: "g", Snapshots: []engine.SnapshotSpec{
		{Name: "g-v2", Volume: "v2", Labels: map[string]string{"x": "y"}}, {Name: "g-v", Volume: "v"},
	}}))(t)
	if len(g) != 2 || g[0].Name != "g-v2" || g[0].Labels["x"] != "y" || g[1].Volume != "v" || g[1].Group != "g" {
		t.Errorf("group %+v", g)
	}
	if _, err := c.CreateSnapshotGroup(ctx, "p", engine.SnapshotGroupSpec{Name: "g"}); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("a group of nothing: %v", err)
	}
	for _, s := range g {
		ok(t, c.DeleteSnapshot(ctx, "p", s.Name))
	}
	ok(t, c.DeleteVolume(ctx, "p", "v2"))
	e.engine.Disk("/pools/p").Ranges = []engine.Range{{Offset: 4096, Length: 8192}, {Offset: 1 << 40, Length: 4096}}
	d := must(c.Diff(ctx, "p", engine.DiffSpec{From: "s", Volume: "v"}))(t)
	if d.Size != 2<<20 || len(d.Ranges) != 1 || d.Ranges[0] != (engine.Range{Offset: 4096, Length: 8192}) || d.Next != 1<<40 {
		t.Errorf("ranges %+v", d)
	}
	if d = must(c.Diff(ctx, "p", engine.DiffSpec{Snapshot: "s", Start: d.Next}))(t); len(d.Ranges) != 1 || d.Next != 0 {
		t.Errorf("ranges %+v", d)
	}
	if _, err := c.Diff(ctx, "p", engine.DiffSpec{Snapshot: "nobody"}); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("ranges of nobody: %v", err)
	}
	must(c.SnapshotUsage(ctx, "p", "s"))(t)
	if r := must(c.Check(ctx, "p"))(t); r.Volumes != 1 || r.Layers != 2 || len(r.Problems) != 0 {
		t.Errorf("check %+v", r)
	}
	e.engine.Damage = []engine.ScrubProblem{{Pool: "p", Snapshots: []engine.ScrubSnapshot{{Name: "s", Volume: "v"}}, Offset: 4096, Length: 8192}}
	var found []engine.ScrubProblem
	told := 0
	sr := must(c.Scrub(ctx, "p", engine.ScrubSpec{
		Progress: func(engine.ScrubReport) { told++ },
		Found:    func(p engine.ScrubProblem) { found = append(found, p) },
	}))(t)
	if sr.Problems != 1 || sr.Damaged != 8192 || told != 2 || len(found) != 1 || found[0].Snapshots[0].Name != "s" || found[0].Offset != 4096 {
		t.Errorf("scrub %+v %+v, told %d times", sr, found, told)
	}
	e.engine.Damage = nil
	e.engine.Disk("/pools/p").Wrote("v", 8)
	if m := must(c.Metadata(ctx, "p"))(t); m.LogPayload != 60 || m.LogWrites != 1 {
		t.Errorf("metadata %+v", m)
	}
	ok(t, c.Detach(ctx, "p", "v"))
	must(c.RollbackVolume(ctx, "p", "v", "s", ""))(t)
	must(c.CreateVolume(ctx, "p", engine.VolumeSpec{Name: "w", FromSnapshot: "s"}))(t)
	must(c.CreateVolume(ctx, "p", engine.VolumeSpec{Name: "x", FromVolume: "w"}))(t)
	if l := must(c.Volumes(ctx, "p"))(t); len(l) != 3 || l[2].FromVolume != "w" {
		t.Errorf("volumes %+v", l)
	}
	ok(t, c.DeleteSnapshot(ctx, "p", "s"))
	ok(t, c.DeleteVolume(ctx, "p", "v"))
	if _, err := c.Volume(ctx, "p", "v"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("a deleted volume: %v", err)
	}
	ok(t, c.ClosePool(ctx, "p"))
	must(c.OpenPool(ctx, host.OpenSpec{Member: "/pools/p"}))(t)
}

func TestDeadline(t *testing.T) {
	e := newEndpoint(t)
	e.pool(t)
	ended := make(chan error, 1)
	e.engine.Block = func(ctx context.Context, op, _ string) {
		if op == "CreateVolume" {
			<-ctx.Done() // the server sees the client's deadline
			ended <- ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := e.client.CreateVolume(ctx, "p", engine.VolumeSpec{Name: "v", Size: 1 << 20})
	if !errors.Is(err, context.DeadlineExceeded) || status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("client: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the server went on")
	}
	ctx, cancel = bounded(context.Background(), "any")
	defer cancel()
	if d, ok := ctx.Deadline(); !ok || time.Until(d) > DefaultTimeout {
		t.Error("a call without a deadline is not bounded")
	}
}

func TestMessageLimit(t *testing.T) {
	e := newEndpoint(t)
	e.pool(t)
	_, err := e.client.CreateVolume(t.Context(), "p", engine.VolumeSpec{Name: "v", Labels: map[string]string{"k": strings.Repeat("v", MaxMessage)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
}

// TestClientOutlivesTheEngine: one client, an engine that goes, and its successor.
func TestClientOutlivesTheEngine(t *testing.T) {
	e := newEndpoint(t)
	e.pool(t)
	e.stop(t)
	_, err := e.client.Pools(t.Context())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), e.socket) {
		t.Fatalf("no engine: %v", err)
	}
	e.start(t, filepath.Join(filepath.Dir(e.socket), "state"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		l, err := e.client.Pools(ctx)
		if err == nil {
			if len(l) != 1 {
				t.Fatalf("pools %+v", l)
			}
			return
		}
		if !errors.Is(err, ErrUnreachable) {
			t.Fatal(err)
		}
	}
}

// TestStopLetsCallsFinish: what is under way is answered before the server ends.
func TestStopLetsCallsFinish(t *testing.T) {
	e := newEndpoint(t)
	e.pool(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	e.engine.Block = func(_ context.Context, op, _ string) {
		if op == "CreateVolume" && once.CompareAndSwap(false, true) {
			close(entered)
			<-leave
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := e.client.CreateVolume(context.Background(), "p", engine.VolumeSpec{Name: "v", Size: 1 << 20})
		done <- err
	}()
	<-entered
	stopped := make(chan struct{})
	go func() {
		e.server.Stop(context.Background())
		close(stopped)
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for { // until it takes no more, which the test's own deadline bounds
		if _, err := os.Stat(e.socket); err != nil {
			break
		}
		<-tick.C
	}
	select {
	case <-stopped:
		t.Fatal("stopped with a call under way")
	default:
	}
	close(leave)
	ok(t, <-done)
	<-stopped
}

func TestListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "folder", "s.sock")
	l, err := Listen(socket)
	ok(t, err)
	st, err := os.Stat(socket)
	ok(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := Listen(socket); !errors.Is(err, engine.ErrLocked) {
		t.Errorf("a second listener: %v", err)
	}
	ok(t, l.Close())
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	ok(t, err)
	stale.SetUnlinkOnClose(false)
	if _, err := Listen(socket); !errors.Is(err, engine.ErrLocked) {
		t.Errorf("somebody without the lock listens: %v", err)
	}
	ok(t, stale.Close())
	l, err = Listen(socket)
	ok(t, err)
	ok(t, l.Close())

	ok(t, os.WriteFile(socket, []byte("mine"), 0o600))
	if _, err := Listen(socket); !errors.Is(err, engine.ErrExists) {
		t.Errorf("a file that is no socket: %v", err)
	}
	if _, err := Listen("relative.sock"); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("a relative path: %v", err)
	}
}
