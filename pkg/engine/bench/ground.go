package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// ground is the run's folders. What is in them goes when it is removed.
type ground struct {
	dir, ring string
	io        *uring.IO
	reports   reports
}

func newGround(c *Config, end context.CancelCauseFunc) (*ground, error) {
	dir, err := os.MkdirTemp(c.Dir, "rowan-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder to measure in: %w", err)
	}
	ring, err := os.MkdirTemp(c.RingDir, "rowan-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder for the ring: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir), os.RemoveAll(ring))
	}
	g := &ground{dir: dir, ring: ring, reports: reports{end}}
	// As rowan-engine does it, and without io_uring where there is none.
	if g.io, err = uring.NewIO(c.IO); err != nil && !errors.Is(err, uring.ErrUnavailable) {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func (g *ground) remove() error {
	return errors.Join(g.io.Close(), os.RemoveAll(g.dir), os.RemoveAll(g.ring))
}

// options are without watermarks: pools are as large as what they are to hold.
func (g *ground) options() engine.Options {
	return engine.Options{RingDir: g.ring, MountDir: g.dir, IO: g.io, Observer: g.reports, WarnAt: 2, RefuseAt: 2}
}

// withoutChecksums is for what counts bytes: frozen blocks get no checksums meanwhile.
func (g *ground) withoutChecksums() engine.Options {
	o := g.options()
	o.ChecksumRate = -1
	return o
}

// checksumsAtOnce makes them as fast as it goes.
func (g *ground) checksumsAtOnce() engine.Options {
	o := g.options()
	o.ChecksumRate, o.ChecksumDelay = 1<<40, -1
	return o
}

// pool makes a pool that may hold size bytes.
func (g *ground) pool(ctx context.Context, name string, size int64) (*engine.Pool, error) {
	return g.poolWith(ctx, name, size, g.options())
}

func (g *ground) poolWith(ctx context.Context, name string, size int64, o engine.Options) (*engine.Pool, error) {
	return engine.CreatePool(ctx, engine.PoolSpec{Name: name, Directory: g.member(name), Size: size}, o)
}

func (g *ground) member(name string) string { return filepath.Join(g.dir, name) }

// plain makes the file that everything is compared with, written in full.
func (g *ground) plain(ctx context.Context, size int64) (string, error) {
	file := filepath.Join(g.dir, "plain")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	_, err := fioJob{file: file, rw: "write", bytes: streamSize, depth: 8, size: size}.run(ctx)
	return file, err
}

// reports ends the run at the first thing an engine reports: in a measurement nothing should go wrong, and nothing measured after it counts.
type reports struct{ end context.CancelCauseFunc }

// Figures implements engine.Observer: what is measured is the engine without them.
func (reports) Figures(string) *engine.Figures { return nil }

// Event implements engine.Observer.
func (r reports) Event(pool, message string, keysAndValues ...any) {
	r.end(fmt.Errorf("pool %q reports: %s %v", pool, message, keysAndValues))
}
