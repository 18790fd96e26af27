package engine

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/flushlog"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// flushLogName is the flush log's file, in the folder of the metadata.
const flushLogName = "FLUSHES"

// flushLog makes guests' flushes durable without a commit, where what is pending fits a record; package flushlog tells why and how. A round in which
// nobody needs the runs committed writes a record instead, and its runs stay pending until the next round with a commit: the timer's, a cut's, or one
// that the log asks for when it is half full.
//
// Promise "FLUSH is a round", kept with a record instead of a commit, in this order: note N (every run up to N is in the ring, and its data write has
// returned) - flush the members - write the ring's entries up to N that neither a commit nor a record has, durably - answer. After a power cut the open
// sequence takes the log's entries where it would have taken the ring's, and they are the same ones.
//
// Promise "a pool block changes hands only when nobody can still touch it": nothing is freed by a record. What pending runs replaced goes with the commit
// that holds them, and once that is durable no entry of theirs is read again.
type flushLog struct {
	log *flushlog.Log // nil: every round commits. Guarded by rounds.turn, once the pool is open
	few atomic.Bool   // room is asked for
	end uint64        // up to which sequence flushes had made all durable when the pool was opened
	// looked is what the log has, where the pool is open for looking only.
	looked []ring.Entry
}

// openFlushLog opens the log beside the metadata; nil where there is no space for one: the pool does without. The superblock says that there is one before it
// has a record, so that no program opens the pool without looking.
func (p *Pool) openFlushLog() (*flushlog.Log, error) {
	dev := p.members.table.Load().meta.dev
	log, err := flushlog.Open(p.fs, filepath.Join(dev.MetaDir(), flushLogName), p.identity.PoolID, p.options.flushSlots)
	if errors.Is(err, flushlog.ErrNoSpace) {
		p.event("flushes commit, and take longer for it", "error", err)
		return nil, nil
	}
	if err != nil {
		return nil, flushLogError(err)
	}
	if err := dev.HasFlushLog(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return log, nil
}

func flushLogError(err error) error {
	if errors.Is(err, flushlog.ErrVersion) {
		return fmt.Errorf("%w: %w", ErrIncompatible, err)
	}
	return err
}

// closeFlushLog has every round commit from now on.
func (p *Pool) closeFlushLog() error {
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	if p.flushes.log == nil {
		return nil
	}
	err := p.flushes.log.Close()
	p.flushes.log = nil
	return err
}

// logged are the entries that a log has above what is committed, and up to where it reaches. Of a damaged one they are what is before the damage, if
// losses are accepted.
func (p *Pool) logged(log *flushlog.Log, committed uint64) (entries []ring.Entry, end uint64, damaged bool, err error) {
	entries, end, err = log.Entries(committed)
	switch {
	case err == nil:
		return entries, end, false, nil
	case p.options.AcceptLoss:
		p.event("the flush log is damaged; what it had from there on is given up", "error", err)
		return entries, end, true, nil
	}
	return nil, 0, true, fmt.Errorf("%w: after a power cut writes that were flushed are in the flush log alone: %w; open with --accept-loss to go on without them",
		ErrLost, err)
}

// loggedEntries adds to the ring's entries those that only the log has: the ring went with the power, or with a process that died before it had committed
// what it found in the log. It tells the last sequence of both.
func (p *Pool) loggedEntries(entries []ring.Entry, committed uint64) (all []ring.Entry, last uint64, err error) {
	last = committed
	if n := len(entries); n > 0 {
		last = entries[n-1].Sequence
	}
	if p.flushes.log == nil {
		return entries, last, nil
	}
	logged, end, damaged, err := p.logged(p.flushes.log, committed)
	if err == nil && damaged {
		err = p.flushes.log.Forget()
	}
	if err != nil {
		return nil, 0, err
	}
	p.flushes.end = end
	have := map[uint64]bool{}
	for _, e := range entries {
		have[e.Sequence] = true
	}
	for _, e := range logged {
		if !have[e.Sequence] {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b ring.Entry) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return entries, max(last, end), nil
}

// lookAtFlushes finds what only the flush log has, for a pool that is opened for looking and commits nothing. OpenVolume shows it, and Diff.
func (p *Pool) lookAtFlushes(committed uint64) error {
	log, err := flushlog.Look(p.fs, filepath.Join(p.members.table.Load().meta.dev.MetaDir(), flushLogName), p.identity.PoolID)
	if err == nil {
		p.flushes.looked, _, _, err = p.logged(log, committed)
	}
	return flushLogError(err)
}

// lookedAt calls f for what only the log has of a volume, in order, in a pool that is open for looking.
func (p *Pool) lookedAt(volume uint64, f func(page uint32, run runs.Entry)) error {
	for _, e := range p.flushes.looked {
		if l := p.catalogue.byGen[e.Generation]; l == nil || l.rec.Head != volume {
			continue
		}
		if err := splitByPage(e, f); err != nil {
			return err
		}
	}
	return nil
}

// showFlushes puts what only the log has over a volume's map.
func (p *Pool) showFlushes(v *Volume) error {
	var missing *poolMember
	err := p.lookedAt(v.entry.id, func(page uint32, run runs.Entry) {
		missing = cmp.Or(missing, p.members.table.Load().missingOf([]runs.Entry{run}))
		p.pages.show(v, page, run)
	})
	if err == nil && missing != nil {
		return fmt.Errorf("volume %q is not whole: %w", v.name, missing.missingError())
	}
	return err
}

// logPending is a round without a commit; its turn is held. It is not done, and logged is false, where there is too much for a record, or no room.
func (p *Pool) logPending() (logged bool, err error) {
	l := p.flushes.log
	if l == nil || p.failure() != nil {
		return false, nil
	}
	began := time.Now()
	to := p.pages.published()
	entries, retired, ok := p.ring.Tail(l.Last(), to, flushlog.MaxEntries)
	if !ok {
		return false, nil
	}
	committed := retired
	if p.breaks(mutateLogRoom) {
		committed = to
	}
	free := l.Free(committed)
	if free < l.Slots()/2 && p.flushes.few.CompareAndSwap(false, true) {
		p.preparing.askForCommit()
	}
	if free == 0 {
		return false, nil
	}
	if err := p.flushMember(mutateLogFlush); err != nil {
		p.fail(fmt.Errorf("flush member: %w", err))
		return true, p.failure()
	}
	if after := max(l.Last(), retired); after < to {
		if err := l.Append(entries, after, to, committed); err != nil {
			p.fail(err)
			return true, p.failure()
		}
	}
	if f := p.figures; f != nil {
		f.LogTime.since(began)
	}
	return true, p.failure()
}

// pauseFlushLog has every round commit, and returns when nothing is in the log alone.
func (p *Pool) pauseFlushLog() error {
	return errors.Join(p.closeFlushLog(), p.flush())
}

// resumeFlushLog opens the log where the metadata is now.
func (p *Pool) resumeFlushLog() {
	log, err := p.openFlushLog()
	if err != nil {
		p.event("the flush log cannot be used; flushes commit", "error", err)
		return
	}
	p.rounds.turn.Lock()
	defer p.rounds.turn.Unlock()
	p.flushes.log = log
}
