package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/member"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// Defaults of Options.
const (
	DefaultRingDir  = "/run/rowan/rings"
	DefaultMountDir = "/var/lib/rowan/mnt"
	DefaultMapCache = 128 << 20
	// pebbleCache is Pebble's own block cache, in bytes.
	pebbleCache = 32 << 20
)

// lockWait is LockWait as package member takes it.
func (o Options) lockWait() time.Duration {
	if o.LockWait < 0 {
		return 1
	}
	return cmp.Or(o.LockWait, o.patience)
}

// least is how small a member may be.
func (o Options) least() int64 { return cmp.Or(o.smallest, MinPoolSize) }

func (o Options) withDefaults() Options {
	if o.RingDir == "" {
		o.RingDir = DefaultRingDir
	}
	if o.MountDir == "" {
		o.MountDir = DefaultMountDir
	}
	if o.MapCache == 0 {
		o.MapCache = DefaultMapCache
	}
	o.WarnAt, o.RefuseAt = cmp.Or(o.WarnAt, DefaultWarnAt), cmp.Or(o.RefuseAt, DefaultRefuseAt)
	o.ChecksumRate, o.ChecksumDelay = cmp.Or(o.ChecksumRate, DefaultChecksumRate), cmp.Or(o.ChecksumDelay, DefaultChecksumDelay)
	o.ScrubRate = cmp.Or(o.ScrubRate, DefaultScrubRate)
	if o.fs == nil {
		o.fs = fsys.OSWith(o.IO)
	}
	return o
}

