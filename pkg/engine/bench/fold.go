package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	foldSnapshots = 1000
	// minFoldBlocks: what is written in order must hold the writer's window.
	minFoldBlocks = 200_000
	// foldWindow is where the writer beside the deletes writes, in bytes.
	foldWindow = gib / 2
	// foldRate is how long the writer's rate is measured before and after a delete, and at least while its pass goes on.
	foldRate = 3 * time.Second

	nameGoneBar = 10 * time.Millisecond
	passBar     = 10 * time.Second
	lossBar     = 0.15
)

// fold deletes some of a thousand snapshots of a volume with very many mapped blocks, while a writer goes on: the names must go at once, the
// background passes must end soon, write no data, and leave the writer nearly all of its rate. Every round does all of it anew.
func (r *runner) fold(ctx context.Context) error {
	found := map[string][]removal{}
	for round := range r.Rounds {
		if err := r.foldRound(ctx, round, found); err != nil {
			return err
		}
	}
	for _, c := range foldCases {
		r.tellFold(c.name, found[c.name])
	}
	return nil
}

func (r *runner) foldRound(ctx context.Context, round int, found map[string][]removal) (err error) {
	const name = "fold"
	f := foldRun{runner: r, round: round}
	if f.pool, err = r.ground.pool(ctx, name, r.foldPool()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.pool.Close(context.WithoutCancel(ctx)), os.RemoveAll(r.ground.member(name)))
	}()
	if err = f.build(ctx); err != nil {
		return err
	}
	return f.underWriter(ctx, func(ctx context.Context) error {
		for _, c := range foldCases {
			m, err := f.remove(ctx, c.name, c.snapshot)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			found[c.name] = append(found[c.name], m)
		}
		return nil
	})
}

// foldRun is a volume and its snapshots. Of its blocks 17 of 20 are written in order before the first snapshot. Under a middle one lie two layers
// with a tenth as runs of one block each, half of the upper one over the lower's. Every other layer has a few blocks, the last one a hundredth.
type foldRun struct {
	*runner
	round  int
	pool   *engine.Pool
	volume *engine.Volume
	taken  int
	wrote  histogram
}

func (f *foldRun) base() int64      { return f.FoldBlocks / 20 * 17 }
func (f *foldRun) scattered() int64 { return f.FoldBlocks / 10 }

// foldPool is what the volume maps, what is hidden of it, and what the writer redirects.
func (c *Config) foldPool() int64 {
	return (c.FoldBlocks/20*22*blockSize + 2*foldWindow + 3*gib) / gib * gib
}

func (f *foldRun) build(ctx context.Context) (err error) {
	began := time.Now()
	size := (f.base() + 2*f.scattered()) * blockSize
	size = (size + streamSize - 1) / streamSize * streamSize
	if _, err = f.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: size}); err != nil {
		return err
	}
	if f.volume, err = f.pool.OpenVolume(ctx, "v"); err != nil {
		return err
	}
	f.say("writing %d blocks in order", f.base())
	limit := uint64((f.base()*blockSize + streamSize - 1) / streamSize)
	l := load{depth: 8, bytes: streamSize, at: sequential(size, streamSize), write: true, limit: limit}
	if _, err = l.drive(ctx, f.volume); err != nil {
		return err
	}
	for _, part := range []struct {
		until int // snapshots
		write load
	}{
		{foldSnapshots / 2, f.scatter(f.scattered(), 1, func(i int64) int64 { return 2 * i })},
		{foldSnapshots/2 + 1, f.scatter(f.scattered(), 2, f.overlapping)},
		{foldSnapshots - 1, f.scatter(f.FoldBlocks/100, 3, func(i int64) int64 { return -1 - 2*i })},
		{foldSnapshots, load{}},
	} {
		if err = f.snapshots(ctx, part.until); err != nil {
			return err
		}
		if part.write.limit == 0 {
			break
		}
		f.say("writing %d single blocks", part.write.limit)
		if _, err = part.write.drive(ctx, f.volume); err != nil {
			return err
		}
	}
	if err = f.volume.Flush(); err != nil {
		return err
	}
	info := f.volume.Info()
	f.say("%d snapshots of %d mapped blocks made in %v", f.taken, info.Mapped/blockSize, time.Since(began).Round(time.Second))
	if f.round > 0 {
		return settled(ctx, f.pool)
	}
	f.report.add(Figure{Name: "fold-mapped-blocks", Value: float64(info.Mapped / blockSize), AtLeast: bar(float64(f.FoldBlocks))})
	return settled(ctx, f.pool)
}

