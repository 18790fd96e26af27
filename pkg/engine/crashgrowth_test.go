package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// crashStopAt is the members' limit of growth where a recording has one, in hundredths of a file system, and crashCrowded what a neighbour leaves of
// 100 GiB who has used them beyond that.
const (
	crashStopAt  = 80
	crashCrowded = 19 << 30
)

// limited: the members have a limit of growth; of pools of one member and of two, and where a volume is thick.
func limited(seed uint64) bool { return seed%8 >= 3 && seed%8 <= 5 }

// stopAt is the limit of growth of a recording's members.
func stopAt(seed uint64) int {
	if limited(seed) {
		return crashStopAt
	}
	return 0
}

func newCrowded(fs fsys.FS) *crowded {
	c := &crowded{FS: fs}
	c.available.Store(-1)
	return c
}

// spaced is how many chunks have their space, by the members' indexes. None are being reserved that were let to be before the call.
func (tp *testPool) spaced() map[uint32]int64 {
	tp.preparing.space.Lock()
	defer tp.preparing.space.Unlock()
	n := map[uint32]int64{}
	for _, m := range tp.members.table.Load().list {
		n[m.index] = tp.alloc.SpaceIn(m.lane)
	}
	return n
}

// grown returns an error where a member has got more chunks since; a new one may have none.
func (tp *testPool) grown(since map[uint32]int64) error {
	for index, n := range tp.spaced() {
		if n > since[index] {
			return fmt.Errorf("member %d has %d chunks, had %d when the file system was used beyond the limit of growth", index, n, since[index])
		}
	}
	return nil
}

// crowd has a neighbour fill the file systems beyond the limit while volumes ask for space, and go again.
func (g *guests) crowd(r *rand.Rand) error {
	if !limited(g.seed) {
		return nil
	}
	return g.pair(r, func(a, b *slot) error {
		g.neighbour.available.Store(crashCrowded)
		defer g.neighbour.available.Store(-1)
		since := g.spaced()
		err := g.takeMany(b)
		if err == nil {
			err = g.flushOnce(a)
		}
		g.note(mark{Kind: markHeld})
		return errors.Join(err, g.grown(since))
	})
}

// verifyLimit looks whether the members have kept their limit of growth, and keep to it: p was opened when a neighbour had used the file systems beyond
// it, and since tells what they had then. When it has gone, writes that need space go on.
func (st *state) verifyLimit(p *testPool, neighbour *crowded, since map[uint32]int64) error {
	p.options.SpaceWait = time.Millisecond
	for _, m := range p.members.table.Load().list {
		if got := m.dev.Superblock().StopAt; got != crashStopAt {
			return fmt.Errorf("member %v has a limit of growth of %d, was made with %d", m, got, crashStopAt)
		}
	}
	if _, err := p.CreateVolume(context.Background(), VolumeSpec{Name: "grows", Size: 64 << 20}); err != nil {
		return err
	}
	if err := p.fillVolume("grows"); !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("a volume finds no end of a small pool: %w", err)
	}
	if err := p.grown(since); err != nil {
		return err
	}
	stopped := false
	info := p.Info()
	for _, m := range info.Members {
		stopped = stopped || m.GrowthStopped
	}
	if may := p.mayReserve(); may != stopped {
		return fmt.Errorf("there is space to be reserved: %v, growth has stopped: %v", may, stopped)
	}
	draining := len(p.members.table.Load().inUse()) < len(info.Members)
	neighbour.available.Store(-1)
	if !stopped || draining || info.Reserved > 0 { // nobody else takes the first of it
		return nil
	}
	dev, err := p.opened("grows")
	if err == nil {
		_, err = dev.WriteAt(make([]byte, BlockSize), dev.Size()-BlockSize)
	}
	if err != nil {
		return fmt.Errorf("the neighbour has gone: %w", err)
	}
	return p.sound()
}
