package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/bench"
)

const (
	mib       = int64(1) << 20
	poolSize  = 512 * mib
	kept      = 64 * mib // what a snapshot keeps while the volume overwrites it
	blockSize = int64(engine.BlockSize)
	// resumeBar is how long a waiting write may take when there is space again, in seconds.
	resumeBar = 5
	// spaceWait is far longer than anything here takes: a write that waits is resumed or the run has failed.
	spaceWait = 2 * time.Minute
)

// subject is a pool, a volume in it, and what was last written to each of its blocks.
type subject struct {
	ground *ground
	pool   *engine.Pool
	volume *engine.Volume
	stamps map[int64]uint64 // by block
	next   uint64
	at     int64 // where new blocks begin
}

func newSubject(ctx context.Context, g *ground, name string) (s *subject, err error) {
	s = &subject{ground: g, stamps: map[int64]uint64{}}
	s.pool, err = engine.CreatePool(ctx, engine.PoolSpec{Name: name, Directory: filepath.Join(g.mount, name), Size: poolSize}, s.options())
	if err != nil {
		return s, err
	}
	if _, err = s.pool.CreateVolume(ctx, engine.VolumeSpec{Name: "v", Size: 2 * poolSize}); err != nil {
		return s, err
	}
	s.volume, err = s.pool.OpenVolume(ctx, "v")
	return s, err
}

func (s *subject) options() engine.Options {
	return engine.Options{RingDir: s.ground.ring, MountDir: s.ground.dir, SpaceWait: spaceWait}
}

// write stamps n bytes, a MiB at a time. A stamp counts when its write was acknowledged.
func (s *subject) write(off, n int64) error {
	b := make([]byte, mib)
	for end := off + n; off < end; off += mib {
		s.next++
		stamp := s.next
		for at := int64(0); at < mib; at += blockSize {
			fill(b[at:at+blockSize], stamp, (off+at)/blockSize)
		}
		if _, err := s.volume.WriteAt(b, off); err != nil {
			return err
		}
		for at := int64(0); at < mib; at += blockSize {
			s.stamps[(off+at)/blockSize] = stamp
		}
	}
	return nil
}

func fill(b []byte, stamp uint64, block int64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], stamp)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(block))
	}
}

// lost counts blocks that do not show what was written last.
func (s *subject) lost() (n int, err error) {
	b, want := make([]byte, blockSize), make([]byte, blockSize)
	for block, stamp := range s.stamps {
		if _, err := s.volume.ReadAt(b, block*blockSize); err != nil {
			return n, err
		}
		if fill(want, stamp, block); string(b) != string(want) {
			n++
		}
	}
	return n, nil
}

// begin writes what a snapshot keeps, takes it, overwrites it, and fills the pool until no block is left.
func (s *subject) begin(ctx context.Context) error {
	if err := s.write(0, kept); err != nil {
		return err
	}
	if _, err := s.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: "s", Volume: "v"}); err != nil {
		return err
	}
	s.at = kept
	return s.write(0, kept)
}

func (s *subject) fillPool() error {
	for ; s.pool.Info().Available >= mib; s.at += mib {
		if err := s.write(s.at, mib); err != nil {
			return fmt.Errorf("fill pool at %d MiB: %w", s.at/mib, err)
		}
	}
	return nil
}

// waiting is a write of new blocks that finds no space.
func (s *subject) waiting() (<-chan error, error) {
	done := make(chan error, 1)
	go func() {
		err := s.write(s.at, 8*mib)
		s.at += 8 * mib
		done <- err
	}()
	select {
	case err := <-done:
		return nil, fmt.Errorf("a write of new blocks did not wait for space: %w", err)
	case <-time.After(2 * time.Second):
		return done, nil
	}
}

// resumed does something that makes space, and returns how long the waiting write took from then on, in seconds.
func resumed(done <-chan error, makeSpace func() error) (float64, error) {
	began := time.Now()
	if err := makeSpace(); err != nil {
		return 0, err
	}
	select {
	case err := <-done:
		return time.Since(began).Seconds(), err
	case <-time.After(spaceWait):
		return 0, errors.New("the waiting write waits still")
	}
}

