package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// holdLimit is how long an armed hold lasts at most: where the rules are kept, some of what is tried meanwhile waits for what is held.
const holdLimit = 30 * time.Millisecond

// armed holds every call up that matches, until it is released.
type armed struct {
	match    func(fsys.Call) bool
	once     sync.Once
	held     chan struct{} // closed when the first is held
	released chan struct{}
}

func (p *pace) arm(op fsys.Op, ext string) *armed {
	a := &armed{held: make(chan struct{}), released: make(chan struct{})}
	a.match = func(c fsys.Call) bool { return c.Op == op && filepath.Ext(c.Name) == ext }
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = a
	return a
}

// goOn releases one hold and arms another: nothing comes between.
func (p *pace) goOn(a *armed, op fsys.Op, ext string) *armed {
	next := p.arm(op, ext)
	close(a.released)
	return next
}

func (p *pace) release(a *armed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = nil
	close(a.released)
}

// release ends a hold, and marks the moment before: cuts come there.
func (g *guests) release(a *armed) {
	g.note(mark{Kind: markHeld})
	g.pace.release(a)
}

func (p *pace) armedFor(c fsys.Call) *armed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed == nil || !p.armed.match(c) {
		return nil
	}
	return p.armed
}

func (a *armed) hold() {
	a.once.Do(func() { close(a.held) })
	wait(a.released)
}

func wait(c <-chan struct{}) {
	timeout := time.NewTimer(holdLimit)
	defer timeout.Stop()
	select {
	case <-c:
	case <-timeout.C:
	}
}

// pair takes two volumes for the caller alone: the first with blocks of its own that are committed, the second with none.
func (g *guests) pair(r *rand.Rand, f func(a, b *slot) error) error {
	i := r.IntN(crashVolumes)
	a, b := g.slots[i], g.slots[(i+1)%crashVolumes]
	for _, s := range []*slot{a, b} {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	err := g.blocks(b, 0, guestBlocks, true)
	if err == nil {
		err = g.blocks(a, 0, largeWrite, false)
	}
	if err == nil {
		err = g.flush()
	}
	if err != nil {
		return err
	}
	return f(a, b)
}

// blocks writes or discards blocks, as far as there is space.
func (g *guests) blocks(s *slot, from, n int, zero bool) error {
	err := g.change(s, mark{Kind: markBegin, Inc: s.inc.id, From: from * sectorsPerBlock, To: (from + n) * sectorsPerBlock, Zero: zero}, true)
	if errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

// takeMany writes many blocks that a volume does not have, one by one.
func (g *guests) takeMany(s *slot) error {
	for i := range crashRing/64 - 4 {
		if err := g.blocks(s, 2*i, 1, false); err != nil {
			return err
		}
	}
	return nil
}

// heldCommit keeps a commit from becoming durable that took blocks from one volume, and which holds many entries of the ring, while another volume asks
// for as many blocks and entries. It gets neither before the commit is durable.
func (g *guests) heldCommit(r *rand.Rand) error {
	return g.pair(r, func(a, b *slot) error {
		for i := range largeWrite / 2 {
			if err := g.blocks(a, 2*i, 1, true); err != nil {
				return err
			}
		}
		log := g.pace.arm(fsys.OpWriteDurable, ".log")
		flushed := make(chan error, 1)
		go func() { flushed <- g.flush() }() // a guest's own flush need not commit
		wait(log.held)
		err := g.takeMany(b)
		g.release(log)
		return errors.Join(err, <-flushed)
	})
}

// heldJoin keeps the commit from becoming durable that gives a snapshot's blocks to its volume, while the volume writes them. They are the snapshot's
// until then.
func (g *guests) heldJoin(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		name, err := g.snapshot(r, a)
		if err != nil || name == "" {
			return err
		}
		s, err := g.catalogue.snapshot(name)
		if err != nil {
			return err
		}
		log := g.pace.arm(fsys.OpWriteDurable, ".log")
		deleted := make(chan error, 1)
		go func() { deleted <- g.deleteSnapshot(name) }()
		g.applied(format.SnapshotKey(s.id))
		for i := range largeWrite / 8 {
			if err == nil {
				err = g.blocks(a, 8*i, 6, false)
			}
		}
		g.release(log)
		return errors.Join(err, <-deleted)
	})
}

