// Package hosttest has an engine and an attacher in memory, for tests of what stands on package host: answers that are the same in every run, and
// failures that the real ones do not show when asked.
//
// It keeps names and sizes and no data: devices read zeroes.
package hosttest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// Epoch is when every object was made.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Engine is a host.Engine whose pools stay when they are closed. The zero value is ready.
type Engine struct {
	mu    sync.Mutex
	disks map[string]*Pool // by member
	ids   int

	// Fail, when set, is asked before every operation; what it returns is the operation's error. Operations are named as the methods are.
	Fail func(op, name string) error
	// Report, when set, is what Check answers.
	Report *engine.CheckReport
	// Damage is what Scrub finds.
	Damage []engine.ScrubProblem
	// Block, when set, is called at the start of every operation that takes a context, without a lock held.
	Block func(ctx context.Context, op, name string)
}

var _ host.Engine = (*Engine)(nil)

func (e *Engine) before(ctx context.Context, op, name string) error {
	if e.Block != nil {
		e.Block(ctx, op, name)
	}
	if e.Fail != nil {
		if err := e.Fail(op, name); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (e *Engine) nextID() string {
	e.ids++
	return fmt.Sprintf("%08d-0000-4000-8000-000000000000", e.ids)
}

// CreatePool makes a pool of spec.Size, 100 GiB by default.
func (e *Engine) CreatePool(ctx context.Context, spec engine.PoolSpec, _ engine.Options) (host.Pool, error) {
	if err := e.before(ctx, "CreatePool", spec.Name); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	member := spec.Directory + spec.Device
	if e.disks[member] != nil {
		return nil, fmt.Errorf("%s: %w", member, engine.ErrForeign)
	}
	size := spec.Size
	if size == 0 {
		size = 100 << 30
	}
	p := &Pool{e: e, open: true, volumes: map[string]*volume{}, snapshots: map[string]*engine.SnapshotInfo{}}
	p.info = engine.PoolInfo{Name: spec.Name, ID: e.nextID(), Member: member, Device: spec.Device, State: "Ready", Size: size, MetadataBytes: 3 << 20}
	p.info.Allocation = cmp.Or(spec.Allocation, engine.AllocationStriped)
	for i, m := range append([]engine.MemberSpec{{Directory: spec.Directory, Device: spec.Device, Size: size}}, spec.More...) {
		p.info.Members = append(p.info.Members, memberOf(i, m))
		if i > 0 {
			p.info.Size += p.info.Members[i].Size
		}
	}
	if e.disks == nil {
		e.disks = map[string]*Pool{}
	}
	e.disks[member] = p
	return p, nil
}

// OpenPool opens one made before.
func (e *Engine) OpenPool(ctx context.Context, member string, o engine.Options) (host.Pool, error) {
	if err := e.before(ctx, "OpenPool", member); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.disks[member]
	if p == nil {
		return nil, fmt.Errorf("%s holds no pool: %w", member, engine.ErrNotFound)
	}
	if p.open {
		return nil, fmt.Errorf("%s: %w", member, engine.ErrLocked)
	}
	p.open = true
	p.info.State = "Ready"
	if o.ReadOnly {
		p.info.State = "ReadOnly"
	}
	return p, nil
}

// Disk is the pool of a member, or nil.
func (e *Engine) Disk(member string) *Pool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.disks[member]
}

// Kill does to all pools what the engine's death does: they are closed, and what was open is not any more.
func (e *Engine) Kill() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.disks {
		p.open = false
		for _, v := range p.volumes {
			v.info.Open = false
		}
	}
}

// Pool is a host.Pool.
type Pool struct {
	e         *Engine // its mu guards the rest
	open      bool
	info      engine.PoolInfo
	volumes   map[string]*volume
	snapshots map[string]*engine.SnapshotInfo
	metadata  metafs.Counts

	// Ranges are what Diff answers, a page of one after the other, whatever is asked for.
	Ranges []engine.Range
}

var _ host.Pool = (*Pool)(nil)

