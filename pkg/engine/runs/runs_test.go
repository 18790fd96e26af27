package runs

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is a page block by block.
type model [Blocks]struct {
	set, zero  bool
	place, gen uint64
}

func (m *model) put(e Entry) {
	for i := range e.Len() {
		c := &m[e.Off()+i]
		c.set, c.zero, c.gen, c.place = true, e.IsZero(), e.Gen(), 0
		if !c.zero {
			c.place = e.Place() + uint64(i)
		}
	}
}

func (m *model) equal(t *rapid.T, list []Entry) {
	if err := Valid(list); err != nil {
		t.Fatal(err)
	}
	var got model
	for i, e := range list {
		got.put(e)
		if i > 0 && follows(list[i-1], e) {
			t.Fatalf("%v and %v were not joined", list[i-1], e)
		}
	}
	if got != *m {
		t.Fatalf("list %v differs from the model", list)
	}
}

func drawEntry(t *rapid.T) Entry {
	off := rapid.IntRange(0, 63).Draw(t, "off")
	n := rapid.IntRange(1, 64-off).Draw(t, "len")
	gen := rapid.Uint64Range(1, 3).Draw(t, "gen")
	if rapid.Bool().Draw(t, "zero") {
		return Zero(off, n, gen)
	}
	return Data(off, n, rapid.Uint64Range(0, 3).Draw(t, "base")*100+uint64(off), gen)
}

func TestListAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []Entry
		var m model
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			e := drawEntry(t)
			switch rapid.IntRange(0, 2).Draw(t, "op") {
			case 0:
				list = Insert(list, e)
				m.put(e)
			case 1:
				list = Remove(list, e.Off(), e.End())
				for i := e.Off(); i < e.End(); i++ {
					m[i] = struct {
						set, zero  bool
						place, gen uint64
					}{}
				}
			case 2:
				list = Fill(list, e)
				for i := e.Off(); i < e.End(); i++ {
					if !m[i].set {
						m.put(e.Sub(i, i+1))
					}
				}
			}
			m.equal(t, list)
			checkSlice(t, &m, list)
		}
	})
}

func checkSlice(t *rapid.T, m *model, list []Entry) {
	off := rapid.IntRange(0, 70).Draw(t, "sliceOff")
	end := rapid.IntRange(off+1, 80).Draw(t, "sliceEnd")
	part := Slice(nil, list, off, end)
	want := 0
	for i := off; i < end; i++ {
		if m[i].set {
			want++
		}
	}
	if Covered(part) != want || Overlaps(list, off, end) != (want > 0) {
		t.Fatalf("slice [%d,%d) of %v covers %d blocks, want %d", off, end, list, Covered(part), want)
	}
}

// Flatten is Fill, entry by entry, and MappedOver what Fill would map.
func TestFlattenIsFill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) (list, filled []Entry) {
			list = rapid.SliceOfN(rapid.Custom(drawEntry), 0, 40).Draw(t, label)
			for i, e := range list {
				if shift := rapid.SampledFrom([]int{0, 30, Blocks - 64}).Draw(t, "shift"); !e.IsZero() {
					list[i] = Data(e.Off()+shift, e.Len(), e.Place(), e.Gen())
				}
				filled = Fill(filled, list[i])
			}
			return list, filled
		}
		list, filled := draw("list")
		if got := Flatten(list); !slices.Equal(got, filled) {
			t.Fatalf("flattened: %v, filled: %v", got, filled)
		}
		_, below := draw("below")
		both := slices.Clone(filled)
		for _, e := range below {
			both = Fill(both, e)
		}
		if got, want := MappedOver(filled, below), Mapped(both); got != want {
			t.Fatalf("%d blocks are mapped, want %d", got, want)
		}
	})
}

func TestEntryFields(t *testing.T) {
	e := Data(1023, 1, MaxPlace, MaxGen).Replacing()
	if e.Off() != 1023 || e.Len() != 1 || e.Place() != MaxPlace || e.Gen() != MaxGen || e.IsZero() || !e.Replaces() || e.Plain().Replaces() {
		t.Fatalf("fields of %v are wrong", e)
	}
	if z := Zero(0, Blocks, 7); z.Len() != Blocks || !z.IsZero() || z.Gen() != 7 {
		t.Fatalf("fields of %v are wrong", z)
	}
}

func BenchmarkInsertSequential(b *testing.B) {
	for b.Loop() {
		var list []Entry
		for i := range Blocks {
			list = Insert(list, Data(i, 1, uint64(i), 1))
		}
	}
}

func BenchmarkFlatten(b *testing.B) {
	var list []Entry
	for gen := range uint64(100) {
		for i := range Blocks / 64 {
			list = append(list, Data((i*64+int(gen)*7)%Blocks, 1, uint64(i), 100-gen))
		}
	}
	for b.Loop() {
		Flatten(list)
	}
}

func TestByPlace(t *testing.T) {
	list := []Entry{Data(0, 2, 100, 1), Data(2, 1, 102, 2), Zero(3, 1, 2), Zero(4, 1, 3), Data(5, 1, 104, 1), Data(7, 1, 105, 1), Data(8, 1, 107, 1)}
	want := [][3]int{{0, 3, 100}, {3, 1, -1}, {4, 1, -1}, {5, 1, 104}, {7, 1, 105}, {8, 1, 107}}
	got := ByPlace(list)
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i, w := range want {
		if e := got[i]; e.Off() != w[0] || e.Len() != w[1] || e.IsZero() != (w[2] < 0) || (!e.IsZero() && e.Place() != uint64(w[2])) {
			t.Errorf("entry %d is %v, want %v", i, e, w)
		}
	}
}

// TestSearchInPieces: pages that are full, or nearly, of runs of one block and a few, where search leaves most of the list out.
func TestSearchInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gap := rapid.IntRange(1, 400).Draw(t, "gap") // of so many runs one is left out, and one is long
		var list []Entry
		for off := rapid.IntRange(0, 3).Draw(t, "first"); off < Blocks; {
			n := 1
			if len(list)%gap == gap-1 {
				n = min(rapid.IntRange(1, 40).Draw(t, "length"), Blocks-off)
				off += rapid.IntRange(0, 1).Draw(t, "hole") * min(1, Blocks-off-n)
			}
			list = append(list, Data(off, n, uint64(2*off), 1))
			off += n
		}
		for off := range Blocks {
			want := slices.IndexFunc(list, func(e Entry) bool { return e.End() > off })
			if want < 0 {
				want = len(list)
			}
			if got := search(list, off); got != want {
				t.Fatalf("search for %d in %d runs found %d, want %d", off, len(list), got, want)
			}
		}
	})
}

func BenchmarkSearchInPieces(b *testing.B) {
	var list []Entry
	for off := range Blocks {
		if off%16 != 0 {
			list = append(list, Data(off, 1, uint64(2*off), 1))
		}
	}
	for i := 0; b.Loop(); i++ {
		search(list, i*389%Blocks)
	}
}
