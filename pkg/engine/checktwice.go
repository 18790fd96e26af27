package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// shared is a stretch of pool blocks in a run, of which each has another owner, too.
type shared struct {
	place uint64
	n     int
	at    format.RunPage
	gen   uint64
	off   int // of the page
}

// checkTwice names the owners of blocks that have more than one. Nothing tells whose the bytes are, so nothing can mend it.
func (k *checker) checkTwice(ctx context.Context, r reader) error {
	if len(k.twice) == 0 {
		return nil
	}
	var all []shared
	prefix := format.RunPrefix()
	err := scan(r, prefix, format.Upper(prefix), func(key, val []byte) error {
		at, gen, block, err := format.ParseRunKey(key)
		if err != nil {
			return nil // told before
		}
		e, err := entryOf(val, block, gen)
		if err != nil || e.IsZero() {
			return nil
		}
		all = append(all, k.sharedOf(at, e)...)
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b shared) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.gen, b.gen), cmp.Compare(a.off, b.off))
	})
	for len(all) > 0 {
		// Stretches are cut where any owner's run begins or ends; each is told with all its owners.
		first, n := all[0].place, all[0].n
		for _, s := range all[1:] {
			if s.place > first {
				n = min(n, int(s.place-first))
				break
			}
			n = min(n, s.n)
		}
		var rest []shared
		var owners []string
		for _, s := range all {
			if s.place == first {
				who, err := k.whose(r, s, n)
				if err != nil {
					return err
				}
				owners = append(owners, who)
				s.place, s.off, s.n = s.place+uint64(n), s.off+n, s.n-n
			}
			if s.n > 0 {
				rest = append(rest, s)
			}
		}
		k.problem("%d pool blocks from %d on have %d owners: %s", n, first, len(owners), strings.Join(owners, "; and "))
		if all = rest; len(k.Problems) >= maxProblems {
			return nil
		}
		slices.SortStableFunc(all, func(a, b shared) int { return cmp.Compare(a.place, b.place) })
	}
	return nil
}

// sharedOf are the stretches of a run with another owner.
func (k *checker) sharedOf(at format.RunPage, e runs.Entry) (list []shared) {
	for i := range e.Len() {
		place := e.Place() + uint64(i)
		if !k.twice[place] {
			continue
		}
		if n := len(list); n > 0 && list[n-1].place+uint64(list[n-1].n) == place {
			list[n-1].n++
			continue
		}
		list = append(list, shared{place: place, n: 1, at: at, gen: e.Gen(), off: e.Off() + i})
	}
	return list
}

// whose says what shows a stretch, and where in it.
func (k *checker) whose(r reader, s shared, n int) (string, error) {
	var names []string
	for _, a := range k.c.namesIn(s.at.Family) {
		shows, err := a.shows(r, s.gen, s.at.Page, s.off, n)
		if err != nil && !damaged(err) {
			return "", err
		}
		if shows {
			names = append(names, a.String())
		}
	}
	if len(names) == 0 {
		names = []string{fmt.Sprintf("generation %d of family %d, which nothing shows", s.gen, s.at.Family)}
	}
	off := int64(s.at.Page)*pageBytes + int64(s.off)*BlockSize
	return fmt.Sprintf("%d bytes at %d of %s", n*BlockSize, off, strings.Join(names, ", ")), nil
}
