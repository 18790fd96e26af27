package engine

import (
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
)

// mend puts back what damage spoiled.
func (tp *testPool) mend(place uint64, b []byte) {
	tp.t.Helper()
	must(tp.t, tp.data.WriteAt(b, place, 0))
}

// placesOn are a volume's places in the segments of a member.
func (tp *testPool) placesOn(v *Volume, index uint32) (list []uint64) {
	t := tp.members.table.Load()
	for _, place := range tp.placesOf(v) {
		if place != 0 && t.at(place/alloc.SegmentBlocks).index == index {
			list = append(list, place)
		}
	}
	return list
}

// A damaged block does not keep a drain from the rest: it alone stays, and the member says whose it is. When its owner has gone the drain comes to its end.
func TestDrainAroundDamage(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	p.quiet()
	v := p.volume("v", 64<<20)
	want := fillPattern(t, v, 32)
	p.snapshot("s", "v")
	must(t, p.WaitChecksums(t.Context()))
	places := p.placesOn(v, 1)
	if len(places) < 1000 {
		t.Fatalf("%d blocks are on the second member", len(places))
	}
	bad := []uint64{places[77], places[500], places[501]}
	was := make([][]byte, len(bad))
	for i, place := range bad {
		was[i] = make([]byte, BlockSize)
		must(t, p.data.ReadAt(was[i], place, 0))
		p.damage(place)
	}
	_, err := p.DrainMember(t.Context(), "1", false)
	must(t, err)
	until(t, "the drain says what is in its way", func() bool {
		return strings.Contains(p.Info().Members[1].Reason, `3 of snapshot "s" of volume "v", volume "v"`)
	})
	if m := p.Info().Members[1]; m.Used != int64(len(bad))*BlockSize || m.State != "Draining" {
		t.Fatalf("%+v", m)
	}
	for i, place := range bad {
		p.mend(place, was[i])
	}
	wantContent(t, v, want)
	p.kickDrain()
	p.drained(1)
	until(t, "nothing is in the way", func() bool { return p.Info().Members[1].Reason == "" })
	if _, err := p.RemoveMember(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	wantContent(t, v, want)
}

// Tidy leaves what it cannot copy, counts the page as skipped, and goes on with the others.
func TestTidyAroundDamage(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 16<<20)
	for page := range 2 {
		for i := range 512 { // every other block, then those between: 1,024 places
			p.write(v, page*1024+i*2, 1, 1)
		}
	}
	must(t, p.flush())
	for page := range 2 {
		for i := range 512 {
			p.write(v, page*1024+i*2+1, 1, 2)
		}
	}
	p.snapshot("s", "v")
	must(t, p.WaitChecksums(t.Context()))
	place := p.placesOf(v)[100]
	was := make([]byte, BlockSize)
	must(t, p.data.ReadAt(was, place, 0))
	p.damage(place)
	done := p.tidyAll("v")
	if done.Pages != 2 || done.Skipped != 1 || done.Moved != (2048-1)*BlockSize {
		t.Fatalf("%+v", done)
	}
	if now := p.placesOf(v)[100]; now != place {
		t.Fatalf("the damaged block is at %d, was at %d", now, place)
	}
	p.mend(place, was)
}
