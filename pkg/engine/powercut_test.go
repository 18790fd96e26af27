package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// cutOp is one operation on a block: a write of the whole block, of sectors 2 to 5, or a discard.
type cutOp byte

const (
	opWhole cutOp = iota
	opPart
	opDiscard
)

// cutModel knows the history of every block of a volume; operations on a block count from 1.
type cutModel struct {
	name    string
	dev     *Volume
	history [][]cutOp
	issued  []uint32 // last operation begun
	acked   []uint32 // last operation that returned
	flushed []uint32 // last operation that a flush covers
}

// cutEach is how many power cuts there are in a workload.
const cutEach = 12

// cutBlocks is how many blocks of a volume the workload uses: some large writes side by side.
const cutBlocks = 5 * largeWrite / 2

func newCutModel(name string, dev *Volume) *cutModel {
	return &cutModel{
		name: name, dev: dev, history: make([][]cutOp, cutBlocks),
		issued: make([]uint32, cutBlocks), acked: make([]uint32, cutBlocks), flushed: make([]uint32, cutBlocks),
	}
}

// begin notes that an operation begins on n blocks, and returns what it writes to them.
func (v *cutModel) begin(mu *sync.Mutex, block, n int, op cutOp) (data []byte) {
	mu.Lock()
	defer mu.Unlock()
	for i := block; i < block+n; i++ {
		v.history[i] = append(v.history[i], op)
		v.issued[i]++
		first, end := 0, sectorsPerBlock
		if op == opPart {
			first, end = 2, 6
		}
		for s := first; s < end && op != opDiscard; s++ {
			data = append(data, v.sector(i, s, v.issued[i])...)
		}
	}
	return data
}

func (v *cutModel) ended(mu *sync.Mutex, block, n int) {
	mu.Lock()
	defer mu.Unlock()
	copy(v.acked[block:block+n], v.issued[block:block+n])
}

