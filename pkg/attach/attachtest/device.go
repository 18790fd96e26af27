package attachtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// testDevice runs block.Device's suite through the kernel.
func testDevice(t *testing.T, c Config, sector int) {
	a := started(t, c)
	var n int
	behind := map[block.Device]*block.RAM{}
	show := func(t testing.TB, ram *block.RAM, o attach.Options, flags int) block.Device {
		n++
		at := attached(t, a, fmt.Sprintf("conform-%d", n), ram, o)
		f := openNode(t, at.Path(), flags|syscall.O_DIRECT)
		if f.SectorSize() != sector || f.Size() != ram.Size() {
			t.Errorf("%s shows %d bytes in sectors of %d; want %d in %d", at.Path(), f.Size(), f.SectorSize(), ram.Size(), sector)
		}
		behind[f] = ram
		return f
	}
	blocktest.Run(t, blocktest.Config{
		New: func(t testing.TB) block.Device {
			return show(t, block.NewRAM(blocktest.MinSize+4096, sector), attach.Options{}, os.O_RDWR)
		},
		Reopen: func(t testing.TB, dev block.Device) block.Device { // the same content behind another device
			return show(t, behind[dev], attach.Options{}, os.O_RDWR)
		},
		ReadOnly: func(t testing.TB) block.Device {
			ram := block.NewRAM(blocktest.MinSize, sector)
			if _, err := ram.WriteAt(bytes.Repeat([]byte("content."), 512), 0); err != nil {
				t.Fatal(err)
			}
			return show(t, ram, attach.Options{ReadOnly: true}, os.O_RDONLY)
		},
	})
}

func testArguments(t *testing.T, c Config) {
	a, ctx, dev := started(t, c), limited(t), block.NewRAM(1<<20, 512)
	for name, test := range map[string]struct {
		id  string
		dev block.Device
		o   attach.Options
	}{
		"no id":           {"", dev, attach.Options{}},
		"long id":         {strings.Repeat("x", attach.MaxIDLen+1), dev, attach.Options{}},
		"much meta":       {"id", dev, attach.Options{Meta: make([]byte, attach.MaxMetaLen+1)}},
		"odd sector":      {"id", dev, attach.Options{SectorSize: 1000}},
		"sector too fine": {"id", block.NewRAM(1<<20, 4096), attach.Options{SectorSize: 512}},
		"empty device":    {"id", block.NewRAM(0, 512), attach.Options{}},
	} {
		if _, err := a.Attach(ctx, test.id, test.dev, test.o); !errors.Is(err, attach.ErrInvalid) {
			t.Errorf("attach with %s: %v; want ErrInvalid", name, err)
		}
	}
	if _, err := a.Resume(ctx, "nobody", dev); !errors.Is(err, attach.ErrNotFound) {
		t.Errorf("resume of nothing: %v; want ErrNotFound", err)
	}
	id, meta := strings.Repeat("ü/", attach.MaxIDLen/3), bytes.Repeat([]byte{0, 255}, attach.MaxMetaLen/2)
	at := attached(t, a, id, dev, attach.Options{Meta: meta})
	if _, err := a.Attach(ctx, id, dev, attach.Options{}); !errors.Is(err, attach.ErrExists) {
		t.Errorf("attach of a taken id: %v; want ErrExists", err)
	}
	if _, err := a.Resume(ctx, id, dev); c.Survives && !errors.Is(err, attach.ErrExists) {
		t.Errorf("resume of what is served: %v; want ErrExists", err)
	}
	infos, err := a.List(ctx)
	if err != nil || len(infos) != 1 {
		t.Fatalf("list: %v, %v; want one", infos, err)
	}
	if i := infos[0]; i.ID != id || i.Path != at.Path() || !bytes.Equal(i.Meta, meta) || !i.Serving || i.ReadOnly || i.SectorSize != 512 {
		t.Errorf("list says %+v; want id %q at %s, with its meta", i, id, at.Path())
	}
	if err := at.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if infos, err := a.List(ctx); err != nil || len(infos) != 0 {
		t.Errorf("list after detach: %v, %v", infos, err)
	}
	select {
	case <-at.Done():
	default:
		t.Error("Done is open after Detach")
	}
	if at.Err() != nil {
		t.Errorf("Err after Detach: %v", at.Err())
	}
}

