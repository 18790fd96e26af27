package engine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// guestBlocks is how many blocks of a volume the guest uses, guestSectors how many sectors.
const (
	sectorsPerBlock = BlockSize / sectorSize

	guestBlocks  = 160
	guestSectors = guestBlocks * sectorsPerBlock
)

// stamp says which write a sector's bytes come from: incarnation, block, sector of the block and the number of the operation on the block. 0: zeroes.
type stamp uint64

func newStamp(inc, sector int, n uint32) stamp {
	return stamp(inc)<<44 | stamp(sector)<<24 | stamp(n)
}

func (s stamp) split() (inc, sector int, n uint32) {
	return int(s >> 44), int(s >> 24 & (1<<20 - 1)), uint32(s & (1<<24 - 1))
}

func (s stamp) String() string {
	if s == 0 {
		return "zeroes"
	}
	inc, sector, n := s.split()
	return fmt.Sprintf("operation %d on incarnation %d's block %d, sector %d", n, inc, sector/sectorsPerBlock, sector%sectorsPerBlock)
}

func (s stamp) fill(b []byte) {
	for j := uint64(0); s != 0 && j < sectorSize; j += 8 {
		binary.LittleEndian.PutUint64(b[j:], uint64(s)^j*0x9e3779b97f4a7c15)
	}
}

// stampOf reads a sector; false: it is no stamp's.
func stampOf(b []byte) (stamp, bool) {
	s := stamp(binary.LittleEndian.Uint64(b))
	for j := uint64(0); j < sectorSize; j += 8 {
		want := uint64(s) ^ j*0x9e3779b97f4a7c15
		if s == 0 {
			want = 0
		}
		if binary.LittleEndian.Uint64(b[j:]) != want {
			return s, false
		}
	}
	return s, true
}

// touch is an operation on a block: sectors [first, end) of it.
type touch struct {
	first, end uint8
	zero       bool
}

// guestBlock is the history of a block. Operations count from 1; what was begun is len(ops).
type guestBlock struct {
	ops            []touch
	acked, flushed uint32
	failed         []uint32 // operations that were answered with an error: they may have happened, whatever came after them
}

// incarnation is the content of a volume from its creation, or from a rollback, on.
type incarnation struct {
	id     int
	volume string
	base   []stamp // what it began with; nil: zeroes
	blocks [guestBlocks]guestBlock
}

// allows tells whether a sector may show s where the last operation on its block is one from lo to hi: the last of them up to lo that touched the
// sector, or a later one.
func (c *incarnation) allows(sector int, s stamp, lo, hi uint32) bool {
	ops, at := c.blocks[sector/sectorsPerBlock].ops, uint8(sector%sectorsPerBlock)
	for n := hi; n > 0; n-- {
		op := ops[n-1]
		if at < op.first || at >= op.end {
			continue
		}
		want := newStamp(c.id, sector, n)
		if op.zero {
			want = 0
		}
		if s == want {
			return true
		}
		if n <= lo && !slices.Contains(c.blocks[sector/sectorsPerBlock].failed, n) {
			return false
		}
	}
	return s == c.baseAt(sector)
}

func (c *incarnation) baseAt(sector int) stamp {
	if c.base == nil {
		return 0
	}
	return c.base[sector]
}

type bounds struct{ acked, flushed, issued []uint32 }

func (c *incarnation) bounds() (b bounds) {
	for i := range c.blocks {
		b.acked, b.flushed = append(b.acked, c.blocks[i].acked), append(b.flushed, c.blocks[i].flushed)
		b.issued = append(b.issued, uint32(len(c.blocks[i].ops)))
	}
	return b
}

// errWrong: what is shown is not what may be there. Any other error is the engine's own word.
var errWrong = errors.New("wrong content")

// check verifies the bytes that a volume shows from a sector on.
func (c *incarnation) check(from int, bytes []byte, lo, hi []uint32) error {
	for i := range len(bytes) / sectorSize {
		sector := from + i
		s, ok := stampOf(bytes[i*sectorSize : (i+1)*sectorSize])
		block := sector / sectorsPerBlock
		if !ok || !c.allows(sector, s, lo[block], hi[block]) {
			return fmt.Errorf("%w: %s (incarnation %d) block %d sector %d shows %v (whole: %v), wanted operations %d to %d of %v over %v", errWrong, c.volume, c.id,
				block, sector%sectorsPerBlock, s, ok, lo[block], hi[block], c.blocks[block].ops[:hi[block]], c.baseAt(sector))
		}
	}
	return nil
}

// guestVolume is a volume's name: what it shows, and what it will show when an operation under way is done. 0: it is not there.
type guestVolume struct {
	now, next int // incarnations
	changing  bool
	hold      guestHold
}

type guestSnapshot struct {
	inc    int
	group  string
	taking bool     // of a cut: it was asked for and not acknowledged
	lo, hi []uint32 // hi is nil until the snapshot is acknowledged
	going  bool
	stamps []stamp // its content, once read
}

// mark is a step of the guest, or of the ring, on a tape.
type mark struct {
	Kind             markKind
	Operation        int
	Volume, Snapshot string
	Group            string
	Inc              int
	From, To         int // sectors
	Zero             bool
	Stamps           []stamp
	Off              int64
	Data             []byte // of the ring
}

