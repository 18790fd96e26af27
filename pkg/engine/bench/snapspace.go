package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	spaceVolume    = 64 * gib
	spaceSnapshots = 24
	// spaceWrites is how many blocks are changed between two snapshots.
	spaceWrites = 40_000
	// spaceBar is how many bytes a changed byte may take: itself, and what there is to know of it.
	spaceBar = 1.02
)

// spacePool holds all that is written.
func (c *Config) spacePool() int64 {
	return (spaceSnapshots+1)*spaceWrites*blockSize/gib*gib + 3*gib
}

// space changes blocks all over a volume, with a snapshot after each round of changes, and compares the space that takes with what was changed.
func (r *runner) space(ctx context.Context) (err error) {
	const name = "space"
	pool, err := r.ground.pool(ctx, name, r.spacePool())
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, pool.Close(context.WithoutCancel(ctx)), os.RemoveAll(r.ground.member(name)))
	}()
	if _, err = pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: spaceVolume}); err != nil {
		return err
	}
	v, err := pool.OpenVolume(ctx, "v")
	if err != nil {
		return err
	}
	r.say("%d snapshots of a volume of %d GiB, %d blocks changed before each", spaceSnapshots, spaceVolume/gib, spaceWrites)
	before := pool.Info()
	for i := range spaceSnapshots {
		l := load{depth: r.Depth, bytes: blockSize, at: random(spaceVolume, blockSize, uint64(i+1)), write: true, limit: spaceWrites}
		if _, err = l.drive(ctx, v); err == nil {
			_, err = pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: fmt.Sprintf("s%d", i), Volume: "v"})
		}
		if err = errors.Join(err, context.Cause(ctx)); err != nil {
			return err
		}
	}
	if err = settled(ctx, pool); err != nil {
		return err
	}
	after := pool.Info()
	changed := float64(spaceSnapshots * spaceWrites * blockSize)
	data, meta := float64(after.Used-before.Used)/changed, float64(after.MetadataBytes-before.MetadataBytes)/changed
	r.report.add(
		Figure{Name: "snapshot-space-data-per-changed-byte", Value: data},
		Figure{Name: "snapshot-space-metadata-per-changed-byte", Value: meta, Unit: ""},
		Figure{Name: "snapshot-space-per-changed-byte", Value: data + meta, AtMost: bar(spaceBar)})
	return nil
}
