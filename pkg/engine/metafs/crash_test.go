package metafs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	crashCount = flag.Int("metafs.lives", 60, "power cuts of TestCrash")
	crashSeed  = flag.Uint64("metafs.seed", 0, "seed of TestCrash; 0: another one each time")
)

// smallOptions make a DB rotate its logs, recycle them, flush and compact within a few dozen commits.
func smallOptions(fs *FS) *pebble.Options {
	o := Options(fs, 1<<20)
	o.MemTableSize = 64 << 10
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
	latest, err := look(db)
	must(t, err)
	return latest
}

func look(db *pebble.DB) (latest uint64, err error) {
	if v, closer, err := db.Get([]byte("latest")); err == nil {
		latest = binary.BigEndian.Uint64(v)
		if err := closer.Close(); err != nil {
			return 0, err
		}
	} else if err != pebble.ErrNotFound {
		return 0, err
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("c"), UpperBound: []byte("d")})
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return 0, errors.Join(err, it.Close())
		}
		want := commitValue(next, binary.BigEndian.Uint64(v[8:]), len(v))
		if !bytes.Equal(it.Key(), commitKey(next)) || !bytes.Equal(v, want) {
			return 0, errors.Join(fmt.Errorf("key %x where commit %d should be, or its value is another one", it.Key(), next), it.Close())
		}
		next++
	}
	if err := it.Close(); err != nil {
		return 0, err
	}
	if next != latest+1 {
		return 0, fmt.Errorf("%d commits are there and the latest is %d", next-1, latest)
	}
	return latest, nil
}

func seedOf(t *testing.T) uint64 {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	return seed
}

// TestCrash ends one life of a DB after another in the middle of a random write or sync, each time going on with what was left: every commit whose
// sync had returned is there, no later one without all before it, and the DB opens and goes on. Three lives of four end with a power cut, which keeps
// any subset of the names that no sync covered; the others with the process's death.
func TestCrash(t *testing.T) {
	c, err := crashLives(seedOf(t), *crashCount, "")
	must(t, err)
	t.Logf("%d commits, %d logs; of %d ends %d came in the middle of a durable write", c.acked, c.logs, *crashCount, c.torn)
	if c.torn < *crashCount/3 {
		t.Fatal("hardly any log write was torn")
	}
	if c.logs < 3*uint64(*crashCount) {
		t.Fatal("the DB hardly ever began another log")
	}
}

// TestCrashFindsMutations breaks one rule after another.
func TestCrashFindsMutations(t *testing.T) {
	for _, m := range []mutation{mutateHeader, mutateSlotName, mutateBlind} {
		t.Run(strings.ReplaceAll(string(m), " ", "-"), func(t *testing.T) {
			seed := seedOf(t)
			for try := range uint64(20) {
				if c, err := crashLives(seed+try, *crashCount, m); err != nil {
					t.Logf("found in life %d of try %d: %v", c.life, try, err)
					return
				}
			}
			t.Fatalf("not noticed: %s", m)
		})
	}
}

// crashes is a chain of lives.
type crashes struct {
	disk     *subsetFS
	rng      *rand.Rand
	mutation mutation
	life     uint64
	acked    uint64 // before this life
	torn     int
	logs     uint64 // begun
}

func crashLives(seed uint64, lives int, m mutation) (*crashes, error) {
	c := &crashes{disk: newSubsetFS(), rng: rand.New(rand.NewPCG(seed, 0)), mutation: m}
	if err := c.disk.MkdirAll("/meta"); err != nil {
		return c, err
	}
	for c.life = range uint64(lives) {
		if c.life%10 == 0 {
			c.disk = c.disk.crash(c.rng) // and once more without a word written in between
		}
		cutAt := c.rng.IntN(100) // while it opens
		if c.rng.IntN(4) > 0 {
			cutAt = 80 + c.rng.IntN(200)
		}
		l := &crashLife{c: c, disk: c.disk, rng: c.rng, life: c.life, acked: c.acked, cutAt: cutAt, tear: c.life%2 == 0, kill: c.rng.IntN(4) == 0}
		ended, fatal := make(chan error, 1), make(chan error, 16)
		go func() { ended <- l.run(fatal) }()
		var err error
		select {
		case err = <-ended:
		case err = <-fatal: // the life's goroutines are parked
		}
		if err != nil {
			return c, fmt.Errorf("life %d: %w", c.life, err)
		}
		if c.disk, c.acked = l.left, l.leftAcked; l.cutIn == fsys.OpWriteDurable {
			c.torn++
		}
	}
	return c, nil
}

type crashLife struct {
	c     *crashes
	disk  *subsetFS
	rng   *rand.Rand
	life  uint64
	cutAt int    // operation of this life
	tear  bool   // the next durable write after that
	kill  bool   // the process only
	acked uint64 // before

	mu        sync.Mutex
	ops       int
	left      *subsetFS
	leftAcked uint64
	cutIn     fsys.Op
}

func (l *crashLife) run(fatal chan<- error) error {
	fs := New(l.disk, Config{OnFatal: func(err error) { fatal <- err }, LogBytes: 64 << 10})
	fs.mutation = l.c.mutation
	var acked atomic.Uint64
	acked.Store(l.acked)
	choices := rand.New(rand.NewPCG(l.rng.Uint64(), 1))
	l.disk.mem.During(func(op fsys.Op, _ string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ops++; l.ops >= l.cutAt && l.left == nil && (!l.tear || op == fsys.OpWriteDurable) {
			// What is acknowledged while the clone is made need not be in it.
			l.leftAcked, l.cutIn = acked.Load(), op
			if l.kill {
				l.left = l.disk.kill(choices)
			} else {
				l.left = l.disk.crash(choices)
			}
		}
	})
	o := smallOptions(fs)
	o.AddEventListener(pebble.EventListener{WALCreated: func(pebble.WALCreateInfo) { atomic.AddUint64(&l.c.logs, 1) }})
	db, err := pebble.Open("/meta", o)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	latest, err := look(db)
	if err != nil {
		return err
	}
	if latest < l.acked {
		return fmt.Errorf("commit %d was synced, and %d is the latest left", l.acked, latest)
	}
	for i := latest + 1; !l.cut(); i++ {
		if i > latest+1000 {
			return errors.New("1000 commits and no write to cut the power in")
		}
		size := 16 + l.rng.IntN(300)
		switch l.rng.IntN(8) {
		case 0:
			size = l.rng.IntN(40<<10) + 16
		case 1:
			size = l.rng.IntN(100<<10) + 16 // a batch of its own flush
		}
		if err := commit(db, i, l.life, size); err != nil {
			return err
		}
		acked.Store(i)
	}
	l.disk.mem.During(nil)
	err = db.Close()
	fs.Close()
	return err
}

func (l *crashLife) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left != nil
}
