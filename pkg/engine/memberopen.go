package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
)

// opened is a member that was opened or made, with its locks held, before the catalogue says what it is to the pool.
type opened struct {
	*member.Member
	path string // what it was opened by
}

// createMembers makes the members of a new pool; the first has the metadata. On an error none is left.
func createMembers(spec PoolSpec, o Options) (list []opened, err error) {
	defer func() {
		if err != nil {
			for _, m := range list {
				err = errors.Join(err, m.Destroy())
			}
			list = nil
		}
	}()
	pool := format.NewUUID()
	for i, s := range spec.members() {
		ms := member.Spec{
			PoolName: spec.Name, PoolID: pool, MemberID: format.NewUUID(), Index: uint32(i), Directory: s.Directory, Device: s.Device, Wipe: s.Wipe,
			Size: s.Size, Share: member.Share(s.Share), MinSize: MinPoolSize, Node: spec.Node, Created: time.Now(), MountDir: o.MountDir, Unfinished: true,
		}
		if i == 0 {
			ms.Metadata = 1
		}
		m, err := member.Create(o.fs, ms)
		if err != nil {
			return list, memberError(err)
		}
		list = append(list, opened{m, s.path(m)})
	}
	return list, nil
}

// members lists what a pool is to be made of.
func (s PoolSpec) members() []MemberSpec {
	return append([]MemberSpec{{Directory: s.Directory, Device: s.Device, Wipe: s.Wipe, Size: s.Size, Share: s.Share}}, s.More...)
}

// path is what a member that was just made is opened by: its device, if it is on one, for the folder is only there once that is mounted.
func (s MemberSpec) path(m *member.Member) string {
	if s.Device != "" {
		return s.Device
	}
	return m.Dir()
}

// openMembers opens the members at these paths, which must be of one pool. One must open; what is wrong with another is told by why, and the member it
// should be is missing, if the pool has such a one. A member that another process has locked is never taken for missing: its I/O may go on.
func openMembers(paths []string, o Options) (list []opened, why map[string]error, err error) {
	why = map[string]error{}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeMembers(list))
		}
	}()
	var first error
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			return list, nil, err
		}
		if slices.ContainsFunc(list, func(m opened) bool { return m.path == path || m.Dir() == path }) {
			continue
		}
		m, err := openMember(path, o)
		switch {
		case errors.Is(err, ErrLocked):
			return list, nil, err
		case err != nil:
			why[path] = err
			if first == nil {
				first = err
			}
			continue
		}
		list = append(list, opened{m, path})
		if err := sameOne(list); err != nil {
			return list, nil, err
		}
	}
	if len(list) == 0 {
		return nil, nil, first
	}
	return list, why, nil
}

func openMember(path string, o Options) (*member.Member, error) {
	m, err := member.Open(o.fs, path, member.Options{MountDir: o.MountDir, ReadOnly: o.ReadOnly, LockTimeout: o.lockWait()})
	return m, memberError(err)
}

// sameOne refuses the last of a list of members if it is another pool's, or a copy of one before it.
func sameOne(list []opened) error {
	first, last := list[0].Superblock(), list[len(list)-1]
	sb := last.Superblock()
	if sb.PoolID != first.PoolID {
		return fmt.Errorf("%s: %w: it is a member of pool %q (%v), and %s is one of pool %q (%v); leave one of them out", last.path, ErrForeign, sb.PoolName,
			sb.PoolID, list[0].path, first.PoolName, first.PoolID)
	}
	for _, m := range list[:len(list)-1] {
		if m.Superblock().MemberID == sb.MemberID {
			return fmt.Errorf("%w: %s and %s are copies of one member (%v) of pool %q; move one of them away", ErrInvalid, m.path, last.path, sb.MemberID,
				sb.PoolName)
		}
	}
	return nil
}

func closeMembers(list []opened) (err error) {
	for _, m := range list {
		err = errors.Join(err, m.Close())
	}
	return err
}

// findMetadata tells which of the members has the valid metadata: the one with the highest number, unless that was being moved to a member that is not
// here to tell whether it arrived. FORMAT.md has the steps of such a move.
func findMetadata(list []opened) (at opened, err error) {
	first := list[0].Superblock()
	var sb format.Superblock
	for _, m := range list {
		if s := m.Superblock(); s.Metadata > sb.Metadata {
			at, sb = m, s
		}
	}
	if sb.Metadata == 0 {
		return at, fmt.Errorf("%w: pool %q has its metadata on none of the members looked at (%s); name its other members, too", ErrMemberMissing,
			first.PoolName, pathsOf(list))
	}
	if !sb.MovingTo.IsZero() && !slices.ContainsFunc(list, func(m opened) bool { return m.Superblock().MemberID == sb.MovingTo }) {
		return at, fmt.Errorf("%w: the metadata of pool %q was being moved from %s to member %v, which alone can tell whether it arrived; name that member, too",
			ErrMemberMissing, first.PoolName, at.path, sb.MovingTo)
	}
	return at, nil
}

