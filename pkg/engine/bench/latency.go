package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

const (
	// latencyFloor and flushTimes make the bar of a snapshot or restore: the larger of the floor and so many member flushes, under the same writer.
	latencyFloor = 10 * time.Millisecond
	flushTimes   = 10
	// stallTimes is how many bars a single write may take.
	stallTimes = 2
	// latencyPace is the time between two snapshots.
	latencyPace = 25 * time.Millisecond
	// plainPace is the time between two writes of the plain file beside the writer.
	plainPace = 2 * time.Millisecond
	// latencyPool is enough for what the writers redirect while background passes lag behind.
	latencyPool = 24 * gib
)

// writer is what goes on while snapshots are taken.
type writer struct {
	name  string
	bytes int
	depth int
}

var writers = []writer{{"4KiB-q32", blockSize, 32}, {"1MiB-q8", streamSize, 8}}

func (r *runner) latency(ctx context.Context) error {
	for _, size := range []int64{gib, 1 << 40} {
		if err := r.latencyOf(ctx, size); err != nil {
			return fmt.Errorf("volume of %d GiB: %w", size/gib, err)
		}
	}
	return nil
}

// latencyRun measures on one volume.
type latencyRun struct {
	*runner
	pool   *engine.Pool
	volume *engine.Volume
	probe  fsys.File // prewritten, on the member's file system: its sync is what a member flush is
	plain  fsys.File // as well, and written beside the volume
	made   int
	busy   int // snapshots of the present case that had to be asked for again
}

func (r *runner) latencyOf(ctx context.Context, size int64) (err error) {
	const name = "latency"
	l := latencyRun{runner: r}
	if l.pool, err = r.ground.pool(ctx, name, latencyPool); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.pool.Close(context.WithoutCancel(ctx)), os.RemoveAll(r.ground.member(name)))
	}()
	if l.probe, err = newProbe(filepath.Join(r.ground.member(name), "probe")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.probe.Close()) }()
	if l.plain, err = newProbe(filepath.Join(r.ground.member(name), "plain")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.plain.Close()) }()
	if _, err = l.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: size}); err != nil {
		return err
	}
	if l.volume, err = l.pool.OpenVolume(ctx, "v"); err != nil {
		return err
	}
	if err = l.partlyWrite(ctx); err != nil {
		return err
	}
	for _, there := range []int{1, 1000} {
		r.say("volume of %d GiB: making %d snapshots", size/gib, there)
		if err = l.snapshots(ctx, there); err != nil {
			return err
		}
		for _, w := range writers {
			if err = l.sample(ctx, fmt.Sprintf("%dGiB-%d-%s", size/gib, there, w.name), w, false); err != nil {
				return err
			}
		}
	}
	// Told only: what background passes cost those who delete as often as they take.
	return l.sample(ctx, fmt.Sprintf("%dGiB-churn-%s", size/gib, writers[0].name), writers[0], true)
}

