package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/host/hosttest"
)

// machine is what outlives an engine: disks, devices and the state folder.
type machine struct {
	t        *testing.T
	dir      string
	engine   hosttest.Engine
	attacher hosttest.Attacher
	events   eventLog
}

type eventLog struct {
	mu   sync.Mutex
	seen []string
}

func (l *eventLog) Figures(string) *engine.Figures { return nil }

func (l *eventLog) Event(pool, message string, _ ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, pool+": "+message)
}

func newMachine(t *testing.T) *machine { return &machine{t: t, dir: t.TempDir()} }

func (m *machine) start() *host.Host {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	h, err := host.New(ctx, host.Config{
		Engine: &m.engine, Attacher: &m.attacher, StateDir: m.dir, Options: engine.Options{Observer: &m.events},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := h.Start(ctx); err != nil {
		m.t.Fatal(err)
	}
	return h
}

// stop ends a host in order; kill does it the hard way, with what the kernel does then.
func (m *machine) stop(h *host.Host) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.Stop(ctx); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) kill(h *host.Host) {
	dead, cancel := context.WithCancel(context.Background())
	cancel()
	h.Stop(dead) // closes nothing in order; but the state folder's lock must go
	m.engine.Kill()
}

func (m *machine) pool(h *host.Host, name string) {
	m.t.Helper()
	if _, err := h.CreatePool(m.t.Context(), engine.PoolSpec{Name: name, Directory: "/pools/" + name}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) volume(h *host.Host, pool, name string) {
	m.t.Helper()
	if _, err := h.CreateVolume(m.t.Context(), pool, engine.VolumeSpec{Name: name, Size: 1 << 30}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) attach(h *host.Host, pool, volume string) string {
	m.t.Helper()
	a, err := h.Attach(m.t.Context(), pool, volume, false)
	if err != nil {
		m.t.Fatal(err)
	}
	return a.Device
}

// within waits for a condition.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 10 s: %s", what)
		case <-tick.C:
		}
	}
}

func wantErr(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v; want %v with %q", err, want, text)
	}
}

