package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// repairer writes anew what can be derived from the runs and the catalogue: bitmaps, what segments have in use and that it has its space, the index of
// touched pages, counts, jobs, and which checksums may be there. It changes no run and no name: what these say is what guests read.
//
// Data is sacred: no block is marked free while any run does not decode, for it might be that run's; a block of a run whose layer is gone stays in use.
// It can be interrupted anywhere and begun anew, because nothing it writes is derived from what it writes.
type repairer struct {
	k       *checker
	db      *metadata
	b       *pebble.Batch
	changes int
	pool    format.Pool
}

// repair mends a store that nobody has open, and returns how many records it wrote or removed.
func repair(ctx context.Context, db *metadata) (changes int, err error) {
	k, err := newChecker(db, func(uint64) bool { return true })
	if err != nil {
		return 0, fmt.Errorf("nothing was changed, the catalogue cannot be derived: %w", err)
	}
	f := &repairer{k: k, db: db, b: db.newBatch()}
	if f.pool, err = readPoolRecord(db, nil); err != nil {
		return 0, fmt.Errorf("nothing was changed, the pool's record cannot be derived: %w", err)
	}
	k.checkTree() // for what is joining
	if err := k.checkRuns(ctx, db); err != nil {
		return 0, err
	}
	if k.unread > 0 {
		return 0, fmt.Errorf("%w: nothing was changed: %d runs do not decode, and what they own cannot be told", ErrCorrupt, k.unread)
	}
	for _, step := range []func(context.Context) error{f.jobs, f.segments, f.bitmaps, f.index, f.counts, f.sums, f.marks} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return f.changes, err
		}
	}
	return f.changes, f.commit()
}

func (f *repairer) commit() error {
	if err := f.b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("write repairs: %w", err)
	}
	f.b = f.db.newBatch()
	return nil
}

// put and remove change a record; large repairs go in several batches.
func (f *repairer) put(key, value []byte) error {
	f.changes++
	if err := f.b.Set(key, value, nil); err != nil {
		return err
	}
	return f.commitFull()
}

func (f *repairer) remove(key []byte) error {
	f.changes++
	if err := f.b.Delete(key, nil); err != nil {
		return err
	}
	return f.commitFull()
}

func (f *repairer) commitFull() error {
	if f.b.Len() < maxBatch {
		return nil
	}
	return f.commit()
}

// jobs drops work on layers that are gone, and queues the removal of hidden runs that nobody would remove. Layers that nothing names are queued when the
// pool is opened.
func (f *repairer) jobs(context.Context) error {
	for id, j := range f.k.c.jobs {
		if f.k.c.layers[j.Layer] == nil {
			if err := f.remove(format.JobKey(id)); err != nil {
				return err
			}
		}
	}
	for l := range f.k.hiding {
		id := f.pool.NextID
		f.pool.NextID++
		job := format.Job{Kind: format.JobJoin, Layer: l.id, Gens: l.rec.Gens}
		if err := errors.Join(f.put(format.JobKey(id), job.Encode()), f.put(format.PoolKey(), f.pool.Encode())); err != nil {
			return err
		}
	}
	return nil
}

// segments makes the records of segments agree with the blocks in use. A chunk in use without a record of its space has it: what is in use was written.
// It counts as unwritten, so that flushes sync it.
func (f *repairer) segments(context.Context) error {
	used := map[uint32]uint64{}
	records := map[uint32]*format.Segment{}
	stored := map[uint32]*format.Segment{}
	lower, upper := format.Kind(format.SegmentKey(0))
	err := scan(f.db, lower, upper, func(key, val []byte) error {
		seg, err := format.ParseNumber(key)
		if err != nil {
			return f.remove(slices.Clone(key))
		}
		rec, err := format.ParseSegment(val)
		if err != nil {
			rec = format.Segment{} // written before, or reserved: what is in use is set below, the rest is reserved anew
		} else {
			was := rec
			stored[seg] = &was
		}
		records[seg] = &rec
		return nil
	})
	if err != nil {
		return err
	}
	for chunk, bits := range f.k.used {
		seg, i := chunk/alloc.SegmentChunks, int(chunk%alloc.SegmentChunks)
		used[seg] += uint64(bits.Count())
		rec := records[seg]
		if rec == nil {
			rec = &format.Segment{}
			records[seg] = rec
		}
		if !hasChunk(&rec.Written, i) && !hasChunk(&rec.Reserved, i) {
			(*alloc.Chunks)(&rec.Reserved).Add(i)
		}
	}
	for seg, rec := range records {
		if was := stored[seg]; was == nil || *was != *rec {
			if err := f.put(format.SegmentKey(seg), rec.Encode()); err != nil {
				return err
			}
		}
	}
	return f.segmentUses(used)
}

func (f *repairer) segmentUses(used map[uint32]uint64) error {
	lower, upper := format.Kind(format.SegmentUseKey(0))
	err := scan(f.db, lower, upper, func(key, val []byte) error {
		seg, err := format.ParseNumber(key)
		if err != nil {
			return f.remove(slices.Clone(key))
		}
		n, size := binary.Uvarint(val)
		want := used[seg]
		delete(used, seg)
		if size == len(val) && n == want {
			return nil
		}
		return f.put(slices.Clone(key), binary.AppendUvarint(nil, want))
	})
	for seg, n := range used {
		err = errors.Join(err, f.put(format.SegmentUseKey(seg), binary.AppendUvarint(nil, n)))
	}
	return err
}

