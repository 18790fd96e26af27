package host_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

func TestAttachedVolume(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	if _, err := h.CreateSnapshot(t.Context(), "a", engine.SnapshotSpec{Name: "s", Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	dev := m.attach(h, "a", "v")
	if again := m.attach(h, "a", "v"); again != dev {
		t.Fatalf("attached again as %s, not %s", again, dev)
	}
	_, err := h.Attach(t.Context(), "a", "v", true)
	wantErr(t, err, engine.ErrInUse, dev)
	wantErr(t, h.DeleteVolume(t.Context(), "a", "v"), engine.ErrInUse, "detach it first")
	_, err = h.RollbackVolume(t.Context(), "a", "v", "s", "")
	wantErr(t, err, engine.ErrInUse, dev)

	if _, err := h.GrowVolume(t.Context(), "a", "v", 2<<30); err != nil {
		t.Fatal(err)
	}
	if _, size := m.attacher.Served("a/v"); size != 2<<30 {
		t.Fatalf("the device shows %d bytes", size)
	}
	for range 2 { // the second finds it detached
		if err := h.Detach(t.Context(), "a", "v"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.RollbackVolume(t.Context(), "a", "v", "s", ""); err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteVolume(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
}

func TestGrowAgainFinishesTheDevice(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	m.attach(h, "a", "v")
	m.attacher.Fail = func(op, _ string) error {
		if op == "Resize" {
			return errors.New("no")
		}
		return nil
	}
	if _, err := h.GrowVolume(t.Context(), "a", "v", 2<<30); err == nil || !strings.Contains(err.Error(), "ask again") {
		t.Fatalf("grow: %v", err)
	}
	m.attacher.Fail = nil
	if _, err := h.GrowVolume(t.Context(), "a", "v", 2<<30); err != nil {
		t.Fatal(err)
	}
	if _, size := m.attacher.Served("a/v"); size != 2<<30 {
		t.Fatalf("the device shows %d bytes", size)
	}
	m.stop(h)
}

// restarts are the two ways an engine ends.
func restarts(t *testing.T, f func(t *testing.T, m *machine, end func(*host.Host))) {
	t.Run("stop", func(t *testing.T) { m := newMachine(t); f(t, m, m.stop) })
	t.Run("kill", func(t *testing.T) { m := newMachine(t); f(t, m, m.kill) })
}

func TestAttachmentsResume(t *testing.T) {
	restarts(t, func(t *testing.T, m *machine, end func(*host.Host)) {
		h := m.start()
		m.pool(h, "a")
		m.pool(h, "b")
		m.volume(h, "a", "v")
		m.volume(h, "b", "w")
		v, w := m.attach(h, "a", "v"), m.attach(h, "b", "w")
		end(h)

		m.engine.Fail = func(op, name string) error {
			if op == "OpenPool" && name == "/pools/b" {
				return engine.ErrIncompatible
			}
			return nil
		}
		h = m.start()
		if again := m.attach(h, "a", "v"); again != v {
			t.Fatalf("resumed as %s, was %s", again, v)
		}
		l := h.Attachments("")
		if len(l) != 2 || l[0].Stalled != "" || l[1].Stalled == "" || l[1].Device != w {
			t.Fatalf("attachments: %+v", l)
		}
		wantErr(t, h.ClosePool(t.Context(), "b"), engine.ErrInUse, "detach w")
		m.engine.Fail = nil
		if _, err := h.OpenPool(t.Context(), host.OpenSpec{Name: "b"}); err != nil {
			t.Fatal(err)
		}
		if l := h.Attachments("b"); len(l) != 1 || l[0].Stalled != "" {
			t.Fatalf("attachments: %+v", l)
		}
		if err := h.Detach(t.Context(), "b", "w"); err != nil {
			t.Fatal(err)
		}
		m.stop(h)
	})
}

// TestAttachmentsResumeAtOnce: none waits for another's resumption, because that may be waiting for this one.
func TestAttachmentsResumeAtOnce(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	for _, v := range []string{"v", "w"} {
		m.volume(h, "a", v)
		m.attach(h, "a", v)
	}
	m.kill(h)
	var begun atomic.Int32
	both := make(chan struct{})
	m.attacher.Fail = func(op, _ string) error {
		if op != "Resume" {
			return nil
		}
		if begun.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("the other one was not begun")
		}
	}
	h = m.start()
	for _, v := range []string{"v", "w"} { // waits until the pool is open
		m.attach(h, "a", v)
	}
	if n := begun.Load(); n != 2 {
		t.Errorf("%d resumptions; want 2, at once", n)
	}
	m.stop(h)
}

// TestStopWithRequestsUnderWay: Stop ends in its time although a request still waits in the volume.
func TestStopWithRequestsUnderWay(t *testing.T) {
	m := newMachine(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	m.engine.Block = func(_ context.Context, op, _ string) {
		if op == "WriteAt" {
			close(entered)
			<-leave
		}
	}
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	m.attach(h, "a", "v")
	dev, _ := m.attacher.Served("a/v")
	done := make(chan struct{})
	go func() {
		dev.WriteAt(make([]byte, 4096), 0)
		close(done)
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := h.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("stop: %v", err)
	}
	close(leave)
	<-done // it was carried out, so it may be answered
}

func TestAttachThatFailsLeavesNothingOpen(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	m.attacher.Fail = func(op, _ string) error {
		if op == "Attach" {
			return attach.ErrUnavailable
		}
		return nil
	}
	_, err := h.Attach(t.Context(), "a", "v", false)
	wantErr(t, err, engine.ErrUnsupported, "attach volume")
	if err := h.DeleteVolume(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
}

// TestAttachTakesUpALeftover: the attacher made the device but its answer was lost.
func TestAttachTakesUpALeftover(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	if _, err := m.attacher.Attach(t.Context(), "a/v", blank{}, attach.Options{}); err != nil {
		t.Fatal(err)
	}
	_, err := h.Attach(t.Context(), "a", "v", true)
	wantErr(t, err, engine.ErrInUse, "read-write")
	m.attach(h, "a", "v")
	if err := h.Detach(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	m.stop(h)
}

// blank is a device of zeroes.
type blank struct{ block.Device }

func (blank) Size() int64     { return 1 << 30 }
func (blank) SectorSize() int { return block.SectorSize }

func TestDetach(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	dev := m.attach(h, "a", "v")
	m.attacher.Fail = func(op, _ string) error {
		if op == "Detach" {
			return attach.ErrInUse
		}
		return nil
	}
	wantErr(t, h.Detach(t.Context(), "a", "v"), engine.ErrInUse, dev)
	m.attacher.Fail = nil
	m.engine.Fail = func(op, _ string) error {
		if op == "CloseVolume" {
			return engine.ErrFailed
		}
		return nil
	}
	wantErr(t, h.Detach(t.Context(), "a", "v"), engine.ErrFailed, "its device is gone")
	_, err := h.Attach(t.Context(), "a", "v", false)
	wantErr(t, err, engine.ErrBusy, "detach it again")
	m.engine.Fail = nil
	if err := h.Detach(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	m.attach(h, "a", "v")
	m.stop(h)
}

func TestDeviceTakenAway(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.volume(h, "a", "v")
	m.attach(h, "a", "v")
	m.attacher.Lose("a/v")
	within(t, "the loss is listed", func() bool { return h.Attachments("a")[0].Stalled != "" })
	_, err := h.Attach(t.Context(), "a", "v", false)
	wantErr(t, err, attach.ErrGone, "detach it first")
	if err := h.Detach(t.Context(), "a", "v"); err != nil {
		t.Fatal(err)
	}
	m.attach(h, "a", "v")
	m.stop(h)
}

func TestStoppedHostRefuses(t *testing.T) {
	m := newMachine(t)
	h := m.start()
	m.pool(h, "a")
	m.stop(h)
	_, err := h.Volumes(t.Context(), "a")
	wantErr(t, err, host.ErrStopping, "")
	_, err = h.CreatePool(t.Context(), engine.PoolSpec{Name: "b", Directory: "/b"})
	wantErr(t, err, host.ErrStopping, "")
}
