package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var stressTime = flag.Duration("stress.time", 4*time.Second, "how long the concurrent test runs")

// tracked is a volume of which every block's history is known: operation n on a block is a discard when n%4 is 3, else a write of (block, n). acked and
// issued are the numbers of the last operation that returned and of the last begun.
type tracked struct {
	name          string
	dev           *Volume
	acked, issued []atomic.Uint32
}

func (v *tracked) content(block int, n uint32) []byte {
	b := make([]byte, BlockSize)
	if n%4 == 3 || n == 0 {
		return b
	}
	for i := 0; i < BlockSize; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n)<<32|uint64(block))
		binary.LittleEndian.PutUint64(b[i+8:], uint64(crc32.ChecksumIEEE([]byte(v.name)))<<16|uint64(i))
	}
	return b
}

// allowed tells whether a block may show b when its operations lo to hi may have been the last.
func (v *tracked) allowed(block int, b []byte, lo, hi uint32) bool {
	n := uint32(binary.LittleEndian.Uint64(b) >> 32)
	if n != 0 {
		return n >= lo && n <= hi && bytes.Equal(b, v.content(block, n))
	}
	for n = lo; n <= hi; n++ {
		if n == 0 || n%4 == 3 {
			return bytes.Equal(b, v.content(block, 0))
		}
	}
	return false
}

// work operates on the blocks whose number is w modulo workers, so that pages and neighbours are shared and blocks are not.
func (v *tracked) work(ctx context.Context, w, workers int, r *rand.Rand) error {
	blocks := len(v.acked)
	buf := make([]byte, BlockSize)
	for ctx.Err() == nil {
		block := r.IntN(blocks/workers)*workers + w
		off := int64(block) * BlockSize
		n := v.issued[block].Add(1)
		var err error
		if n%4 == 3 {
			err = v.dev.Discard(off, BlockSize)
		} else {
			_, err = v.dev.WriteAt(v.content(block, n), off)
		}
		if err != nil {
			return fmt.Errorf("operation %d on block %d of %s: %w", n, block, v.name, err)
		}
		v.acked[block].Store(n)
		switch r.IntN(50) {
		case 0:
			if err := v.dev.Flush(); err != nil {
				return err
			}
		case 1, 2, 3, 4, 5:
			block := r.IntN(blocks/workers)*workers + w
			if _, err := v.dev.ReadAt(buf, int64(block)*BlockSize); err != nil {
				return err
			}
			if n := v.acked[block].Load(); !v.allowed(block, buf, n, n) {
				return fmt.Errorf("block %d of %s shows %x after operation %d", block, v.name, buf[:16], n)
			}
		}
	}
	return nil
}

type trackedSnapshot struct {
	name   string
	v      *tracked
	lo, hi []uint32
	sum    uint32 // of its content, once read
}

func (s *trackedSnapshot) verify(p *testPool) error {
	r, err := p.OpenSnapshot(context.Background(), s.name)
	if err != nil {
		return err
	}
	defer r.Close()
	all := make([]byte, r.Size())
	if _, err := r.ReadAt(all, 0); err != nil {
		return err
	}
	for i := range s.lo {
		if b := all[i*BlockSize : (i+1)*BlockSize]; !s.v.allowed(i, b, s.lo[i], s.hi[i]) {
			return fmt.Errorf("snapshot %s: block %d of %s shows %x, wanted an operation from %d to %d", s.name, i, s.v.name, b[:16], s.lo[i], s.hi[i])
		}
	}
	sum := crc32.ChecksumIEEE(all)
	if s.sum != 0 && sum != s.sum {
		return fmt.Errorf("snapshot %s has changed", s.name)
	}
	s.sum = sum
	return nil
}

// TestConcurrent: writers, discards, flushes, snapshots, deletes and reads of snapshots at once, on a pool so small that blocks change hands.
func TestConcurrent(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	ctx, stop := context.WithTimeout(t.Context(), *stressTime)
	defer stop()
	const workers = 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var volumes []*tracked
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				errs <- err
				stop()
			}
		})
	}
	for i := range 2 {
		const blocks = 2500
		v := &tracked{name: fmt.Sprintf("v%d", i), acked: make([]atomic.Uint32, blocks), issued: make([]atomic.Uint32, blocks)}
		v.dev = p.volume(v.name, 10<<20)
		volumes = append(volumes, v)
		for w := range workers {
			run(func() error { return v.work(ctx, w, workers, rand.New(rand.NewPCG(seed, uint64(i*workers+w)))) })
		}
	}
	run(func() error { return snapshotLoop(ctx, p, volumes, rand.New(rand.NewPCG(seed, 99))) })
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	p.jobsDone()
	verifyTracked(t, volumes)
	p.check()
	// The death of the process loses nothing of it.
	must(t, p.kill())
	p.reopen()
	for _, v := range volumes {
		v.dev = p.open(v.name)
	}
	verifyTracked(t, volumes)
	t.Logf("snapshots and operations done: %+v", p.Info())
}

func verifyTracked(t *testing.T, volumes []*tracked) {
	t.Helper()
	buf := make([]byte, BlockSize)
	for _, v := range volumes {
		for i := range v.acked {
			_, err := v.dev.ReadAt(buf, int64(i)*BlockSize)
			must(t, err)
			if n := v.acked[i].Load(); !v.allowed(i, buf, n, n) {
				t.Fatalf("block %d of %s shows %x after operation %d", i, v.name, buf[:16], n)
			}
		}
	}
}

func snapshotLoop(ctx context.Context, p *testPool, volumes []*tracked, r *rand.Rand) error {
	var live []*trackedSnapshot
	for i := 0; ctx.Err() == nil; i++ {
		v := volumes[r.IntN(len(volumes))]
		s := &trackedSnapshot{name: fmt.Sprintf("s%d", i), v: v}
		for j := range v.acked {
			s.lo = append(s.lo, v.acked[j].Load())
		}
		_, err := p.CreateSnapshot(context.Background(), SnapshotSpec{Name: s.name, Volume: v.name})
		if errors.Is(err, ErrBusy) {
			continue
		}
		if err != nil {
			return err
		}
		for j := range v.issued {
			s.hi = append(s.hi, v.issued[j].Load())
		}
		live = append(live, s)
		if err := s.verify(p); err != nil {
			return err
		}
		for len(live) > r.IntN(8) {
			k := r.IntN(len(live))
			old := live[k]
			live = append(live[:k], live[k+1:]...)
			if err := old.verify(p); err != nil {
				return err
			}
			if err := p.DeleteSnapshot(context.Background(), old.name); err != nil {
				return err
			}
		}
	}
	return nil
}
