package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	// Two volumes, each with keep snapshots at most, all of which may come to own every block: (1+keep) × 2 × volumeSize of poolSize, the smallest there
	// is. So a block that one volume gives up is soon another's.
	poolSize   = 256 * mi
	volumeSize = 30 * mi
	keep       = 3
	workers    = 8
	// churn is what is written to both volumes between snapshots: most blocks, in a random order. With 4 the pool was 74 to 77 % full at its fullest.
	churn = 6 * volumeSize
	// rounds of snapshots are taken at least, so that the pool was as full as it gets.
	rounds = keep + 3
)

// volume is one under load.
type volume struct {
	name  string
	dev   *blocktest.File
	load  *Load
	snaps []taken
	n     int
}

// taken is a snapshot and what it may hold.
type taken struct {
	name string
	cut  *Cut
}

// raw is the phase on devices without a file system.
func (m *machine) raw(ctx context.Context, kills int) (err error) {
	var volumes []*volume
	defer func() {
		for _, v := range volumes {
			s := v.load.Stats()
			m.ioErrors, m.wrongSectors, m.written = m.ioErrors+s.IOErrors, m.wrongSectors+s.WrongSectors, m.written+s.BytesWritten
			err = errors.Join(err, v.close())
		}
	}()
	for i, name := range []string{"one", "two"} {
		v := &volume{name: name}
		mode := engine.Mode(i) // one redirects, two copies
		if err := m.create(ctx, engine.VolumeSpec{Name: name, Size: volumeSize, Mode: mode}); err != nil {
			return err
		}
		if v.dev, err = m.open(ctx, name); err != nil {
			return err
		}
		v.load = NewLoad(v.dev, Options{Run: *seed | 1, Volume: uint32(i + 1), Seed: *seed, Workers: workers, Size: volumeSize})
		volumes = append(volumes, v)
	}
	if err := m.underLoad(ctx, volumes, kills); err != nil {
		return err
	}
	if err := m.afterLoad(ctx, volumes); err != nil {
		return err
	}
	for _, v := range volumes {
		if err := m.remove(ctx, v.name); err != nil {
			return err
		}
	}
	return m.empty(ctx)
}

func (v *volume) close() error {
	if v.dev == nil {
		return nil
	}
	err := v.dev.Close()
	v.dev = nil
	return err
}

// underLoad runs the loads, takes and verifies snapshots, and kills the engine.
func (m *machine) underLoad(ctx context.Context, volumes []*volume, kills int) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	finished := errors.New("finished")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	start := func(what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && !errors.Is(context.Cause(ctx), finished) {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
				mu.Unlock()
				stop(err)
			}
		})
	}
	var loads sync.WaitGroup
	loading, stopLoads := context.WithCancel(ctx)
	defer stopLoads()
	for _, v := range volumes {
		loads.Add(1)
		start("load on volume "+v.name, func(context.Context) error {
			defer loads.Done()
			return v.load.Run(loading)
		})
	}
	snapshots := make(chan struct{})
	start("snapshots", func(ctx context.Context) error {
		defer close(snapshots)
		return m.snapshotAll(ctx, loading, volumes)
	})
	ops := func() (n int64) {
		for _, v := range volumes {
			n += v.load.Stats().Ops
		}
		return n
	}
	dead := func() error { return context.Cause(ctx) }
	err := m.killMany(ctx, kills, ops, dead)
	if err == nil {
		err = m.progress(ctx, rounds-m.rounds.Load(), m.rounds.Load, dead)
	}
	if err != nil {
		stop(err)
		mu.Lock()
		errs = append(errs, err, m.Abort())
		mu.Unlock()
	} else {
		stopLoads()
		loads.Wait() // errors until here still count
		<-snapshots
		stop(finished)
	}
	wg.Wait()
	return errors.Join(errs...)
}

// afterLoad verifies everything: as it is, over an ordered restart with the devices open, from new devices; then all snapshots.
func (m *machine) afterLoad(ctx context.Context, volumes []*volume) error {
	for _, v := range volumes {
		if err := v.load.Verify(ctx); err != nil {
			return fmt.Errorf("after the load: %w", err)
		}
	}
	if err := m.StopEngine(ctx); err != nil {
		return err
	}
	if err := m.StartEngine(ctx); err != nil {
		return err
	}
	for _, v := range volumes {
		if err := v.load.Verify(ctx); err != nil {
			return fmt.Errorf("after an ordered restart: %w", err)
		}
		err := errors.Join(v.close(), m.detach(ctx, v.name))
		if err != nil {
			return err
		}
		if v.dev, err = m.open(ctx, v.name); err != nil {
			return err
		}
		v.load.SetDevice(v.dev)
		if err := v.load.Verify(ctx); err != nil {
			return fmt.Errorf("on a new device: %w", err)
		}
	}
	if err := m.check(ctx); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(*seed, 2))
	for _, v := range volumes {
		for len(v.snaps) > 0 {
			if err := m.retire(ctx, rng, v); err != nil {
				return err
			}
		}
		if err := errors.Join(v.close(), m.detach(ctx, v.name)); err != nil {
			return err
		}
	}
	return m.check(ctx)
}

