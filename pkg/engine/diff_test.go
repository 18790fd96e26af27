package engine

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// diff reads a whole list, so many ranges at a time.
func (tp *testPool) diff(spec DiffSpec, most int) (size int64, ranges []Range) {
	tp.t.Helper()
	spec.Max = most
	for {
		page, err := tp.Diff(tp.t.Context(), spec)
		must(tp.t, err)
		if most > 0 && len(page.Ranges) > most {
			tp.t.Fatalf("%d ranges, asked for %d at most", len(page.Ranges), most)
		}
		ranges = append(ranges, page.Ranges...)
		if page.Next == 0 {
			return page.Size, ranges
		}
		spec.Start = page.Next
	}
}

func TestDiff(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 16<<20)
	w := p.volume("w", 16<<20)
	put := func(dev *Volume, blocks ...int64) {
		t.Helper()
		for _, i := range blocks {
			_, err := dev.WriteAt([]byte(strings.Repeat("x", BlockSize)), i*BlockSize)
			must(t, err)
		}
	}
	snap := func(name string) {
		t.Helper()
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: name, Volume: "v"})
		must(t, err)
	}
	put(v, 0, 1, 2, 1023, 1024, 3000)
	snap("a")
	put(v, 1, 5)
	must(t, v.Discard(1024*BlockSize, BlockSize))
	snap("b")
	_, err := p.GrowVolume(t.Context(), "v", 17<<20)
	must(t, err)
	put(v, 7, 4096+10)
	blocks := func(firstLen ...int64) (r []Range) {
		for i := 0; i < len(firstLen); i += 2 {
			r = append(r, Range{firstLen[i] * BlockSize, firstLen[i+1] * BlockSize})
		}
		return r
	}
	for _, c := range []struct {
		spec DiffSpec
		want []Range
	}{
		{DiffSpec{Snapshot: "a"}, blocks(0, 3, 1023, 2, 3000, 1)},
		{DiffSpec{Snapshot: "b"}, blocks(0, 3, 5, 1, 1023, 1, 3000, 1)},
		{DiffSpec{Volume: "v"}, blocks(0, 3, 5, 1, 7, 1, 1023, 1, 3000, 1, 4106, 1)},
		{DiffSpec{Volume: "w"}, nil},
		{DiffSpec{From: "a", Snapshot: "a"}, nil},
		{DiffSpec{From: "a", Snapshot: "b"}, blocks(1, 1, 5, 1, 1024, 1)},
		{DiffSpec{From: "b", Snapshot: "a"}, blocks(1, 1, 5, 1, 1024, 1)},
		{DiffSpec{From: "b", Volume: "v"}, blocks(7, 1, 4096, 256)}, // what only the larger has
		{DiffSpec{From: "a", Volume: "v"}, blocks(1, 1, 5, 1, 7, 1, 1024, 1, 4096, 256)},
		{DiffSpec{From: "a", Volume: "v", Start: 5*BlockSize + 1}, blocks(5, 1, 7, 1, 1024, 1, 4096, 256)},
		{DiffSpec{From: "a", Volume: "v", Start: 4100 * BlockSize}, blocks(4100, 252)},
		{DiffSpec{From: "a", Volume: "v", Start: MaxVolumeSize * 2}, nil},
	} {
		for _, most := range []int{0, 1, 2} {
			if _, got := p.diff(c.spec, most); !slices.Equal(got, c.want) {
				t.Errorf("%+v, %d at a time: %v, want %v", c.spec, most, got, c.want)
			}
		}
	}
	put(w, 1)
	for _, c := range []struct {
		spec  DiffSpec
		want  error
		names string
	}{
		{DiffSpec{From: "a"}, ErrInvalid, "snapshot or a volume"},
		{DiffSpec{Snapshot: "a", Volume: "v"}, ErrInvalid, "snapshot or a volume"},
		{DiffSpec{Snapshot: "a", Start: -1}, ErrInvalid, "-1"},
		{DiffSpec{Snapshot: "nobody"}, ErrNotFound, `"nobody"`},
		{DiffSpec{Volume: "nobody"}, ErrNotFound, `"nobody"`},
		{DiffSpec{From: "nobody", Volume: "v"}, ErrNotFound, `"nobody"`},
		{DiffSpec{From: "a", Volume: "w"}, ErrUnrelated, `"a"`},
	} {
		if _, err := p.Diff(t.Context(), c.spec); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%+v: %v, want %v naming %s", c.spec, err, c.want, c.names)
		}
	}
	p.check()
}

// What a difference reads goes with what changed: a page of the volume that no generation on the paths touched is not looked at, however much is
// there.
func TestDiffReadsWhatChanged(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", MaxVolumeSize)
	const pages = 300
	for i := range int64(pages) {
		_, err := v.WriteAt(make([]byte, BlockSize), i*pageBytes)
		must(t, err)
	}
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "a", Volume: "v"})
	must(t, err)
	for _, page := range []int64{7, 200, MaxVolumeSize/pageBytes - 1} {
		_, err := v.WriteAt(make([]byte, BlockSize), page*pageBytes)
		must(t, err)
	}
	d, err := p.diffMoment(DiffSpec{From: "a", Volume: "v", Max: 10})
	must(t, err)
	defer d.snap.Close()
	touched, err := newTouchedPages(d.snap, d.gens, 0)
	must(t, err)
	var got []uint32
	for {
		page, gens, ok, err := touched.next()
		must(t, err)
		if !ok {
			break
		}
		if got = append(got, page); len(gens) != 1 {
			t.Errorf("page %d: generations %v", page, gens)
		}
	}
	if want := []uint32{7, 200, MaxVolumeSize/pageBytes - 1}; !slices.Equal(got, want) {
		t.Errorf("pages %v are looked at, want %v", got, want)
	}
	// The index of one generation is read in several portions.
	if _, all := p.diff(DiffSpec{Snapshot: "a"}, 0); len(all) != pages {
		t.Errorf("%d ranges are allocated, want %d", len(all), pages)
	}
}
