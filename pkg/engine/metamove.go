package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// The metadata moves off a member that is drained when its last block has gone, to another member in use, while the pool is used.
//
// Promise: whenever the power fails, one store is the pool's metadata, whole, with every commit that was acknowledged; where the members that are seen
// cannot tell which, the pool does not open and says which member it needs. Kept by these steps, each durable before the next; A has the metadata, whose
// number is n, and B gets it:
//
//  1. B has its ballast. What an interrupted move has left on B is gone.
//  2. A's superblock names B. From here on nobody opens the pool by A alone.
//  3. Tables are copied to B, beside where they will be, while the committer goes on.
//  4. The committer makes a pause (alone): everything it applied is durable, nothing is composed. The rest is copied, synced with all names, and opened: a
//     store that holds what A's holds.
//  5. B's superblock gets n + 1: the switch. Until then A's store is the pool's, and B's is rubbish; from then on it is the other way round. Nothing was
//     committed in between, so both say the same.
//  6. Reads that begin now, and the committer, use B's.
//  7. A's superblock gets 0. When the last reader of A's store has ended it is closed, and its files and A's ballast go.
//
// An error before 5 leaves all as it was. One at 5 leaves open which it is, so the pool fails: the next opening sees it. An opening does what is left of 7, or
// undoes 1 to 4 (endMetadataMove).
//
// Guests' reads, overwrites, and first writes as far as the ring goes on during 4 to 6; flushes wait. Options not taken: Pebble's checkpoint alone, which
// copies everything at once, behind one moment of the store, with the logs since (their slots are metafs's own); and a copy of the whole store under the
// pause, which takes as long as the metadata is large.

const (
	// metaPauseBytes is how much of the store is copied in the pause at most, and metaPasses how often it is copied ahead before the pause is put off.
	metaPauseBytes = 16 << 20
	metaPasses     = 8
	// metaSpare is the space that the store needs beside what it takes now: logs and compaction's.
	metaSpare = 64 << 20
)

// metaMove is one move of the metadata.
type metaMove struct {
	p        *Pool
	from, to *poolMember
	number   uint64 // the metadata's, on from
	copy     *metafs.Copy
	old      *metaStore
	copied   int64
	pause    time.Duration
}

// moveMetadata moves the metadata off members that are being drained and hold no block. It does nothing where there is no such member.
func (p *Pool) moveMetadata() error {
	p.changing.Lock()
	defer p.changing.Unlock()
	for _, m := range p.members.table.Load().list {
		if m.dev == nil || m.rec.State != format.MemberDraining || m.dev.Superblock().Metadata == 0 {
			continue
		}
		if p.metaStuck != nil {
			return p.metaStuck
		}
		mv := &metaMove{p: p, from: m, number: m.dev.Superblock().Metadata, old: p.store.db.at}
		err := mv.run()
		if err != nil {
			return fmt.Errorf("move the metadata off member %v: %w", m, err)
		}
	}
	return nil
}

// run does it. Only the end of it is left where an earlier one got so far.
func (mv *metaMove) run() error {
	p := mv.p
	if t := p.members.table.Load(); t.meta.index != mv.from.index {
		return mv.leave()
	}
	if p.usedOn(p.members.table.Load(), mv.from) > 0 {
		return nil // it is drained once more
	}
	err := mv.target()
	if err == nil {
		err = mv.prepare()
	}
	if err == nil {
		err = mv.carry()
	}
	if errors.Is(err, errOpening) {
		p.metaStuck = fmt.Errorf("%w; it is tried again when the pool is opened anew", err)
	}
	if err != nil {
		return errors.Join(err, mv.undo())
	}
	p.event("the metadata has moved to another member", "from", mv.from.String(), "to", mv.to.String(), "bytes", mv.copied, "commits waited", mv.pause)
	return mv.leave()
}

// target chooses the member in use whose file system has most room.
func (mv *metaMove) target() error {
	p := mv.p
	need, most := p.store.db.bytes()+metaSpare, int64(-1)
	for _, m := range p.members.table.Load().inUse() {
		room, err := m.dev.Room()
		if err != nil {
			return err
		}
		if room > most && m.index != mv.from.index {
			mv.to, most = m, room
		}
	}
	if mv.to == nil || most < need {
		mv.to = nil
		return fmt.Errorf("%w: it takes %d MiB, and the members in use (%s) have room for %d MiB beside their ballast: free space in one's file system, or add a member",
			ErrNoSpace, need>>20, p.members.table.Load().inUseDirs(), max(most, 0)>>20)
	}
	return nil
}

// prepare is steps 1 and 2.
func (mv *metaMove) prepare() error {
	to := mv.to.dev
	if err := to.DropMetadata(); err != nil {
		return err
	}
	if err := to.RestoreBallast(); err != nil {
		return err
	}
	if !mv.p.breaks(mutateMetaNamed) {
		if err := mv.from.dev.SetMetadata(mv.number, mv.to.rec.ID); err != nil {
			return err
		}
	}
	var err error
	mv.copy, err = mv.old.fs.NewCopy(mv.old.db, mv.from.dev.MetaDir(), to.MetaAheadDir(), to.MetaDir())
	if err == nil {
		mv.copy.Unsynced = mv.p.breaks(mutateMetaSynced)
	}
	return err
}

