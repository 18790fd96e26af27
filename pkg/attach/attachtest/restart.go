package attachtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// testRestart closes the attacher under I/O and goes on with another.
func testRestart(t *testing.T, c Config) {
	if !c.Survives {
		t.Skip("attachments end with this attacher")
	}
	ctx, dev := limited(t), block.NewRAM(32<<20, 512)
	a := started(t, c)
	at, err := a.Attach(ctx, "restart", dev, attach.Options{Meta: []byte("volume 7")})
	if err != nil {
		t.Fatal(err)
	}
	path := at.Path()
	f := openNode(t, path, os.O_RDWR|directFlag)
	traffic := count(f)
	stop, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := blocktest.Torture(stop, traffic, blocktest.TortureOptions{Workers: 16})
		done <- err
	}()
	for range 5 {
		before := traffic.count.Load()
		eventually(t, "traffic", func() bool { return traffic.count.Load() > before+200 })
		if err := a.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if at.Err() != nil {
			t.Errorf("Err after Close: %v", at.Err())
		}
		if _, err := a.Attach(ctx, "x", dev, attach.Options{}); !errors.Is(err, attach.ErrClosed) {
			t.Errorf("attach with a closed attacher: %v; want ErrClosed", err)
		}
		a = started(t, c)
		infos, err := a.List(ctx) // nobody serves now: it must not hang
		if err != nil || len(infos) != 1 || infos[0].Serving || infos[0].Path != path || !bytes.Equal(infos[0].Meta, []byte("volume 7")) {
			t.Fatalf("list after a restart: %+v, %v", infos, err)
		}
		if _, err := a.Attach(ctx, "restart", dev, attach.Options{}); !errors.Is(err, attach.ErrExists) {
			t.Errorf("attach of what was left behind: %v; want ErrExists", err)
		}
		if _, err := a.Resume(ctx, "restart", block.NewRAM(16<<20, 512)); !errors.Is(err, attach.ErrInvalid) {
			t.Errorf("resume with a smaller device: %v; want ErrInvalid", err)
		}
		if at, err = a.Resume(ctx, "restart", dev); err != nil {
			t.Fatal(err)
		}
		if at.Path() != path {
			t.Errorf("path changed from %s to %s", path, at.Path())
		}
	}
	clean(t, a, at)
	before := traffic.count.Load()
	eventually(t, "traffic after the last restart", func() bool { return traffic.count.Load() > before+200 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("I/O over restarts: %v", err)
	}
	dev.Grow(48 << 20)
	if err := at.Resize(ctx); err != nil || f.Size() != 48<<20 {
		t.Errorf("resize after a restart: %v; the node shows %d bytes", err, f.Size())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// testAbort aborts a device that nobody serves, and one that is served: I/O must fail, and nothing may be left.
func testAbort(t *testing.T, c Config) {
	ctx, dev := limited(t), block.NewRAM(16<<20, 512)
	a := started(t, c)
	at := attached(t, a, "abort", dev, attach.Options{})
	f := opened(t, at)
	if err := a.Abort(ctx, "abort"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("read of an aborted device succeeded")
	}
	_ = f.Close()
	select {
	case <-at.Done():
	case <-ctx.Done():
		t.Fatal("Done is open after Abort")
	}
	if !errors.Is(at.Err(), attach.ErrGone) {
		t.Errorf("Err after Abort: %v; want ErrGone", at.Err())
	}
	if err := at.Detach(ctx); err != nil {
		t.Fatalf("detach after Abort: %v", err)
	}
	if !c.Survives {
		return
	}
	at, err := a.Attach(ctx, "abort", dev, attach.Options{}) // the id is free again
	if err != nil {
		t.Fatal(err)
	}
	f = opened(t, at)
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { _, err := f.ReadAt(make([]byte, 4096), 0); failed <- err }()
	a = started(t, c)
	if err := a.Abort(ctx, "abort"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("read of an aborted device succeeded")
	}
	if _, err := a.Attach(ctx, "abort", dev, attach.Options{}); !errors.Is(err, attach.ErrInUse) {
		t.Errorf("attach where a dead device is still open: %v; want ErrInUse", err)
	}
	_ = f.Close()
	if infos, err := a.List(ctx); err != nil || len(infos) != 0 {
		t.Errorf("list after Abort: %v, %v; want nothing", infos, err)
	}
	if _, err := a.Resume(ctx, "abort", dev); !errors.Is(err, attach.ErrNotFound) {
		t.Errorf("resume after Abort: %v; want ErrNotFound", err)
	}
	attached(t, a, "abort", dev, attach.Options{})
}

// testManyAtOnce attaches, uses and detaches several devices side by side.
func testManyAtOnce(t *testing.T, c Config) {
	a, ctx := started(t, c), limited(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for round := range 3 {
				id := fmt.Sprintf("many-%d", i)
				dev := block.NewRAM(4<<20, 512)
				at, err := a.Attach(ctx, id, dev, attach.Options{})
				if err != nil {
					t.Errorf("attach %s, round %d: %v", id, round, err)
					return
				}
				f, err := blocktest.OpenFile(at.Path(), os.O_RDWR|directFlag, 512)
				if err != nil {
					t.Errorf("open %s: %v", at.Path(), err)
				} else {
					if _, err := blocktest.Torture(ctx, limitTo(f, 100), blocktest.TortureOptions{Workers: 2}); !errors.Is(err, errEnough) {
						t.Errorf("I/O on %s: %v", id, err)
					}
					_ = f.Close()
				}
				if err := at.Detach(ctx); err != nil {
					t.Errorf("detach %s, round %d: %v", id, round, err)
				}
			}
		})
	}
	wg.Wait()
}
