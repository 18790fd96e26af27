package fuseloop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/attachtest"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// bench is an attacher with a keeper, and what the tests of single steps need.
type bench struct {
	*Attacher
	socket string
	ctx    context.Context
}

func newBench(t *testing.T) *bench {
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
	t.Cleanup(cancel)
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	startKeeper(t, socket)
	b := &bench{socket: socket, ctx: ctx}
	b.restart(t, false)
	return b
}

// restart goes on with a new Attacher, as a new process would.
func (b *bench) restart(t *testing.T, closeOld bool) {
	t.Helper()
	if closeOld {
		if err := b.Close(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	a := New(Config{Keeper: b.socket})
	b.Attacher = a
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
		defer cancel()
		for _, at := range a.all() {
			if err := at.Detach(ctx); err != nil && !errors.Is(err, attach.ErrClosed) {
				t.Errorf("clean up: %v", err)
				_ = a.Abort(ctx, at.ID())
			}
		}
		_ = a.Close(ctx)
	})
}

func (b *bench) attach(t *testing.T, id string, dev block.Device) *attachment {
	t.Helper()
	at, err := b.Attach(b.ctx, id, dev, attach.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return at.(*attachment)
}

// nothingLeft checks that id is gone everywhere.
func (b *bench) nothingLeft(t *testing.T, id string) {
	t.Helper()
	if infos, err := b.List(b.ctx); err != nil || len(infos) != 0 {
		t.Errorf("list: %v, %v; want nothing", infos, err)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(namePrefix(id))) {
			t.Errorf("%s still has %s", f, b)
		}
	}
}

// TestInterruptedDetach stops Detach after each of its steps; a restarted process must be able to finish it.
func TestInterruptedDetach(t *testing.T) {
	const id = "interrupted-detach"
	for name, interrupt := range map[string]func(b *bench, at *attachment) error{
		"before anything": func(*bench, *attachment) error { return nil },
		"after the loop device was cleared": func(b *bench, at *attachment) error {
			at.setOurs(true)
			return b.clear(b.ctx, id, at.rec)
		},
		"after the kernel was asked to clear it on last close": func(b *bench, at *attachment) error {
			f, err := os.Open(at.Path())
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			at.setOurs(true)
			return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			dev := block.NewRAM(4<<20, 512)
			if err := interrupt(b, b.attach(t, id, dev)); err != nil {
				t.Fatal(err)
			}
			b.restart(t, true)
			if infos, err := b.List(b.ctx); err != nil || len(infos) != 1 {
				t.Fatalf("list: %v, %v; want the interrupted one", infos, err)
			}
			at, err := b.Resume(b.ctx, id, dev)
			if err != nil {
				t.Fatal(err)
			}
			if f, err := os.Open(at.Path()); err != nil {
				t.Errorf("the resumed device does not open: %v", err)
			} else {
				_ = f.Close()
			}
			if err := at.Detach(b.ctx); err != nil {
				t.Fatal(err)
			}
			b.nothingLeft(t, id)
		})
	}
	t.Run("after the keeper forgot it", func(t *testing.T) { // the rest goes with the process's descriptors
		b := newBench(t)
		at := b.attach(t, id, block.NewRAM(4<<20, 512))
		at.setOurs(true)
		if err := errors.Join(b.clear(b.ctx, id, at.rec), b.keeper.Delete(b.ctx, id)); err != nil {
			t.Fatal(err)
		}
		b.restart(t, true)
		b.nothingLeft(t, id)
	})
}

