package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// OfflineReport is what CheckOffline found.
type OfflineReport struct {
	CheckReport
	Pool  string
	Clean bool // closed in order; if not, writes since the last commit may be in the ring alone, which is not looked at
}

// CheckOffline is Check for a pool that nobody has open, by its folder or device. It holds the pool's locks meanwhile and changes nothing: no ring
// is replayed and no record written. A pool that does not open because its catalogue is damaged is looked at all the same. ErrLocked: an engine has
// it open.
func CheckOffline(ctx context.Context, path string, o Options) (r OfflineReport, err error) {
	o = o.withDefaults()
	o.ReadOnly = true
	m, err := member.Open(o.fs, path, member.Options{MountDir: o.MountDir, ReadOnly: true, LockTimeout: o.patience})
	if err != nil {
		return r, fmt.Errorf("check pool: %w", memberError(err))
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	p := &Pool{options: o, fs: o.fs, member: m, preparing: newPreparer()}
	r.Pool = p.name()
	db, dead, err := p.openPebble(false)
	if err != nil {
		return r, fmt.Errorf("check pool %q: %w", r.Pool, err)
	}
	done := make(chan error, 1)
	go func() { done <- r.check(ctx, db, p.chunkLimit()) }()
	select {
	case err = <-done:
		err = errors.Join(err, closeMetadata(dead, db.Close))
		p.meta.Close()
	case <-dead: // who is inside the store stays there, and r is theirs
		return OfflineReport{Pool: p.name()}, p.failure()
	}
	if err != nil {
		return r, fmt.Errorf("check pool %q: %w", r.Pool, metadataError(err))
	}
	return r, nil
}

func (r *OfflineReport) check(ctx context.Context, db *pebble.DB, chunks int64) error {
	rec, rerr := readPoolRecord(db, false)
	if rerr != nil && !errors.Is(rerr, ErrCorrupt) && !errors.Is(rerr, format.ErrCorrupt) {
		return rerr
	}
	// A layer that lost its name while somebody read it is queued when the pool is opened: none is forgotten here.
	report, err := checkMetadata(ctx, db, chunks, func(uint64) bool { return true })
	if rerr != nil {
		report.Problems = append(report.Problems, rerr.Error())
	}
	r.CheckReport, r.Clean = report, rec.Clean
	return err
}
