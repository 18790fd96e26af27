package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	// residentBar is what the engine may have in memory with the default map cache, in bytes.
	residentBar = 400 << 20
	// missBar is what part of the plain file's rate reads must reach when most of the map is not in memory.
	missBar = 0.3
	// cacheShare is how many times larger than its cache the map is then, and entryBytes what a run takes in it.
	cacheShare, entryBytes = 4, 16
	// smallestCache is the smallest map cache the engine makes.
	smallestCache = 16 << 20
)

// memory runs the memory part, where it can in a process of its own.
func (r *runner) memory(ctx context.Context) error {
	if r.Memory == nil {
		return r.memoryHere(ctx)
	}
	out, err := r.Memory(ctx, r.ground.dir, r.ground.ring).Output()
	var child Report
	if derr := json.Unmarshal(out, &child); err == nil && derr != nil {
		err = fmt.Errorf("read its report: %w", derr)
	}
	// A bar that was missed is an error of the process, and in its report as well.
	if err != nil && len(child.Missed()) == 0 {
		return fmt.Errorf("run the memory part in a process of its own: %w", errors.Join(err, context.Cause(ctx)))
	}
	for _, f := range child.Figures {
		if f.Name != busyElsewhere {
			r.report.add(f)
		}
	}
	return nil
}

func (r *runner) memoryHere(ctx context.Context) (err error) {
	const name = "memory"
	defer func() { err = errors.Join(err, os.RemoveAll(r.ground.member(name))) }()
	if err = r.mapBlocks(ctx, name); err != nil {
		return err
	}
	return r.readThroughSmallCache(ctx, name)
}

// mapBlocks writes single blocks all over a volume of 1 TiB, and watches how much memory that takes.
func (r *runner) mapBlocks(ctx context.Context, name string) (err error) {
	pool, err := r.ground.pool(ctx, name, r.memoryPool())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close(context.WithoutCancel(ctx))) }()
	if _, err = pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: teraBlocks * blockSize}); err != nil {
		return err
	}
	v, err := pool.OpenVolume(ctx, "v")
	if err != nil {
		return err
	}
	r.say("writing %d blocks all over a volume of 1 TiB", r.Blocks)
	meta := pool.MetadataCounts()
	watch := r.watchMemory(func() string { return fmt.Sprintf("%d blocks written", v.Info().Counters.Writes) })
	d, err := load{depth: r.Depth, bytes: blockSize, at: r.mapped(), write: true, limit: uint64(r.Blocks)}.drive(ctx, v)
	err = errors.Join(err, context.Cause(ctx))
	if err == nil {
		err = v.Flush()
	}
	most, werr := watch()
	if err = errors.Join(err, werr); err != nil {
		return err
	}
	if got := v.Info().Mapped; got != r.Blocks*blockSize {
		return fmt.Errorf("%d bytes are mapped where %d were written", got, r.Blocks*blockSize)
	}
	cost := pool.MetadataCounts().Sub(meta)
	r.report.add(
		Figure{Name: "memory-blocks-mapped", Value: float64(r.Blocks)},
		Figure{Name: "memory-write-rate", Value: d.rate(), Unit: "/s"},
		Figure{Name: "memory-metadata-bytes-per-block", Value: float64(cost.Bytes()) / float64(r.Blocks), Unit: "B"},
		Figure{Name: "memory-resident-while-writing", Value: float64(most >> 20), Unit: "MiB", AtMost: bar(residentBar >> 20)})
	return nil
}

// mapped visits the blocks of the memory part, in the order they were written.
func (r *runner) mapped() func(uint64) int64 { return random(teraBlocks*blockSize, blockSize, 13) }

// watchMemory notes the most memory in use until the returned function is called.
func (r *runner) watchMemory(progress func() string) (stop func() (int64, error)) {
	done, ended := make(chan struct{}), make(chan struct{})
	var most atomic.Int64
	var failed error
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for told := time.Now(); ; {
			n, err := residentBytes()
			if err != nil {
				failed = err
			}
			most.Store(max(most.Load(), n))
			if time.Since(told) > 10*time.Second {
				told = time.Now()
				r.say("%s, %d MiB in memory", progress(), n>>20)
			}
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return func() (int64, error) {
		close(done)
		<-ended
		return most.Load(), failed
	}
}

// readThroughSmallCache reads the mapped blocks in random order with a cache that holds only a part of the map.
func (r *runner) readThroughSmallCache(ctx context.Context, name string) (err error) {
	plain, err := r.ground.plain(ctx, r.Size)
	if err != nil {
		return err
	}
	o := r.ground.options()
	o.MapCache = max(r.Blocks*entryBytes/cacheShare, smallestCache)
	pool, err := engine.OpenPool(ctx, r.ground.member(name), o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close(context.WithoutCancel(ctx))) }()
	v, err := pool.OpenVolume(ctx, "v")
	if err != nil {
		return err
	}
	a := arena{runner: r, plain: plain, pool: pool, volume: v}
	c := contest{name: fmt.Sprintf("read-map-4x-cache-q%d", r.Depth), rw: "randread", bytes: blockSize, depth: r.Depth}
	if o.MapCache == r.Blocks*entryBytes/cacheShare {
		c.bar = bar(missBar)
	}
	at := r.mapped()
	c.at = func(seed uint64) func(uint64) int64 {
		order := newPermutation(r.Blocks, seed)
		return func(i uint64) int64 { return at(uint64(order.at(i))) }
	}
	watch := r.watchMemory(func() string { return "reading" })
	err = a.hold(ctx, c)
	most, werr := watch()
	r.report.add(Figure{Name: "memory-resident-while-reading", Value: float64(most >> 20), Unit: "MiB"})
	return errors.Join(err, werr)
}
