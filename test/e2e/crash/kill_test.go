package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

var (
	kills = flag.Int("kills", 3, "how often to kill the engine, 3 at least")
	seed  = flag.Uint64("seed", 0, "of the test's choices; 0 takes the time")
)

const mi = 1 << 20

const (
	cleanUp  = 2 * time.Minute // before go test's own time is up, which would leave everything behind
	patience = 2 * time.Minute // for one thing to happen
)

// machine is the engine under test, killed and started again, and what was seen.
type machine struct {
	*stack.Stack
	Pool string // the one worked on
	t    *testing.T
	rng  *rand.Rand // of the killing goroutine

	rounds       atomic.Int64 // of snapshots
	killed       int
	longest      time.Duration // from a kill to the first request that was answered after it
	snapshots    int           // verified
	peak         float64       // part of the pool in use
	problems     int           // of Check
	filesWrong   int
	written      int64
	ioErrors     int64
	wrongSectors int64
}

// TestKill kills the engine under verified load on raw devices, and then under ext4.
func TestKill(t *testing.T) {
	if err := stack.Check(); err != nil {
		t.Skip(err)
	}
	if *kills < 3 {
		t.Fatalf("-kills %d: 3 at least", *kills)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("seed %d (SEED=%d make kill-test repeats the choices, though not the timing)\n", *seed, *seed)
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-cleanUp))
		defer cancel()
	}
	bin := t.TempDir()
	if err := stack.Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Start(ctx, stack.Config{Bin: bin, Name: "crash", Size: poolSize, Temp: os.Getenv("TMPDIR"), Logs: t.ArtifactDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	m := &machine{Stack: s, Pool: s.Pool, t: t, rng: rand.New(rand.NewPCG(*seed, 0))}
	defer m.report()
	files := max(1, *kills*3/10)
	if err := m.raw(ctx, *kills-files); err != nil {
		t.Errorf("raw devices, after %d kills: %v", m.killed, err)
		return
	}
	if err := m.ext4(ctx, files); err != nil {
		t.Errorf("ext4, after %d kills: %v", m.killed, err)
	}
}

func (m *machine) report() {
	fmt.Printf("written_mib %d\n", m.written/mi)
	fmt.Printf("pool_peak_percent %.0f (bar 75)\n", 100*m.peak)
	fmt.Printf("longest_pause_seconds %.2f\n", m.longest.Seconds())
	fmt.Printf("snapshots_verified %d (bar over 0)\n", m.snapshots)
	fmt.Printf("check_problems %d (bar 0)\n", m.problems)
	fmt.Printf("kills %d (bar %d)\n", m.killed, *kills)
	fmt.Printf("io_errors %d (bar 0)\n", m.ioErrors)
	fmt.Printf("wrong_sectors %d (bar 0)\n", m.wrongSectors)
	fmt.Printf("wrong_files %d (bar 0)\n", m.filesWrong)
	if m.killed != *kills || m.snapshots == 0 || m.problems+m.filesWrong > 0 || m.ioErrors+m.wrongSectors > 0 || m.peak < 0.75 {
		m.t.Error("a bar was missed")
	}
}

// killMany kills the engine that often, each time when more requests were answered. done counts them; dead says why the load has ended.
func (m *machine) killMany(ctx context.Context, n int, done func() int64, dead func() error) error {
	for target := m.killed + n; m.killed < target; {
		if err := m.progress(ctx, 100+m.rng.Int64N(6000), done, dead); err != nil {
			return err
		}
		if err := m.killAndStart(ctx, target, done, dead); err != nil {
			return err
		}
		if m.killed%5 == 0 {
			if err := m.check(ctx); err != nil {
				return err
			}
		}
	}
	return m.progress(ctx, 3000, done, dead)
}

// killAndStart kills the engine, at times once more while it starts if that makes no more kills than most, and waits until it answers requests again.
func (m *machine) killAndStart(ctx context.Context, most int, done func() int64, dead func() error) error {
	began := time.Now()
	if err := m.kill(); err != nil {
		return err
	}
	if m.killed < most && m.rng.IntN(4) == 0 {
		if err := m.killEarly(ctx); err != nil {
			return err
		}
	}
	if err := m.StartEngine(ctx); err != nil {
		return err
	}
	if err := m.progress(ctx, 1, done, dead); err != nil {
		return err
	}
	m.longest = max(m.longest, time.Since(began))
	return nil
}

func (m *machine) kill() error {
	m.killed++
	return m.KillEngine()
}

// killEarly starts the engine and kills it at a random moment of its start.
func (m *machine) killEarly(ctx context.Context) error {
	if err := m.LaunchEngine(); err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(m.rng.IntN(300)) * time.Millisecond):
	case <-ctx.Done():
	}
	return m.kill()
}

// progress waits until done counts n more.
func (m *machine) progress(ctx context.Context, n int64, done func() int64, dead func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	want := done() + n
	return stack.Until(ctx, "the load goes on", func() error {
		if err := dead(); err != nil {
			cancel()
			return err
		}
		if now := done(); now < want {
			return fmt.Errorf("%d are done; waiting for %d", now, want)
		}
		return nil
	})
}

// check has the engine verify its metadata.
func (m *machine) check(ctx context.Context) error {
	return m.call(ctx, "check the pool", func(ctx context.Context) error {
		r, err := m.Engine.Check(ctx, m.Pool)
		if err != nil {
			return err
		}
		for _, p := range r.Problems {
			m.problems++
			m.t.Errorf("check after %d kills: %s", m.killed, p)
		}
		return nil
	})
}

// call asks the engine again for as long as it is away. done are errors that say that an earlier try did it.
func (m *machine) call(ctx context.Context, what string, f func(context.Context) error, done ...error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tries := 0
	return stack.Until(ctx, what, func() error {
		err := f(ctx)
		tries++
		for _, d := range done {
			if tries > 1 && errors.Is(err, d) {
				return nil
			}
		}
		for _, again := range []error{rpc.ErrUnreachable, host.ErrStopping, host.ErrNotOpen, engine.ErrBusy, engine.ErrClosed, engine.ErrInUse} {
			if errors.Is(err, again) {
				return err
			}
		}
		if err != nil {
			cancel()
		}
		return err
	})
}

// settle waits until no background pass is left to do, and answers what is used.
func (m *machine) settle(ctx context.Context) (info engine.PoolInfo, err error) {
	err = m.call(ctx, "the background passes are done", func(ctx context.Context) error {
		if info, err = m.Engine.Pool(ctx, m.Pool); err != nil {
			return err
		}
		if info.State != "Ready" || info.Jobs > 0 {
			return fmt.Errorf("pool is %s, %d passes to do: %w", info.State, info.Jobs, engine.ErrBusy)
		}
		return nil
	})
	return info, err
}

// empty waits until nothing is used.
func (m *machine) empty(ctx context.Context) error {
	return m.call(ctx, "the pool is empty", func(ctx context.Context) error {
		info, err := m.settle(ctx)
		if err == nil && info.Used != 0 {
			err = fmt.Errorf("%d bytes are in use: %w", info.Used, engine.ErrBusy)
		}
		return err
	})
}