// end verifies everything, closes the pool, opens it again and verifies once more.
func (s *subject) end(ctx context.Context, name string) ([]bench.Figure, error) {
	var lost, problems int
	verify := func() error {
		n, err := s.lost()
		lost += n
		if err != nil {
			return err
		}
		report, err := s.pool.Check(ctx)
		problems += len(report.Problems)
		return err
	}
	if err := verify(); err != nil {
		return nil, err
	}
	if err := s.pool.Close(ctx); err != nil {
		return nil, err
	}
	var err error
	if s.pool, err = engine.OpenPool(ctx, filepath.Join(s.ground.mount, name), s.options()); err != nil {
		return nil, err
	}
	if s.volume, err = s.pool.OpenVolume(ctx, "v"); err != nil {
		return nil, err
	}
	if err := verify(); err != nil {
		return nil, err
	}
	return []bench.Figure{
		{Name: name + "-blocks-verified", Value: float64(2 * len(s.stamps))},
		most(name+"-blocks-lost", float64(lost), 0, ""), most(name+"-check-problems", float64(problems), 0, ""),
	}, nil
}

func most(name string, value, bar float64, unit string) bench.Figure {
	return bench.Figure{Name: name, Value: value, Unit: unit, AtMost: &bar}
}

// close removes the pool, so that the next one has the file system for itself.
func (s *subject) close(ctx context.Context, name string) error {
	var err error
	if s.pool != nil {
		if err = s.pool.Close(ctx); errors.Is(err, engine.ErrClosed) {
			err = nil
		}
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(s.ground.mount, name)))
}

// fullPool: a pool at 100 %.
func fullPool(ctx context.Context, g *ground) (figures []bench.Figure, err error) {
	const name = "full-pool"
	s, err := newSubject(ctx, g, name)
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx), name)) }()
	if err == nil {
		err = errors.Join(s.begin(ctx), s.fillPool())
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.pool.CreateSnapshot(ctx, engine.SnapshotSpec{Name: "refused", Volume: "v"}); !errors.Is(err, engine.ErrNoSpace) {
		return nil, fmt.Errorf("a snapshot of a full pool is not refused: %w", err)
	}
	done, err := s.waiting()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	b := make([]byte, blockSize)
	for block := range kept / blockSize { // the volume's own
		s.next++ // the waiting write has taken its stamp
		fill(b, s.next<<32, block)
		if _, err := s.volume.WriteAt(b, block*blockSize); err != nil {
			return nil, fmt.Errorf("overwrite in a full pool: %w", err)
		}
		s.stamps[block] = s.next << 32
	}
	overwrites := float64(kept/blockSize) / time.Since(began).Seconds()
	byDelete, err := resumed(done, func() error { return s.pool.DeleteSnapshot(ctx, "s") })
	if err != nil {
		return nil, fmt.Errorf("delete a snapshot of a full pool: %w", err)
	}
	if err := s.fillPool(); err != nil {
		return nil, err
	}
	if done, err = s.waiting(); err != nil {
		return nil, err
	}
	byGrowth, err := resumed(done, func() error { _, err := s.pool.Grow(ctx, poolSize+128*mib); return err })
	if err != nil {
		return nil, fmt.Errorf("grow a full pool: %w", err)
	}
	figures = append(figures, bench.Figure{Name: name + "-overwrites", Value: overwrites, Unit: "/s"},
		most(name+"-resumed-by-delete", byDelete, resumeBar, "s"), most(name+"-resumed-by-growth", byGrowth, resumeBar, "s"))
	ended, err := s.end(ctx, name)
	return append(figures, ended...), err
}

// fullFileSystem: a neighbour fills the file system to the last byte, long before the pool holds what it may.
func fullFileSystem(ctx context.Context, g *ground) (figures []bench.Figure, err error) {
	const name = "full-file-system"
	s, err := newSubject(ctx, g, name)
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx), name)) }()
	if err == nil {
		err = s.begin(ctx)
	}
	if err != nil {
		return nil, err
	}
	hog, err := g.hog()
	if err == nil {
		err = s.fillPool()
	}
	if err != nil {
		return nil, err
	}
	done, err := s.waiting()
	if err != nil {
		return nil, err
	}
	byDelete, err := resumed(done, func() error { return s.pool.DeleteSnapshot(ctx, "s") })
	if err != nil {
		return nil, fmt.Errorf("delete a snapshot on a full file system: %w", err)
	}
	if err := s.fillPool(); err != nil {
		return nil, err
	}
	if done, err = s.waiting(); err != nil {
		return nil, err
	}
	byLeaving, err := resumed(done, func() error { return os.Remove(hog) })
	if err != nil {
		return nil, fmt.Errorf("the neighbour leaves: %w", err)
	}
	figures = append(figures, most(name+"-resumed-by-delete", byDelete, resumeBar, "s"), most(name+"-resumed-by-neighbour", byLeaving, resumeBar, "s"))
	ended, err := s.end(ctx, name)
	return append(figures, ended...), err
}