// Close closes the pool.
func (p *Pool) Close(ctx context.Context) error {
	if err := p.e.before(ctx, "Close", p.info.Name); err != nil {
		return err
	}
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for name, v := range p.volumes {
		if v.info.Open {
			return fmt.Errorf("volume %q: %w", name, engine.ErrInUse)
		}
	}
	p.open = false
	return nil
}

// Info tells of the pool.
func (p *Pool) Info() engine.PoolInfo {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	i := p.info
	i.Volumes, i.Snapshots = len(p.volumes), len(p.snapshots)
	for _, v := range p.volumes {
		i.Provisioned += v.info.Size
		if v.info.Provisioning == engine.ProvisionThick {
			i.Thick += v.info.Size
			i.Reserved += v.info.Reserved
		}
		i.Used += v.info.Owned
	}
	i.Free = i.Size - i.Used
	i.Available, i.Level, i.WarnAt, i.RefuseAt = i.Free, engine.SpaceAmple, engine.DefaultWarnAt, engine.DefaultRefuseAt
	return i
}

// Grow changes the size.
func (p *Pool) Grow(ctx context.Context, size int64) (engine.PoolInfo, error) {
	unlock, err := p.begin(ctx, "Grow", p.info.Name)
	if err == nil && size < p.info.Size {
		err = fmt.Errorf("pool %q: %w", p.info.Name, engine.ErrShrink)
	}
	if err == nil {
		p.info.Size = size
	}
	unlock()
	return p.Info(), err
}

// FindMembers finds all.
func (p *Pool) FindMembers(ctx context.Context, paths []string) (engine.PoolInfo, error) {
	return p.changeInfo(ctx, "FindMembers", func(i *engine.PoolInfo) error {
		i.State, i.Reason = "Ready", ""
		return nil
	})
}

// AddMember adds a member of 100 GiB by default.
func (p *Pool) AddMember(ctx context.Context, spec engine.MemberSpec) (engine.PoolInfo, error) {
	return p.changeInfo(ctx, "AddMember", func(i *engine.PoolInfo) error {
		i.Members = append(slices.Clone(i.Members), memberOf(len(i.Members), spec))
		i.Size += i.Members[len(i.Members)-1].Size
		return nil
	})
}

func memberOf(index int, spec engine.MemberSpec) engine.MemberInfo {
	return engine.MemberInfo{
		Index: index, ID: fmt.Sprintf("%08d-0000-4000-9000-000000000000", index), Path: spec.Directory + spec.Device, Directory: spec.Directory, Device: spec.Device,
		State: "InUse", Metadata: index == 0, Size: cmp.Or(spec.Size, 100<<30),
	}
}

// GrowMember changes a member's size.
func (p *Pool) GrowMember(ctx context.Context, member string, size int64) (engine.PoolInfo, error) {
	return p.changeMember(ctx, "GrowMember", member, func(i *engine.PoolInfo, m *engine.MemberInfo) { i.Size, m.Size = i.Size+size-m.Size, size })
}

// DrainMember changes a member's state.
func (p *Pool) DrainMember(ctx context.Context, member string, cancel bool) (engine.PoolInfo, error) {
	return p.changeMember(ctx, "DrainMember", member, func(_ *engine.PoolInfo, m *engine.MemberInfo) {
		if m.State = "Draining"; cancel {
			m.State = "InUse"
		}
	})
}

// RemoveMember takes a member out.
func (p *Pool) RemoveMember(ctx context.Context, member string) (engine.PoolInfo, error) {
	return p.changeInfo(ctx, "RemoveMember", func(i *engine.PoolInfo) error {
		at := slices.IndexFunc(i.Members, func(m engine.MemberInfo) bool { return m.Path == member })
		if at < 0 {
			return fmt.Errorf("member %q: %w", member, engine.ErrNotFound)
		}
		i.Size -= i.Members[at].Size
		i.Members = slices.Delete(slices.Clone(i.Members), at, at+1)
		return nil
	})
}

