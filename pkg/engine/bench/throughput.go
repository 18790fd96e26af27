package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// copyBar is what part of the plain file's rate first writes must reach in COW mode: each is a read and two writes, and a share of two flushes.
const copyBar = 0.1

const (
	// throughputBar is what part of the plain file's rate the engine must reach, whatever the depth and with a flush after each write that maps nothing.
	throughputBar = 0.9
	// mappedBar is the part where each write maps a block and is flushed: data and what maps it are durable one after the other.
	mappedBar = 0.45
)

// contest is one workload, run on the plain file and on the engine in turn.
type contest struct {
	name   string
	rw     string // fio's name of the pattern
	bytes  int
	depth  int
	flush  bool
	bar    *float64                             // nil: told only
	at     func(seed uint64) func(uint64) int64 // offsets on the engine's side; nil: as rw says, all over the volume
	before func(ctx context.Context, round int) error
	after  func(ctx context.Context, round int) error
}

// arena is where contests are held: the plain file and a volume, both written in full.
type arena struct {
	*runner
	plain  string
	pool   *engine.Pool
	volume *engine.Volume
	seed   uint64
}

func (r *runner) throughput(ctx context.Context) (err error) {
	a := arena{runner: r}
	r.say("writing a plain file and a volume of %d MiB each", r.Size>>20)
	if a.plain, err = r.ground.plain(ctx, r.Size); err != nil {
		return err
	}
	if a.pool, err = r.ground.pool(ctx, "throughput", r.throughputPool()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, a.pool.Close(context.WithoutCancel(ctx)), os.RemoveAll(r.ground.member("throughput")))
	}()
	if _, err = a.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: r.Size}); err != nil {
		return err
	}
	if a.volume, err = a.pool.OpenVolume(ctx, "v"); err != nil {
		return err
	}
	if err = fill(ctx, a.volume); err != nil {
		return err
	}
	for _, c := range a.contests() {
		if err = a.hold(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// contests lists what is chosen, those that leave the volume's layout alone first.
func (a *arena) contests() (list []contest) {
	deep := fmt.Sprintf("-q%d", a.Depth)
	if a.has(PartReads) {
		list = append(list,
			contest{name: "read" + deep, rw: "randread", bytes: blockSize, depth: a.Depth, bar: bar(throughputBar)},
			contest{name: "read-q1", rw: "randread", bytes: blockSize, depth: 1, bar: bar(throughputBar)},
			contest{name: "stream-read-1MiB-q8", rw: "read", bytes: streamSize, depth: 8})
	}
	if a.has(PartWrites) {
		list = append(list,
			contest{name: "overwrite" + deep, rw: "randwrite", bytes: blockSize, depth: a.Depth, bar: bar(throughputBar)},
			contest{name: "overwrite-q1", rw: "randwrite", bytes: blockSize, depth: 1, bar: bar(throughputBar)},
			contest{name: "overwrite-flush-q1", rw: "randwrite", bytes: blockSize, depth: 1, flush: true, bar: bar(throughputBar)},
			contest{name: "stream-write-1MiB-q8", rw: "write", bytes: streamSize, depth: 8})
	}
	if a.has(PartFirst) {
		first := func(c contest) contest {
			c.before, c.after = a.snapshot, a.forget
			return c
		}
		list = append(list,
			first(contest{name: "first-write" + deep, rw: "randwrite", bytes: blockSize, depth: a.Depth, bar: bar(throughputBar)}),
			first(contest{name: "first-write-q1", rw: "randwrite", bytes: blockSize, depth: 1, bar: bar(throughputBar)}),
			first(contest{name: "first-write-flush-q1", rw: "randwrite", bytes: blockSize, depth: 1, flush: true, bar: bar(mappedBar)}),
			first(contest{name: "first-stream-write-1MiB-q8", rw: "write", bytes: streamSize, depth: 8}),
			a.copying(contest{name: "cow-first-write" + deep, rw: "randwrite", bytes: blockSize, depth: a.Depth, bar: bar(copyBar)}),
			a.copying(contest{name: "cow-first-write-q1", rw: "randwrite", bytes: blockSize, depth: 1}))
	}
	if a.has(PartFirst) && a.has(PartReads) {
		list = append(list, contest{name: "read-scattered" + deep, rw: "randread", bytes: blockSize, depth: a.Depth})
	}
	return list
}

// copying has a contest's first writes copy the old data away.
func (a *arena) copying(c contest) contest {
	mode := func(m engine.Mode, then func(context.Context, int) error) func(context.Context, int) error {
		return func(ctx context.Context, round int) error {
			if _, err := a.pool.ChangeVolume(ctx, "v", engine.VolumeChange{Mode: &m}); err != nil {
				return err
			}
			return then(ctx, round)
		}
	}
	c.before, c.after = mode(engine.CopyOnWrite, a.snapshot), mode(engine.RedirectOnWrite, a.forget)
	return c
}

func snapshotName(round int) string { return fmt.Sprintf("s%d", round) }

func (a *arena) snapshot(ctx context.Context, round int) error {
	_, err := a.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: snapshotName(round), Volume: "v"})
	return err
}

