package engine

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// whole refuses a volume or snapshot that shows blocks of a member which is not there. It looks only while one is missing, and then at the whole map: a
// guest that learns of it when it reads may have written by then. Called with ops held, for something that is not open, so nothing of it is pending.
func (p *Pool) whole(ctx context.Context, line *lineage) error {
	t := p.members.table.Load()
	if len(t.missing()) == 0 {
		return nil
	}
	it, err := p.store.db.NewIter(&pebble.IterOptions{
		LowerBound: format.RunFamilyPrefix(line.family), UpperBound: format.Upper(format.RunFamilyPrefix(line.family)),
	})
	if err != nil {
		return fmt.Errorf("read map: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; {
		at, _, _, err := format.ParseRunKey(it.Key())
		if err != nil {
			return err
		}
		list, err := readPage(p.store.db, line, at.Page, make([]runs.Entry, 0, 64))
		if err != nil {
			return err
		}
		if m := t.missingOf(list); m != nil {
			return m.missingError()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		ok = it.SeekGE(format.Upper(format.RunPagePrefix(line.family, at.Page)))
	}
	return it.Error()
}

// missingOf is a missing member that some of the runs lie on; nil: none.
func (t *memberTable) missingOf(list []runs.Entry) *poolMember {
	for _, e := range list {
		if e.IsZero() {
			continue
		}
		for seg := e.Place() / alloc.SegmentBlocks; seg <= (e.Place()+uint64(e.Len())-1)/alloc.SegmentBlocks; seg++ {
			if m := t.at(seg); m != nil && m.dev == nil {
				return m
			}
		}
	}
	return nil
}
