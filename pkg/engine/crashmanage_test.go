package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
)

// manage makes and deletes snapshots, and volumes from them, and rolls volumes back, side by side with the writers.
func (g *guests) manage(ctx context.Context, r *rand.Rand) error {
	if err := errors.Join(g.heldCommit(r), g.heldRead(r), g.heldJoin(r), g.heldMove(r), g.heldWrite(r), g.heldSum(r),
		g.heldCopy(r), g.heldCombined(r), g.heldRollback(r), g.heldCut(r), g.crowd(r)); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := g.manageOnce(r); err != nil {
			return err
		}
	}
	return nil
}

func (g *guests) manageOnce(r *rand.Rand) error {
	extra := g.slots[crashVolumes]
	name, inc, taken := g.anySnapshot(r)
	switch n := r.IntN(100); {
	case n < 2 && limited(g.seed):
		return g.crowd(r)
	case n < 4:
		return g.heldCommit(r)
	case n < 8:
		return g.heldRead(r)
	case n < 12:
		return g.heldJoin(r)
	case n < 20:
		return g.moveOnce(r)
	case n < 23:
		return g.heldSum(r)
	case taken < 2, n < 49 && taken < 8:
		if r.IntN(4) == 0 {
			return g.snapshotGroup(r)
		}
		_, err := g.snapshot(r, g.slots[r.IntN(crashVolumes)])
		return err
	case n < 72:
		return g.deleteSnapshot(name)
	case n < 78:
		return g.rollback(r, name, inc)
	case n < 83 && extra.dev == nil:
		return g.createVolume(extra, name)
	case n < 86 && extra.dev != nil:
		return g.deleteVolume(extra)
	case extra.dev != nil:
		return g.write(context.Background(), r, extra, r.IntN(2)*crashSpan, 5)
	default:
		g.mu.Lock()
		s := g.w.snapshots[name]
		g.mu.Unlock()
		return g.checkSnapshot(name, g.w.inc(s.inc), s)
	}
}

func (g *guests) anySnapshot(r *rand.Rand) (name string, inc, taken int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := sortedKeys(g.w.snapshots)
	if len(names) == 0 {
		return "", 0, 0
	}
	name = names[r.IntN(len(names))]
	return name, g.w.snapshots[name].inc, len(names)
}

// refused tells that a cut was not made: writers kept the gates from shutting, or a thick volume's new head could not be promised its space.
func refused(err error, slots ...*slot) bool {
	thick := slices.ContainsFunc(slots, func(s *slot) bool { return s.thick })
	return errors.Is(err, ErrBusy) || thick && errors.Is(err, ErrNoSpace)
}

// snapshot takes one and returns its name; none where it was refused.
func (g *guests) snapshot(r *rand.Rand, s *slot) (name string, err error) {
	m := mark{Kind: markSnapshot, Snapshot: fmt.Sprintf("snapshot-%x", r.Uint64()), Inc: s.inc.id}
	m.Operation = g.note(m)
	if _, err := g.CreateSnapshot(context.Background(), SnapshotSpec{Name: m.Snapshot, Volume: s.name}); err != nil {
		if refused(err, s) {
			m.Kind = markSnapshotDeleted
			g.note(m)
			return "", nil
		}
		return "", err
	}
	m.Kind = markSnapshotTaken
	g.note(m)
	return m.Snapshot, g.learn(m)
}

// snapshotGroup takes snapshots of some volumes in one cut, sometimes with one of them closed.
func (g *guests) snapshotGroup(r *rand.Rand) (err error) {
	slots := slices.Clone(g.slots[:crashVolumes])
	r.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	slots = slots[:2+r.IntN(crashVolumes-1)]
	if r.IntN(4) == 0 {
		s := slots[0]
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := g.closed(s); err != nil {
			return err
		}
		defer func() {
			var oerr error
			s.dev, oerr = g.OpenVolume(context.Background(), s.name)
			err = errors.Join(err, oerr)
		}()
	}
	spec := SnapshotGroupSpec{Name: fmt.Sprintf("group-%x", r.Uint64())}
	var marks []mark
	for _, s := range slots {
		m := mark{Kind: markSnapshot, Snapshot: spec.Name + "-" + s.name, Inc: s.inc.id, Group: spec.Name}
		m.Operation = g.note(m)
		marks = append(marks, m)
		spec.Snapshots = append(spec.Snapshots, SnapshotSpec{Name: m.Snapshot, Volume: s.name})
	}
	_, err = g.CreateSnapshotGroup(context.Background(), spec)
	busy := refused(err, slots...)
	for _, m := range marks {
		switch {
		case busy:
			m.Kind = markSnapshotDeleted
			g.note(m)
		case err == nil:
			m.Kind = markSnapshotTaken
			g.note(m)
			err = g.learn(m)
		}
	}
	if busy {
		return nil
	}
	return err
}