func (a *arena) forget(ctx context.Context, round int) error {
	if err := a.pool.DeleteSnapshot(ctx, snapshotName(round)); err != nil {
		return err
	}
	return a.pool.WaitJobs(ctx)
}

// hold runs a contest's rounds and reports medians.
func (a *arena) hold(ctx context.Context, c contest) error {
	var plain, engine, ratio []float64
	var p50, p99 []float64
	for round := range a.Rounds {
		if c.before != nil || round == 0 {
			// Beside fio the pool would look idle to itself and write zeroes ahead: fio would share the disk with them.
			if err := a.pool.WaitPrepared(ctx); err != nil {
				return err
			}
		}
		rate, err := fioJob{file: a.plain, rw: c.rw, bytes: c.bytes, depth: c.depth, sync: c.flush, size: a.Size, time: a.Round}.run(ctx)
		if err != nil {
			return err
		}
		d, err := a.round(ctx, c, round)
		if err != nil {
			return err
		}
		plain, engine, ratio = append(plain, rate), append(engine, d.rate()), append(ratio, d.rate()/rate)
		p50, p99 = append(p50, milliseconds(d.latency.quantile(0.5))), append(p99, milliseconds(d.latency.quantile(0.99)))
		a.say("%s round %d: plain %.0f/s, engine %.0f/s (%.2f)", c.name, round+1, rate, d.rate(), d.rate()/rate)
	}
	a.report.add(
		Figure{Name: c.name + "-plain", Value: median(plain), Unit: "/s", Samples: plain},
		Figure{Name: c.name + "-engine", Value: median(engine), Unit: "/s", Samples: engine},
		Figure{Name: c.name + "-engine-p50", Value: median(p50), Unit: "ms", Samples: p50},
		Figure{Name: c.name + "-engine-p99", Value: median(p99), Unit: "ms", Samples: p99},
		// The median of the rounds' ratios: the two sides of one round saw the same machine.
		Figure{Name: c.name + "-ratio", Value: median(ratio), AtLeast: c.bar, Samples: ratio})
	return nil
}

// round is the engine's side of one round.
func (a *arena) round(ctx context.Context, c contest, round int) (d driven, err error) {
	if c.before != nil {
		if err := c.before(ctx, round); err != nil {
			return d, err
		}
	}
	a.seed++
	l := load{depth: c.depth, bytes: c.bytes, write: c.rw == "randwrite" || c.rw == "write", flush: c.flush}
	switch {
	case c.at != nil:
		l.at = c.at(a.seed)
	case c.rw == "randread" || c.rw == "randwrite":
		l.at = random(a.Size, c.bytes, a.seed)
	default:
		l.at = sequential(a.Size, c.bytes)
	}
	stop, err := a.profile(c.name, round)
	if err != nil {
		return d, err
	}
	zeroes := a.pool.DataCounts().PrewrittenBytes
	d, err = l.driveFor(ctx, a.volume, a.Round)
	stop()
	if zeroes = a.pool.DataCounts().PrewrittenBytes - zeroes; zeroes > 0 {
		a.say("%s round %d: the pool wrote %d MiB of zeroes ahead meanwhile", c.name, round+1, zeroes>>20)
	}
	if err == nil && c.after != nil {
		err = c.after(ctx, round)
	}
	return d, err
}
