package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// errCopyRead: what is to be copied cannot be read, or is not what its checksum says. Its copy must not become the only one.
var errCopyRead = errors.New("read what is to be copied")

// errUncopied: all that is left of a drain is such.
var errUncopied = errors.New("blocks that cannot be copied are in the way")

// unmoved are runs of a page that cannot be copied.
type unmoved struct {
	family, page uint32
	list         []runs.Entry
}

// relocateAround is relocate for a caller that goes on with the rest where some blocks cannot be copied: those are left where they are and returned. They are
// found by halves, so that one bad block does not keep its neighbours.
func (p *Pool) relocateAround(r relocation) (moved int, bad []runs.Entry, err error) {
	moved, err = p.relocate(r)
	if !errors.Is(err, errCopyRead) || p.failure() != nil {
		return moved, nil, err
	}
	blocks := runs.Covered(r.list)
	if blocks == 1 {
		return moved, r.list, nil
	}
	first, second := halves(r.list, blocks/2)
	for _, list := range [][]runs.Entry{first, second} {
		half := r
		half.list = list // what was moved is not there any more, and passed over
		n, left, err := p.relocateAround(half)
		moved += n
		if bad = append(bad, left...); err != nil {
			return moved, bad, err
		}
	}
	return moved, bad, nil
}

// halves cuts a list after so many blocks.
func halves(list []runs.Entry, blocks int) (first, second []runs.Entry) {
	for _, e := range list {
		n := min(e.Len(), blocks)
		blocks -= n
		if n > 0 {
			first = append(first, e.Sub(e.Off(), e.Off()+n))
		}
		if n < e.Len() {
			second = append(second, e.Sub(e.Off()+n, e.End()))
		}
	}
	return first, second
}

// namesInError is how many snapshots and volumes a text names, and uncopiedLooks how many runs are looked at for them.
const (
	namesInError  = 16
	uncopiedLooks = 256
)

// uncopied says whose blocks cannot be copied; nil: there are none.
func (p *Pool) uncopied(bad []unmoved) error {
	blocks, looks := 0, 0
	var names []string
	for _, u := range bad {
		blocks += runs.Covered(u.list)
		for _, e := range u.list {
			if looks++; looks > uncopiedLooks {
				break
			}
			var problem ScrubProblem
			at := badBlocks{off: e.Off(), n: e.Len(), place: e.Place()}
			if err := p.pinned(func() error { return p.shownBy(&problem, scrubGen{family: u.family, gen: e.Gen()}, u.page, at) }); err != nil {
				return err
			}
			for _, s := range problem.Snapshots {
				names = append(names, fmt.Sprintf("snapshot %q of volume %q", s.Name, s.Volume))
			}
			for _, v := range problem.Volumes {
				names = append(names, fmt.Sprintf("volume %q", v))
			}
		}
	}
	if blocks == 0 {
		return nil
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > namesInError {
		names = append(names[:namesInError], fmt.Sprintf("%d more", len(names)-namesInError))
	}
	return fmt.Errorf("%w: %d of %s; pool scrub tells where they are; restore or overwrite what shows them, or delete it", errUncopied, blocks, strings.Join(names, ", "))
}

// tellUncopied tells the observer.
func (p *Pool) tellUncopied(message string, u unmoved) {
	if err := p.uncopied([]unmoved{u}); err != nil {
		p.event(message, "error", err)
	}
}