func newProbe(name string) (fsys.File, error) {
	f, err := fsys.OS().Open(name, fsys.Create|fsys.Write|fsys.Direct)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(fsys.AlignedBuffer(blockSize), 0); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// partlyWrite writes a quarter GiB in order and 16,384 blocks all over the volume.
func (l *latencyRun) partlyWrite(ctx context.Context) error {
	for _, w := range []load{
		{depth: 8, bytes: streamSize, at: sequential(gib/4, streamSize), write: true, limit: uint64(gib / 4 / streamSize)},
		{depth: 32, bytes: blockSize, at: random(l.volume.Size(), blockSize, 1), write: true, limit: 16384},
	} {
		if _, err := w.drive(ctx, l.volume); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// snapshots makes snapshots until so many are there, each with a few blocks of its own under it.
func (l *latencyRun) snapshots(ctx context.Context, there int) error {
	for ; l.made < there; l.made++ {
		w := load{depth: 8, bytes: blockSize, at: random(l.volume.Size(), blockSize, uint64(1000+l.made)), write: true, limit: 8}
		if _, err := w.drive(ctx, l.volume); err != nil {
			return err
		}
		if _, err := l.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: fmt.Sprintf("kept-%d", l.made), Volume: "v"}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// timings are the samples of one case.
type timings struct{ flush, snapshot, restore, remove histogram }

// sample takes and restores snapshots while a writer writes. Those taken are deleted at the end; with churn each before the next, so that background
// passes go on beside the next samples.
func (l *latencyRun) sample(ctx context.Context, name string, w writer, churn bool) error {
	var t timings
	l.busy = 0
	d, plain, err := l.underWriter(ctx, name, w, func(ended <-chan struct{}) error {
		tick := time.NewTicker(latencyPace)
		defer tick.Stop()
		for i := range l.Samples {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-ended:
				return nil
			}
			if err := l.once(ctx, &t, i, churn); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	began := time.Now()
	for i := 0; i < l.Samples && !churn; i++ {
		if err := l.remove(ctx, &t, i); err != nil {
			return err
		}
	}
	l.tell(name, &t, d, plain, churn)
	if churn {
		return nil // the last case of this pool, which goes as it is
	}
	if err := l.pool.WaitJobs(ctx); err != nil {
		return err
	}
	l.report.add(Figure{Name: "background-after-" + name, Value: time.Since(began).Seconds(), Unit: "s"})
	return nil
}

// underWriter does something while a writer writes to the volume, and another, for comparison, a block of a plain file now and then. do is told when the
// writer has ended by itself, which is an error of its own.
func (l *latencyRun) underWriter(ctx context.Context, name string, w writer, do func(ended <-chan struct{}) error) (
	d driven, plain *histogram, err error,
) {
	stopProfile, err := l.profile("latency-"+name, 0)
	if err != nil {
		return d, nil, err
	}
	defer stopProfile()
	window := l.volume.Size()
	if w.bytes > blockSize {
		window = gib // what a pool of this size can take
	}
	seen, plain := &histogram{}, &histogram{}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	go l.watchStalls(watching, name, seen)
	plainDone, ended := make(chan error, 1), make(chan struct{})
	go func() { plainDone <- l.writePlain(writing, plain) }()
	var werr error
	go func() {
		defer close(ended)
		d, werr = load{depth: w.depth, bytes: w.bytes, at: random(window, w.bytes, 7), write: true, latency: seen}.drive(writing, l.volume)
	}()
	err = do(ended)
	stop()
	<-ended
	return d, plain, errors.Join(err, werr, <-plainDone)
}

// writePlain writes a block of a plain file again and again until ctx ends: its longest write is what the machine itself does meanwhile.
func (l *latencyRun) writePlain(ctx context.Context, count *histogram) error {
	b := fsys.AlignedBuffer(blockSize)
	tick := time.NewTicker(plainPace)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		began := time.Now()
		if _, err := l.plain.WriteAt(b, 0); err != nil {
			return fmt.Errorf("write plain file: %w", err)
		}
		count.add(time.Since(began))
	}
}

func sampleName(i int) string { return fmt.Sprintf("sample-%d", i) }

// once is one sample of each.
func (l *latencyRun) once(ctx context.Context, t *timings, i int, churn bool) error {
	err := l.steps(
		step{&t.flush, l.probe.Sync},
		step{&t.snapshot, func() error {
			return l.untilNotBusy(ctx, func() error {
				_, err := l.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: sampleName(i), Volume: "v"})
				return err
			})
		}},
		step{&t.restore, func() error {
			_, err := l.pool.CreateVolume(ctx, engine.VolumeSpec{Name: sampleName(i), FromSnapshot: sampleName(i)})
			return err
		}})
	if err == nil && churn {
		err = l.remove(ctx, t, i)
	}
	return err
}

// untilNotBusy tries again as a caller would: what is told is the time until there is a snapshot.
func (l *latencyRun) untilNotBusy(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, engine.ErrBusy) || ctx.Err() != nil {
			return err
		}
		l.busy++
	}
}

func (l *latencyRun) remove(ctx context.Context, t *timings, i int) error {
	return l.steps(
		step{&t.remove, func() error { return l.pool.DeleteVolume(ctx, sampleName(i)) }},
		step{&t.remove, func() error { return l.pool.DeleteSnapshot(ctx, sampleName(i)) }})
}

type step struct {
	h  *histogram
	do func() error
}

func (l *latencyRun) steps(steps ...step) error {
	for _, s := range steps {
		began := time.Now()
		if err := s.do(); err != nil {
			return err
		}
		s.h.add(time.Since(began))
	}
	return nil
}

func (l *latencyRun) tell(name string, t *timings, d driven, plain *histogram, churn bool) {
	limit := max(latencyFloor, flushTimes*t.flush.quantile(0.5))
	ms := func(what string, v time.Duration, most *float64) {
		if churn {
			most = nil
		}
		l.report.add(Figure{Name: what + "-" + name, Value: milliseconds(v), Unit: "ms", AtMost: most})
	}
	ms("member-flush-p50", t.flush.quantile(0.5), nil)
	ms("snapshot-p50", t.snapshot.quantile(0.5), nil)
	ms("snapshot-p99", t.snapshot.quantile(0.99), bar(milliseconds(limit)))
	ms("snapshot-max", t.snapshot.quantile(1), nil)
	ms("restore-p50", t.restore.quantile(0.5), nil)
	ms("restore-p99", t.restore.quantile(0.99), bar(milliseconds(limit)))
	ms("delete-p99", t.remove.quantile(0.99), nil)
	ms("write-p99", d.latency.quantile(0.99), nil)
	ms("write-max", d.latency.quantile(1), bar(milliseconds(stallTimes*limit)))
	ms("write-max-plain", plain.quantile(1), nil)
	l.report.add(
		Figure{Name: "write-rate-" + name, Value: d.rate(), Unit: "/s"},
		Figure{Name: "snapshots-busy-" + name, Value: float64(l.busy)})
	l.say("%s: flush %v, snapshot p99 %v, restore p99 %v (bar %v); longest write %v (plain file %v), %.0f writes/s", name, t.flush.quantile(0.5),
		t.snapshot.quantile(0.99), t.restore.quantile(0.99), limit, d.latency.quantile(1), plain.quantile(1), d.rate())
}
