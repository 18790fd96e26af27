package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// OfflineReport is what CheckOffline found.
type OfflineReport struct {
	CheckReport
	Pool  string
	Clean bool // closed in order; if not, writes since the last commit may be in the ring and the flush log alone, which are not looked at

	Repaired int      // records that were written anew or removed
	Found    []string // by a repair: the problems before it; Problems are those that it has left
}

// CheckOffline is Check for a pool that nobody has open, by the folder or device of the member with its metadata. No other member is needed. It holds the
// pool's locks meanwhile and changes nothing: no ring is replayed and no record written. A pool that does not open because its catalogue is damaged is looked
// at all the same. ErrLocked: an engine has it open, after waiting for it as long as Options.LockWait says.
func CheckOffline(ctx context.Context, path string, o Options) (OfflineReport, error) {
	return offline(ctx, path, o, false)
}

// RepairOffline is CheckOffline, and then writes anew what can be derived where something was wrong: bitmaps, the index of touched pages, counts, jobs,
// checksums that belong to nothing. It changes no run and no name. What it could not mend is in Problems.
func RepairOffline(ctx context.Context, path string, o Options) (OfflineReport, error) {
	return offline(ctx, path, o, true)
}

func offline(ctx context.Context, path string, o Options, mend bool) (r OfflineReport, err error) {
	o = o.withDefaults()
	o.ReadOnly = !mend
	m, err := member.Open(o.fs, path, member.Options{MountDir: o.MountDir, ReadOnly: o.ReadOnly, LockTimeout: o.lockWait()})
	if err != nil {
		return r, fmt.Errorf("check pool: %w", memberError(err))
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	p := &Pool{options: o, fs: o.fs, identity: m.Superblock(), preparing: newPreparer(), members: &members{}}
	r.Pool = p.name()
	meta, err := findMetadata([]opened{{m, path}})
	if err == nil {
		err = exists(meta)
	}
	if err != nil {
		return r, fmt.Errorf("check pool %q: %w", r.Pool, err)
	}
	db, err := p.openMetadata(m, false)
	if err != nil {
		return r, fmt.Errorf("check pool %q: %w", r.Pool, err)
	}
	done := make(chan error, 1)
	go func() {
		err := r.check(ctx, db)
		if mend && err == nil && len(r.Problems) > 0 {
			err = r.repair(ctx, db)
		}
		done <- err
	}()
	select {
	case err = <-done:
		err = errors.Join(err, db.close())
	case <-db.dead: // who is inside the store stays there, and r is theirs
		return OfflineReport{Pool: p.name()}, p.failure()
	}
	if err != nil {
		return r, fmt.Errorf("check pool %q: %w", r.Pool, metadataError(err))
	}
	return r, nil
}

func (r *OfflineReport) check(ctx context.Context, db *metadata) error {
	rec, rerr := readPoolRecord(db, nil)
	if rerr != nil && !errors.Is(rerr, ErrCorrupt) && !errors.Is(rerr, format.ErrCorrupt) {
		return rerr
	}
	// A layer that lost its name while somebody read it is queued when the pool is opened: none is forgotten here.
	report, err := checkMetadata(ctx, db, func(uint64) bool { return true })
	if rerr != nil {
		report.Problems = append(report.Problems, rerr.Error())
	}
	r.CheckReport, r.Clean = report, rec.Clean
	return err
}

func (r *OfflineReport) repair(ctx context.Context, db *metadata) (err error) {
	found := r.Problems
	if r.Repaired, err = repair(ctx, db); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	r.Found = found
	return r.check(ctx, db)
}
