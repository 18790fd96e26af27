package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/member"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

const (
	// flushGroup is how many first writes share a flush.
	flushGroup = 32
	// metadataBar is how many bytes of metadata a first write may cost.
	metadataBar = 128
	// quiet is how long Pebble must have written nothing to count as done.
	quiet = 500 * time.Millisecond
)

// amplification redirects every block of a volume once, in random order and in groups of flushGroup, and counts what that wrote.
func (r *runner) amplification(ctx context.Context) (err error) {
	const name = "amplification"
	pool, err := r.ground.poolWith(ctx, name, r.amplificationPool(), r.ground.withoutChecksums())
	if err != nil {
		return err
	}
	defer func() {
		if pool != nil {
			err = errors.Join(err, pool.Close(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, os.RemoveAll(r.ground.member(name)))
	}()
	if _, err = pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: r.Size}); err != nil {
		return err
	}
	v, err := pool.OpenVolume(ctx, "v")
	if err != nil {
		return err
	}
	if err = fill(ctx, v); err != nil {
		return err
	}
	if _, err = pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: "s", Volume: "v"}); err != nil {
		return err
	}
	before, data, meta := *v.Info().Counters, pool.DataCounts(), pool.MetadataCounts()
	n := uint64(r.Size / blockSize)
	r.say("%d first writes in groups of %d", n, flushGroup)
	began := time.Now()
	if err = r.groups(ctx, v, n); err != nil {
		return err
	}
	elapsed := time.Since(began)
	after, written := *v.Info().Counters, pool.DataCounts()
	// Tables still to be written are counted as well: opening the pool again writes what is in the log to tables, and those are compacted.
	cost, err := again(ctx, &pool, r.ground.withoutChecksums())
	if err != nil {
		return err
	}
	r.tellAmplification(n, elapsed, before, after, data, written, cost.Sub(meta).Add(pool.MetadataCounts()))
	return r.checksums(ctx, &pool, n)
}

// reopen closes a pool and opens it with other options. It returns what the metadata wrote before.
func reopen(ctx context.Context, pool **engine.Pool, o engine.Options) (cost metafs.Counts, err error) {
	dir, old := (*pool).Info().Member, *pool
	*pool = nil
	if err = old.Close(ctx); err == nil {
		*pool, err = engine.OpenPool(ctx, dir, o)
	}
	return old.MetadataCounts(), err
}

// again is reopen, and waits until the tables are settled.
func again(ctx context.Context, pool **engine.Pool, o engine.Options) (metafs.Counts, error) {
	cost, err := reopen(ctx, pool, o)
	if err == nil {
		err = settled(ctx, *pool)
	}
	return cost, err
}

// checksums counts what the checksums of n frozen blocks cost, apart from what the blocks themselves did.
func (r *runner) checksums(ctx context.Context, pool **engine.Pool, n uint64) error {
	began := time.Now()
	if _, err := reopen(ctx, pool, r.ground.checksumsAtOnce()); err != nil {
		return err
	}
	if err := (*pool).WaitChecksums(ctx); err != nil {
		return err
	}
	elapsed, put := time.Since(began), (*pool).Info().ChecksumBytes
	cost, err := again(ctx, pool, r.ground.withoutChecksums())
	if err != nil {
		return err
	}
	cost = cost.Add((*pool).MetadataCounts())
	r.report.add(
		Figure{Name: "checksum-bytes-per-frozen-block", Value: float64(put) / float64(n), Unit: "B"},
		Figure{Name: "metadata-bytes-per-frozen-block", Value: float64(cost.Bytes()) / float64(n), Unit: "B"},
		Figure{Name: "checksums-made", Value: float64(n) * blockSize / elapsed.Seconds() / (1 << 20), Unit: "MiB/s"})
	return nil
}

// groups writes n blocks, flushGroup at a time side by side, with a flush after each group.
func (r *runner) groups(ctx context.Context, v *engine.Volume, n uint64) error {
	at := random(r.Size, blockSize, 11)
	l := load{depth: flushGroup, bytes: blockSize, write: true}
	l.kept = l.buffers()
	told := time.Now()
	for done := uint64(0); done < n; done += flushGroup {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		l.at, l.limit = func(i uint64) int64 { return at(done + i) }, min(flushGroup, n-done)
		if _, err := l.drive(ctx, v); err != nil {
			return err
		}
		if err := v.Flush(); err != nil {
			return err
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			r.say("%d of %d", done, n)
		}
	}
	return nil
}

// settled waits until Pebble has compacted what it wants to.
func settled(ctx context.Context, pool *engine.Pool) error {
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	for last := pool.MetadataCounts(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now := pool.MetadataCounts()
		if now.Flush == last.Flush && now.Compaction == last.Compaction {
			return nil
		}
		last = now
	}
}

func (r *runner) tellAmplification(n uint64, elapsed time.Duration, before, after engine.Counters, data, written member.Counters,
	meta metafs.Counts,
) {
	per := func(v uint64) float64 { return float64(v) / float64(n) }
	r.report.add(
		Figure{Name: "first-writes", Value: float64(after.FirstWrites - before.FirstWrites), AtLeast: bar(float64(n))},
		Figure{Name: "data-bytes-per-first-write", Value: per(after.DataWriteBytes - before.DataWriteBytes), Unit: "B", AtMost: bar(blockSize)},
		Figure{Name: "data-reads-per-first-write", Value: per(after.DataReads - before.DataReads), AtMost: bar(0)},
		Figure{Name: "metadata-bytes-per-first-write", Value: per(meta.Bytes()), Unit: "B", AtMost: bar(metadataBar)},
		Figure{Name: "metadata-log", Value: per(meta.LogPayload), Unit: "B"},
		Figure{Name: "metadata-flush", Value: per(meta.Flush), Unit: "B"},
		Figure{Name: "metadata-compaction", Value: per(meta.Compaction), Unit: "B"},
		Figure{Name: "metadata-other", Value: per(meta.Manifest + meta.Other), Unit: "B"},
		Figure{Name: "metadata-log-padding", Value: per(meta.LogPadding), Unit: "B"},
		Figure{Name: "zeroes-written-ahead-per-first-write", Value: per(written.PrewrittenBytes - data.PrewrittenBytes), Unit: "B"},
		Figure{Name: fmt.Sprintf("first-writes-flushed-by-%d", flushGroup), Value: float64(n) / elapsed.Seconds(), Unit: "/s"})
}
