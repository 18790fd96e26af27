package engine

import (
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// scatter is how many reads or writes of one request are under way at once.
const scatter = 16

// sideBySide calls do for the parts of n things, [from, to), at most scatter of them at once, and returns when all have returned: with an error, if any
// did. The parts must not overlap in what they write.
func sideBySide(n int, do func(from, to int) error) error {
	parts := min(scatter, n)
	errs := make(chan error, parts)
	for i := range parts {
		work := func() { errs <- do(i*n/parts, (i+1)*n/parts) }
		if i < parts-1 {
			go work()
		} else {
			work()
		}
	}
	var first error
	for range parts {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// overwriteScattered is overwrite for a range that lies in many places: one after the other, the 256 blocks of 1 MiB that was written block by block
// kept a snapshot's gate shut for up to 100 ms.
func (v *Volume) overwriteScattered(list []runs.Entry, at int, b []byte) error {
	return sideBySide(len(list), func(from, to int) error {
		for _, e := range list[from:to] {
			if err := v.overwriteOne(e, at, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeScattered is writeAll for many places. It works on a copy, so that a write to one place allocates nothing.
func (w *partWrite) writeScattered() error {
	c := new(*w)
	c.list, c.news = slices.Clone(w.list), slices.Clone(w.news)
	var owned []runs.Entry
	for _, e := range c.list { // the whole list is what writeNew merges with
		if c.owns(e) {
			owned = append(owned, e)
		}
	}
	return sideBySide(len(c.news)+len(owned), func(from, to int) error {
		for i := from; i < to; i++ {
			var err error
			if i < len(c.news) {
				err = c.writeNew(c.news[i])
			} else {
				err = c.writeOld(owned[i-len(c.news)])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
