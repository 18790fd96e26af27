package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// MaxMembers is how many members a pool may have.
const MaxMembers = 64

// members are a pool's members: where its blocks lie. Segments are numbered through the pool, and each is a file of one member.
type members struct {
	table atomic.Pointer[memberTable]
	mu    sync.Mutex // held by who replaces the table

	flushing sync.RWMutex // held for reading while members are flushed: one that was taken out of the table is closed after that
}

// memberTable is who is in the pool. It never changes: whoever looks a place up works with one table to the end, and a change makes another.
type memberTable struct {
	list      []*poolMember // by index; without those removed
	removed   map[uint32]format.Member
	bySegment []*poolMember // nil: nobody's
	meta      *poolMember   // who has the metadata
	only      *member.Member
	align     int
}

// poolMember is one of the members. It never changes either, but for what the pointers lead to.
type poolMember struct {
	index uint32
	lane  int // the allocator's
	rec   format.Member
	dev   *member.Member // nil: it is missing
	why   error          // of a missing one
	space *memberSpace
}

// memberSpace is what the preparer remembers of a member.
type memberSpace struct {
	lowest atomic.Uint32 // of the member's segments so many have no chunk without space
}

// change replaces the table by one that f makes of it.
func (s *members) change(f func(t *memberTable)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table.Load().clone()
	f(t)
	t.settle()
	s.table.Store(t)
}

func (t *memberTable) clone() *memberTable {
	c := *t
	c.list, c.bySegment = slices.Clone(t.list), slices.Clone(t.bySegment)
	return &c
}

// settle works out what follows from the rest.
func (t *memberTable) settle() {
	slices.SortFunc(t.list, func(a, b *poolMember) int { return int(int64(a.index) - int64(b.index)) })
	t.only, t.align = nil, 512
	for _, m := range t.list {
		if m.dev != nil {
			t.align = max(t.align, m.dev.Alignment())
		}
	}
	if len(t.list) == 1 {
		t.only = t.list[0].dev
	}
}

// replace puts a member's successor in its place, in the list and wherever it has segments.
func (t *memberTable) replace(m *poolMember) {
	for i, old := range t.list {
		if old.index != m.index {
			continue
		}
		t.list[i] = m
		for seg, owner := range t.bySegment {
			if owner == old {
				t.bySegment[seg] = m
			}
		}
		if t.meta == old {
			t.meta = m
		}
	}
}

func (t *memberTable) find(index uint32) *poolMember {
	for _, m := range t.list {
		if m.index == index {
			return m
		}
	}
	return nil
}

func (t *memberTable) byID(id format.UUID) *poolMember {
	for _, m := range t.list {
		if m.rec.ID == id {
			return m
		}
	}
	return nil
}

// at is who has a segment; nil: nobody.
func (t *memberTable) at(seg uint64) *poolMember {
	if seg >= uint64(len(t.bySegment)) {
		return nil
	}
	return t.bySegment[seg]
}

// missing lists the members that are not there.
func (t *memberTable) missing() (list []*poolMember) {
	for _, m := range t.list {
		if m.dev == nil {
			list = append(list, m)
		}
	}
	return list
}

// present are the others.
func (t *memberTable) present() (list []*member.Member) {
	for _, m := range t.list {
		if m.dev != nil {
			list = append(list, m.dev)
		}
	}
	return list
}

// inUseDirs names the folders of those on which blocks are handed out.
func (t *memberTable) inUseDirs() string {
	var dirs []string
	for _, m := range t.inUse() {
		dirs = append(dirs, m.dev.Dir())
	}
	return strings.Join(dirs, ", ")
}

// segments lists a member's, ascending.
func (t *memberTable) segments(m *poolMember) (list []uint32) {
	for seg, owner := range t.bySegment {
		if owner != nil && owner.index == m.index {
			list = append(list, uint32(seg))
		}
	}
	return list
}

// chunks is how many chunks a member's size allows.
func (m *poolMember) chunks() int64 { return int64(m.rec.Size) / (alloc.ChunkBlocks * BlockSize) }

func (m *poolMember) String() string {
	return fmt.Sprintf("%d (%v, %s)", m.index, m.rec.ID, m.rec.Path)
}

func (m *poolMember) missingError() error {
	return fmt.Errorf("%w: member %v: %w", ErrMemberMissing, m, m.why)
}

// within tells which chunks the members' sizes allow: of each member, the first so many of its segments' in turn.
func (t *memberTable) within() func(chunk uint32) bool {
	limit := make([]int64, len(t.bySegment))
	left := map[*poolMember]int64{}
	for _, m := range t.list {
		left[m] = m.chunks()
	}
	for seg, m := range t.bySegment {
		if m != nil {
			limit[seg] = min(left[m], alloc.SegmentChunks)
			left[m] -= limit[seg]
		}
	}
	return func(chunk uint32) bool {
		seg := chunk / alloc.SegmentChunks
		return int(seg) < len(limit) && int64(chunk%alloc.SegmentChunks) < limit[seg]
	}
}