// CreatePool makes a pool and opens it.
//
// Promise: when it returns the pool exists, whole; interrupted before that, it exists whole or not at all, and what is left is in nobody's way. Kept by these
// steps, each durable before the next: the members' superblocks, which say that the pool is unfinished; the store's first commit, with the pool's record and
// the members'; the superblock of the metadata's member without that word, from which on the pool exists; those of the others. Before the third, OpenPool
// finds no pool there, and CreatePool takes the places again. After it, OpenPool does what is left of the fourth before anything is put on those members.
func CreatePool(ctx context.Context, spec PoolSpec, o Options) (*Pool, error) {
	o = o.withDefaults()
	if err := checkPoolSpec(spec); err != nil {
		return nil, err
	}
	if spec.Node == "" {
		spec.Node, _ = os.Hostname() // an empty one does no harm
	}
	list, err := createMembers(spec, o)
	if err != nil {
		return nil, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	p, err := openNew(list, spec.Allocation, o)
	if err != nil {
		for _, m := range list {
			err = errors.Join(err, m.Destroy())
		}
		return nil, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	return p, nil
}

// openNew opens a pool on members that were just made for it.
func openNew(list []opened, allocation string, o Options) (*Pool, error) {
	rec := format.Pool{NextID: 1, NextGen: 1, NextFamily: 1, Clean: true, Filled: allocation == AllocationFilled}
	recs := map[uint32]format.Member{}
	for i, m := range list {
		sb := m.Superblock()
		recs[uint32(i)] = format.Member{ID: sb.MemberID, State: format.MemberInUse, Size: uint64(sb.Size), Path: m.path}
	}
	return openOn(list, nil, o, &fresh{rec, recs})
}

// fresh is what a pool that has no metadata yet begins with.
type fresh struct {
	rec     format.Pool
	members map[uint32]format.Member
}

func checkPoolSpec(spec PoolSpec) error {
	if err := checkName("pool", spec.Name); err != nil {
		return err
	}
	switch spec.Allocation {
	case "", AllocationStriped, AllocationFilled:
	default:
		return fmt.Errorf("%w: allocation %q: want %s or %s", ErrInvalid, spec.Allocation, AllocationStriped, AllocationFilled)
	}
	if n := 1 + len(spec.More); n > MaxMembers {
		return fmt.Errorf("%w: a pool of %d members: at most %d", ErrInvalid, n, MaxMembers)
	}
	for _, m := range spec.members() {
		if err := m.check(MinPoolSize); err != nil {
			return err
		}
	}
	return nil
}

func (s MemberSpec) check(least int64) error {
	if (s.Directory == "") == (s.Device == "") {
		return fmt.Errorf("%w: a member is made in a directory or on a device: give one of them", ErrInvalid)
	}
	if s.Size != 0 && (s.Size < least || s.Size%SizeUnit != 0) {
		return fmt.Errorf("%w: size of %d bytes: want a multiple of 1 MiB, at least %d MiB, or 0 for 90 %% of what is free", ErrInvalid, s.Size, least>>20)
	}
	return nil
}

// OpenPool opens the pool that has a member in the folder, or on the block device. Its other members are looked for in Options.Members, and then where they
// were last seen; whichever their paths, their superblocks say who they are. Those not found are missing, and the pool serves what is whole without them.
func OpenPool(ctx context.Context, path string, o Options) (*Pool, error) {
	o = o.withDefaults()
	list, why, err := openMembers(append([]string{path}, o.Members...), o)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	name := list[0].Superblock().PoolName
	p, err := openOn(list, why, o, nil)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	return p, nil
}

// openOn does DESIGN's open sequence on locked members: open Pebble; find and lock the other members; check the ring; epoch + 1, synced; flush members;
// commit the ring, synced; queue unnamed layers; serve. All members' locks are held before the ring is read, so no I/O of an earlier process is under way.
// Nothing is allocated before the ring's runs are committed, which is how the blocks they name are never handed out. On an error the members are closed,
// unless they are fresh.
func openOn(list []opened, why map[string]error, o Options, fresh *fresh) (_ *Pool, err error) {
	p := &Pool{
		options: o, fs: o.fs, stop: make(chan struct{}), jobKick: make(chan struct{}, 1), drainKick: make(chan struct{}, 1), members: &members{},
		preparing: newPreparer(), summing: newSumming(),
	}
	var undo []func() error
	if fresh == nil {
		undo = append(undo, func() error { return closeMembers(list) })
	}
	defer func() {
		if errors.Is(err, errDead) && p.failed.Load() != nil {
			err = p.failure() // which says why
		}
		for _, f := range slices.Backward(undo) {
			if err != nil {
				err = errors.Join(err, f())
			}
		}
	}()
	meta, err := findMetadata(list)
	if err != nil {
		return nil, err
	}
	if fresh == nil {
		if err := exists(meta); err != nil {
			return nil, err
		}
	}
	p.identity = meta.Superblock()
	if o.Observer != nil {
		p.figures = o.Observer.Figures(p.name())
	}
	db, err := p.openMetadata(meta.Member, fresh != nil)
	if err != nil {
		return nil, err
	}
	closeDB := db.close
	undo = append(undo, func() error { return closeDB() })
	rec, err := readPoolRecord(db, fresh)
	if err != nil {
		return nil, err
	}
	if err := p.loadSummed(db); err != nil {
		return nil, err
	}
	segments, err := readSegments(db)
	if err != nil {
		return nil, err
	}
	if list, err = p.meetMembers(db, meta, list, why, segments, fresh); err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		if err := p.endMetadataMove(); err != nil {
			return nil, err
		}
	}
	if p.catalogue, err = loadCatalogue(db); err != nil {
		return nil, err
	}
	if p.pages, err = newPages(db, o.MapCache); err != nil {
		return nil, err
	}
	undo = append(undo, p.pages.close)
	p.pages.figures = p.figures
	p.store = newStore(db, rec, segments, p.fail)
	p.store.figures = p.figures
	closeDB = p.store.close
	if o.ReadOnly {
		p.readOnly = fmt.Errorf("pool %q: %w", p.name(), errReadOnly)
		if p.alloc, err = p.newAllocator(db, segments, 0); err != nil {
			return nil, err
		}
		return p, p.lookAtFlushes(rec.RingSeq)
	}
	if err := p.members.table.Load().tell(segments, !p.breaks(mutateUnsynced)); err != nil {
		return nil, err
	}
	if p.flushes.log, err = p.openFlushLog(); err != nil {
		return nil, err
	}
	undo = append(undo, p.closeFlushLog)
	entries, err := p.openRing(rec)
	if err != nil {
		return nil, err
	}
	undo = append(undo, p.ring.Close)
	if entries, err = p.withoutMissing(entries, p.flushes.end); err != nil {
		return nil, err
	}
	if fresh != nil && p.breaks(mutateFinish) {
		err = p.finishMembers()
	}
	if err := errors.Join(err, p.beginEpoch(rec)); err != nil {
		return nil, err
	}
	if err := p.finishMembers(); err != nil {
		return nil, err
	}
	if err := p.replay(entries, rec.RingSeq); err != nil {
		return nil, err
	}
	if l := p.flushes.log; l != nil {
		l.Begin(p.pages.seq.Load())
	}
	p.preparing.many = int64(min(p.ring.Cap()/2, pendingMany))
	p.preparing.size(p)
	if segments, err = readSegments(db); err != nil {
		return nil, err
	}
	if err := p.members.table.Load().tell(segments, false); err != nil { // what the replay has filled
		return nil, err
	}
	if p.alloc, err = p.newAllocator(db, segments, p.preparing.window.Load()); err != nil {
		return nil, err
	}
	p.store.alloc, p.store.filled = p.alloc, p.chunksFilled
	p.loadPromises()
	if err := p.queueUnnamed(); err != nil {
		return nil, err
	}
	p.start()
	return p, nil
}

var errReadOnly = errors.New("the pool is open for looking only")

func readPoolRecord(db *metadata, fresh *fresh) (rec format.Pool, err error) {
	if fresh != nil {
		return fresh.rec, nil
	}
	v, closer, err := db.Get(format.PoolKey())
	if errors.Is(err, pebble.ErrNotFound) {
		return rec, fmt.Errorf("%w: the metadata has no pool record", ErrCorrupt)
	}
	if err != nil {
		return rec, fmt.Errorf("read pool record: %w", metadataError(err))
	}
	defer closer.Close()
	return format.ParsePool(v)
}

// readSegments reads what is known of the segments.
func readSegments(db reader) (segments []poolSegment, err error) {
	at := func(n uint32) *poolSegment {
		for uint32(len(segments)) <= n {
			segments = append(segments, poolSegment{})
		}
		return &segments[n]
	}
	lower, upper := format.Kind(format.SegmentKey(0))
	err = scan(db, lower, upper, func(k, v []byte) error {
		seg, err := format.ParseNumber(k)
		rec, rerr := format.ParseSegment(v)
		if err != nil || rerr != nil || seg >= member.MaxSegments {
			return errors.Join(err, rerr, fmt.Errorf("%w: record of segment %d", ErrCorrupt, seg))
		}
		at(seg).Has[alloc.Written], at(seg).Has[alloc.Reserved] = rec.Written, rec.Reserved
		at(seg).member, at(seg).known = rec.Member, true
		return nil
	})
	lower, upper = format.Kind(format.SegmentUseKey(0))
	err = errors.Join(err, scan(db, lower, upper, func(k, v []byte) error {
		seg, err := format.ParseNumber(k)
		n, size := binary.Uvarint(v)
		if err != nil || size != len(v) || n > alloc.SegmentBlocks || seg >= member.MaxSegments {
			return errors.Join(err, fmt.Errorf("%w: use of segment %d", ErrCorrupt, seg))
		}
		at(seg).Used = int(n)
		return nil
	}))
	if err != nil {
		return nil, err
	}
	for i, s := range segments {
		if n := s.Has[alloc.Written].Count() + s.Has[alloc.Reserved].Count(); s.Used > n*alloc.ChunkBlocks {
			return nil, fmt.Errorf("%w: segment %d has %d blocks in use, and space for %d", ErrCorrupt, i, s.Used, n*alloc.ChunkBlocks)
		}
	}
	return segments, nil
}

func bootID() (id [16]byte, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) != 16 {
		return id, fmt.Errorf("boot id %q is not a UUID", text)
	}
	return [16]byte(b), nil
}

