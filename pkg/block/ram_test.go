package block_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

func TestRAMConforms(t *testing.T) {
	for name, sector := range map[string]int{"512": 512, "4096": 4096} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				New:    func(testing.TB) block.Device { return block.NewRAM(blocktest.MinSize+4096, sector) },
				Reopen: func(_ testing.TB, dev block.Device) block.Device { return dev },
				ReadOnly: func(testing.TB) block.Device {
					r := block.NewRAM(blocktest.MinSize, sector)
					r.SetReadOnly(true)
					return r
				},
			})
		})
	}
}

func TestRAMIsSparse(t *testing.T) {
	r := block.NewRAM(1<<40, 512)
	for _, off := range []int64{0, 1 << 39, 1<<40 - 4096} {
		if _, err := r.WriteAt(make([]byte, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Allocated(); got > 1<<20 {
		t.Errorf("three blocks of 1 TiB take %d bytes", got)
	}
	if err := r.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := r.Allocated(); got != 128<<10 {
		t.Errorf("after a discard it holds %d bytes; want 128 KiB", got)
	}
}

func TestRAMKnobs(t *testing.T) {
	r, p := block.NewRAM(1<<20, 512), make([]byte, 512)
	boom := errors.New("boom")
	r.FailNext(block.OpWrite, boom)
	if _, err := r.WriteAt(p, 0); !errors.Is(err, boom) {
		t.Errorf("write: %v; want the planned failure", err)
	}
	if _, err := r.WriteAt(p, 0); err != nil {
		t.Errorf("the failure was for one write: %v", err)
	}
	r.SetLimit(64 << 10)
	if _, err := r.WriteAt(p, 128<<10); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("write beyond the limit: %v; want ErrNoSpace", err)
	}
	if _, err := r.WriteAt(p, 1024); err != nil {
		t.Errorf("overwrite when full: %v", err)
	}

	release := r.Hold(block.OpFlush)
	done := make(chan error, 1)
	go func() { done <- r.Flush() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.WaitHeld(ctx, block.OpFlush, 1); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("a held flush returned: %v", err)
	default:
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(p, 0); !errors.Is(err, block.ErrClosed) {
		t.Errorf("read of a closed device: %v; want ErrClosed", err)
	}
}
