package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// gatesShut is the longest a cut keeps writers out; then it gives up, retryable.
const gatesShut = time.Second

// cutPending is the weight of pending runs (weigh) that a cut commits with the gates shut, cutCareful how many pages that must be read and rewritten; where
// there are more, a round goes before. A thousand runs take about half a millisecond to compose, a page of a thousand runs about a third, a round several times the
// disk's latency.
const (
	cutPending = 1024
	cutCareful = 8
)

// cutVolume is one volume's part of a cut.
type cutVolume struct {
	v      *volume
	frozen *layer
	head   *layer
	name   uint64 // the snapshot that will name the frozen layer; 0: none
}

// cut freezes the heads of volumes, open or not, and puts new ones on top, all in one commit. Called with ops held. Its cuts are in the order of
// volumes.
//
// Promise "the cut", in this order: a round, where much is pending - shut the gates of all its volumes, in order of their ids, and wait for
// admitted writes to end - flush the members and commit every pending run, the freeze and the new heads in one synced batch - only then let the new
// heads take writes - open the gates - answer. A write acknowledged before the request is in, one sent after the answer is out, and none changes a
// snapshot later.
//
// Why the snapshots of several volumes are of one moment: no gate opens before all are shut and empty. A write in the cut had entered its gate
// before that gate was shut; whatever was acknowledged before it was sent had entered earlier, whichever its volume, and so before its own gate was
// shut.
func (p *Pool) cut(volumes []*volume, compose func(b *batch, cuts []*cutVolume), durable func()) error {
	if p.pages.pending.Load() > cutPending || p.pages.careful() > cutCareful {
		p.flushHanded()
	}
	promise := p.cutPromise(volumes)
	if err := promise.take(false); err != nil {
		promise.undo()
		return err
	}
	if p.breaks(mutateCutFlushEarly) {
		if err := p.flushMembers(); err != nil {
			promise.undo()
			return err
		}
	}
	open, err := p.shutGates(volumes)
	defer open()
	if err == nil {
		err = promise.take(true)
	}
	if err != nil {
		promise.undo()
		return err
	}
	var cuts []*cutVolume
	for _, v := range volumes {
		cuts = append(cuts, &cutVolume{v: v, frozen: p.catalogue.layers[v.rec.Layer]})
	}
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	wait := p.beginCommit(func(b *batch) error {
		for _, c := range cuts {
			c.head = p.newHead(c.v.id, c.frozen)
		}
		compose(b, cuts)
		for _, c := range cuts {
			frozen, rec := c.frozen.rec, c.v.rec
			frozen.Head, frozen.Name, rec.Layer = 0, c.name, c.head.id
			b.put(format.LayerKey(c.frozen.id), frozen.Encode())
			b.put(format.LayerKey(c.head.id), c.head.rec.Encode())
			b.put(format.VolumeKey(c.v.id), rec.Encode())
		}
		return nil
	}, func() {
		p.catalogue.mu.Lock()
		for _, c := range cuts {
			c.frozen.rec.Head, c.frozen.rec.Name, c.v.rec.Layer = 0, c.name, c.head.id
			p.catalogue.addLayer(c.head)
			if c.v.open != nil {
				c.v.open.mapping.lineage.Store(p.catalogue.lineageOf(c.head))
			}
		}
		p.catalogue.mu.Unlock()
		promise.done()
		durable()
		p.summing.kick()
	})
	// The turn is held until then: what the next round composes goes by the new heads.
	return wait()
}

// shutGates shuts the gates of those volumes that are open and waits until nobody is inside. open opens them again, those shut before an error too.
// All are shut before any is waited for: writers are kept out as long as the slowest write takes, not as long as each volume's slowest together.
func (p *Pool) shutGates(volumes []*volume) (open func(), err error) {
	var shut []*volume
	var empty []<-chan struct{}
	for _, v := range slices.SortedFunc(slices.Values(volumes), func(a, b *volume) int { return cmp.Compare(a.id, b.id) }) {
		if v.open != nil && !p.breaks(mutateGates) {
			shut = append(shut, v)
			empty = append(empty, v.open.gate.shut())
		}
	}
	began := time.Now()
	open = func() {
		for _, v := range shut {
			v.open.gate.open()
		}
		if f := p.figures; f != nil {
			f.GatesShut.since(began)
		}
	}
	timeout := time.NewTimer(gatesShut)
	defer timeout.Stop()
	for i, v := range shut {
		select {
		case <-empty[i]:
		case <-timeout.C:
			if f := p.figures; f != nil {
				f.GatesGivenUp.Add(1)
			}
			return open, fmt.Errorf("volume %q: %w: writes under way did not end within %v", v.rec.Name, ErrBusy, gatesShut)
		}
	}
	p.did(mutateGates)
	return open, nil
}