func (f *repairer) bitmaps(context.Context) error {
	seen := map[uint32]bool{}
	lower, upper := format.Kind(format.BitmapKey(0))
	err := scan(f.db, lower, upper, func(key, val []byte) error {
		chunk, err := format.ParseNumber(key)
		if err != nil {
			return f.remove(slices.Clone(key))
		}
		seen[chunk] = true
		want := f.k.used[chunk]
		if want == nil {
			want = &alloc.Bitmap{}
		}
		if bits, err := decodeBitmap(val); err == nil && bits == *want {
			return nil
		}
		return f.put(slices.Clone(key), encodeBitmap(want))
	})
	for chunk, bits := range f.k.used {
		if !seen[chunk] {
			err = errors.Join(err, f.put(format.BitmapKey(chunk), encodeBitmap(bits)))
		}
	}
	return err
}

// index makes the index of touched pages say what the runs say.
func (f *repairer) index(ctx context.Context) error {
	prefix := format.TouchedAll()
	err := scan(f.db, prefix, format.Upper(prefix), func(key, _ []byte) error {
		gen, page, err := format.ParseTouchedKey(key)
		if err == nil {
			if l := f.k.c.byGen[gen]; l != nil {
				list, err := readGeneration(f.db, l.rec.Family, page, gen)
				if err != nil || len(list) > 0 {
					return err
				}
			}
		}
		return errors.Join(ctx.Err(), f.remove(slices.Clone(key)))
	})
	if err != nil {
		return err
	}
	var at format.RunPage
	var last uint64
	prefix = format.RunPrefix()
	return scan(f.db, prefix, format.Upper(prefix), func(key, _ []byte) error {
		p, gen, _, err := format.ParseRunKey(key)
		if err != nil || (p == at && gen == last) || f.k.c.byGen[gen] == nil {
			return err
		}
		at, last = p, gen
		has, err := hasKey(f.db, format.TouchedKey(gen, p.Page))
		if err != nil || has {
			return err
		}
		return errors.Join(ctx.Err(), f.put(format.TouchedKey(gen, p.Page), nil))
	})
}

func (f *repairer) counts(context.Context) error {
	for _, l := range f.k.c.layers {
		if owned, pages := f.k.owned[l], f.k.pages[l]; l.owned.Load() != owned || l.pages.Load() != pages {
			if err := f.put(format.LayerUseKey(l.id), format.LayerUse{Owned: uint64(owned), Pages: uint64(pages)}.Encode()); err != nil {
				return err
			}
		}
	}
	for _, v := range f.k.c.volumes {
		if mapped := f.k.mapped[v]; v.mapped.Load() != mapped {
			use := format.VolumeUse{Mapped: uint64(mapped), Written: v.written.Load() || mapped > 0}
			if err := f.put(format.VolumeUseKey(v.id), use.Encode()); err != nil {
				return err
			}
		}
	}
	return nil
}

// sums removes checksums that belong to nothing: those of what is not frozen above all, which guests overwrite. Those that were lost are made again.
func (f *repairer) sums(ctx context.Context) error {
	prefix := format.SumsAll()
	return scan(f.db, prefix, format.Upper(prefix), func(key, val []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		key = slices.Clone(key)
		gen, page, err := format.ParseSumsKey(key)
		if err != nil || f.k.noSums(gen) != "" {
			return f.remove(key)
		}
		sums, err := format.ParseSums(val)
		if err != nil {
			return f.remove(key)
		}
		list, err := readGeneration(f.db, f.k.c.byGen[gen].rec.Family, page, gen)
		switch {
		case err != nil:
			return err
		case runs.Mapped(list) == 0:
			return f.remove(key)
		case !keepOnly(sums, list):
			// A record says that its page is done: one that lacks some would never be completed.
			if sums.Count() == runs.Mapped(list) {
				return nil
			}
			return f.remove(key)
		case sums.Count() < runs.Mapped(list):
			return f.remove(key)
		}
		return f.put(key, sums.Encode())
	})
}

// marks removes those of generations that may have no checksums, or lack some. It goes by what sums has left, so that is committed first.
func (f *repairer) marks(ctx context.Context) error {
	if err := f.commit(); err != nil {
		return err
	}
	prefix := format.SummedAll()
	return scan(f.db, prefix, format.Upper(prefix), func(key, _ []byte) error {
		key = slices.Clone(key)
		gen, err := format.ParseSummedKey(key)
		if err != nil || f.k.noSums(gen) != "" {
			return f.remove(key)
		}
		all, err := f.allSums(ctx, gen)
		if err != nil || all {
			return err
		}
		return f.remove(key)
	})
}

// allSums tells whether a generation has a record of checksums in every page it has data in.
func (f *repairer) allSums(ctx context.Context, gen uint64) (bool, error) {
	family := f.k.c.byGen[gen].rec.Family
	for next := uint32(0); ; {
		pages, err := touchedFrom(f.db, gen, next, stepPages)
		if err != nil {
			return false, err
		}
		for _, page := range pages {
			has, err := hasKey(f.db, format.SumsKey(gen, page))
			if err == nil && !has {
				var list []runs.Entry
				if list, err = readGeneration(f.db, family, page, gen); err == nil && runs.Mapped(list) > 0 {
					return false, ctx.Err()
				}
			}
			if err != nil {
				return false, err
			}
		}
		if len(pages) < stepPages {
			return true, nil
		}
		next = pages[len(pages)-1] + 1
	}
}
