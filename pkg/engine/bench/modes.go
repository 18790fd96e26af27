package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// The modes part measures what books say of copy-on-write and redirect-on-write: data reads and writes for a guest's write before and after
// snapshots, what a read costs, how long restoring and deleting take for little and for much data, and what is left of a sequential read after random
// first writes.
const (
	modesSize  = gib  // bytes of its volume, at most
	modesCount = 2000 // guest writes, or reads, that are counted
	// modesShare is what part of the volume's blocks are written at random before its sequential read is measured again.
	modesShare = 4
	// sequentialBar is what must be left of the sequential read: in COW, and in ROW when it was tidied.
	sequentialBar = 0.9
)

// modes is one mode's volume under measurement.
type modes struct {
	*runner
	mode   engine.Mode
	pool   *engine.Pool
	volume *engine.Volume
	still  *engine.Volume // written in order and left so: what a sequential read is compared with
	size   int64
	seed   uint64
}

func (c *Config) modesVolume() int64 { return min(c.Size, modesSize) }
func (c *Config) modesPool() int64   { return 5*c.modesVolume() + gib }

func (r *runner) modes(ctx context.Context) error {
	for _, mode := range []engine.Mode{engine.RedirectOnWrite, engine.CopyOnWrite} {
		m := modes{runner: r, mode: mode, size: r.modesVolume()}
		if err := m.measure(ctx); err != nil {
			return fmt.Errorf("mode %v: %w", mode, err)
		}
	}
	return nil
}

func (m *modes) measure(ctx context.Context) (err error) {
	name := "modes-" + m.mode.String()
	m.say("%v: writing a volume of %d MiB", m.mode, m.size>>20)
	if m.pool, err = m.ground.poolWith(ctx, name, m.modesPool(), m.ground.withoutChecksums()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, m.pool.Close(context.WithoutCancel(ctx)), os.RemoveAll(m.ground.member(name)))
	}()
	if _, err = m.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: m.size, Mode: m.mode}); err != nil {
		return err
	}
	if m.volume, err = m.pool.OpenVolume(ctx, "v"); err != nil {
		return err
	}
	if _, err = m.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "still", Size: m.size}); err != nil {
		return err
	}
	if m.still, err = m.pool.OpenVolume(ctx, "still"); err != nil {
		return err
	}
	if err = errors.Join(fill(ctx, m.volume), fill(ctx, m.still)); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{m.writes, m.restores, m.streams} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (m *modes) figure(name string, value float64, unit string, atLeast, atMost *float64) {
	m.report.add(Figure{Name: m.mode.String() + "-" + name, Value: value, Unit: unit, AtLeast: atLeast, AtMost: atMost})
}

// counted drives so many requests of 4 KiB, all to different blocks, and returns what they made the engine do.
func (m *modes) counted(ctx context.Context, n uint64, write bool) (engine.Counters, error) {
	m.seed++
	before := *m.volume.Info().Counters
	l := load{depth: m.Depth, bytes: blockSize, at: random(m.size, blockSize, m.seed), write: write, limit: n}
	if _, err := l.drive(ctx, m.volume); err != nil {
		return before, err
	}
	if err := errors.Join(context.Cause(ctx), m.volume.Flush()); err != nil {
		return before, err
	}
	c := *m.volume.Info().Counters
	c.DataReads, c.DataWrites = c.DataReads-before.DataReads, c.DataWrites-before.DataWrites
	c.DataReadBytes, c.DataWriteBytes = c.DataReadBytes-before.DataReadBytes, c.DataWriteBytes-before.DataWriteBytes
	c.FirstWrites, c.Copies = c.FirstWrites-before.FirstWrites, c.Copies-before.Copies
	return c, nil
}

// writes counts what a guest's write costs: before a snapshot, after one, and after twenty-four. What COW redirected is counted apart.
func (m *modes) writes(ctx context.Context) error {
	for i, snapshots := range []int{0, 1, 24} {
		for s := range snapshots {
			spec := engine.SnapshotSpec{Name: fmt.Sprintf("w%d-%d", i, s), Volume: "v"}
			if _, err := m.pool.CreateSnapshot(ctx, spec); err != nil {
				return err
			}
		}
		m.say("%v: counting writes after %d snapshots", m.mode, snapshots)
		c, err := m.counted(ctx, modesCount, true)
		if err != nil {
			return err
		}
		m.tellWrites(snapshots, c)
	}
	c, err := m.counted(ctx, modesCount, false)
	if err != nil {
		return err
	}
	m.figure("data-reads-per-read", float64(c.DataReadBytes)/blockSize/modesCount, "", nil, bar(1))
	return nil
}