// CreateSnapshot takes a snapshot of a volume, in use or not. One commit, whatever the size.
func (p *Pool) CreateSnapshot(ctx context.Context, spec SnapshotSpec) (SnapshotInfo, error) {
	if err := checkSnapshotSpec(spec); err != nil {
		return SnapshotInfo{}, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	infos, err := p.createSnapshots("", []SnapshotSpec{spec})
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot %q of volume %q: %w", spec.Name, spec.Volume, err)
	}
	return infos[0], nil
}

// CreateSnapshotGroup takes snapshots of several volumes, in use or not, in one cut: together they hold every write that returned before the call
// and none that was sent after it answered, and never a write without those that had returned when it was sent, whichever their volumes. All are
// there when it returns and none when it fails, after a power cut too. They are answered in the order asked for, and live on as snapshots of their
// own.
func (p *Pool) CreateSnapshotGroup(ctx context.Context, spec SnapshotGroupSpec) ([]SnapshotInfo, error) {
	if err := checkGroupSpec(spec); err != nil {
		return nil, err
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	infos, err := p.createSnapshots(spec.Name, spec.Snapshots)
	if err != nil {
		return nil, fmt.Errorf("create snapshot group %q: %w", spec.Name, err)
	}
	return infos, nil
}

func checkSnapshotSpec(spec SnapshotSpec) error {
	if err := errors.Join(checkName("snapshot", spec.Name), checkLabels(spec.Labels)); err != nil {
		return fmt.Errorf("create snapshot of volume %q: %w", spec.Volume, err)
	}
	return nil
}

func checkGroupSpec(spec SnapshotGroupSpec) error {
	if err := checkName("snapshot group", spec.Name); err != nil {
		return err
	}
	if n := len(spec.Snapshots); n < 1 || n > MaxGroup {
		return fmt.Errorf("create snapshot group %q: %w: %d volumes: want 1 to %d", spec.Name, ErrInvalid, n, MaxGroup)
	}
	names, volumes := map[string]bool{}, map[string]bool{}
	for _, s := range spec.Snapshots {
		if err := checkSnapshotSpec(s); err != nil {
			return fmt.Errorf("create snapshot group %q: %w", spec.Name, err)
		}
		if names[s.Name] || volumes[s.Volume] {
			return fmt.Errorf("create snapshot group %q: %w: snapshot %q of volume %q: name and volume may each be given once", spec.Name, ErrInvalid, s.Name,
				s.Volume)
		}
		names[s.Name], volumes[s.Volume] = true, true
	}
	return nil
}

// createSnapshots takes snapshots in one cut. Called with ops held.
func (p *Pool) createSnapshots(group string, specs []SnapshotSpec) ([]SnapshotInfo, error) {
	if err := p.refusal(); err != nil {
		return nil, err
	}
	if err := p.groupFree(group); err != nil {
		return nil, err
	}
	var volumes []*volume
	var taken []*snapshot
	for _, spec := range specs {
		if _, err := p.catalogue.snapshot(spec.Name); err == nil {
			return nil, fmt.Errorf("snapshot %q in pool %q: %w", spec.Name, p.name(), ErrExists)
		}
		v, err := p.catalogue.volume(spec.Volume)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
		taken = append(taken, &snapshot{id: p.store.newID()})
	}
	if err := p.admitNew(); err != nil {
		return nil, err
	}
	err := p.cut(volumes, func(b *batch, cuts []*cutVolume) {
		now := time.Now().UnixNano()
		for i, c := range cuts {
			s := taken[i]
			c.name = s.id
			s.rec = format.Snapshot{
				Name: specs[i].Name, Layer: c.frozen.id, VolumeID: c.v.id, VolumeName: c.v.rec.Name, Group: group, Size: c.v.rec.Size,
				Mapped: uint64(c.v.mapped.Load()), Created: now, Labels: maps.Clone(specs[i].Labels), Thick: c.v.rec.Thick,
			}
			b.put(format.SnapshotKey(s.id), s.rec.Encode())
		}
	}, func() {
		p.catalogue.mu.Lock()
		defer p.catalogue.mu.Unlock()
		for _, s := range taken {
			p.catalogue.snapshots[s.rec.Name] = s
		}
	})
	if err != nil {
		return nil, err
	}
	infos := make([]SnapshotInfo, len(taken))
	for i, s := range taken {
		infos[i] = p.snapshotInfo(s)
	}
	return infos, nil
}

// groupFree refuses the name of a group of which a snapshot is there: who lists a group must find one cut.
func (p *Pool) groupFree(group string) error {
	if group == "" {
		return nil
	}
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	for name, s := range p.catalogue.snapshots {
		if s.rec.Group == group {
			return fmt.Errorf("in pool %q: %w: snapshot %q is of it", p.name(), ErrExists, name)
		}
	}
	return nil
}
