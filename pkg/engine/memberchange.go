package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// member finds a member by its index, its id, or a path: its folder's, its device's, or where it was last seen.
func (t *memberTable) member(which string) (*poolMember, error) {
	for _, m := range t.list {
		if which == strconv.Itoa(int(m.index)) || which == m.rec.ID.String() || which == m.rec.Path {
			return m, nil
		}
		if path := filepath.Clean(which); m.dev != nil && (path == m.dev.Dir() || path == m.dev.Superblock().Device) {
			return m, nil
		}
	}
	return nil, fmt.Errorf("member %q: %w: name it by its index, id or path", which, ErrNotFound)
}

// putMember commits a member's record and puts it into the table when that is durable.
func (p *Pool) putMember(m *poolMember) error {
	return p.store.commitOne(func(b *batch) { b.put(format.MemberKey(m.index), m.rec.Encode()) }, func() {
		p.members.change(func(t *memberTable) { t.replace(m) })
	})
}

// AddMember makes a member and takes it into the pool, in use: blocks are handed out there from then on, and writes that wait for space go on.
func (p *Pool) AddMember(ctx context.Context, spec MemberSpec) (PoolInfo, error) {
	if err := spec.check(p.options.least()); err != nil {
		return PoolInfo{}, err
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	t := p.members.table.Load()
	index, lane := uint32(0), 0
	for _, m := range t.list {
		index, lane = max(index, m.index+1), max(lane, m.lane+1)
	}
	for i := range t.removed {
		index = max(index, i+1)
	}
	if lane = max(lane, p.alloc.Lanes()); len(t.list) >= MaxMembers || lane >= alloc.MaxLanes {
		return PoolInfo{}, fmt.Errorf("add member: %w: pool %q has %d members, of at most %d, and had %d of at most %d since it was opened; "+
			"restart the engine to go on adding and removing", ErrInvalid, p.name(), len(t.list), MaxMembers, lane, alloc.MaxLanes)
	}
	dev, err := p.makeMember(spec, index)
	if err != nil {
		return PoolInfo{}, fmt.Errorf("add member: %w", memberError(err))
	}
	m := &poolMember{index: index, lane: lane, dev: dev, space: &memberSpace{}}
	m.rec = format.Member{ID: dev.Superblock().MemberID, State: format.MemberInUse, Size: uint64(dev.Superblock().Size), Path: spec.path(dev)}
	if err := p.takeIn(m); err != nil {
		return PoolInfo{}, fmt.Errorf("add member: %w", errors.Join(err, dev.Destroy()))
	}
	return p.Info(), nil
}

// takeIn commits a new member's record. Only then it is in the table, and blocks are handed out there: what is committed names members that are known.
func (p *Pool) takeIn(m *poolMember) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return err
	}
	err := p.store.commitOne(func(b *batch) { b.put(format.MemberKey(m.index), m.rec.Encode()) }, func() {
		p.members.change(func(t *memberTable) { t.list = append(t.list, m) })
		p.alloc.AddLane(m.lane)
	})
	if err != nil {
		return err
	}
	p.preparing.size(p)
	p.preparing.kick()
	return nil
}

// makeMember makes a member of this pool. What an add left that was interrupted before the pool knew the member is made anew, and so is what a removal left
// that was interrupted when the pool no longer knew it.
func (p *Pool) makeMember(spec MemberSpec, index uint32) (*member.Member, error) {
	ms := member.Spec{
		PoolName: p.name(), PoolID: p.identity.PoolID, MemberID: format.NewUUID(), Index: index, Directory: spec.Directory, Device: spec.Device,
		Wipe: spec.Wipe, Size: spec.Size, Share: member.Share(spec.Share), MinSize: p.options.least(), Node: p.identity.Node, Created: time.Now(), MountDir: p.options.MountDir,
	}
	dev, err := member.Create(p.fs, ms)
	if !errors.Is(err, member.ErrForeign) || spec.Directory == "" {
		return dev, err
	}
	left, oerr := member.Open(p.fs, spec.Directory, member.Options{MountDir: p.options.MountDir, LockTimeout: p.options.lockWait()})
	if oerr != nil {
		return nil, err
	}
	t, sb := p.members.table.Load(), left.Superblock()
	if sb.PoolID != p.identity.PoolID || t.byID(sb.MemberID) != nil || sb.Metadata != 0 || len(left.Segments()) > 0 && !t.wasRemoved(sb.MemberID) {
		return nil, errors.Join(err, left.Close())
	}
	if derr := left.Destroy(); derr != nil {
		return nil, errors.Join(err, derr)
	}
	return member.Create(p.fs, ms)
}

// FindMembers looks for members that are missing, in these folders or devices and where they were last seen, and takes those found back into use.
func (p *Pool) FindMembers(ctx context.Context, paths []string) (PoolInfo, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	var errs error
	for _, m := range p.members.table.Load().missing() {
		if err := p.findMember(m, append(slices.Clone(paths), m.rec.Path)); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		return PoolInfo{}, fmt.Errorf("find the members of pool %q: %w", p.name(), errs)
	}
	return p.Info(), nil
}

// findMember looks for one. A path that holds nothing, or another member of this pool, is passed over; another pool's is refused by name.
func (p *Pool) findMember(m *poolMember, paths []string) error {
	why := m.missingError()
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if _, err := p.members.table.Load().member(path); err == nil && path != m.rec.Path {
			continue
		}
		dev, err := openMember(path, p.options)
		if err != nil {
			why = errors.Join(why, err)
			continue
		}
		sb := dev.Superblock()
		if sb.MemberID == m.rec.ID {
			return p.meetAgain(m, opened{dev, path})
		}
		if err := dev.Close(); err != nil {
			return err
		}
		if sb.PoolID != p.identity.PoolID {
			return fmt.Errorf("%s: %w: it is a member of pool %q (%v)", path, ErrForeign, sb.PoolName, sb.PoolID)
		}
	}
	return why
}

// meetAgain takes a member back that was missing. What is there is as the last flush left it, or newer; nothing was committed since that names it. Its next
// flush syncs every segment with reserved chunks, as at an opening.
func (p *Pool) meetAgain(m *poolMember, found opened) error {
	p.ops.Lock()
	defer p.ops.Unlock()
	back := *m
	back.join(found)
	err := p.refusal()
	if err == nil && found.Unfinished() { // it was missing since the pool was made
		err = found.Finish()
	}
	if err == nil {
		err = p.tellAgain(&back)
	}
	if err == nil {
		err = p.putMember(&back)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("take member %v back: %w", m, err), found.Close())
	}
	if back.rec.State == format.MemberInUse {
		p.alloc.OpenLane(back.lane)
	}
	p.event("a missing member is back", "member", back.String())
	p.preparing.size(p)
	p.preparing.kick()
	p.summing.again()
	return nil
}

// tellAgain is tell for one member.
func (p *Pool) tellAgain(m *poolMember) error {
	segments, err := readSegments(p.store.db)
	if err != nil {
		return err
	}
	t := p.members.table.Load().clone()
	for seg, owner := range t.bySegment {
		if owner != nil && owner.index == m.index {
			t.bySegment[seg] = m
		} else {
			t.bySegment[seg] = nil
		}
	}
	return t.tell(segments, true)
}