// exists refuses a pool whose making was interrupted before anything was promised.
func exists(meta opened) error {
	if !meta.Unfinished() {
		return nil
	}
	return fmt.Errorf("%w: the making of pool %q at %s was interrupted, and nothing is in it; create it again", ErrNotFound, meta.Superblock().PoolName, meta.path)
}

// finishMembers has the superblocks say that the pool exists: that of the metadata's member first, which is the one that is asked.
func (p *Pool) finishMembers() error {
	t := p.members.table.Load()
	for _, m := range append([]*poolMember{t.meta}, t.list...) {
		if m.dev == nil || !m.dev.Unfinished() {
			continue
		}
		if err := m.dev.Finish(); err != nil {
			return fmt.Errorf("finish member %v: %w", m, memberError(err))
		}
	}
	return nil
}

func pathsOf(list []opened) (text string) {
	for i, m := range list {
		if i > 0 {
			text += ", "
		}
		text += m.path
	}
	return text
}

// readMembers reads the members' records, by index.
func readMembers(r reader) (map[uint32]format.Member, error) {
	recs := map[uint32]format.Member{}
	lower, upper := format.Kind(format.MemberKey(0))
	err := scan(r, lower, upper, func(k, v []byte) error {
		index, err := format.ParseNumber(k)
		rec, rerr := format.ParseMember(v)
		if err := errors.Join(err, rerr); err != nil {
			return err
		}
		recs[index] = rec
		return nil
	})
	if err == nil && len(recs) == 0 {
		err = fmt.Errorf("%w: the metadata has no record of a member", ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("read members: %w", err)
	}
	return recs, nil
}

// tableOf makes the table of a catalogue's members, none of which is there yet.
func tableOf(recs map[uint32]format.Member, segments []poolSegment) (*memberTable, error) {
	t := &memberTable{removed: map[uint32]format.Member{}}
	for index, rec := range recs {
		if rec.State == format.MemberRemoved {
			t.removed[index] = rec
			continue
		}
		t.list = append(t.list, &poolMember{index: index, rec: rec, why: errNotLooked, space: &memberSpace{}})
	}
	t.settle()
	for i, m := range t.list {
		m.lane = i
	}
	t.bySegment = make([]*poolMember, len(segments))
	for seg, s := range segments {
		m := t.find(s.member)
		if m == nil && (s.known || s.Used > 0) {
			return nil, fmt.Errorf("%w: segment %d is on member %d, which the pool does not have", ErrCorrupt, seg, s.member)
		}
		if s.known {
			t.bySegment[seg] = m
		}
	}
	return t, nil
}

var errNotLooked = errors.New("its folder was not looked for")

// meet puts the members that were opened into the table, and opens the others where they were last seen. What has no place in the pool is refused by
// name, but for members that were removed from it: those are closed.
func (t *memberTable) meet(list []opened, why map[string]error, o Options) (all []opened, err error) {
	for i, m := range list {
		sb := m.Superblock()
		if pm := t.byID(sb.MemberID); pm != nil {
			pm.join(m)
			all = append(all, m)
			continue
		}
		if !t.wasRemoved(sb.MemberID) {
			return append(all, list[i:]...), fmt.Errorf("%s: %w: member %v names pool %q as its own, which does not know it: what an interrupted add left, or of "+
				"another copy of the pool; leave it out", m.path, ErrForeign, sb.MemberID, sb.PoolName)
		}
		if err := m.Close(); err != nil {
			return append(all, list[i+1:]...), err
		}
	}
	for _, pm := range t.missing() {
		pm.why = why[pm.rec.Path]
		if pm.why == nil {
			m, err := openMember(pm.rec.Path, o)
			if err == nil && m.Superblock().MemberID != pm.rec.ID {
				err = errors.Join(fmt.Errorf("%w: another member is there (%v)", ErrNotFound, m.Superblock().MemberID), m.Close())
			}
			if err == nil {
				found := opened{m, pm.rec.Path}
				pm.join(found)
				all = append(all, found)
				continue
			}
			if errors.Is(err, ErrLocked) {
				return all, err
			}
			pm.why = err
		}
	}
	t.settle()
	return all, nil
}

func (t *memberTable) wasRemoved(id format.UUID) bool {
	for _, rec := range t.removed {
		if rec.ID == id {
			return true
		}
	}
	return false
}

// join makes a member of a new table present.
func (m *poolMember) join(o opened) {
	m.dev, m.why = o.Member, nil
	m.rec.Path, m.rec.Size = o.path, uint64(o.Superblock().Size)
}

// tell tells the members which of their blocks a flush of the device is enough for; with unsynced also that their first flush must sync every segment
// that has reserved chunks. Promise "no batch holds a run whose data was not covered by a member flush": the process before this one may have died with
// writes to such chunks in the ring that no sync of their file has covered, and these members know nothing of them. Their first flush comes before the
// ring is committed.
func (t *memberTable) tell(segments []poolSegment, unsynced bool) error {
	for seg, s := range segments {
		m := t.at(uint64(seg))
		if m == nil || m.dev == nil {
			continue
		}
		for k := range alloc.SegmentChunks {
			if !s.Has[alloc.Written].Has(k) {
				continue
			}
			if err := m.dev.MarkWritten(uint32(seg), uint32(k*alloc.ChunkBlocks), uint32((k+1)*alloc.ChunkBlocks)); err != nil {
				return err
			}
		}
		if unsynced && s.Has[alloc.Reserved] != (alloc.Chunks{}) {
			if err := m.dev.MarkUnsynced(uint32(seg)); err != nil {
				return err
			}
		}
	}
	return nil
}

// poolSegment is what the store knows of a segment.
type poolSegment struct {
	alloc.Segment
	member uint32
	known  bool // it has a record
}

// forAlloc is what the allocator wants to know of them.
func (t *memberTable) forAlloc(segments []poolSegment) []alloc.Segment {
	list := make([]alloc.Segment, len(segments))
	for i, s := range segments {
		list[i] = s.Segment
		if m := t.at(uint64(i)); m != nil {
			list[i].Lane = m.lane
		}
	}
	return list
}

// newAllocator makes the pool's allocator: nothing is handed out on members that are missing or being drained.
func (p *Pool) newAllocator(db *metadata, segments []poolSegment, surplus int64) (*alloc.Allocator, error) {
	t := p.members.table.Load()
	a, err := alloc.New(storeView{db}, t.forAlloc(segments), surplus)
	if err != nil {
		return nil, err
	}
	a.SetFilled(p.store.filledPolicy)
	for _, m := range t.list {
		a.AddLane(m.lane)
		if m.dev == nil || m.rec.State != format.MemberInUse {
			a.CloseLane(m.lane)
		}
	}
	return a, nil
}

// meetMembers finds out who is in the pool and who is there, and returns all the members that are open now. meta has the metadata.
func (p *Pool) meetMembers(db *metadata, meta opened, list []opened, why map[string]error, segments []poolSegment, fresh *fresh) (_ []opened, err error) {
	var recs map[uint32]format.Member
	if fresh != nil {
		recs = fresh.members
	} else if recs, err = readMembers(db); err != nil {
		return list, err
	}
	t, err := tableOf(recs, segments)
	if err != nil {
		return list, err
	}
	if list, err = t.meet(list, why, p.options); err != nil {
		return list, err
	}
	if t.meta = t.byID(meta.Superblock().MemberID); t.meta == nil {
		return list, fmt.Errorf("%w: %s has the metadata, which does not know it as a member", ErrCorrupt, meta.path)
	}
	p.members.table.Store(t)
	p.data = p.members
	return list, nil
}

// withoutMissing sees to it that the ring can be committed while members are missing. Promise "no batch holds a run whose data was not covered by a member
// flush": a member that is not there cannot be flushed, so what the ring says of its blocks may not be committed, unless the flush log has it: what is up
// to the sequence flushed was. Going on without those writes is the caller's to decide; bringing the member back saves them.
func (p *Pool) withoutMissing(entries []ring.Entry, flushed uint64) (kept []ring.Entry, err error) {
	t := p.members.table.Load()
	for _, e := range entries {
		if e.Place == ring.ZeroPlace || e.Sequence <= flushed {
			kept = append(kept, e)
			continue
		}
		m := t.at(e.Place / alloc.SegmentBlocks)
		if m != nil && m.dev == nil {
			if p.options.AcceptLoss {
				continue
			}
			return nil, fmt.Errorf("%w: the engine died with writes to a member that is not there now: %w; bring it back, or open with --accept-loss", ErrLost,
				m.missingError())
		}
		kept = append(kept, e)
	}
	return kept, nil
}
