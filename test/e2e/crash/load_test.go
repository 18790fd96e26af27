package crash

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/block"
)

// TestStamp: a sector that was torn, shifted or damaged anywhere does not decode.
func TestStamp(t *testing.T) {
	a, b := make([]byte, sectorSize), make([]byte, sectorSize)
	s := Stamp{Run: 7, Volume: 1, Sector: 1 << 33, Version: 5<<versionBits | 3}
	s.encode(a)
	if got, ok := decode(a); !ok || got != s {
		t.Fatalf("decoded %v, %t; want %v", got, ok, s)
	}
	if got, ok := decode(make([]byte, sectorSize)); !ok || got != (Stamp{}) {
		t.Errorf("zeroes decode as %v, %t", got, ok)
	}
	s.Version++
	s.encode(b)
	for cut := 32; cut < sectorSize; cut += 8 { // before, only the version differs
		torn := append(append([]byte{}, a[:cut]...), b[cut:]...)
		if got, ok := decode(torn); ok {
			t.Errorf("torn at %d it decodes as %v", cut, got)
		}
	}
	for i := range a {
		a[i] ^= 1
		if got, ok := decode(a); ok {
			t.Errorf("damaged at %d it decodes as %v", i, got)
		}
		a[i] ^= 1
	}
}

// gated is a RAM device of which a copy can be made at one moment.
type gated struct {
	*block.RAM
	gate sync.RWMutex
}

func (g *gated) WriteAt(p []byte, off int64) (int, error) {
	g.gate.RLock()
	defer g.gate.RUnlock()
	return g.RAM.WriteAt(p, off)
}

func (g *gated) Discard(off, length int64) error {
	g.gate.RLock()
	defer g.gate.RUnlock()
	return g.RAM.Discard(off, length)
}

func (g *gated) WriteZeroes(off, length int64) error {
	g.gate.RLock()
	defer g.gate.RUnlock()
	return g.RAM.WriteZeroes(off, length)
}

// copyRange copies part of the device to another, at one moment.
func (g *gated) copyRange(t *testing.T, to block.Device, off, length int64) {
	t.Helper()
	g.gate.Lock()
	defer g.gate.Unlock()
	p := make([]byte, length)
	if _, err := g.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if _, err := to.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

const testSize = 4 << 20

// running is a load on a gated RAM device.
func running(t *testing.T) (g *gated, l *Load, more func(n int64), stop func() error) {
	t.Helper()
	g = &gated{RAM: block.NewRAM(testSize, sectorSize)}
	l = NewLoad(g, Options{Run: 99, Volume: 1, Seed: uint64(time.Now().UnixNano()), Workers: 4, Size: testSize})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	more = func(n int64) {
		t.Helper()
		var want []int64 // of each worker: they share few processors unevenly
		for _, w := range l.workers {
			want = append(want, w.ops.Load()+n/int64(len(l.workers)))
		}
		limit, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := stack.Until(limit, "there was more traffic", func() error {
			for i, w := range l.workers {
				if w.ops.Load() < want[i] {
					return errors.New("too little")
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return g, l, more, stop
}

func TestLoadAndCuts(t *testing.T) {
	g, l, more, stop := running(t)
	for range 20 {
		more(200)
		c, snap := l.BeginCut(), block.NewRAM(testSize, sectorSize)
		g.copyRange(t, snap, 0, testSize)
		c.End()
		more(50)
		if err := c.Check(snap); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.IOErrors != 0 || s.WrongSectors != 0 || s.BytesWritten == 0 {
		t.Errorf("%+v", s)
	}
}

// TestBadCuts makes snapshots that are wrong in one way each.
func TestBadCuts(t *testing.T) {
	for name, bad := range map[string]func(t *testing.T, g *gated, snap block.Device, more func(int64)){
		"two moments": func(t *testing.T, g *gated, snap block.Device, more func(int64)) {
			g.copyRange(t, snap, 0, testSize/2)
			more(300)
			g.copyRange(t, snap, testSize/2, testSize/2)
		},
		"two moments in each worker's range": func(t *testing.T, g *gated, snap block.Device, more func(int64)) {
			for off := int64(0); off < testSize; off += 256 << 10 {
				g.copyRange(t, snap, off, 256<<10)
				more(40)
			}
		},
		"another volume's sector": func(t *testing.T, g *gated, snap block.Device, _ func(int64)) {
			g.copyRange(t, snap, 0, testSize)
			p := make([]byte, sectorSize)
			Stamp{99, 2, 40, 1}.encode(p)
			if _, err := snap.WriteAt(p, 40*sectorSize); err != nil {
				t.Fatal(err)
			}
		},
		"a sector lost": func(t *testing.T, g *gated, snap block.Device, _ func(int64)) {
			g.copyRange(t, snap, 0, testSize)
			p := make([]byte, sectorSize)
			for off := int64(0); ; off += sectorSize {
				if _, err := snap.ReadAt(p, off); err != nil {
					t.Fatal(err)
				}
				if s, _ := decode(p); s.Version != 0 {
					if err := snap.Discard(off, sectorSize); err != nil {
						t.Fatal(err)
					}
					return
				}
			}
		},
		"a late write": func(t *testing.T, g *gated, snap block.Device, _ func(int64)) {
			g.copyRange(t, snap, 0, testSize) // the test adds what came later
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, l, more, stop := running(t)
			more(2000)
			c, snap := l.BeginCut(), block.NewRAM(testSize, sectorSize)
			bad(t, g, snap, more)
			c.End()
			if name == "a late write" {
				more(2000)
				g.copyRange(t, snap, testSize/8, 256<<10)
			}
			if err := c.Check(snap); err == nil {
				t.Error("it passes")
			} else {
				t.Log(strings.SplitN(err.Error(), "\n", 2)[0])
			}
			if l.Stats().WrongSectors == 0 {
				t.Error("no wrong sector was counted")
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestWrongSectors: reading finds content that is not the last.
func TestWrongSectors(t *testing.T) {
	g, l, more, stop := running(t)
	more(1000)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, sectorSize)
	Stamp{99, 1, 7, 1}.encode(p)
	if _, err := g.WriteAt(p, 128*sectorSize); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(t.Context()); err == nil || l.Stats().WrongSectors != 1 {
		t.Errorf("a sector in another's place: %v, %+v", err, l.Stats())
	}
	if l.Stats().IOErrors != 0 {
		t.Errorf("%+v", l.Stats())
	}
}

// TestIOErrors: one failed request ends the load and is counted.
func TestIOErrors(t *testing.T) {
	g, l, more, stop := running(t)
	more(100)
	broken := errors.New("broken")
	g.FailNext(block.OpWrite, broken)
	limit, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := stack.Until(limit, "the error is counted", func() error {
		if l.Stats().IOErrors == 0 {
			return errors.New("none yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); !errors.Is(err, broken) {
		t.Errorf("load with a broken device: %v", err)
	}
}