func (p *Pool) changeInfo(ctx context.Context, op string, change func(*engine.PoolInfo) error) (engine.PoolInfo, error) {
	unlock, err := p.begin(ctx, op, p.info.Name)
	if err == nil {
		err = change(&p.info)
	}
	unlock()
	return p.Info(), err
}

func (p *Pool) changeMember(ctx context.Context, op, member string, change func(*engine.PoolInfo, *engine.MemberInfo)) (engine.PoolInfo, error) {
	return p.changeInfo(ctx, op, func(i *engine.PoolInfo) error {
		i.Members = slices.Clone(i.Members)
		for k := range i.Members {
			if i.Members[k].Path == member {
				change(i, &i.Members[k])
				return nil
			}
		}
		return fmt.Errorf("member %q: %w", member, engine.ErrNotFound)
	})
}

// Check finds nothing wrong, or Engine.Report.
func (p *Pool) Check(ctx context.Context) (engine.CheckReport, error) {
	unlock, err := p.begin(ctx, "Check", p.info.Name)
	defer unlock()
	if err != nil {
		return engine.CheckReport{}, err
	}
	if p.e.Report != nil {
		return *p.e.Report, nil
	}
	n := len(p.volumes)
	return engine.CheckReport{Volumes: n, Layers: n + len(p.snapshots)}, nil
}

// Scrub finds what Engine.Damage says in 1 GiB.
func (p *Pool) Scrub(ctx context.Context, spec engine.ScrubSpec) (engine.ScrubReport, error) {
	unlock, err := p.begin(ctx, "Scrub", p.info.Name)
	unlock()
	if err != nil {
		return engine.ScrubReport{}, err
	}
	r := engine.ScrubReport{Total: 1 << 30}
	spec.Progress(r)
	for _, d := range p.e.Damage {
		r.Problems++
		r.Damaged += d.Length
		spec.Found(d)
	}
	r.Verified = r.Total - r.Damaged
	return r, nil
}

// MetadataCounts follows what Wrote has done: 30 bytes of log and 50 of tables for each new block.
func (p *Pool) MetadataCounts() metafs.Counts {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	return p.metadata
}

func (p *Pool) volume(name string) (*volume, error) {
	v := p.volumes[name]
	if v == nil {
		return nil, fmt.Errorf("volume %q: %w", name, engine.ErrNotFound)
	}
	return v, nil
}

func (p *Pool) snapshot(name string) (*engine.SnapshotInfo, error) {
	s := p.snapshots[name]
	if s == nil {
		return nil, fmt.Errorf("snapshot %q: %w", name, engine.ErrNotFound)
	}
	return s, nil
}

// begin is what every operation starts with; the caller unlocks.
func (p *Pool) begin(ctx context.Context, op, name string) (unlock func(), err error) {
	if err := p.e.before(ctx, op, name); err != nil {
		return func() {}, err
	}
	p.e.mu.Lock()
	if !p.open {
		p.e.mu.Unlock()
		return func() {}, fmt.Errorf("pool %q: %w", p.info.Name, engine.ErrClosed)
	}
	return p.e.mu.Unlock, nil
}

// CreateSnapshot takes a snapshot.
func (p *Pool) CreateSnapshot(ctx context.Context, spec engine.SnapshotSpec) (engine.SnapshotInfo, error) {
	unlock, err := p.begin(ctx, "CreateSnapshot", spec.Name)
	defer unlock()
	if err != nil {
		return engine.SnapshotInfo{}, err
	}
	if err := p.canSnapshot(spec); err != nil {
		return engine.SnapshotInfo{}, err
	}
	return p.takeSnapshot("", spec), nil
}

func (p *Pool) canSnapshot(spec engine.SnapshotSpec) error {
	if _, err := p.volume(spec.Volume); err != nil {
		return err
	}
	if p.snapshots[spec.Name] != nil {
		return fmt.Errorf("snapshot %q: %w", spec.Name, engine.ErrExists)
	}
	return nil
}