// openRing finds the ring. A pool that was closed in order, or that was last open in another boot, needs none; any other must have it whole.
func (p *Pool) openRing(rec format.Pool) ([]ring.Entry, error) {
	boot, err := p.options.boot()
	if err != nil {
		return nil, err
	}
	c := ring.Config{
		Dir: p.options.RingDir, PoolID: p.identity.PoolID, BootID: boot, Bytes: p.options.ringBytes, AnyFileSystem: p.options.anyRingFS,
		Wrote: p.options.wroteRing,
	}
	r, err := ring.Open(c, rec.OpenEpoch)
	var entries []ring.Entry
	if err == nil {
		p.ring = r
		entries, err = r.Replay(rec.RingSeq)
	}
	must := !rec.Clean && rec.BootID == boot
	switch {
	case err == nil:
		if reason, failed := r.Failed(); failed {
			return nil, errors.Join(fmt.Errorf("%w in this boot: %s; open it read-only, or restart the machine", ErrFailed, reason), r.Close())
		}
	case must && !p.options.AcceptLoss:
		if p.ring != nil {
			err = errors.Join(err, p.ring.Close())
		}
		return nil, fmt.Errorf("%w: the engine died in this boot and %w; writes since the last flush are in the ring alone: "+
			"bring %s back, or open with --accept-loss", ErrLost, err, c.Path())
	case errors.Is(err, ring.ErrFileSystem):
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	default:
		if p.ring != nil {
			if err := p.ring.Close(); err != nil {
				return nil, err
			}
			entries = nil
		}
		if p.ring, err = ring.Create(c, rec.OpenEpoch); err != nil {
			return nil, err
		}
		if _, err := p.ring.Replay(rec.RingSeq); err != nil {
			return nil, errors.Join(err, p.ring.Close())
		}
	}
	if w := p.ring.Warning(); w != nil {
		p.event("the ring is not locked in memory", "warning", w)
	}
	entries, last, err := p.loggedEntries(entries, rec.RingSeq)
	if err != nil {
		return nil, errors.Join(err, p.ring.Close())
	}
	p.pages.seq.Store(last)
	return entries, nil
}