func (m *modes) tellWrites(snapshots int, c engine.Counters) {
	reads, writes, redirected := float64(c.DataReadBytes)/blockSize, float64(c.DataWriteBytes)/blockSize, float64(c.FirstWrites)
	wantReads, wantWrites := 0.0, 1.0
	counted := float64(modesCount)
	name := fmt.Sprintf("after-%d-snapshots", snapshots)
	if m.mode == engine.CopyOnWrite && snapshots > 0 {
		// A redirected write is one write; one that began as COW and went on as ROW had made its copy.
		wantReads, wantWrites = 1, 2
		abandoned := max(float64(c.Copies)+redirected-counted, 0)
		m.figure(name+"-redirected-writes", redirected, "", nil, nil)
		reads, writes, counted = reads-abandoned, writes-abandoned-redirected, counted-redirected
	}
	m.figure(name+"-data-reads-per-write", reads/counted, "", bar(wantReads), bar(wantReads))
	m.figure(name+"-data-writes-per-write", writes/counted, "", bar(wantWrites), bar(wantWrites))
}

// restores times restoring and deleting, of a snapshot with little behind it and of one with much, and counts the data they write: none.
func (m *modes) restores(ctx context.Context) error {
	for _, changed := range []int64{4 << 20, m.size / 2} {
		size := fmt.Sprintf("%d-MiB-changed", changed>>20)
		m.say("%v: restoring and deleting with %s", m.mode, size)
		if _, err := m.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: "old", Volume: "v"}); err != nil {
			return err
		}
		l := load{depth: 8, bytes: streamSize, at: sequential(m.size, streamSize), write: true, limit: uint64(changed / streamSize)}
		if _, err := l.drive(ctx, m.volume); err != nil {
			return err
		}
		if err := m.volume.Flush(); err != nil {
			return err
		}
		before := m.pool.DataCounts()
		began := time.Now()
		if _, err := m.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "restored", FromSnapshot: "old"}); err != nil {
			return err
		}
		restored := time.Since(began)
		if err := m.pool.DeleteVolume(ctx, "restored"); err != nil {
			return err
		}
		began = time.Now()
		if err := m.pool.DeleteSnapshot(ctx, "old"); err != nil {
			return err
		}
		deleted := time.Since(began)
		if err := m.pool.WaitJobs(ctx); err != nil {
			return err
		}
		written := m.pool.DataCounts().WriteBytes - before.WriteBytes
		m.figure("restore-"+size, milliseconds(restored), "ms", nil, nil)
		m.figure("delete-"+size, milliseconds(deleted), "ms", nil, nil)
		m.figure("restore-and-delete-"+size+"-data-written", float64(written), "B", nil, bar(0))
	}
	return nil
}

// streams measures the sequential read before and after random first writes, and in ROW after tidying.
func (m *modes) streams(ctx context.Context) error {
	if m.mode == engine.RedirectOnWrite {
		// What was counted before has scattered it.
		if err := m.tidy(ctx); err != nil {
			return err
		}
	}
	if err := m.stream(ctx, "before", nil); err != nil {
		return err
	}
	if _, err := m.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: "stream", Volume: "v"}); err != nil {
		return err
	}
	m.say("%v: random first writes to one block in %d", m.mode, modesShare)
	c, err := m.counted(ctx, uint64(m.size/blockSize/modesShare), true)
	if err != nil {
		return err
	}
	m.figure("random-writes-redirected", 100*float64(c.FirstWrites)/float64(m.size/blockSize/modesShare), "%", nil, nil)
	if m.mode == engine.CopyOnWrite {
		return m.stream(ctx, "after-random-writes", bar(sequentialBar))
	}
	if err := errors.Join(m.stream(ctx, "after-random-writes", nil), m.tidy(ctx)); err != nil {
		return err
	}
	return m.stream(ctx, "after-tidy", bar(sequentialBar))
}

// stream measures reading the volume in order, in turn with a volume that is as this one was before: what others do to the machine they do to both. It
// tells, too, in how many pieces each MiB was read.
func (m *modes) stream(ctx context.Context, when string, least *float64) error {
	l := load{depth: 8, bytes: streamSize, at: sequential(m.size, streamSize)}
	var rates, ratios []float64
	before := *m.volume.Info().Counters
	for range m.Rounds {
		still, err := l.driveFor(ctx, m.still, m.Round)
		if err != nil {
			return err
		}
		d, err := l.driveFor(ctx, m.volume, m.Round)
		if err != nil {
			return err
		}
		rates, ratios = append(rates, d.rate()), append(ratios, d.rate()/still.rate())
	}
	name, c := m.mode.String()+"-sequential-read-"+when, *m.volume.Info().Counters
	m.report.add(
		Figure{Name: name, Value: median(rates), Unit: "MiB/s", Samples: rates},
		Figure{Name: name + "-pieces-per-MiB", Value: float64(c.DataReads-before.DataReads) / float64(c.Reads-before.Reads)},
		Figure{Name: name + "-ratio", Value: median(ratios), AtLeast: least, Samples: ratios})
	return nil
}

func (m *modes) tidy(ctx context.Context) error {
	m.say("%v: tidying", m.mode)
	began, moved := time.Now(), int64(0)
	for start := int64(0); ; {
		step, err := m.pool.Tidy(ctx, engine.TidySpec{Volume: "v", Start: start, Rate: -1})
		if err != nil {
			return err
		}
		moved += step.Moved
		if start = step.Next; start == 0 {
			break
		}
	}
	m.say("%v: tidied %d MiB in %v", m.mode, moved>>20, time.Since(began).Round(time.Millisecond))
	return nil
}
