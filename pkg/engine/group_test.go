package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// chain is a writer that orders its writes across volumes: write n goes to volume n modulo their number, and is sent after write n-1 was
// acknowledged. It has chainBlocks blocks of each volume to itself, used in turn.
type chain struct {
	first         int           // block
	back          bool          // from the last volume to the first, against the order in which gates close: ahead of a cut that is none
	issued, acked atomic.Uint64 // last write sent, and last that returned
}

const chainBlocks = 4

// at is where write n goes, among so many volumes.
func (c *chain) at(n uint64, volumes int) (volume int, off int64) {
	k := uint64(volumes)
	volume = int(n % k)
	if c.back {
		volume = volumes - 1 - volume
	}
	return volume, (int64(c.first) + int64(n/k%chainBlocks)) * BlockSize
}

func (c *chain) write(ctx context.Context, devs []*Volume) error {
	b := make([]byte, BlockSize)
	for n := uint64(1); ctx.Err() == nil; n++ {
		i, off := c.at(n, len(devs))
		for j := 0; j < BlockSize; j += 8 {
			binary.LittleEndian.PutUint64(b[j:], n)
		}
		c.issued.Store(n)
		if _, err := devs[i].WriteAt(b, off); err != nil {
			return err
		}
		c.acked.Store(n)
	}
	return nil
}

// prefix returns the n for which the volumes show writes 1 to n of the chain and no other, or an error.
func (c *chain) prefix(readers []*SnapshotReader) (uint64, error) {
	shown := map[[2]int64]uint64{}
	last := uint64(0)
	b := make([]byte, BlockSize)
	for i, r := range readers {
		for k := range int64(chainBlocks) {
			off := (int64(c.first) + k) * BlockSize
			if _, err := r.ReadAt(b, off); err != nil {
				return 0, err
			}
			n := binary.LittleEndian.Uint64(b)
			shown[[2]int64{int64(i), off}] = n
			last = max(last, n)
		}
	}
	span := uint64(len(readers) * chainBlocks)
	for n := last; n > 0 && n+span > last; n-- {
		i, off := c.at(n, len(readers))
		if got := shown[[2]int64{int64(i), off}]; got != n {
			return 0, fmt.Errorf("write %d is there, and volume %d at %d shows write %d, not %d", last, i, off, got, n)
		}
	}
	return last, nil
}

// Under load, the snapshots of a group are always a prefix of what every ordered writer did, and hold what was acknowledged before.
func TestGroupIsAPrefix(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	const volumes, chains, loads = 5, 4, 3
	var names []string
	var devs []*Volume
	for i := range volumes {
		names = append(names, fmt.Sprintf("v%d", i))
		devs = append(devs, p.volume(names[i], 4<<20))
	}
	var wg sync.WaitGroup
	errs := make(chan error, chains+loads)
	run := func(f func() error) {
		wg.Go(func() { errs <- f() })
	}
	var writers []*chain
	for i := range chains {
		c := &chain{first: i * chainBlocks, back: i%2 == 1}
		writers = append(writers, c)
		run(func() error { return c.write(ctx, devs) })
	}
	for i := range loads {
		run(func() error { return load(ctx, devs, chains*chainBlocks, rand.New(rand.NewPCG(uint64(i), 5))) })
	}
	deadline := time.Now().Add(*stressTime)
	cuts := 0
	for ; cuts < 20 || time.Now().Before(deadline); cuts++ {
		if err := cutAndCompare(p, names, writers, cuts); err != nil {
			t.Error(err)
			break
		}
	}
	stop()
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d cuts; chains wrote %d, %d, …", cuts, writers[0].acked.Load(), writers[1].acked.Load())
}

