package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/engine"
)

var soakTime = flag.Duration("soak", 0, "how long TestSoak works; 0: it does not")

// soaked is one pool of two, its volumes under load and the others that come and go.
type soaked struct {
	*machine
	volumes []*volume
	rng     *rand.Rand
	chores  atomic.Int64
	damaged int64

	dirs                  []string // where members may be; none: the pool keeps the one it has
	added, removed, moved int      // members, and metadata with them
}

// TestSoak has all operations at random on two pools, with the engine killed in between, for as long as -soak says. Then everything must be sound.
func TestSoak(t *testing.T) {
	if *soakTime == 0 {
		t.Skip("-soak says how long")
	}
	if err := stack.Check(); err != nil {
		t.Skip(err)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("seed %d (SEED=%d make soak repeats the choices, though not the timing)\n", *seed, *seed)
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	bin := t.TempDir()
	if err := stack.Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Start(ctx, stack.Config{
		Bin: bin, Name: "soak", Size: poolSize, Disk: 3 << 30, Temp: os.Getenv("TMPDIR"), Logs: t.ArtifactDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	other := s.Pool + "-other"
	dirs := memberDirs(filepath.Dir(s.Member), other)
	spec := engine.PoolSpec{Name: other, Directory: dirs[0], Size: 2 * poolSize, More: []engine.MemberSpec{{Directory: dirs[1], Size: 2 * poolSize}}}
	if _, err := s.Engine.CreatePool(ctx, spec); err != nil {
		t.Fatal(err)
	}
	var pools []*soaked
	for i, name := range []string{s.Pool, other} {
		pools = append(pools, &soaked{
			machine: &machine{Stack: s, Pool: name, t: t, rng: rand.New(rand.NewPCG(*seed, uint64(10+i)))}, rng: rand.New(rand.NewPCG(*seed, uint64(20+i))),
		})
	}
	pools[1].dirs = dirs
	err = soak(ctx, pools)
	if err != nil {
		t.Error(err)
	}
	reportSoak(t, pools, err)
}

// soak makes the volumes, lets everything work, and looks at what is left.
func soak(ctx context.Context, pools []*soaked) (err error) {
	defer func() {
		for _, p := range pools {
			for _, v := range p.volumes {
				s := v.load.Stats()
				p.ioErrors, p.wrongSectors, p.written = p.ioErrors+s.IOErrors, p.wrongSectors+s.WrongSectors, p.written+s.BytesWritten
				err = errors.Join(err, v.close())
			}
		}
	}()
	for i, p := range pools {
		for j, name := range []string{"one", "two"} {
			v := &volume{name: name}
			if err := p.create(ctx, engine.VolumeSpec{Name: name, Size: volumeSize}); err != nil {
				return err
			}
			if v.dev, err = p.open(ctx, name); err != nil {
				return err
			}
			v.load = NewLoad(v.dev, Options{Run: *seed | 1, Volume: uint32(10*i + j + 1), Seed: *seed, Workers: workers, Size: volumeSize})
			p.volumes = append(p.volumes, v)
		}
	}
	if err := work(ctx, pools); err != nil {
		return errors.Join(err, pools[0].Abort())
	}
	for _, p := range pools {
		for _, v := range p.volumes {
			if err := v.load.Verify(ctx); err != nil {
				return err
			}
			if err := errors.Join(v.close(), p.detach(ctx, v.name)); err != nil {
				return err
			}
		}
		if _, err := p.settle(ctx); err != nil {
			return err
		}
		if err := p.check(ctx); err != nil {
			return err
		}
		report, err := p.Engine.Scrub(ctx, p.Pool, engine.ScrubSpec{})
		if err != nil {
			return err
		}
		p.damaged += report.Damaged
	}
	return nil
}

// work runs loads, snapshots, chores and kills side by side, until the time is over or something is wrong.
func work(ctx context.Context, pools []*soaked) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	timed, over := context.WithTimeout(ctx, *soakTime)
	defer over()
	// Loads end last: while they run, what waits for progress gets it.
	loading, stopLoads := context.WithCancel(ctx)
	defer stopLoads()
	var loads, others sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	start := func(wg *sync.WaitGroup, what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
				mu.Unlock()
				stop(err)
			}
		})
	}
	for _, p := range pools {
		for _, v := range p.volumes {
			start(&loads, "load on "+p.Pool+"/"+v.name, func() error { return v.load.Run(loading) })
		}
		start(&others, "snapshots of "+p.Pool, func() error { return p.snapshotAll(ctx, timed, p.volumes) })
		start(&others, "chores of "+p.Pool, func() error {
			for timed.Err() == nil {
				if err := p.chore(ctx); err != nil {
					return err
				}
				p.chores.Add(1)
			}
			return nil
		})
	}
	start(&others, "kills", func() error { return killUntil(ctx, timed, pools) })
	others.Wait()
	stopLoads()
	loads.Wait()
	return errors.Join(errs...)
}

