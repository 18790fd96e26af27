package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// outlive judges the death of a process whose I/O has not all landed when the next one begins to open the pool. What it had under way keeps its segments
// locked until it has landed, which is some of it while the next process waits, and the rest with the locks. Then what was under way is sent again, as the
// kernel does, and others take blocks. Whoever does not wait for the locks has late writes land on that.
func (st *state) outlive(o Options) (err error) {
	o.patience = time.Minute // the locks go at the third attempt, however slow the machine is
	landing := &landing{late: st.late, r: rand.New(rand.NewPCG(st.choice, 3))}
	o.fs = fsys.Fault(st.disk, fsys.Rule{Op: fsys.OpLock, When: func(fsys.Call) bool { landing.tried(); return true }})
	if o.mutate == mutateLocks {
		o.fs = fsys.Fault(unlocked{st.disk})
	}
	pool, dir, err := openCrashed(o)
	if err != nil {
		return err
	}
	p := &testPool{Pool: pool, o: o, dir: dir}
	defer func() { err = errors.Join(err, p.kill()) }()
	if err := st.goOn(p, landing.r); err != nil {
		return err
	}
	st.late.Land(1, nil)
	return st.verifyPool(p)
}

// landing lets late I/O land while the next process waits for the locks.
type landing struct {
	late *fsys.Late
	r    *rand.Rand
	mu   sync.Mutex
	n    int
}

func (l *landing) tried() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n++; l.n < 3 { // the flush file's lock, and a segment's first
		l.late.Land(0.5, l.r)
		return
	}
	l.late.Land(1, nil)
}

// unlocked is a file system whose locks keep nobody out.
type unlocked struct{ fsys.FS }

type unlockedFile struct{ fsys.File }

func (unlockedFile) Lock() error { return nil }

func (u unlocked) Open(name string, flags fsys.OpenFlags) (fsys.File, error) {
	f, err := u.FS.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return unlockedFile{f}, nil
}

// goOn sends again what was under way, and writes here and there in every volume, as far as there is space.
func (st *state) goOn(p *testPool, r *rand.Rand) error {
	for _, name := range sortedKeys(st.w.volumes) {
		v := st.w.volumes[name]
		if v.changing || v.hold.by != "" {
			continue
		}
		dev, err := p.opened(name)
		if err != nil {
			return err
		}
		c := st.w.inc(v.now)
		for b := range c.blocks {
			if uint32(len(c.blocks[b].ops)) == c.blocks[b].acked && r.IntN(10) > 0 {
				continue
			}
			if err := c.again(dev, b); err != nil && !errors.Is(err, ErrNoSpace) {
				return err
			}
		}
	}
	return nil
}

// again writes a whole block, as the operation after all there were.
func (c *incarnation) again(dev *Volume, b int) error {
	block := &c.blocks[b]
	block.ops = append(slices.Clip(block.ops), touch{0, sectorsPerBlock, false}) // others share what was before
	data := make([]byte, BlockSize)
	for i := range sectorsPerBlock {
		newStamp(c.id, b*sectorsPerBlock+i, uint32(len(block.ops))).fill(data[i*sectorSize:][:sectorSize])
	}
	if _, err := dev.WriteAt(data, int64(b)*BlockSize); err != nil {
		block.failed = append(slices.Clip(block.failed), uint32(len(block.ops)))
		return err
	}
	block.acked = uint32(len(block.ops))
	return nil
}

// opened opens a volume, or returns the one that is open.
func (tp *testPool) opened(name string) (*Volume, error) {
	v, err := tp.catalogue.volume(name)
	if err != nil {
		return nil, err
	}
	if v.open != nil {
		return v.open, nil
	}
	return tp.OpenVolume(context.Background(), name)
}
