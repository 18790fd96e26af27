package metafs

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	crashLives = flag.Int("metafs.lives", 60, "power cuts of TestCrash")
	crashSeed  = flag.Uint64("metafs.seed", 0, "seed of TestCrash; 0: another one each time")
)

// smallOptions make a DB rotate its logs, recycle them, flush and compact within a few dozen commits.
func smallOptions(fs *FS) *pebble.Options {
	o := Options(fs, 1<<20)
	o.MemTableSize = 128 << 10
	return o
}

func commitKey(i uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'c'}, i) }

// commitValue belongs to a commit's number and the life that wrote it, so that a stale record of a recycled log cannot pass for a new one.
func commitValue(i, life uint64, size int) []byte {
	p := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, i), life)
	rng := rand.NewPCG(i, life)
	for len(p) < size {
		p = binary.BigEndian.AppendUint64(p, rng.Uint64())
	}
	return p[:size]
}

func commit(db *pebble.DB, i, life uint64, size int) error {
	b := db.NewBatch()
	defer b.Close()
	if err := b.Set(commitKey(i), commitValue(i, life, size), nil); err != nil {
		return err
	}
	if err := b.Set([]byte("latest"), binary.BigEndian.AppendUint64(nil, i), nil); err != nil {
		return err
	}
	if err := db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		return err
	}
	return b.SyncWait()
}

// verify checks that the DB holds exactly the commits up to some number, and returns that.
func verify(t *testing.T, db *pebble.DB) (latest uint64) {
	t.Helper()
	if v, closer, err := db.Get([]byte("latest")); err == nil {
		latest = binary.BigEndian.Uint64(v)
		must(t, closer.Close())
	} else if err != pebble.ErrNotFound {
		t.Fatal(err)
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("c"), UpperBound: []byte("d")})
	must(t, err)
	next := uint64(1)
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		must(t, err)
		want := commitValue(next, binary.BigEndian.Uint64(v[8:]), len(v))
		if !bytes.Equal(it.Key(), commitKey(next)) || !bytes.Equal(v, want) {
			t.Fatalf("key %x where commit %d should be, or its value is another one", it.Key(), next)
		}
		next++
	}
	must(t, it.Close())
	if next != latest+1 {
		t.Fatalf("%d commits are there and the latest is %d", next-1, latest)
	}
	return latest
}

// TestCrash cuts the power in the middle of a random write or sync, 60 times over, each time going on with what was left: every commit whose sync had
// returned is there, no later one without all before it, and the DB opens and goes on.
func TestCrash(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := fsys.NewMem()
	must(t, mem.MkdirAll("/meta"))
	must(t, mem.SyncDir("/"))
	acked, torn, total := uint64(0), 0, uint64(0)
	for life := range uint64(*crashLives) {
		if life%10 == 0 {
			mem = mem.CrashClone(rng) // and once more without a word written in between
		}
		cutAt := rng.IntN(100) // while it opens
		if rng.IntN(4) > 0 {
			cutAt = 80 + rng.IntN(200)
		}
		l := &crashLife{mem: mem, rng: rng, life: life, acked: acked, cutAt: cutAt, tear: life%2 == 0}
		l.run(t)
		if mem, acked = l.left, l.leftAcked; l.cutIn == fsys.OpWriteDurable {
			torn++
		}
		total = max(total, acked)
	}
	t.Logf("%d commits; %d of %d power cuts in the middle of a durable write", total, torn, *crashLives)
	if torn < *crashLives/3 {
		t.Fatal("hardly any log write was torn")
	}
}

type crashLife struct {
	mem   *fsys.Mem
	rng   *rand.Rand
	life  uint64
	cutAt int    // operation of this life
	tear  bool   // the next write to a log after that
	acked uint64 // before

	mu        sync.Mutex
	ops       int
	left      *fsys.Mem
	leftAcked uint64
	cutIn     fsys.Op
}

func (l *crashLife) run(t *testing.T) {
	fs := New(l.mem, Config{OnFatal: func(err error) { t.Errorf("life %d: %v", l.life, err) }, LogBytes: 64 << 10})
	var acked atomic.Uint64
	acked.Store(l.acked)
	choices := rand.New(rand.NewPCG(l.rng.Uint64(), 1))
	l.mem.During(func(op fsys.Op, _ string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ops++; l.ops >= l.cutAt && l.left == nil && (!l.tear || op == fsys.OpWriteDurable) {
			// What is acknowledged while the clone is made need not be in it.
			l.leftAcked, l.cutIn = acked.Load(), op
			l.left = l.mem.CrashClone(choices)
		}
	})
	db, err := pebble.Open("/meta", smallOptions(fs))
	if err != nil {
		t.Fatalf("life %d: open: %v", l.life, err)
	}
	latest := verify(t, db)
	if latest < l.acked {
		t.Fatalf("life %d: commit %d was synced, and %d is the latest left", l.life, l.acked, latest)
	}
	for i := latest + 1; !l.cut(); i++ {
		if i > latest+1000 {
			t.Fatalf("life %d: 1000 commits and no write to cut the power in", l.life)
		}
		size := 16 + l.rng.IntN(300)
		switch l.rng.IntN(8) {
		case 0:
			size = l.rng.IntN(40<<10) + 16
		case 1:
			size = l.rng.IntN(100<<10) + 16 // a batch of its own flush
		}
		must(t, commit(db, i, l.life, size))
		acked.Store(i)
	}
	l.mem.During(nil)
	must(t, db.Close())
	fs.Close()
}

func (l *crashLife) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left != nil
}