// beginEpoch makes this opening known, before anything else is changed, but for making the flush log or giving a damaged one up.
func (p *Pool) beginEpoch(rec format.Pool) error {
	boot, err := p.options.boot()
	if err != nil {
		return err
	}
	epoch := rec.OpenEpoch + 1
	if err := p.ring.SetEpoch(epoch); err != nil {
		return err
	}
	return p.store.commitOne(func(b *batch) {
		b.s.pool.OpenEpoch, b.s.pool.BootID, b.s.pool.Clean = epoch, boot, false
		for _, m := range p.members.table.Load().list { // where they are now
			b.put(format.MemberKey(m.index), m.rec.Encode())
		}
	}, nil)
}

// replay commits what the ring and the flush log hold beyond the last commit. Promise "a dead process is not a power cut": the members are flushed first, for the data
// those entries name may be in the device's cache still.
func (p *Pool) replay(entries []ring.Entry, applied uint64) error {
	seq := p.pages.seq.Load() // of the last entry, one that is left out included
	if seq == applied {
		return nil
	}
	if err := p.flushMember(mutateReplayFlush); err != nil {
		// Final, as any other: the next opening's flush would vouch for what this one has lost.
		p.fail(fmt.Errorf("flush member before replay: %w", err))
		return p.failure()
	}
	type key struct {
		l    *layer
		page uint32
	}
	var order []key
	lists := map[key][]runs.Entry{}
	for _, e := range entries {
		l := p.catalogue.byGen[e.Generation]
		if l == nil || l.rec.Head == 0 {
			continue // its volume is gone, and nobody waits for the write
		}
		if err := splitByPage(e, func(page uint32, run runs.Entry) {
			k := key{l, page}
			if _, ok := lists[k]; !ok {
				order = append(order, k)
			}
			lists[k] = runs.Insert(lists[k], run)
		}); err != nil {
			return err
		}
	}
	heads := map[uint64]*volume{}
	for _, v := range p.catalogue.volumes {
		heads[v.id] = v
	}
	lines := map[*layer]*lineage{}
	at := 0
	err := p.store.commit(func(b *batch) (bool, error) {
		for ; at < len(order); at++ {
			if b.full() {
				return true, nil
			}
			k := order[at]
			if lines[k.l] == nil {
				lines[k.l] = p.catalogue.lineageOf(k.l)
			}
			lp, err := readLayerPage(b.s.db, lines[k.l], k.page)
			if err != nil {
				return false, err
			}
			res, err := b.rewrite(lines[k.l], k.page, &lp, lp.apply(lp.visible(), lists[k]))
			if err != nil {
				return false, fmt.Errorf("replay page %d: %w", k.page, err)
			}
			v := heads[k.l.rec.Head]
			v.setMapped(v.stored + res.mapped)
			v.written.Store(true)
			b.put(format.VolumeUseKey(v.id), format.VolumeUse{Mapped: uint64(v.stored), Written: true}.Encode())
		}
		b.s.pool.RingSeq = seq
		return false, nil
	}, nil)
	if err != nil {
		return fmt.Errorf("replay ring and flush log: %w", err)
	}
	p.ring.Retire(seq)
	p.event("replayed the ring and the flush log", "entries", len(entries), "pages", len(order))
	return nil
}