// killUntil kills the engine again and again, each time when more requests were answered, and checks the pools now and then.
func killUntil(ctx, timed context.Context, pools []*soaked) error {
	ops := func() (n int64) {
		for _, p := range pools {
			for _, v := range p.volumes {
				n += v.load.Stats().Ops
			}
		}
		return n
	}
	m := pools[0].machine
	dead := func() error { return context.Cause(ctx) }
	for timed.Err() == nil {
		if err := m.progress(ctx, 2000+m.rng.Int64N(20000), ops, dead); err != nil {
			return err
		}
		if err := m.killAndStart(ctx, math.MaxInt, ops, dead); err != nil {
			return err
		}
		if m.killed%4 == 0 {
			for _, p := range pools {
				if err := p.check(ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// chore does one thing to a pool beside its loads and their snapshots.
func (p *soaked) chore(ctx context.Context) error {
	name := fmt.Sprintf("chore-%d", p.chores.Load())
	loaded := p.volumes[p.rng.IntN(len(p.volumes))].name
	kinds := 5
	if p.dirs != nil {
		kinds = 7
	}
	switch p.rng.IntN(kinds) {
	case 5, 6:
		return p.changeMembers(ctx)
	case 0:
		return p.group(ctx, name)
	case 1:
		mode := []engine.Mode{engine.RedirectOnWrite, engine.CopyOnWrite}[p.rng.IntN(2)]
		return p.call(ctx, "change the mode of "+loaded, func(ctx context.Context) error {
			_, err := p.Engine.ChangeVolume(ctx, p.Pool, loaded, engine.VolumeChange{Mode: &mode})
			return err
		})
	case 2:
		return p.call(ctx, "tidy "+loaded, func(ctx context.Context) error {
			_, err := p.Engine.Tidy(ctx, p.Pool, engine.TidySpec{Volume: loaded})
			return err
		})
	case 3:
		return p.cloneGrowRemove(ctx, name, loaded)
	default:
		return p.call(ctx, "list what is allocated of "+loaded, func(ctx context.Context) error {
			_, err := p.Engine.Diff(ctx, p.Pool, engine.DiffSpec{Volume: loaded})
			return err
		})
	}
}

// group takes a group of both volumes, rolls a clone back to nothing else than it was, lists a difference and deletes all.
func (p *soaked) group(ctx context.Context, name string) error {
	spec := engine.SnapshotGroupSpec{Name: name}
	for _, v := range p.volumes {
		spec.Snapshots = append(spec.Snapshots, engine.SnapshotSpec{Name: name + "-" + v.name, Volume: v.name})
	}
	err := p.call(ctx, "group "+name, func(ctx context.Context) error {
		_, err := p.Engine.CreateSnapshotGroup(ctx, p.Pool, spec)
		return err
	}, engine.ErrExists)
	if err != nil {
		return err
	}
	for _, s := range spec.Snapshots {
		err := p.call(ctx, "what changed since "+s.Name, func(ctx context.Context) error {
			_, err := p.Engine.Diff(ctx, p.Pool, engine.DiffSpec{Volume: s.Volume, From: s.Name})
			return err
		})
		if err := errors.Join(err, p.removeSnapshot(ctx, s.Name)); err != nil {
			return err
		}
	}
	return nil
}

// cloneGrowRemove clones a volume under load, snapshots the clone, makes it larger, puts it back and removes it.
func (p *soaked) cloneGrowRemove(ctx context.Context, name, from string) error {
	steps := []func() error{
		func() error { return p.create(ctx, engine.VolumeSpec{Name: name, FromVolume: from}) },
		func() error {
			return p.call(ctx, "snapshot "+name, func(ctx context.Context) error {
				_, err := p.Engine.CreateSnapshot(ctx, p.Pool, engine.SnapshotSpec{Name: name + "-s", Volume: name})
				return err
			}, engine.ErrExists)
		},
		func() error {
			return p.call(ctx, "grow "+name, func(ctx context.Context) error {
				_, err := p.Engine.GrowVolume(ctx, p.Pool, name, volumeSize+mi)
				return err
			})
		},
		func() error {
			return p.call(ctx, "roll back "+name, func(ctx context.Context) error {
				_, err := p.Engine.RollbackVolume(ctx, p.Pool, name, name+"-s", "")
				return err
			})
		},
		func() error { return p.removeSnapshot(ctx, name+"-s") },
		func() error { return p.remove(ctx, name) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func reportSoak(t *testing.T, pools []*soaked, err error) {
	var written, chores, ioErrors, wrong, damaged int64
	var snapshots, problems int
	for _, p := range pools {
		written, chores, damaged = written+p.written, chores+p.chores.Load(), damaged+p.damaged
		ioErrors, wrong, snapshots, problems = ioErrors+p.ioErrors, wrong+p.wrongSectors, snapshots+p.snapshots, problems+p.problems
	}
	failed := 0
	if err != nil {
		failed = 1
	}
	fmt.Printf("written_mib %d\n", written/mi)
	fmt.Printf("longest_pause_seconds %.2f\n", pools[0].longest.Seconds())
	fmt.Printf("kills %d (bar over 0)\n", pools[0].killed)
	fmt.Printf("chores %d (bar over 0)\n", chores)
	fmt.Printf("members_added %d\n", pools[1].added)
	fmt.Printf("members_removed %d, with the metadata %d\n", pools[1].removed, pools[1].moved)
	fmt.Printf("snapshots_verified %d (bar over 0)\n", snapshots)
	fmt.Printf("failed_operations %d (bar 0)\n", failed)
	fmt.Printf("io_errors %d (bar 0)\n", ioErrors)
	fmt.Printf("wrong_sectors %d (bar 0)\n", wrong)
	fmt.Printf("check_problems %d (bar 0)\n", problems)
	fmt.Printf("scrub_damaged_bytes %d (bar 0)\n", damaged)
	if pools[0].killed == 0 || chores == 0 || snapshots == 0 || failed+problems > 0 || ioErrors+wrong+damaged > 0 {
		t.Error("a bar was missed")
	}
}
