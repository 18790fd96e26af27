package engine

import (
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
)

// Defaults of Options: how much of a pool's space may be in use before it warns, and before it refuses new volumes and snapshots.
const (
	DefaultWarnAt   = 0.85
	DefaultRefuseAt = 0.95
)

// SpaceLevel is a step of the ladder that a pool goes up while it fills.
type SpaceLevel string

const (
	// SpaceAmple: less is in use than at the first watermark.
	SpaceAmple SpaceLevel = "Ample"
	// SpaceLow: over the first watermark. Nothing else changes.
	SpaceLow SpaceLevel = "Low"
	// SpaceScarce: over the second. New volumes and snapshots are refused.
	SpaceScarce SpaceLevel = "Scarce"
	// SpaceFull: no block is left. Writes that need one wait, then fail; overwrites and deletes go on.
	SpaceFull SpaceLevel = "Full"
)

// rank orders the levels.
func (l SpaceLevel) rank() int {
	return map[SpaceLevel]int{SpaceAmple: 0, SpaceLow: 1, SpaceScarce: 2, SpaceFull: 3}[l]
}

// spaceLeft is what a pool has left for new blocks. Where a neighbour fills the file system under the pool that is less than the pool's size allows, and
// the pool goes up the ladder all the same: what counts is what can still be written.
type spaceLeft struct {
	size, bytes    int64
	setAside       int64 // bytes, not in those
	warn, refuse   float64
	limitedByFiles bool // the file system, not the pool's size, sets the limit
}

func (p *Pool) spaceLeft() spaceLeft {
	const chunkBytes = alloc.ChunkBlocks * BlockSize
	now := p.alloc.Space()
	s := spaceLeft{setAside: now.SetAside * BlockSize, warn: p.options.WarnAt, refuse: p.options.RefuseAt}
	s.bytes = now.Free*BlockSize - s.setAside
	for _, m := range p.members.table.Load().inUse() {
		more := max(m.chunks()-now.SpacedIn(m.lane), 0) * chunkBytes
		// Where the file system does not answer, what the member's size allows is the best guess.
		if have, err := m.dev.Room(); err == nil && have < more {
			more, s.limitedByFiles = have/chunkBytes*chunkBytes, true
		}
		s.bytes += more
		s.size += m.chunks() * chunkBytes
	}
	s.bytes = max(s.bytes, 0)
	return s
}

// level is where the pool is on the ladder. The marks count as lower by margin: who went up goes down again when there is that much more space.
func (s spaceLeft) level(margin float64) SpaceLevel {
	used := 1 - float64(s.bytes)/float64(max(s.size, 1))
	switch {
	case s.bytes < BlockSize:
		return SpaceFull
	case used >= s.refuse-margin:
		return SpaceScarce
	case used >= s.warn-margin:
		return SpaceLow
	}
	return SpaceAmple
}

func (s spaceLeft) String() string {
	text := fmt.Sprintf("%d MiB of %d MiB left", s.bytes>>20, s.size>>20)
	if s.limitedByFiles {
		text += ", because the file system under it has no more"
	}
	return text
}

// admitNew refuses a new volume or snapshot when the pool is nearly full: from a snapshot on every overwrite takes a new block.
func (p *Pool) admitNew() error {
	s := p.spaceLeft()
	if s.refuse > 1 || s.level(0).rank() < SpaceScarce.rank() {
		return nil
	}
	return fmt.Errorf("%w: pool %q has %v and takes no new volumes and snapshots from %.0f %% in use on: delete snapshots or volumes, or grow it",
		ErrNoSpace, p.name(), s, s.refuse*100)
}

// levelMargin keeps the observer from being told of every block that goes over a mark and back.
const levelMargin = 0.01

// watchSpace tells the observer when the pool goes up the ladder or down.
func (p *Pool) watchSpace() {
	s := p.spaceLeft()
	was, now := p.level, s.level(0)
	if now.rank() < was.rank() {
		if now = s.level(levelMargin); now.rank() >= was.rank() {
			return
		}
	}
	if p.level = now; now == was || was == "" && now == SpaceAmple {
		return
	}
	if f := p.figures; f != nil {
		f.LevelChanges.Add(1)
	}
	message := "the pool has ample space again"
	switch now {
	case SpaceLow:
		message = "the pool is filling up: delete snapshots or volumes, or grow it"
	case SpaceScarce:
		message = "the pool is nearly full and takes no new volumes and snapshots: delete snapshots or volumes, or grow it"
	case SpaceFull:
		message = "the pool is full: writes that need new blocks wait, then fail; delete snapshots or volumes, or grow it"
	}
	p.event(message, "level", string(now), "was", string(was), "left", s.String())
}