func splitByPage(e ring.Entry, f func(page uint32, run runs.Entry)) error {
	off := int(e.Block % runs.Blocks)
	if off+int(e.Length) > runs.Blocks || e.Block/runs.Blocks >= 1<<24 || e.Generation > runs.MaxGen ||
		(e.Place != ring.ZeroPlace && e.Place+uint64(e.Length) > runs.MaxPlace) {
		return fmt.Errorf("%w: run %+v of the ring or the flush log", ErrCorrupt, e)
	}
	if e.Place == ring.ZeroPlace {
		f(uint32(e.Block/runs.Blocks), runs.Zero(off, int(e.Length), e.Generation))
	} else {
		f(uint32(e.Block/runs.Blocks), runs.Data(off, int(e.Length), e.Place, e.Generation))
	}
	return nil
}

// memberError gives a member's errors the engine's names.
func memberError(err error) error {
	for _, t := range []struct{ from, to error }{
		{member.ErrInvalid, ErrInvalid}, {member.ErrUnsupported, ErrUnsupported}, {member.ErrForeign, ErrForeign}, {member.ErrNotEmpty, ErrNotBlank},
		{member.ErrNotWritable, ErrUnsupported}, {member.ErrNotBlank, ErrNotBlank}, {member.ErrInUse, ErrInUse}, {member.ErrTool, ErrUnsupported},
		{member.ErrNotFound, ErrNotFound}, {member.ErrLocked, ErrLocked}, {format.ErrCorrupt, ErrCorrupt}, {format.ErrUnknownFeatures, ErrIncompatible},
	} {
		if errors.Is(err, t.from) && !errors.Is(err, t.to) {
			return fmt.Errorf("%w: %w", t.to, err)
		}
	}
	return err
}

func metadataError(err error) error {
	if pebble.IsCorruptionError(err) || errors.Is(err, pebble.ErrDBDoesNotExist) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func checkName(kind, name string) error {
	if name == "" || len(name) > MaxNameLen {
		return fmt.Errorf("%w: %s name %q has %d bytes: want 1 to %d", ErrInvalid, kind, name, len(name), MaxNameLen)
	}
	if name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r <= ' ' || r == 0x7f || r == 0xfffd }) {
		return fmt.Errorf("%w: %s name %q: slashes, blanks and control characters are not allowed", ErrInvalid, kind, name)
	}
	return nil
}