// sector is what sector s of a block shows after operation n.
func (v *cutModel) sector(block, s int, n uint32) []byte {
	b := make([]byte, sectorSize)
	op := func() cutOp { return v.history[block][n-1] }
	for n > 0 && op() == opPart && (s < 2 || s > 5) {
		n--
	}
	if n == 0 || op() == opDiscard {
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
	group   string
	content []uint32
	acked   bool // CreateSnapshot or CreateSnapshotGroup has returned
	going   bool // DeleteSnapshot was called
}

// cutPoint is a power cut: what the disk holds, and what was known when.
type cutPoint struct {
	disk      *fsys.Mem
	lo, hi    [][]uint32
	snapshots map[string]cutSnapshot
}

// A member flush that leaves out the sync of segments written in unwritten extents is found by the same workload.
func TestPowerCutFindsMissingSync(t *testing.T) {
	for seed := uint64(1); seed < 20; seed++ {
		err := runPowerCuts(t, seed, func(p *Pool) { must(t, p.member.MarkWritten(0, 0, MinPoolSize/BlockSize)) })
		if err != nil {
			t.Log("found:", err)
			return
		}
	}
	t.Fatal("nothing was found")
}

func runPowerCuts(t *testing.T, seed uint64, spoil func(*Pool)) error {
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
		name := fmt.Sprintf("volume-%d", i)
		world.volumes = append(world.volumes, newCutModel(name, tp.volume(name, 1<<20)))
	}
	if spoil != nil {
		spoil(p)
	}
	cutRand := rand.New(rand.NewPCG(seed, 4))
	var points []*cutPoint
	next := cutRand.IntN(40)
	disk.During(func(fsys.Op, string) {
		mu.Lock()
		defer mu.Unlock()
		if next--; next >= 0 || len(points) >= cutEach {
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
	if len(points) < cutEach {
		t.Fatalf("only %d power cuts", len(points))
	}
	for i, c := range points {
		o := testOptions(t)
		o.fs, o.bootID = c.disk, &[16]byte{2}
		if err := verifyCut(t, c, world, o); err != nil {
			return fmt.Errorf("power cut %d: %w", i, err)
		}
	}
	if n := disk.Grew("*.seg"); n > 0 {
		return fmt.Errorf("%d writes to segments needed space that was not there durably", n)
	}
	return nil
}

func bytesOf(v []uint32) []uint32 { return append([]uint32(nil), v...) }

func cutStep(t *testing.T, p *testPool, r *rand.Rand, mu *sync.Mutex, w *cutWorld) {
	k := r.IntN(len(w.volumes))
	v := w.volumes[k]
	switch n := r.IntN(100); {
	case n < 80:
		blocks, op := 1, [...]cutOp{opWhole, opWhole, opPart, opDiscard}[r.IntN(4)]
		if n < 6 {
			blocks, op = largeWrite+r.IntN(largeWrite), opWhole
		}
		block := r.IntN(cutBlocks - blocks + 1)
		off := int64(block) * BlockSize
		b := v.begin(mu, block, blocks, op)
		var err error
		switch op {
		case opDiscard:
			err = v.dev.Discard(off, BlockSize)
		case opPart:
			_, err = v.dev.WriteAt(b, off+2*sectorSize)
		default:
			_, err = v.dev.WriteAt(b, off)
		}
		must(t, err)
		v.ended(mu, block, blocks)
	case n < 88:
		must(t, v.dev.Flush())
		mu.Lock()
		for _, v := range w.volumes {
			copy(v.flushed, v.acked)
		}
		mu.Unlock()
	case n < 91 && len(w.snapshots) < 6:
		cutGroup(t, p, r, mu, w)
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

// cutGroup takes snapshots of all volumes in one cut, now and then with one of them closed.
func cutGroup(t *testing.T, p *testPool, r *rand.Rand, mu *sync.Mutex, w *cutWorld) {
	if v := w.volumes[r.IntN(len(w.volumes))]; r.IntN(3) == 0 {
		must(t, v.dev.Close(t.Context()))
		mu.Lock()
		copy(v.flushed, v.acked)
		mu.Unlock()
		defer func() { v.dev = p.open(v.name) }()
	}
	group := SnapshotGroupSpec{Name: fmt.Sprintf("g%d", r.Uint32())}
	var taken []*cutSnapshot
	mu.Lock()
	for i, v := range w.volumes {
		s := &cutSnapshot{volume: i, group: group.Name, content: bytesOf(v.acked)}
		name := group.Name + "-" + v.name
		w.snapshots[name] = s
		group.Snapshots = append(group.Snapshots, SnapshotSpec{Name: name, Volume: v.name})
		taken = append(taken, s)
	}
	mu.Unlock()
	_, err := p.CreateSnapshotGroup(t.Context(), group)
	must(t, err)
	mu.Lock()
	defer mu.Unlock()
	for _, s := range taken {
		s.acked = true
	}
	for _, v := range w.volumes {
		copy(v.flushed, v.acked)
	}
}

// verifyGroups: of a group that was being taken all snapshots are there, or none.
func verifyGroups(p *testPool, c *cutPoint) error {
	there := map[string]bool{}
	for _, info := range p.Snapshots("") {
		there[info.Name] = true
		if s, ok := c.snapshots[info.Name]; ok && s.group != info.Group {
			return fmt.Errorf("snapshot %s is of group %q, was taken with %q", info.Name, info.Group, s.group)
		}
	}
	first := map[string]string{} // of a group, one that nobody deletes
	for _, name := range sortedKeys(c.snapshots) {
		s := c.snapshots[name]
		if s.group == "" || s.going {
			continue
		}
		if other, ok := first[s.group]; ok && there[other] != there[name] {
			return fmt.Errorf("of group %s: snapshot %s is there: %v, %s: %v", s.group, other, there[other], name, there[name])
		}
		first[s.group] = name
	}
	return nil
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
	if err := verifyGroups(p, c); err != nil {
		return err
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