// snapshotAll takes snapshots of all volumes at once, again and again, and verifies and deletes old ones to make room. It ends, between two snapshots,
// when loading does.
func (m *machine) snapshotAll(ctx, loading context.Context, volumes []*volume) error {
	rng := rand.New(rand.NewPCG(*seed, 1))
	for {
		if !m.churned(loading, volumes) {
			return ctx.Err()
		}
		info, err := m.settle(ctx)
		if err != nil {
			return err
		}
		m.peak = max(m.peak, float64(info.Used)/float64(info.Size))
		for _, v := range volumes {
			for len(v.snaps) >= keep {
				if err := m.retire(ctx, rng, v); err != nil {
					return err
				}
			}
		}
		if _, err := m.settle(ctx); err != nil { // the space has to be free by then
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, len(volumes))
		for i, v := range volumes {
			wg.Go(func() { errs[i] = m.take(ctx, v) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		m.rounds.Add(1)
	}
}

// churned waits until much was written since the last time; false when the loads end before.
func (m *machine) churned(loading context.Context, volumes []*volume) bool {
	written := func() (n int64) {
		for _, v := range volumes {
			n += v.load.Stats().BytesWritten
		}
		return n
	}
	want := written() + churn
	return stack.Until(loading, "enough was written", func() error {
		if written() < want {
			return errors.New("not yet")
		}
		return nil
	}) == nil
}

// take takes a snapshot. Where the engine dies meanwhile it may have been cut before or after that.
func (m *machine) take(ctx context.Context, v *volume) error {
	v.n++
	name := fmt.Sprintf("%s-%d", v.name, v.n)
	cut := v.load.BeginCut()
	err := m.call(ctx, "snapshot "+name, func(ctx context.Context) error {
		_, err := m.Engine.CreateSnapshot(ctx, m.Pool, engine.SnapshotSpec{Name: name, Volume: v.name})
		return err
	}, engine.ErrExists)
	cut.End()
	if err == nil {
		v.snaps = append(v.snaps, taken{name, cut})
	}
	return err
}

// retire restores a snapshot, compares, and deletes both, in either order.
func (m *machine) retire(ctx context.Context, rng *rand.Rand, v *volume) error {
	i := rng.IntN(len(v.snaps))
	s := v.snaps[i]
	clone := "restored-" + s.name
	if err := m.create(ctx, engine.VolumeSpec{Name: clone, FromSnapshot: s.name}); err != nil {
		return err
	}
	snapshotFirst := rng.IntN(2) == 0
	if snapshotFirst {
		if err := m.removeSnapshot(ctx, s.name); err != nil {
			return err
		}
	}
	dev, err := m.open(ctx, clone)
	if err != nil {
		return err
	}
	if err := errors.Join(s.cut.Check(dev), dev.Close()); err != nil {
		return fmt.Errorf("snapshot %s: %w", s.name, err)
	}
	m.snapshots++
	if err := m.detach(ctx, clone); err != nil {
		return err
	}
	if err := m.remove(ctx, clone); err != nil {
		return err
	}
	v.snaps = append(v.snaps[:i:i], v.snaps[i+1:]...)
	if snapshotFirst {
		return nil
	}
	return m.removeSnapshot(ctx, s.name)
}

func (m *machine) create(ctx context.Context, spec engine.VolumeSpec) error {
	return m.call(ctx, "create volume "+spec.Name, func(ctx context.Context) error {
		_, err := m.Engine.CreateVolume(ctx, m.Pool, spec)
		return err
	}, engine.ErrExists)
}

func (m *machine) remove(ctx context.Context, name string) error {
	return m.call(ctx, "delete volume "+name, func(ctx context.Context) error {
		return m.Engine.DeleteVolume(ctx, m.Pool, name)
	}, engine.ErrNotFound)
}

func (m *machine) removeSnapshot(ctx context.Context, name string) error {
	return m.call(ctx, "delete snapshot "+name, func(ctx context.Context) error {
		return m.Engine.DeleteSnapshot(ctx, m.Pool, name)
	}, engine.ErrNotFound)
}

func (m *machine) attach(ctx context.Context, name string) (path string, err error) {
	err = m.call(ctx, "attach volume "+name, func(ctx context.Context) error {
		path, err = m.Engine.Attach(ctx, m.Pool, name, false)
		return err
	})
	return path, err
}

// open attaches a volume and opens its device for direct I/O.
func (m *machine) open(ctx context.Context, name string) (*blocktest.File, error) {
	path, err := m.attach(ctx, name)
	if err != nil {
		return nil, err
	}
	return blocktest.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, sectorSize)
}

func (m *machine) detach(ctx context.Context, name string) error {
	return m.call(ctx, "detach volume "+name, func(ctx context.Context) error { return m.Engine.Detach(ctx, m.Pool, name) })
}
