package engine

import (
	"errors"
	"math/rand/v2"
	"path/filepath"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// moveOnce moves runs to other places, side by side with the guests.
func (g *guests) moveOnce(r *rand.Rand) error {
	if r.IntN(3) == 0 {
		return errors.Join(g.heldMove(r), g.heldWrite(r))
	}
	return g.relocateSome(g.slots[r.IntN(crashVolumes)], r)
}

// relocateSome moves runs of a volume's family, its heads' and its snapshots', to other places.
func (g *guests) relocateSome(s *slot, r *rand.Rand) error {
	v, err := g.catalogue.volume(s.name)
	if err != nil {
		return err
	}
	g.catalogue.mu.RLock()
	family := g.catalogue.layers[v.rec.Layer].rec.Family
	g.catalogue.mu.RUnlock()
	list, err := storedRuns(g.Pool, family, 0)
	if err != nil {
		return err
	}
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	var count volumeCounters
	_, err = g.relocate(relocation{family, 0, list[:min(len(list), 12)], func(n int) (uint64, int, error) {
		return g.alloc.Alloc(1<<62, n, alloc.Reserved)
	}, &count})
	if errors.Is(err, alloc.ErrNone) {
		return nil
	}
	return err
}

// armOnce holds the first such call alone.
func (p *pace) armOnce(op fsys.Op, ext string) *armed {
	a := p.arm(op, ext)
	n := 0
	p.mu.Lock()
	defer p.mu.Unlock()
	a.match = func(c fsys.Call) bool {
		if c.Op != op || filepath.Ext(c.Name) != ext {
			return false
		}
		n++
		return n == 1
	}
	return a
}

// heldMove keeps the commit from becoming durable that gives a volume's blocks other places, while the volume writes them: their copies are made.
func (g *guests) heldMove(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		log := g.pace.arm(fsys.OpWriteDurable, ".log")
		moved := make(chan error, 1)
		go func() { moved <- g.relocateSome(a, r) }()
		wait(log.held)
		err := g.blocks(a, 0, largeWrite/2, false)
		g.pace.release(log)
		return errors.Join(err, <-moved)
	})
}

// heldWrite keeps a write in place from reaching its blocks, which are given other places meanwhile.
func (g *guests) heldWrite(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		first := g.pace.armOnce(fsys.OpWrite, ".seg")
		wrote := make(chan error, 1)
		go func() { wrote <- g.blocks(a, 0, 8, false) }()
		wait(first.held)
		err := g.relocateSome(a, r)
		g.pace.release(first)
		return errors.Join(err, <-wrote)
	})
}