// heldReserve lets a member grow, and keeps the commit from becoming durable that says what space was taken for it, while a volume asks for that much.
func (g *guests) heldReserve(index uint32, size int64) error {
	space := g.pace.arm(fsys.OpAllocate, ".seg")
	_, err := g.GrowMember(context.Background(), fmt.Sprint(index), size)
	wait(space.held)
	log := g.pace.goOn(space, fsys.OpWriteDurable, ".log")
	wait(log.held)
	if err == nil {
		err = g.blocks(g.slots[0], 0, largeWrite, false)
	}
	g.release(log)
	return err
}

// heldCombined keeps requests to the device, so that writes to new blocks wait and then share one, which is kept as well: none of them is acknowledged.
func (g *guests) heldCombined(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		if err := g.blocks(a, 0, guestBlocks, true); err != nil {
			return err
		}
		requests := g.pace.arm(fsys.OpWrite, ".seg")
		const n = combineLeast + 6
		wrote := make(chan error, n)
		for i := range n {
			go func() { wrote <- g.blocks(a, 2*i, 1, false) }()
		}
		waiting := func(want bool) {
			g.poll(func() bool {
				g.combiner.mu.Lock()
				defer g.combiner.mu.Unlock()
				return len(g.combiner.queue) > 1 == want
			})
		}
		waiting(true)
		waiting(false)
		g.release(requests)
		var err error
		for range n {
			err = errors.Join(err, <-wrote)
		}
		return err
	})
}

// applied waits until the removal of a key shows in the store, as it does before it is durable.
func (g *guests) applied(key []byte) {
	g.poll(func() bool {
		_, closer, err := g.store.db.Get(key)
		if err == nil {
			_ = closer.Close()
		}
		return err != nil
	})
}

// poll waits until something is so, or a second has gone: who else is held up may keep it from coming about.
func (g *guests) poll(so func() bool) {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Second); time.Now().Before(limit) && !so(); <-tick.C {
	}
}

// heldCut keeps a write in place from reaching its blocks until a cut has shut the gates and waits for it. What the snapshot shows from then on, the write or
// not, it shows after a power cut, too.
func (g *guests) heldCut(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		first := g.pace.armOnce(fsys.OpWrite, ".seg")
		wrote, taken := make(chan error, 1), make(chan error, 1)
		go func() { wrote <- g.blocks(a, 0, 8, false) }()
		wait(first.held)
		go func() {
			_, err := g.snapshot(r, a)
			taken <- err
		}()
		g.poll(a.dev.gate.isShut)
		g.pace.release(first)
		err := errors.Join(<-wrote, <-taken)
		g.note(mark{Kind: markHeld})
		return err
	})
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened != nil
}

// heldSum keeps the read for a snapshot's checksums from returning, while the snapshot is deleted and its volume writes the blocks, which are its own by
// then. No checksum may be left of them.
func (g *guests) heldSum(r *rand.Rand) error {
	return g.pair(r, func(a, _ *slot) error {
		reads := g.pace.arm(fsys.OpRead, ".seg")
		m := mark{Kind: markSnapshot, Snapshot: fmt.Sprintf("snapshot-%x", r.Uint64()), Inc: a.inc.id}
		m.Operation = g.note(m)
		_, err := g.CreateSnapshot(context.Background(), SnapshotSpec{Name: m.Snapshot, Volume: a.name})
		if errors.Is(err, ErrBusy) {
			m.Kind = markSnapshotDeleted
			g.note(m)
			g.release(reads)
			return nil
		}
		if err == nil {
			m.Kind = markSnapshotTaken
			g.note(m)
			wait(reads.held)
			err = g.deleteSnapshot(m.Snapshot)
		}
		for i := range largeWrite / 8 {
			if err == nil {
				err = g.blocks(a, 8*i, 6, false)
			}
		}
		g.release(reads)
		return err
	})
}

// heldRead keeps reads from reaching their blocks, which are discarded, durably, and wanted by another volume meanwhile.
func (g *guests) heldRead(r *rand.Rand) error {
	return g.pair(r, func(a, b *slot) error {
		reads := g.pace.arm(fsys.OpRead, ".seg")
		read := make(chan error, 1)
		go func() { read <- g.readAt(a, 0, largeWrite) }()
		wait(reads.held)
		err := g.blocks(a, 0, largeWrite, true)
		if err == nil {
			err = g.flush()
		}
		if err == nil {
			err = g.takeMany(b)
		}
		g.release(reads)
		return errors.Join(err, <-read)
	})
}