type markKind uint8

const (
	markRing markKind = iota
	markServes
	markBegin // of a write, discard or write of zeroes
	markAck
	markFailed // the same, answered with an error
	markFlush
	markFlushed
	markChange // of a volume: made, rolled back, deleted (Inc 0)
	markChanged
	markSnapshot
	markSnapshotTaken
	markSnapshotRead
	markSnapshotDelete
	markSnapshotDeleted
	markHold // of a volume, for a holder
	markHolds
	markHeld // a hold made to order is in effect, and what it was made for has been done
)

// world is what the outside knows.
type world struct {
	incs      []*incarnation // by id - 1
	volumes   map[string]guestVolume
	snapshots map[string]guestSnapshot
	flushes   map[int][][]uint32 // begun: what was acknowledged, by incarnation
	ring      []byte             // nil: there is no file
}

func newWorld() *world {
	return &world{volumes: map[string]guestVolume{}, snapshots: map[string]guestSnapshot{}, flushes: map[int][][]uint32{}}
}

func (w *world) inc(id int) *incarnation { return w.incs[id-1] }

func (w *world) apply(m mark) {
	switch m.Kind {
	case markServes, markHeld:
	case markRing:
		w.storeRing(m)
	case markBegin:
		c := w.inc(m.Inc)
		for b := m.From / sectorsPerBlock; b*sectorsPerBlock < m.To; b++ {
			at := b * sectorsPerBlock
			c.blocks[b].ops = append(c.blocks[b].ops, touch{uint8(max(m.From-at, 0)), uint8(min(m.To-at, sectorsPerBlock)), m.Zero})
		}
	case markAck:
		for b := m.From / sectorsPerBlock; b*sectorsPerBlock < m.To; b++ {
			block := &w.inc(m.Inc).blocks[b]
			block.acked = uint32(len(block.ops))
		}
	case markFailed:
		for b := m.From / sectorsPerBlock; b*sectorsPerBlock < m.To; b++ {
			block := &w.inc(m.Inc).blocks[b]
			block.failed = append(block.failed, uint32(len(block.ops)))
		}
	case markFlush:
		for _, c := range w.incs {
			w.flushes[m.Operation] = append(w.flushes[m.Operation], c.bounds().acked)
		}
	case markFlushed:
		for i, acked := range w.flushes[m.Operation] {
			w.incs[i].raise(acked)
		}
		delete(w.flushes, m.Operation)
	case markHold, markHolds:
		w.changeHold(m)
	case markChange, markChanged:
		w.changeVolume(m)
	default:
		w.changeSnapshot(m)
	}
}

func (c *incarnation) raise(acked []uint32) {
	for i := range c.blocks {
		c.blocks[i].flushed = max(c.blocks[i].flushed, acked[i])
	}
}

func (w *world) storeRing(m mark) {
	switch {
	case m.Data == nil:
		w.ring = nil
	case m.Off+int64(len(m.Data)) > int64(len(w.ring)):
		w.ring = slices.Clone(m.Data)
	default:
		copy(w.ring[m.Off:], m.Data)
	}
}

func (w *world) changeVolume(m mark) {
	v := w.volumes[m.Volume]
	if m.Kind == markChange {
		if m.Inc > len(w.incs) {
			w.incs = append(w.incs, &incarnation{id: m.Inc, volume: m.Volume, base: m.Stamps})
		}
		v.next, v.changing = m.Inc, true
		v.hold.to = m.Snapshot
		w.volumes[m.Volume] = v
		return
	}
	if v.next == 0 {
		delete(w.volumes, m.Volume)
		return
	}
	w.volumes[m.Volume] = guestVolume{now: v.next, hold: guestHold{done: cmp.Or(v.hold.by, v.hold.done)}}
}

func (w *world) changeSnapshot(m mark) {
	s := w.snapshots[m.Snapshot]
	switch m.Kind {
	case markSnapshot:
		s = guestSnapshot{inc: m.Inc, group: m.Group, lo: w.inc(m.Inc).bounds().acked}
	case markSnapshotTaken:
		s.hi = w.inc(s.inc).bounds().issued
		// What it froze it made durable, and the volume shows that or something later.
		w.inc(s.inc).raise(s.lo)
	case markSnapshotRead:
		s.stamps = m.Stamps
	case markSnapshotDelete:
		s.going = true
	case markSnapshotDeleted:
		delete(w.snapshots, m.Snapshot)
		return
	}
	w.snapshots[m.Snapshot] = s
}

// clone is what is known now. Histories only grow, so they are shared.
func (w *world) clone() *world {
	c := newWorld()
	for _, inc := range w.incs {
		twin := *inc
		c.incs = append(c.incs, &twin)
	}
	for name, v := range w.volumes {
		c.volumes[name] = v
	}
	for name, s := range w.snapshots {
		if s.hi == nil {
			s.hi = w.inc(s.inc).bounds().issued
			s.taking = !s.going
			s.going = true // it need not be there
		}
		c.snapshots[name] = s
	}
	c.ring = slices.Clone(w.ring)
	return c
}
