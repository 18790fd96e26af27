package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	cutSeeds = flag.Int("powercut.seeds", 6, "how many workloads the power-cut test runs")
	cutSeed  = flag.Uint64("powercut.seed", 0, "run this one workload only")
	cutEach  = flag.Int("powercut.cuts", 12, "power cuts in each workload")
)

// cutModel knows the history of every block of a volume. Operation n on a block is a discard when n%4 is 3, a write of sectors 2 to 5 when it is 2,
// else a write of the whole block.
type cutModel struct {
	name    string
	dev     *Volume
	issued  []uint32 // last operation begun
	acked   []uint32 // last operation that returned
	flushed []uint32 // last operation that a flush covers
}

// sector is what sector s of a block shows after operation n.
func (v *cutModel) sector(block, s int, n uint32) []byte {
	b := make([]byte, sectorSize)
	for n%4 == 2 && (s < 2 || s > 5) {
		n--
	}
	if n == 0 || n%4 == 3 {
		return b
	}
	for i := 0; i < sectorSize; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n)<<32|uint64(block)<<8|uint64(s))
		copy(b[i+8:i+16], v.name)
	}
	return b
}

func (v *cutModel) verify(dev interface {
	ReadAt([]byte, int64) (int, error)
}, lo, hi []uint32) error {
	buf := make([]byte, BlockSize)
	for block := range lo {
		if _, err := dev.ReadAt(buf, int64(block)*BlockSize); err != nil {
			return err
		}
		for s := range sectorsPerBlock {
			got := buf[s*sectorSize : (s+1)*sectorSize]
			ok := false
			for n := lo[block]; n <= hi[block] && !ok; n++ {
				ok = bytes.Equal(got, v.sector(block, s, n))
			}
			if !ok {
				return fmt.Errorf("%s block %d sector %d shows %x %q, wanted an operation from %d to %d", v.name, block, s, got[:8], got[8:16], lo[block], hi[block])
			}
		}
	}
	return nil
}

// cutWorld is what the outside knows at a moment.
type cutWorld struct {
	volumes   []*cutModel
	snapshots map[string]*cutSnapshot
}

type cutSnapshot struct {
	volume  int
	content []uint32
	acked   bool // CreateSnapshot has returned
	going   bool // DeleteSnapshot was called
}

// cutPoint is a power cut: what the disk holds, and what was known when.
type cutPoint struct {
	disk      *fsys.Mem
	lo, hi    [][]uint32
	snapshots map[string]cutSnapshot
}

// TestPowerCut runs workloads on a disk that remembers what a power cut may leave, cuts the power in the middle of writes and syncs, and checks the
// promises of the package sector by sector.
func TestPowerCut(t *testing.T) {
	seeds, first := *cutSeeds, uint64(1)
	if *cutSeed != 0 {
		seeds, first = 1, *cutSeed
	}
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runPowerCuts(t, seed) })
	}
}

func runPowerCuts(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 3))
	disk := fsys.NewMem()
	o := testOptions(t)
	o.fs, o.bootID = disk, &[16]byte{1}
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	var mu sync.Mutex // guards world and points
	world := &cutWorld{snapshots: map[string]*cutSnapshot{}}
	for i := range 2 {
		const blocks = 40
		v := &cutModel{name: fmt.Sprintf("volume-%d", i), issued: make([]uint32, blocks), acked: make([]uint32, blocks), flushed: make([]uint32, blocks)}
		v.dev = tp.volume(v.name, 1<<20)
		world.volumes = append(world.volumes, v)
	}
	cutRand := rand.New(rand.NewPCG(seed, 4))
	var points []*cutPoint
	next := cutRand.IntN(40)
	disk.During(func(fsys.Op, string) {
		mu.Lock()
		defer mu.Unlock()
		if next--; next >= 0 || len(points) >= *cutEach {
			return
		}
		next = cutRand.IntN(60)
		c := &cutPoint{snapshots: map[string]cutSnapshot{}}
		for _, v := range world.volumes {
			c.lo, c.hi = append(c.lo, bytesOf(v.flushed)), append(c.hi, bytesOf(v.issued))
		}
		for name, s := range world.snapshots {
			c.snapshots[name] = *s
		}
		c.disk = disk.CrashClone(cutRand)
		points = append(points, c)
	})
	for range 400 {
		cutStep(t, tp, r, &mu, world)
	}
	disk.During(nil)
	must(t, tp.kill())
	if len(points) < *cutEach {
		t.Fatalf("only %d power cuts", len(points))
	}
	for i, c := range points {
		o := testOptions(t)
		o.fs, o.bootID = c.disk, &[16]byte{2}
		if err := verifyCut(t, c, world, o); err != nil {
			t.Fatalf("power cut %d: %v", i, err)
		}
	}
}