// testSectorOption shows a device of 512-byte sectors with larger ones.
func testSectorOption(t *testing.T, c Config) {
	at := attached(t, started(t, c), "sector", block.NewRAM(1<<20, 512), attach.Options{SectorSize: 4096})
	if f := opened(t, at); f.SectorSize() != 4096 {
		t.Errorf("sector is %d; want 4096", f.SectorSize())
	} else if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func testDiscard(t *testing.T, c Config) {
	dev := block.NewRAM(64<<20, 512)
	f := opened(t, attached(t, started(t, c), "discard", dev, attach.Options{}))
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := dev.Bytes(block.OpDiscard); got != 1<<20 || dev.Allocated() != 0 {
		t.Errorf("%d bytes were discarded and %d are allocated; want 1 MiB and none", got, dev.Allocated())
	}
	if err := f.WriteZeroes(4096, 8192); err != nil {
		t.Fatal(err)
	}
	if got := dev.Bytes(block.OpWriteZeroes) + dev.Bytes(block.OpDiscard) - 1<<20; got != 8192 {
		t.Errorf("write-zeroes reached the device as %d bytes; want 8192", got)
	}
	before := dev.Count(block.OpFlush)
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if dev.Count(block.OpFlush) == before {
		t.Error("fsync of the node did not reach the device as a flush")
	}
}

func testGrow(t *testing.T, c Config) {
	dev, ctx := block.NewRAM(16<<20, 512), limited(t)
	at := attached(t, started(t, c), "grow", dev, attach.Options{})
	f := opened(t, at)
	defer func() { _ = f.Close() }()
	stop, torture := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := blocktest.Torture(stop, f, blocktest.TortureOptions{Workers: 16, Len: 8 << 20, MaxIO: 8192, Min: 200})
		done <- err
	}()
	defer func() { // before the node is closed
		torture()
		if err := <-done; err != nil {
			t.Errorf("I/O while growing: %v", err)
		}
	}()
	for size := int64(17 << 20); size <= 64<<20; size += 1 << 20 {
		dev.Grow(size)
		if err := at.Resize(ctx); err != nil {
			t.Fatal(err)
		}
		if f.Size() != size {
			t.Errorf("the node shows %d bytes; want %d", f.Size(), size)
		}
		last := bytes.Repeat([]byte{9}, 4096)
		if _, err := f.WriteAt(last, size-4096); err != nil {
			t.Errorf("write to the new end: %v", err)
		}
		got := make([]byte, 4096)
		if _, err := f.ReadAt(got, size-4096); err != nil || !bytes.Equal(got, last) {
			t.Errorf("read the new end: %v", err)
		}
	}
}

func testNoSpace(t *testing.T, c Config) {
	dev := block.NewRAM(16<<20, 512)
	f := opened(t, attached(t, started(t, c), "nospace", dev, attach.Options{}))
	defer func() { _ = f.Close() }()
	p := bytes.Repeat([]byte{3}, 64<<10)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	dev.SetLimit(64 << 10)
	if _, err := f.WriteAt(p, 1<<20); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full device: %v; want ENOSPC", err)
	}
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Errorf("overwrite on a full device: %v", err)
	}
	dev.SetLimit(0)
	if _, err := f.WriteAt(p, 1<<20); err != nil {
		t.Errorf("write after space was made: %v", err)
	}
}

// testErrors has each kind of request fail once: the error must come through, and the next request must work.
func testErrors(t *testing.T, c Config) {
	dev := block.NewRAM(16<<20, 512)
	f := opened(t, attached(t, started(t, c), "errors", dev, attach.Options{}))
	defer func() { _ = f.Close() }()
	p := blocktest.Aligned(4096)
	for op, call := range map[block.Op]func() error{
		block.OpRead:    func() error { _, err := f.ReadAt(p, 0); return err },
		block.OpWrite:   func() error { _, err := f.WriteAt(p, 0); return err },
		block.OpDiscard: func() error { return f.Discard(0, 4096) },
		block.OpFlush:   f.Flush,
	} {
		for _, cause := range []error{errors.New("broken"), syscall.ENOSYS, syscall.EOPNOTSUPP} { // never to be taken for "cannot do this at all"
			dev.FailNext(op, cause)
			if err := call(); !errors.Is(err, syscall.EIO) {
				t.Errorf("%v that fails with %q: %v; want EIO", op, cause, err)
			}
			before := dev.Count(op)
			if err := call(); err != nil {
				t.Errorf("%v after one that failed: %v", op, err)
			}
			if dev.Count(op) == before {
				t.Errorf("%v does not reach the device any more after a failure", op)
			}
		}
	}
}

// testDepth holds reads in the device until 64 are there at once.
func testDepth(t *testing.T, c Config) {
	const depth = 64
	dev := block.NewRAM(16<<20, 512)
	f := opened(t, attached(t, started(t, c), "depth", dev, attach.Options{}))
	defer func() { _ = f.Close() }()
	release := dev.Hold(block.OpRead)
	defer release()
	var wg sync.WaitGroup
	for i := range depth {
		wg.Go(func() {
			if _, err := f.ReadAt(blocktest.Aligned(4096), int64(i)*8192); err != nil { // not next to each other: they must not merge
				t.Errorf("read: %v", err)
			}
		})
	}
	if err := dev.WaitHeld(limited(t), block.OpRead, depth); err != nil {
		t.Errorf("wait for %d reads at once: %v", depth, err)
	}
	release()
	wg.Wait()
}

// testStuck fills a device that does not answer with large writes; another must still work.
func testStuck(t *testing.T, c Config) {
	a := started(t, c)
	stuck, good := block.NewRAM(256<<20, 512), block.NewRAM(16<<20, 512)
	sf, gf := opened(t, attached(t, a, "stuck", stuck, attach.Options{})), opened(t, attached(t, a, "good", good, attach.Options{}))
	defer func() { _, _ = sf.Close(), gf.Close() }()
	release := stuck.Hold(block.OpWrite)
	defer release()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := sf.WriteAt(blocktest.Aligned(1<<20), int64(i)<<20); err != nil {
				t.Errorf("write: %v", err)
			}
		})
	}
	if err := stuck.WaitHeld(limited(t), block.OpWrite, 8); err != nil {
		t.Errorf("wait for 8 of %d writes that arrived: %v", stuck.Count(block.OpWrite), err)
	}
	_, err := blocktest.Torture(context.Background(), limitTo(gf, 300), blocktest.TortureOptions{Workers: 4, MaxIO: 1 << 20})
	if !errors.Is(err, errEnough) {
		t.Errorf("I/O beside a stuck device: %v", err)
	}
	release()
	wg.Wait()
}