func TestPoolsComeBack(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.pool(h, "b")
	m.volume(h, "a", "v")
	_, err := h.CreatePool(t.Context(), engine.PoolSpec{Name: "a", Directory: "/elsewhere"})
	wantErr(t, err, engine.ErrExists, "/pools/a")
	m.stop(h)

	m.engine.Fail = func(op, name string) error {
		if op == "OpenPool" && name == "/pools/b" {
			return engine.ErrLost
		}
		return nil
	}
	h = m.start()
	if _, err := h.Volume(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	_, err = h.Volumes(t.Context(), "b")
	wantErr(t, err, host.ErrNotOpen, "")
	wantErr(t, err, engine.ErrLost, "")
	infos := h.Pools()
	if len(infos) != 2 || infos[0].State != "Ready" || infos[1].State != host.StateUnavailable || !strings.Contains(infos[1].Reason, "lost") {
		t.Fatalf("pools: %+v", infos)
	}
	_, err = h.Pool("c")
	wantErr(t, err, engine.ErrNotFound, "this engine has a, b")

	m.engine.Fail = nil
	if i, err := h.OpenPool(t.Context(), host.OpenSpec{Name: "b", AcceptLoss: true}); err != nil || i.State != "Ready" {
		t.Fatalf("open: %+v, %v", i, err)
	}
	m.stop(h)
}

func TestClosedPoolIsForgotten(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	m.attach(h, "a", "v")
	wantErr(t, h.ClosePool(t.Context(), "a"), engine.ErrInUse, "detach v")
	if err := h.Detach(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	if err := h.ClosePool(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
	h = m.start()
	if l := h.Pools(); len(l) != 0 {
		t.Fatalf("pools: %+v", l)
	}
	for range 2 { // the second finds it open
		if i, err := h.OpenPool(t.Context(), host.OpenSpec{Member: "/pools/a"}); err != nil || i.Volumes != 1 {
			t.Fatalf("open: %+v, %v", i, err)
		}
	}
	_, err := h.OpenPool(t.Context(), host.OpenSpec{})
	wantErr(t, err, engine.ErrInvalid, "one of the two")
	_, err = h.OpenPool(t.Context(), host.OpenSpec{Member: "pools/a"})
	wantErr(t, err, engine.ErrInvalid, "absolute")
	m.stop(h)
}

func TestForeignPoolIsRefused(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.stop(h)
	data, err := os.ReadFile(filepath.Join(m.dir, "pools.json"))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(data), "00000001-", "00000009-", 1)
	if err := os.WriteFile(filepath.Join(m.dir, "pools.json"), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	h = m.start()
	_, err = h.Volumes(t.Context(), "a")
	wantErr(t, err, engine.ErrForeign, "/pools/a")
	m.stop(h)
}

func TestDamagedStateFile(t *testing.T) {
	for text, want := range map[string]error{
		"{":                                engine.ErrCorrupt,
		`{"version": 2}`:                   engine.ErrIncompatible,
		`{"version":1,"pools":[{}]}`:       engine.ErrCorrupt,
		`{"version":1,"pools":"nonsense"}`: engine.ErrCorrupt,
	} {
		m := newMachine(t)
		if err := os.WriteFile(filepath.Join(m.dir, "pools.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := host.New(t.Context(), host.Config{Engine: &m.engine, StateDir: m.dir})
		wantErr(t, err, want, "pools.json")
		h := newMachine(t).start() // the lock of another folder is free
		defer h.Stop(context.Background())
	}
}

func TestOneHostAFolder(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	_, err := host.New(ctx, host.Config{Engine: &m.engine, StateDir: m.dir})
	wantErr(t, err, engine.ErrLocked, "another rowan-engine")
	m.stop(h)
	m.stop(m.start())
}

func TestUnregisteredPoolStaysWhole(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	if err := os.Mkdir(filepath.Join(m.dir, "pools.json.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := h.CreatePool(t.Context(), engine.PoolSpec{Name: "a", Directory: "/pools/a"})
	if err == nil || !strings.Contains(err.Error(), "open it from there") {
		t.Fatalf("create: %v", err)
	}
	if err := os.Remove(filepath.Join(m.dir, "pools.json.new")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenPool(t.Context(), host.OpenSpec{Member: "/pools/a"}); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
}

func TestSlowVolumeHoldsUpNobody(t *testing.T) {
	m := newMachine(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	m.engine.Block = func(_ context.Context, op, name string) {
		if op == "GrowVolume" && name == "slow" {
			close(entered)
			<-leave
		}
	}
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "slow")
	m.volume(h, "a", "other")
	done := make(chan error, 1)
	go func() {
		_, err := h.GrowVolume(context.Background(), "a", "slow", 2<<30)
		done <- err
	}()
	<-entered
	if _, err := h.GrowVolume(t.Context(), "a", "other", 2<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Volume(t.Context(), "a", "slow"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := h.DeleteVolume(ctx, "a", "slow")
	wantErr(t, err, engine.ErrBusy, "a/slow")
	wantErr(t, err, context.DeadlineExceeded, "")
	wantErr(t, h.ClosePool(ctx, "a"), engine.ErrBusy, "pool a")
	close(leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteVolume(t.Context(), "a", "slow"); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
}

func TestNamesAndLabels(t *testing.T) {
	long := strings.Repeat("n", engine.MaxNameLen)
	for _, name := range []string{"a", "A-b_c.9", "0", "-x", "ä:1", long} {
		if err := host.CheckName("volume", name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a\n", "a\x00", "a\xff", "\x7f", long + "n"} {
		if err := host.CheckName("volume", name); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	big := map[string]string{"k": strings.Repeat("v", engine.MaxLabelsLen)}
	_, err := h.CreateVolume(t.Context(), "a", engine.VolumeSpec{Name: "v", Size: 1 << 30, Labels: big})
	wantErr(t, err, engine.ErrInvalid, "4096 are allowed")
	for _, s := range []engine.PoolSpec{
		{Name: "b"}, {Name: "b", Directory: "/d", Device: "/dev/x"}, {Name: "b", Directory: "d"}, {Name: "b", Directory: "/d/../e"},
		{Name: "b", Directory: "/d", Wipe: true}, {Name: "b", Directory: "/d", Size: -1}, {Name: "b/c", Directory: "/d"},
	} {
		if _, err := h.CreatePool(t.Context(), s); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	m.stop(h)
}

var _ attach.Attacher = (*hosttest.Attacher)(nil)