// overlapping are the blocks of the upper large layer, from where the lower one's begin: half of them are the lower one's, half lie between them.
func (f *foldRun) overlapping(i int64) int64 {
	if i < f.scattered()/2 {
		return 2 * i
	}
	return 2*i + 1
}

// scatter writes n single blocks in random order. at is relative to where what was written in order ends.
func (f *foldRun) scatter(n int64, seed uint64, at func(i int64) int64) load {
	p := newPermutation(n, seed)
	return load{depth: 32, bytes: blockSize, write: true, limit: uint64(n), at: func(i uint64) int64 { return (f.base() + at(p.at(i))) * blockSize }}
}

// snapshots takes snapshots until so many are there, each but the first with a few blocks of its own under it.
func (f *foldRun) snapshots(ctx context.Context, there int) error {
	f.say("taking snapshots, until there are %d", there)
	for ; f.taken < there; f.taken++ {
		if f.taken > 0 {
			w := load{depth: 8, bytes: blockSize, at: random(f.base()*blockSize, blockSize, uint64(f.taken)), write: true, limit: 8}
			if _, err := w.drive(ctx, f.volume); err != nil {
				return err
			}
		}
		if _, err := f.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: snapshotName(f.taken), Volume: "v"}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

var foldCases = []struct {
	name     string
	snapshot int
}{
	{"middle", foldSnapshots / 4}, {"scattered", foldSnapshots / 2}, {"newest", foldSnapshots - 1}, {"oldest", 0},
}

// underWriter does something while a writer overwrites the window, from when it owns all of it.
func (f *foldRun) underWriter(ctx context.Context, do func(ctx context.Context) error) error {
	writing, stop := context.WithCancel(ctx)
	defer stop()
	f.say("writing to %d MiB at random until all of it is the volume's own", foldWindow>>20)
	window := load{depth: f.Depth, bytes: blockSize, at: random(foldWindow, blockSize, 5), write: true, latency: &f.wrote}
	ended := make(chan error, 1)
	go func() {
		_, err := window.drive(writing, f.volume)
		stop()
		ended <- err
	}()
	err := f.until(writing, func() bool { return f.wrote.count() > uint64(foldWindow/blockSize) })
	if err == nil {
		err = settled(writing, f.pool)
	}
	if err == nil {
		err = do(writing)
	}
	stop()
	if werr := <-ended; werr != nil {
		return fmt.Errorf("write meanwhile: %w", werr)
	}
	return errors.Join(err, context.Cause(ctx))
}

// until looks every 10 ms.
func (f *foldRun) until(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// moment is what has been written by a time.
type moment struct {
	at       time.Time
	requests uint64
	segments uint64    // bytes of data written
	guest    [2]uint64 // those on the guest's behalf, a little before and a little after
}

func (f *foldRun) now() moment {
	m := moment{at: time.Now(), requests: f.wrote.count()}
	m.guest[0] = f.volume.Info().Counters.DataWriteBytes
	m.segments = f.pool.DataCounts().WriteBytes
	m.guest[1] = f.volume.Info().Counters.DataWriteBytes
	return m
}

func (m moment) rate(before moment) float64 {
	return float64(m.requests-before.requests) / m.at.Sub(before.at).Seconds()
}

// removal is what a delete of a snapshot took: until its name was gone and until its pass had ended, what was written meanwhile that no guest asked for,
// in bytes, and the writer's rates.
type removal struct {
	gone, pass time.Duration
	data, meta uint64
	rates      foldRates
}

// foldRates are a writer's, in requests a second.
type foldRates struct{ before, meanwhile, after float64 }

// loss is what part of its rate the writer lost, against what it had before and after: a shared machine is not the same for long.
func (r foldRates) loss() float64 { return 1 - 2*r.meanwhile/(r.before+r.after) }

// remove deletes a snapshot.
func (f *foldRun) remove(ctx context.Context, name string, snapshot int) (m removal, err error) {
	f.say("%s: deleting snapshot %d", name, snapshot)
	measure := func(from moment) (moment, error) {
		err := f.until(ctx, func() bool { return time.Since(from.at) >= foldRate })
		return f.now(), err
	}
	stopProfile, err := f.profile("fold-"+name, f.round)
	if err != nil {
		return m, err
	}
	defer stopProfile()
	start := f.now()
	before, err := measure(start)
	if err != nil {
		return m, err
	}
	meta := f.pool.MetadataCounts()
	if err := f.pool.DeleteSnapshot(ctx, snapshotName(snapshot)); err != nil {
		return m, err
	}
	m.gone = time.Since(before.at)
	if err := f.pool.WaitJobs(ctx); err != nil {
		return m, err
	}
	m.pass = time.Since(before.at)
	meanwhile := f.now()
	if m.pass < foldRate {
		if meanwhile, err = measure(before); err != nil {
			return m, err
		}
	}
	stopProfile()
	cost := f.pool.MetadataCounts().Sub(meta)
	m.data, m.meta = dataOf(before, meanwhile, f.Depth), cost.Bytes()
	if err := settled(ctx, f.pool); err != nil {
		return m, err
	}
	from := f.now()
	after, err := measure(from)
	if err != nil {
		return m, err
	}
	m.rates = foldRates{before.rate(start), meanwhile.rate(before), after.rate(from)}
	f.say("%s: name gone in %v, pass %v, %d bytes of data, writes/s %.0f, %.0f, %.0f", name, m.gone, m.pass, m.data,
		m.rates.before, m.rates.meanwhile, m.rates.after)
	return m, nil
}

// dataOf is how many bytes of data were written that no guest asked for. What was under way at the first moment counted as the guest's before it and
// as written after it.
func dataOf(from, to moment, depth int) uint64 {
	all, guest := to.segments-from.segments, to.guest[1]-from.guest[0]
	if underWay := uint64(depth) * blockSize; all > guest+underWay {
		return all - guest
	}
	return 0
}

// tellFold reports a case's rounds: of the writer's loss the median, because single rates of a busy machine differ by a tenth and more with nothing to
// do, of all else that has a bar the worst.
func (r *runner) tellFold(name string, rounds []removal) {
	of := func(value func(removal) float64) (v []float64) {
		for _, m := range rounds {
			v = append(v, value(m))
		}
		return v
	}
	worst := func(figure, unit string, most float64, value func(removal) float64) Figure {
		v := of(value)
		return Figure{Name: "fold-" + figure + "-" + name, Value: slices.Max(v), Unit: unit, AtMost: bar(most), Samples: v}
	}
	middle := func(figure, unit string, value func(removal) float64) Figure {
		v := of(value)
		return Figure{Name: "fold-" + figure + "-" + name, Value: median(v), Unit: unit, Samples: v}
	}
	loss := middle("writer-loss", "", func(m removal) float64 { return m.rates.loss() })
	loss.Value, loss.AtMost = max(0, loss.Value), bar(lossBar)
	r.report.add(
		worst("name-gone", "ms", milliseconds(nameGoneBar), func(m removal) float64 { return milliseconds(m.gone) }),
		worst("pass", "s", passBar.Seconds(), func(m removal) float64 { return m.pass.Seconds() }),
		worst("data-written", "B", 0, func(m removal) float64 { return float64(m.data) }),
		middle("metadata-written", "KiB", func(m removal) float64 { return float64(m.meta >> 10) }),
		middle("writes-before", "/s", func(m removal) float64 { return m.rates.before }),
		middle("writes-meanwhile", "/s", func(m removal) float64 { return m.rates.meanwhile }),
		middle("writes-after", "/s", func(m removal) float64 { return m.rates.after }),
		loss)
}
