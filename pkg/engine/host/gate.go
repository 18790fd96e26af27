package host

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/block"
)

// gate stands between an attached device and its volume, so that the engine can stop without a single request being answered wrongly. The attacher's
// Close answers what is under way, but a request that waits (for space, say) may outlast the time there is: once the gate is held, new requests wait
// for ever (for the process's end), and one that the closing volume turns away is not answered either. The next engine is sent them again.
type gate struct {
	block.Device
	shut atomic.Bool
	park func()       // what becomes of a request that is not answered; nil: it waits for ever
	mu   sync.RWMutex // held shared by every request under way, exclusively and for good once shut
}

var _ block.Device = (*gate)(nil)

// hold shuts the gate and waits until requests under way have ended, or ctx has.
func (g *gate) hold(ctx context.Context) error {
	g.shut.Store(true)
	done := make(chan struct{})
	go func() {
		g.mu.Lock() // never given back
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave ends a request. What failed while the gate was being shut may have failed because of that.
func (g *gate) leave(err error) {
	g.mu.RUnlock()
	if err == nil || !g.shut.Load() {
		return
	}
	if g.park != nil {
		g.park()
	}
	select {}
}

func (g *gate) ReadAt(p []byte, off int64) (int, error) {
	g.mu.RLock()
	n, err := g.Device.ReadAt(p, off)
	g.leave(err)
	return n, err
}

func (g *gate) WriteAt(p []byte, off int64) (int, error) {
	g.mu.RLock()
	n, err := g.Device.WriteAt(p, off)
	g.leave(err)
	return n, err
}

func (g *gate) Discard(off, length int64) error {
	g.mu.RLock()
	err := g.Device.Discard(off, length)
	g.leave(err)
	return err
}

func (g *gate) WriteZeroes(off, length int64) error {
	g.mu.RLock()
	err := g.Device.WriteZeroes(off, length)
	g.leave(err)
	return err
}

func (g *gate) Flush() error {
	g.mu.RLock()
	err := g.Device.Flush()
	g.leave(err)
	return err
}
