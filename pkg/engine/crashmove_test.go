package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// moveOnce moves runs to other places, side by side with the guests.
func (g *guests) moveOnce(r *rand.Rand) error {
	s := g.slots[r.IntN(crashVolumes)]
	switch r.IntN(6) {
	case 0:
		return errors.Join(g.heldMove(r), g.heldWrite(r))
	case 1, 2:
		return g.heldCopy(r)
	case 3:
		mode := Mode(r.IntN(2))
		_, err := g.ChangeVolume(context.Background(), s.name, VolumeChange{Mode: &mode})
		return err
	}
	return g.relocateSome(s, r)
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

// heldCopy has a volume copy away what a snapshot keeps: beside a reader that has looked the old places up and is kept from them; beside one that
// knows the snapshot's map; and while the commit that gives it the old places is kept from becoming durable.
func (g *guests) heldCopy(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) (err error) {
		mode := CopyOnWrite
		if _, err := g.ChangeVolume(context.Background(), a.name, VolumeChange{Mode: &mode}); err != nil {
			return err
		}
		name, err := g.snapshot(r, a)
		if err != nil || name == "" {
			return err
		}
		s, err := g.OpenSnapshot(context.Background(), name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		want, got := make([]byte, largeWrite*BlockSize), make([]byte, largeWrite*BlockSize)
		if _, err := s.ReadAt(want, 0); err != nil {
			return err
		}
		same := func(err error) error {
			if err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("a reader of snapshot %s saw it change", name)
			}
			return err
		}
		held := g.pace.armOnce(fsys.OpRead, ".seg")
		read := make(chan error, 1)
		go func() { _, err := s.ReadAt(got, 0); read <- err }()
		wait(held.held)
		err = g.blocks(a, 0, largeWrite/2, false)
		g.pace.release(held)
		if err = errors.Join(err, same(<-read)); err != nil {
			return err
		}
		if _, err := s.ReadAt(got, 0); err != nil || same(nil) != nil {
			return errors.Join(err, same(nil))
		}
		log := g.pace.arm(fsys.OpWriteDurable, ".log")
		wrote := make(chan error, 1)
		go func() { wrote <- g.blocks(a, largeWrite/2, 8, false) }()
		wait(log.held)
		_, err = s.ReadAt(got, 0)
		err = same(err)
		g.pace.release(log)
		return errors.Join(err, <-wrote)
	})
}