// carry is steps 3 to 6. The flush log is beside the metadata and not copied: from before the switch every flush commits.
func (mv *metaMove) carry() (err error) {
	p, paused := mv.p, false
	defer func() {
		if paused {
			p.resumeFlushLog()
		}
	}()
	limit := newLimiter(drainRate)
	for range metaPasses {
		var n int64
		n, err = mv.copy.Ahead(func(bytes int) bool { return limit.wait(p.stop, nil, bytes) })
		if mv.copied += n; err == nil && n > metaPauseBytes/2 {
			continue // while that was copied as much may have come
		}
		if err == nil {
			paused = true
			err = p.pauseFlushLog()
		}
		if err == nil {
			if p.breaks(mutateMetaPause) {
				err = mv.copy.Finish(metaPauseBytes)
			}
			err = errors.Join(err, p.store.alone(mv.change))
		}
		if !errors.Is(err, metafs.ErrBehind) || p.stopping() {
			return err
		}
	}
	return err
}

// change is steps 4 to 6, on the committer.
func (mv *metaMove) change() (fatal bool, err error) {
	p, began := mv.p, time.Now()
	if err := p.failure(); err != nil {
		return false, err
	}
	if !p.breaks(mutateMetaPause) {
		if err := mv.copy.Finish(metaPauseBytes); err != nil {
			return false, err
		}
	}
	next, err := p.openPebble(p.store.db, mv.to.dev, false, false)
	if err != nil {
		return false, err
	}
	if err := sameRecord(mv.old, next); err != nil && !p.breaks(mutateMetaPause) {
		return false, errors.Join(err, next.close())
	}
	if p.breaks(mutateMetaSwitch) {
		_ = errors.Join(mv.from.dev.SetMetadata(0, format.UUID{}), mv.from.dev.DropMetadata())
	}
	next.inUse.Store(true) // should it die from here on, nobody need ask when
	select {
	case <-next.dead:
		return false, fmt.Errorf("the metadata's copy: %w", *next.cause.Load())
	default:
	}
	p.did(mutateMetaSynced)
	if err := mv.to.dev.SetMetadata(mv.number+1, format.UUID{}); err != nil {
		p.fail(fmt.Errorf("the metadata was being moved from member %v to %v: %w", mv.from, mv.to, err))
		return true, errors.Join(p.failure(), next.close())
	}
	p.did(mutateMetaSwitch)
	p.store.db.change(next)
	p.members.change(func(t *memberTable) { t.meta = t.find(mv.to.index) })
	mv.pause = time.Since(began)
	return false, nil
}

// sameRecord compares what the last commit wrote, whatever else it did.
func sameRecord(old, next *metaStore) error {
	var recs [2]string
	for i, s := range []*metaStore{old, next} {
		v, closer, err := s.db.Get(format.PoolKey())
		if err != nil {
			return fmt.Errorf("read the pool's record in the copied metadata: %w", metadataError(err))
		}
		if recs[i] = string(v); closer.Close() != nil || recs[i] != recs[0] {
			return fmt.Errorf("%w: the copy of the metadata differs from it", ErrCorrupt)
		}
	}
	return nil
}

// undo takes back steps 1 to 4, where the switch was not made. Where the pool takes no writes, or is being closed, the next opening does.
func (mv *metaMove) undo() error {
	if mv.to == nil || mv.p.failure() != nil || mv.p.stopping() {
		return nil
	}
	if err := mv.from.dev.SetMetadata(mv.number, format.UUID{}); err != nil {
		return err
	}
	return mv.to.dev.DropMetadata()
}

// leave is step 7.
func (mv *metaMove) leave() error {
	if err := mv.from.dev.SetMetadata(0, format.UUID{}); err != nil {
		return err
	}
	mv.p.did(mutateMetaNamed)
	if mv.old != mv.p.store.db.at {
		if err := mv.old.close(); err != nil {
			mv.p.event("the metadata's store on a drained member did not close well; it is not used any more", "member", mv.from.String(), "error", err)
		}
	}
	return mv.from.dev.DropMetadata()
}

// endMetadataMove is what an opening does for a move that was interrupted. findMetadata has seen all members that could have the metadata: those without a
// superblock that names them have none of it.
func (p *Pool) endMetadataMove() error {
	t := p.members.table.Load()
	meta := t.meta.dev
	if sb := meta.Superblock(); !sb.MovingTo.IsZero() {
		if err := meta.SetMetadata(sb.Metadata, format.UUID{}); err != nil {
			return err
		}
	}
	for _, m := range t.present() {
		if m == meta {
			continue
		}
		if sb := m.Superblock(); sb.Metadata != 0 || !sb.MovingTo.IsZero() {
			if err := m.SetMetadata(0, format.UUID{}); err != nil {
				return err
			}
		}
		if err := m.DropMetadata(); err != nil {
			return err
		}
	}
	return nil
}

// change has reads that begin from now on, and the committer, use another Pebble, which is marked in use. It is called by the committer.
func (m *metadata) change(next *metaStore) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.at
	m.past = m.past.Add(old.fs.Stats().Counts())
	m.at = next
	old.inUse.Store(false)
}

// alone runs f on the committer when all that it applied is durable. Nothing is composed meanwhile. With fatal nothing is ever again.
func (s *store) alone(f func() (fatal bool, err error)) error {
	j := newJob(nil, nil)
	j.alone = f
	return s.run(j)
}

// performAlone does it. The barrier passes through the syncs behind everything that was applied before.
func (s *store) performAlone(j *job) (broken error) {
	passed := make(chan struct{})
	s.syncs <- &unsynced{barrier: passed}
	select {
	case <-passed:
	case <-s.dead:
		return errDead
	}
	fatal, err := j.alone()
	close(j.handed)
	j.done <- err
	if fatal {
		return err
	}
	return nil
}
