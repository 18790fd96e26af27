package engine

import (
	"context"
	"errors"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// readMarks reads which generations are said to have all their checksums, and checks that they may have any.
func (k *checker) readMarks(r reader) error {
	prefix := format.SummedAll()
	return scan(r, prefix, format.Upper(prefix), func(key, _ []byte) error {
		gen, err := format.ParseSummedKey(key)
		if err != nil {
			k.problem("%v", err)
			return nil
		}
		k.summed[gen] = true
		if why := k.noSums(gen); why != "" {
			k.problem("generation %d is marked to have its checksums, and %s", gen, why)
		}
		return nil
	})
}

// noSums tells why a generation may have no checksums, if it may not.
func (k *checker) noSums(gen uint64) string {
	switch l := k.c.byGen[gen]; {
	case l == nil:
		return "no layer has it"
	case l.rec.Head != 0:
		return "its layer is a volume's head, which is written in place"
	case k.freed[l.id]:
		return "its layer is queued for freeing"
	}
	return ""
}

// checkPageSums compares the checksums of a generation in a page with the runs it has there.
func (k *checker) checkPageSums(r reader, l *layer, gen uint64, page uint32, list []runs.Entry) error {
	if k.noSums(gen) != "" {
		return nil
	}
	sums, err := readSums(r, gen, page)
	if errors.Is(err, format.ErrCorrupt) {
		return nil // told with the records
	}
	if err != nil {
		return err
	}
	mapped := runs.Mapped(list)
	if sums == nil {
		if k.summed[gen] && mapped > 0 {
			k.problem("generation %d is marked to have its checksums, and has none in page %d", gen, page)
		}
		return nil
	}
	count := sums.Count()
	keepOnly(sums, list)
	if left := sums.Count(); left < count {
		k.problem("generation %d has checksums of %d blocks of page %d where it has no run", gen, count-left, page)
	} else if k.summed[gen] && left < mapped {
		k.problem("generation %d is marked to have its checksums, and lacks those of %d blocks of page %d", gen, mapped-left, page)
	}
	return nil
}

// checkSums walks all checksums: they decode, and belong to generations that may have some and that touched the page.
func (k *checker) checkSums(ctx context.Context, r reader) error {
	prefix := format.SumsAll()
	return scan(r, prefix, format.Upper(prefix), func(key, val []byte) error {
		gen, page, err := format.ParseSumsKey(key)
		if err != nil {
			k.problem("%v", err)
			return nil
		}
		sums, err := format.ParseSums(val)
		if err != nil {
			k.problem("generation %d, page %d: %v", gen, page, err)
			return nil
		}
		k.Checksums += int64(sums.Count())
		why := k.noSums(gen)
		if why == "" {
			touched, err := hasKey(r, format.TouchedKey(gen, page))
			if err != nil {
				return err
			}
			if !touched {
				why = "it has no run there"
			}
		}
		if why != "" {
			k.problem("generation %d has checksums in page %d, and %s", gen, page, why)
		}
		return ctx.Err()
	})
}
