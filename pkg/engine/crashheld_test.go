package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// guestHold is what is known of who holds a volume, and of the last rollback that a holder asked for.
type guestHold struct {
	by   string // who asked to hold it; "": nobody
	held bool   // and was told that he does
	to   string // the snapshot that he asked to roll back to; "": he has not yet
	done string // who rolled it back last and was told so
}

// changeHold applies a mark that concerns a holder: Group is his name.
func (w *world) changeHold(m mark) {
	v := w.volumes[m.Volume]
	switch m.Kind {
	case markHold:
		v.hold.by = m.Group
	case markHolds:
		v.hold.held = true
	}
	w.volumes[m.Volume] = v
}

// heldRollback takes a snapshot of a volume, writes to it, and has a holder roll it back.
func (g *guests) heldRollback(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		name, err := g.snapshot(r, a)
		if err != nil || name == "" {
			return err
		}
		if err := errors.Join(g.blocks(a, 0, largeWrite/2, false), g.closed(a)); err != nil {
			return err
		}
		return g.rollbackHeld(r, a, name)
	})
}

// rollbackHeld rolls a volume that is closed back as a holder does: he holds it, and one commit rolls it back and lets it go. That is kept from becoming
// durable for a while.
func (g *guests) rollbackHeld(r *rand.Rand, s *slot, snapshot string) error {
	ctx, m := context.Background(), mark{Kind: markHold, Volume: s.name, Group: fmt.Sprintf("holder-%x", r.Uint64())}
	g.note(m)
	if _, err := g.HoldVolume(ctx, s.name, m.Group); err != nil {
		return err
	}
	m.Kind = markHolds
	g.note(m)
	if _, err := g.OpenVolume(ctx, s.name); !errors.Is(err, ErrBusy) {
		return fmt.Errorf("volume %s is opened while %s holds it: %w", s.name, m.Group, err)
	}
	v, err := g.catalogue.volume(s.name)
	if err != nil {
		return err
	}
	before, err := g.stored(format.VolumeKey(v.id))
	if err != nil {
		return err
	}
	change := g.begin(s, snapshot)
	log := g.pace.arm(fsys.OpWriteDurable, ".log")
	done := make(chan error, 1)
	go func() {
		_, err := g.RollbackVolume(ctx, s.name, snapshot, m.Group)
		done <- err
	}()
	g.poll(func() bool { // as it does before it is durable
		now, err := g.stored(format.VolumeKey(v.id))
		return err != nil || !bytes.Equal(now, before)
	})
	g.release(log)
	if err := <-done; err != nil {
		return err
	}
	return g.changed(s, change)
}

// stored is what the store shows under a key.
func (g *guests) stored(key []byte) ([]byte, error) {
	b, closer, err := g.store.db.Get(key)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(b), closer.Close()
}

// verifyHold looks who holds a volume, asks for the rest of what a holder wanted, or lets the volume go, and returns the incarnations that it may then
// be: of those given, that it was and that it was to become.
func (st *state) verifyHold(p *testPool, name string, v guestVolume) (may []int, err error) {
	ctx, may := context.Background(), []int{v.now, v.next}
	info, err := p.Volume(name)
	if errors.Is(err, ErrNotFound) {
		return may, nil
	}
	if err != nil {
		return nil, err
	}
	holder, last := info.Hold().By, info.RolledBack()
	wrong := func(what string) ([]int, error) {
		return nil, fmt.Errorf("%w: volume %s %s: held by %q, rolled back by %+v; known: %+v", errWrong, name, what, holder, last, v.hold)
	}
	switch {
	case v.hold.by == "":
		if holder != "" || last.By != v.hold.done {
			return wrong("has a holder that nobody knows, or has lost the last")
		}
		return may, nil
	case last.By == v.hold.by:
		if holder != "" || v.hold.to == "" || last.To != v.hold.to {
			return wrong("was rolled back, and not as asked for")
		}
		may = []int{v.next}
	case last.By != v.hold.done:
		return wrong("was rolled back by another")
	case holder == "" && v.hold.held:
		return wrong("is not held any more, and was not rolled back")
	case holder == "":
		return []int{v.now}, nil
	case holder != v.hold.by:
		return wrong("is held by another")
	default:
		if _, err := p.OpenVolume(ctx, name); !errors.Is(err, ErrBusy) {
			return wrong(fmt.Sprintf("can be opened (%v)", err))
		}
		if v.hold.to == "" || st.choice%2 == 0 {
			_, err := p.ReleaseVolume(ctx, name, holder)
			return []int{v.now}, err
		}
		may = []int{v.next}
	}
	// Asked once more: what was done is not done again.
	_, err = p.RollbackVolume(ctx, name, v.hold.to, v.hold.by)
	return may, err
}