func bytesOf(v []uint32) []uint32 { return append([]uint32(nil), v...) }

func cutStep(t *testing.T, p *testPool, r *rand.Rand, mu *sync.Mutex, w *cutWorld) {
	k := r.IntN(len(w.volumes))
	v := w.volumes[k]
	switch n := r.IntN(100); {
	case n < 80:
		block := r.IntN(len(v.issued))
		mu.Lock()
		v.issued[block]++
		op := v.issued[block]
		mu.Unlock()
		off := int64(block) * BlockSize
		var err error
		switch op % 4 {
		case 3:
			err = v.dev.Discard(off, BlockSize)
		case 2:
			var b []byte
			for s := 2; s <= 5; s++ {
				b = append(b, v.sector(block, s, op)...)
			}
			_, err = v.dev.WriteAt(b, off+2*sectorSize)
		default:
			var b []byte
			for s := range sectorsPerBlock {
				b = append(b, v.sector(block, s, op)...)
			}
			_, err = v.dev.WriteAt(b, off)
		}
		must(t, err)
		mu.Lock()
		v.acked[block] = op
		mu.Unlock()
	case n < 88:
		must(t, v.dev.Flush())
		mu.Lock()
		for _, v := range w.volumes {
			copy(v.flushed, v.acked)
		}
		mu.Unlock()
	case n < 95 && len(w.snapshots) < 6:
		s := &cutSnapshot{volume: k, content: bytesOf(v.acked)}
		name := fmt.Sprintf("s%d", r.Uint32())
		mu.Lock()
		w.snapshots[name] = s
		mu.Unlock()
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: name, Volume: v.name})
		must(t, err)
		mu.Lock()
		s.acked = true
		for _, v := range w.volumes {
			copy(v.flushed, v.acked) // a cut commits what is pending
		}
		mu.Unlock()
	default:
		for _, name := range sortedKeys(w.snapshots)[:min(1, len(w.snapshots))] {
			mu.Lock()
			w.snapshots[name].going = true
			mu.Unlock()
			must(t, p.DeleteSnapshot(t.Context(), name))
			mu.Lock()
			delete(w.snapshots, name)
			mu.Unlock()
		}
	}
}

func verifyCut(t *testing.T, c *cutPoint, w *cutWorld, o Options) error {
	pool, err := OpenPool(context.Background(), "/pool", o)
	if err != nil {
		return err
	}
	p := &testPool{t, pool, o, "/pool"}
	defer p.kill()
	report, err := p.Check(context.Background())
	if err != nil || len(report.Problems) > 0 {
		return fmt.Errorf("check: %v %v", report.Problems, err)
	}
	for i, v := range w.volumes {
		dev, err := p.OpenVolume(context.Background(), v.name)
		if err != nil {
			return err
		}
		if err := v.verify(dev, c.lo[i], c.hi[i]); err != nil {
			return err
		}
	}
	for name, s := range c.snapshots {
		if _, err := p.Snapshot(name); err != nil {
			if s.acked && !s.going {
				return fmt.Errorf("snapshot %s was acknowledged and is gone", name)
			}
			continue
		}
		dev, err := p.OpenSnapshot(context.Background(), name)
		if err != nil {
			return err
		}
		if err := w.volumes[s.volume].verify(dev, s.content, s.content); err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
		if err := dev.Close(); err != nil {
			return err
		}
	}
	if err := p.WaitJobs(context.Background()); err != nil {
		return err
	}
	report, err = p.Check(context.Background())
	if err != nil || len(report.Problems) > 0 {
		return fmt.Errorf("check after the background passes: %v %v", report.Problems, err)
	}
	return nil
}