// learn reads a snapshot for the first time. What it shows is what it must show from now on.
func (g *guests) learn(m mark) error {
	all, err := g.readSnapshot(m.Snapshot)
	if err != nil {
		return err
	}
	g.mu.Lock()
	s := g.w.snapshots[m.Snapshot]
	err = g.w.inc(s.inc).check(0, all, s.lo, s.hi)
	g.mu.Unlock()
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", m.Snapshot, err)
	}
	m.Kind, m.Stamps = markSnapshotRead, make([]stamp, guestSectors)
	for i := range m.Stamps {
		m.Stamps[i], _ = stampOf(all[i*sectorSize : (i+1)*sectorSize])
	}
	g.note(m)
	return nil
}

func (g *guests) deleteSnapshot(name string) error {
	m := mark{Kind: markSnapshotDelete, Snapshot: name}
	m.Operation = g.note(m)
	if err := g.DeleteSnapshot(context.Background(), name); err != nil {
		return err
	}
	m.Kind = markSnapshotDeleted
	g.note(m)
	return nil
}

// begin notes that a volume is to become another incarnation.
func (g *guests) begin(s *slot, from string) mark {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := mark{Kind: markChange, Volume: s.name, Inc: len(g.w.incs) + 1}
	if m.Snapshot = from; from != "" {
		m.Stamps = g.w.snapshots[from].stamps
	}
	m.Operation = g.noteLocked(m)
	return m
}

func (g *guests) changed(s *slot, m mark) (err error) {
	m.Kind = markChanged
	g.note(m)
	g.mu.Lock()
	s.inc = g.w.inc(m.Inc)
	g.mu.Unlock()
	s.dev, err = g.OpenVolume(context.Background(), s.name)
	return err
}

// createVolume makes a slot's volume, blank or from a snapshot.
func (g *guests) createVolume(s *slot, from string) error {
	m := g.begin(s, from)
	spec := VolumeSpec{Name: s.name, FromSnapshot: from}
	if len(g.slots) > 1 && s == g.slots[1] { // the others begin with ROW
		spec.Mode = CopyOnWrite
	}
	if from == "" {
		spec.Size = 1 << 20
	}
	if spec.Provisioning = ProvisionThin; s.thick {
		spec.Provisioning = ProvisionThick
	}
	if _, err := g.CreateVolume(context.Background(), spec); err != nil {
		return err
	}
	return g.changed(s, m)
}

// closed closes a slot's volume; nobody uses it meanwhile. Its end runs a round.
func (g *guests) closed(s *slot) error {
	n := g.note(mark{Kind: markFlush})
	err := s.dev.Close(context.Background())
	s.dev = nil
	if err == nil {
		g.note(mark{Kind: markFlushed, Operation: n})
	}
	return err
}

func (g *guests) deleteVolume(s *slot) error {
	if err := g.closed(s); err != nil {
		return err
	}
	m := mark{Kind: markChange, Volume: s.name}
	m.Operation = g.note(m)
	if err := g.DeleteVolume(context.Background(), s.name); err != nil {
		return err
	}
	m.Kind = markChanged
	g.note(m)
	return nil
}

// rollback puts a volume back to one of its snapshots; with r, sometimes as its holder does.
func (g *guests) rollback(r *rand.Rand, snapshot string, inc int) error {
	g.mu.Lock()
	volume := g.w.inc(inc).volume
	g.mu.Unlock()
	for _, s := range g.slots {
		if s.name != volume || s.dev == nil {
			continue
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := g.closed(s); err != nil {
			return err
		}
		if r != nil && r.IntN(2) == 0 {
			return g.rollbackHeld(r, s, snapshot)
		}
		m := g.begin(s, snapshot)
		if _, err := g.RollbackVolume(context.Background(), s.name, snapshot, ""); err != nil {
			return err
		}
		return g.changed(s, m)
	}
	return nil
}