func (p *Pool) takeSnapshot(group string, spec engine.SnapshotSpec) engine.SnapshotInfo {
	v := p.volumes[spec.Volume]
	s := &engine.SnapshotInfo{
		Name: spec.Name, ID: p.e.nextID(), Volume: spec.Volume, VolumeID: v.info.ID, Group: group, Size: v.info.Size,
		Owned: v.info.Owned, CreatedAt: Epoch, Labels: maps.Clone(spec.Labels),
	}
	v.info.Owned = 0
	p.snapshots[s.Name] = s
	return *s
}

// CreateSnapshotGroup takes several, or none.
func (p *Pool) CreateSnapshotGroup(ctx context.Context, spec engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error) {
	unlock, err := p.begin(ctx, "CreateSnapshotGroup", spec.Name)
	defer unlock()
	if err != nil {
		return nil, err
	}
	if len(spec.Snapshots) == 0 {
		return nil, fmt.Errorf("create snapshot group %q: %w: no volumes", spec.Name, engine.ErrInvalid)
	}
	for _, s := range spec.Snapshots {
		if err := p.canSnapshot(s); err != nil {
			return nil, fmt.Errorf("create snapshot group %q: %w", spec.Name, err)
		}
	}
	var infos []engine.SnapshotInfo
	for _, s := range spec.Snapshots {
		infos = append(infos, p.takeSnapshot(spec.Name, s))
	}
	return infos, nil
}

// Snapshot tells of one.
func (p *Pool) Snapshot(name string) (engine.SnapshotInfo, error) {
	unlock, err := p.begin(context.Background(), "Snapshot", name)
	defer unlock()
	if err != nil {
		return engine.SnapshotInfo{}, err
	}
	s, err := p.snapshot(name)
	if err != nil {
		return engine.SnapshotInfo{}, err
	}
	return *s, nil
}

// Snapshots tells of all, or of one volume's.
func (p *Pool) Snapshots(volume string) []engine.SnapshotInfo {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	var l []engine.SnapshotInfo
	for _, s := range p.snapshots {
		if volume == "" || s.Volume == volume {
			l = append(l, *s)
		}
	}
	slices.SortFunc(l, func(a, b engine.SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	return l
}

// SnapshotUsage answers what the snapshot owns.
func (p *Pool) SnapshotUsage(ctx context.Context, name string) (int64, error) {
	unlock, err := p.begin(ctx, "SnapshotUsage", name)
	defer unlock()
	if err != nil {
		return 0, err
	}
	s, err := p.snapshot(name)
	if err != nil {
		return 0, err
	}
	return s.Owned, nil
}

// Diff answers Ranges from spec.Start on, with the target's size.
func (p *Pool) Diff(ctx context.Context, spec engine.DiffSpec) (page engine.DiffPage, err error) {
	unlock, err := p.begin(ctx, "Diff", spec.From)
	defer unlock()
	if err != nil {
		return page, err
	}
	if spec.From != "" {
		if _, err := p.snapshot(spec.From); err != nil {
			return page, err
		}
	}
	if spec.Volume != "" {
		v, err := p.volume(spec.Volume)
		if err != nil {
			return page, err
		}
		page.Size = v.info.Size
	} else {
		s, err := p.snapshot(spec.Snapshot)
		if err != nil {
			return page, err
		}
		page.Size = s.Size
	}
	for i, r := range p.Ranges {
		if r.Offset >= spec.Start {
			page.Ranges = append(page.Ranges, r)
			if i+1 < len(p.Ranges) {
				page.Next = p.Ranges[i+1].Offset
			}
			break
		}
	}
	return page, nil
}

// DeleteSnapshot forgets a snapshot.
func (p *Pool) DeleteSnapshot(ctx context.Context, name string) error {
	unlock, err := p.begin(ctx, "DeleteSnapshot", name)
	defer unlock()
	if err != nil {
		return err
	}
	if _, err := p.snapshot(name); err != nil {
		return err
	}
	delete(p.snapshots, name)
	return nil
}