// size is what the members may hold together, in bytes.
func (t *memberTable) size() (sum int64) {
	for _, m := range t.list {
		sum += int64(m.rec.Size)
	}
	return sum
}

// Alignment is what offsets and lengths must be multiples of, whichever the member. It is asked for a place that was looked up before: who has the place
// is in the table by then.
func (s *members) Alignment() int { return s.table.Load().align }

// ReadAt reads blocks from a place on, wherever they lie.
func (s *members) ReadAt(p []byte, place uint64, off int) error {
	t := s.table.Load()
	if t.only != nil {
		return t.only.ReadAt(p, place, off)
	}
	return t.each(p, place, off, (*member.Member).ReadAt)
}

// WriteAt is ReadAt's counterpart.
func (s *members) WriteAt(p []byte, place uint64, off int) error {
	t := s.table.Load()
	if t.only != nil {
		return t.only.WriteAt(p, place, off)
	}
	return t.each(p, place, off, (*member.Member).WriteAt)
}

// each cuts a request at segments' ends: the next one may be another member's.
func (t *memberTable) each(p []byte, place uint64, off int, do func(m *member.Member, p []byte, place uint64, off int) error) error {
	for len(p) > 0 {
		place, off = place+uint64(off/BlockSize), off%BlockSize
		n := min(len(p), int(alloc.SegmentBlocks-place%alloc.SegmentBlocks)*BlockSize-off)
		m := t.at(place / alloc.SegmentBlocks)
		switch {
		case m == nil:
			return fmt.Errorf("%w: pool block %d is in a segment that no member has", ErrCorrupt, place)
		case m.dev == nil:
			return m.missingError()
		}
		if err := do(m.dev, p[:n], place, off); err != nil {
			return fmt.Errorf("member %v: %w", m, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// flushMembers makes every write that returned before the call durable, on whichever member: those that were written since their last good flush began are
// flushed side by side. Promise "no batch holds a run whose data was not covered by a member flush begun after that data write returned": a write counts
// as made before it is answered, and only a flush that began later and succeeded takes that back, so each member that such a run's data is on either is
// flushed here or was by a flush of which that holds.
func (p *Pool) flushMembers() error {
	p.members.flushing.RLock()
	defer p.members.flushing.RUnlock()
	t := p.members.table.Load()
	if t.only != nil {
		return t.only.Flush()
	}
	var written []*member.Member
	for _, m := range t.present() {
		if m.Written() && !(p.breaks(mutateFlushOne) && m != t.meta.dev) {
			written = append(written, m)
		}
	}
	return sideBySide(len(written), func(from, to int) error {
		for _, m := range written[from:to] {
			if err := m.Flush(); err != nil {
				return err
			}
		}
		return nil
	})
}

// close closes those that are there.
func (s *members) close() (err error) {
	for _, m := range s.table.Load().present() {
		err = errors.Join(err, m.Close())
	}
	return err
}

// metaMember is the member that has the metadata.
func (p *Pool) metaMember() *member.Member { return p.members.table.Load().meta.dev }

// degraded says which members are missing, if any.
func (p *Pool) degraded() (reason error) {
	for _, m := range p.members.table.Load().missing() {
		reason = errors.Join(reason, m.missingError())
	}
	return reason
}

// memberInfos tells about the members; blocks in use are counted by segment.
func (p *Pool) memberInfos() (infos []MemberInfo) {
	t := p.members.table.Load()
	used := p.store.usedBySegment()
	for _, m := range t.list {
		i := MemberInfo{
			Index: int(m.index), ID: m.rec.ID.String(), Path: m.rec.Path, State: memberStates[m.rec.State], Size: int64(m.rec.Size), Metadata: m == t.meta,
			Used: int64(t.usedOn(m, used)) * BlockSize,
		}
		if m.dev == nil {
			i.State, i.Reason = "Missing", m.why.Error()
		} else {
			if why := p.drainWhy.Load(); m.rec.State == format.MemberDraining && why != nil && *why != nil {
				i.Reason = (*why).Error()
			}
			if why := m.dev.GrowthStopped(); why != nil && m.rec.State == format.MemberInUse && p.alloc.SpaceIn(m.lane) < m.chunks() {
				i.GrowthStopped, i.Reason = true, why.Error()
			}
			i.Directory, i.Device = m.dev.Dir(), m.dev.Superblock().Device
		}
		infos = append(infos, i)
	}
	return infos
}

var memberStates = map[format.MemberState]string{format.MemberInUse: "InUse", format.MemberDraining: "Draining"}