// load keeps the volumes busy behind the chains' blocks.
func load(ctx context.Context, devs []*Volume, first int, r *rand.Rand) error {
	b := make([]byte, 64<<10)
	for ctx.Err() == nil {
		v := devs[r.IntN(len(devs))]
		off := int64(first+r.IntN(500)) * BlockSize
		var err error
		switch r.IntN(8) {
		case 0:
			err = v.Discard(off, BlockSize)
		case 1:
			err = v.Flush()
		default:
			_, err = v.WriteAt(b[:(1+r.IntN(16))*BlockSize], off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func cutAndCompare(p *testPool, names []string, writers []*chain, cut int) error {
	spec := SnapshotGroupSpec{Name: fmt.Sprintf("g%d", cut)}
	for _, name := range names {
		spec.Snapshots = append(spec.Snapshots, SnapshotSpec{Name: spec.Name + "-" + name, Volume: name})
	}
	var lo, hi []uint64
	for _, c := range writers {
		lo = append(lo, c.acked.Load())
	}
	_, err := p.CreateSnapshotGroup(context.Background(), spec)
	if errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range writers {
		hi = append(hi, c.issued.Load())
	}
	var readers []*SnapshotReader
	for _, s := range spec.Snapshots {
		r, err := p.OpenSnapshot(context.Background(), s.Name)
		if err != nil {
			return err
		}
		defer r.Close()
		readers = append(readers, r)
		if err := p.DeleteSnapshot(context.Background(), s.Name); err != nil {
			return err
		}
	}
	for i, c := range writers {
		n, err := c.prefix(readers)
		if err != nil {
			return fmt.Errorf("cut %d, chain %d: %w", cut, i, err)
		}
		if n < lo[i] || n > hi[i] {
			return fmt.Errorf("cut %d, chain %d: it ends at write %d; %d was acknowledged before, %d sent after", cut, i, n, lo[i], hi[i])
		}
	}
	return nil
}

func TestGroupRefusals(t *testing.T) {
	p, _ := memPool(t)
	for _, name := range []string{"a", "b", "c"} {
		must(t, p.volume(name, 1<<20).Close(t.Context()))
	}
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "taken", Volume: "a"})
	must(t, err)
	_, err = p.CreateSnapshotGroup(t.Context(), SnapshotGroupSpec{Name: "g", Snapshots: []SnapshotSpec{{Name: "g-c", Volume: "c"}}})
	must(t, err)
	many := make([]SnapshotSpec, MaxGroup+1)
	for i := range many {
		many[i] = SnapshotSpec{Name: fmt.Sprint("s", i), Volume: fmt.Sprint("v", i)}
	}
	for _, c := range []struct {
		name      string
		snapshots []SnapshotSpec
		want      error
		names     string // what the text has
	}{
		{"none", nil, ErrInvalid, `"none"`},
		{"many", many, ErrInvalid, "257"},
		{"", []SnapshotSpec{{Name: "x", Volume: "a"}}, ErrInvalid, "group"},
		{"twice", []SnapshotSpec{{Name: "x", Volume: "a"}, {Name: "y", Volume: "a"}}, ErrInvalid, `"a"`},
		{"same", []SnapshotSpec{{Name: "x", Volume: "a"}, {Name: "x", Volume: "b"}}, ErrInvalid, `"x"`},
		{"bad", []SnapshotSpec{{Name: "x/", Volume: "a"}}, ErrInvalid, `"x/"`},
		{"labels", []SnapshotSpec{{Name: "x", Volume: "a", Labels: map[string]string{"k": strings.Repeat("v", MaxLabelsLen)}}}, ErrInvalid, "labels"},
		{"nobody", []SnapshotSpec{{Name: "x", Volume: "a"}, {Name: "y", Volume: "zz"}}, ErrNotFound, `"zz"`},
		{"exists", []SnapshotSpec{{Name: "x", Volume: "b"}, {Name: "taken", Volume: "a"}}, ErrExists, `"taken"`},
		{"g", []SnapshotSpec{{Name: "x", Volume: "a"}}, ErrExists, `"g-c"`},
	} {
		_, err := p.CreateSnapshotGroup(t.Context(), SnapshotGroupSpec{Name: c.name, Snapshots: c.snapshots})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("group %q: %v, want %v naming %s", c.name, err, c.want, c.names)
		}
	}
	if n := len(p.Snapshots("")); n != 2 {
		t.Errorf("%d snapshots are there after refusals, want 2", n)
	}
	p.check()
	must(t, p.kill())
	p.reopen()
	if s, err := p.Snapshot("g-c"); err != nil || s.Group != "g" {
		t.Errorf("after the engine's death: %+v, %v", s, err)
	}
}

// One volume whose write does not end fails the group: nothing is taken, every gate is open again, the one behind it in order too.
func TestGroupGivesUp(t *testing.T) {
	p, _ := memPool(t)
	a, b, c := p.volume("a", 1<<20), p.volume("b", 1<<20), p.volume("c", 1<<20)
	inside := b.enter()
	spec := SnapshotGroupSpec{Name: "g", Snapshots: []SnapshotSpec{{Name: "1", Volume: "c"}, {Name: "2", Volume: "b"}, {Name: "3", Volume: "a"}}}
	_, err := p.CreateSnapshotGroup(t.Context(), spec)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `"b"`) {
		t.Fatalf("a write that does not end: %v", err)
	}
	inside.leave()
	for _, v := range []*Volume{a, b, c} {
		eventually(t, "a write after the cut gave up", func() { _, err = v.WriteAt(make([]byte, BlockSize), 0) })
		must(t, err)
	}
	if n := len(p.Snapshots("")); n != 0 {
		t.Fatalf("%d snapshots of a group that failed", n)
	}
	_, err = p.CreateSnapshotGroup(t.Context(), spec)
	must(t, err)
	p.check()
}