// TestInterruptedAttach stops Attach before the device exists: Resume makes it.
func TestInterruptedAttach(t *testing.T) {
	const id = "interrupted-attach"
	b := newBench(t)
	dev := block.NewRAM(4<<20, 512)
	at, err := b.serveNew(b.ctx, id, dev, attach.Options{SectorSize: 512})
	if err != nil {
		t.Fatal(err)
	}
	r, err := at.keeperRecord()
	if err == nil {
		err = b.Attacher.keeper.Put(b.ctx, r, true, at.fuse, at.pin)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.restart(t, true)
	infos, err := b.List(b.ctx)
	if err != nil || len(infos) != 1 || infos[0].Path != "" {
		t.Fatalf("list: %+v, %v; want one without a path", infos, err)
	}
	resumed, err := b.Resume(b.ctx, id, dev)
	if err != nil {
		t.Fatal(err)
	}
	f, err := blocktest.OpenFile(resumed.Path(), os.O_RDWR|syscall.O_DIRECT, 512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	if err := resumed.Detach(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, id)
}

// TestClearedByHand takes the loop device away behind the attacher's back.
func TestClearedByHand(t *testing.T) {
	b := newBench(t)
	dev := block.NewRAM(4<<20, 512)
	at := b.attach(t, "by-hand", dev)
	f, err := os.Open(at.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	select {
	case <-at.Done():
	case <-b.ctx.Done():
		t.Fatal("nobody noticed")
	}
	if !errors.Is(at.Err(), attach.ErrGone) {
		t.Errorf("Err: %v; want ErrGone", at.Err())
	}
	if err := at.Detach(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, "by-hand")
}

// TestKeeperDies: what is served is stored with the next keeper, even one that starts with nothing.
func TestKeeperDies(t *testing.T) {
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
	defer cancel()
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	stop := startKeeper(t, socket)
	events := make(chan string, 100)
	a := New(Config{Keeper: socket, Event: func(m string, _ ...any) { events <- m }})
	defer func() { _ = a.Close(ctx) }()
	dev := block.NewRAM(4<<20, 512)
	if _, err := a.Attach(ctx, "kept", dev, attach.Options{Meta: []byte("m")}); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case <-events:
	case <-ctx.Done():
		t.Fatal("the keeper's death was not reported")
	}
	startKeeper(t, socket)
	client := keeper.NewClient(socket)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if all, err := client.List(ctx); err == nil && len(all) == 1 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the attachment was not stored with the new keeper")
		}
	}
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	startKeeper(t, socket) // a successor takes over while nobody serves
	b := New(Config{Keeper: socket})
	defer func() { _ = b.Close(ctx) }()
	at, err := b.Resume(ctx, "kept", dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Detach(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestMakesMissingNodes uses a folder without nodes instead of /dev, as a container may have.
func TestMakesMissingNodes(t *testing.T) {
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
	defer cancel()
	dir, err := os.MkdirTemp("/dev", "rowan-test-") // a temporary folder may be on a nodev mount
	if err != nil {
		t.Skipf("cannot make a folder for device nodes: %v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	a := New(Config{Dev: dir})
	defer func() { _ = a.Close(ctx) }()
	at, err := a.Attach(ctx, "nodes", block.NewRAM(4<<20, 512), attach.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(at.Path()) != dir {
		t.Errorf("path is %s; want it in %s", at.Path(), dir)
	}
	if err := at.Detach(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestListAsksNobody: with attributes that the kernel no longer trusts, whoever asks for the file's attributes waits for a server. A restarted
// process must find its devices before it serves them.
func TestListAsksNobody(t *testing.T) {
	const id = "list-asks-nobody"
	b := newBench(t)
	dev := block.NewRAM(4<<20, 512)
	path := b.attach(t, id, dev).Path()
	b.restart(t, true)
	_, files, err := b.keeper.Get(b.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles(files)
	const notifyInvalInode = 2
	body := make([]byte, 24) // nodeid, offset (negative: the attributes alone), length
	order.PutUint64(body, fileNode)
	order.PutUint64(body[8:], ^uint64(0))
	if _, err := unix.Write(int(files[0].Fd()), notification(notifyInvalInode, body)); err != nil {
		t.Fatal(err)
	}
	type result struct {
		infos []attach.Info
		err   error
	}
	listed := make(chan result, 1)
	go func() {
		infos, err := b.List(b.ctx)
		listed <- result{infos, err}
	}()
	select {
	case r := <-listed:
		if r.err != nil || len(r.infos) != 1 || r.infos[0].Path != path {
			t.Fatalf("list: %+v, %v; want %s", r.infos, r.err, path)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("list hangs: it asks the file that nobody serves")
		if err := b.Abort(b.ctx, id); err != nil {
			t.Error(err)
		}
		<-listed
		return
	}
	at, err := b.Resume(b.ctx, id, dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Detach(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, id)
}
