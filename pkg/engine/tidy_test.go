package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// scatter writes many blocks of a volume in a random order.
func (tp *testPool) scatter(v *Volume, n int, seed uint64) {
	tp.t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		tp.writeStamp(v, r.Int64N(v.Size()/BlockSize), 1, r.Uint64())
	}
}

// tidyAll tidies a volume to its end.
func (tp *testPool) tidyAll(name string) (all TidyStep) {
	tp.t.Helper()
	for start := int64(0); ; {
		step, err := tp.Tidy(tp.t.Context(), TidySpec{Volume: name, Start: start, Rate: -1})
		must(tp.t, err)
		all.Pages, all.Moved, all.Skipped = all.Pages+step.Pages, all.Moved+step.Moved, all.Skipped+step.Skipped
		if start = step.Next; start == 0 {
			return all
		}
	}
}

// inPlaces counts the places that reads of all pages go to.
func (tp *testPool) inPlaces(v *Volume) (n int) {
	tp.t.Helper()
	for page := range uint32((v.Size() + pageBytes - 1) / pageBytes) {
		list, err := tp.pages.lookup(&v.mapping, page, 0, PageBlocks, nil)
		must(tp.t, err)
		n += places(list, 0)
	}
	return n
}

// Random writes over a sequential volume with a snapshot scatter it; tidying puts it in sequence again, and changes nothing that shows.
func TestTidy(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 16<<20)
	_, err := v.WriteAt(make([]byte, 16<<20), 0)
	must(t, err)
	p.snapshot("s", "v")
	p.scatter(v, 2000, 1)
	s, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	want, frozen := readAll(t, v), readAll(t, s)
	must(t, p.flush())
	used := p.Info().Used
	before := p.inPlaces(v)
	done := p.tidyAll("v")
	after := p.inPlaces(v)
	if done.Pages != 4 || done.Moved != 16<<20 || done.Skipped != 0 || before < 1000 || after > 16 {
		t.Fatalf("%d places, then %d: %+v", before, after, done)
	}
	if !bytes.Equal(readAll(t, v), want) || !bytes.Equal(readAll(t, s), frozen) {
		t.Fatal("what shows has changed")
	}
	if got := p.Info().Used; got != used {
		t.Fatalf("%d bytes in use, were %d", got, used)
	}
	if again := p.tidyAll("v"); again.Moved != 0 {
		t.Fatalf("a tidy volume: %+v", again)
	}
	must(t, s.Close())
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
	p.check()
	if _, _, pending := p.alloc.Free(); pending != 0 {
		t.Fatalf("%d blocks are still handed out", pending)
	}
}

// What a clone inherited stays where it is.
func TestTidyClone(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 4<<20)
	p.scatter(v, 3000, 1)
	must(t, p.flush())
	_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "c", FromVolume: "v"})
	must(t, err)
	places := p.placesOf(v)
	if done := p.tidyAll("c"); done.Moved != 0 {
		t.Fatalf("tidying a clone moved what is its source's: %+v", done)
	}
	for i, place := range p.placesOf(v) {
		if place != places[i] {
			t.Fatalf("block %d was moved", i)
		}
	}
	if done := p.tidyAll("v"); done.Moved == 0 {
		t.Fatalf("nothing was moved: %+v", done)
	}
	c := p.open("c")
	if !bytes.Equal(readAll(t, c), readAll(t, v)) {
		t.Fatal("volume and clone differ")
	}
}

// A full pool has no room to tidy in, and says so; what is there stays.
func TestTidyFull(t *testing.T) {
	p, _ := memPool(t)
	v, filler := p.volume("v", 220<<20), p.volume("filler", 64<<20)
	_, err := v.WriteAt(make([]byte, v.Size()), 0)
	must(t, err)
	p.snapshot("s", "v")
	for i := range int64(600) {
		p.writeStamp(v, 2*i, 1, 1)
	}
	for off := int64(0); err == nil; off += 1 << 20 {
		_, err = filler.WriteAt(make([]byte, 1<<20), off)
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	want := readAll(t, v)
	if done := p.tidyAll("v"); done.Moved != 0 || done.Skipped == 0 {
		t.Fatalf("%+v", done)
	}
	if !bytes.Equal(readAll(t, v), want) {
		t.Fatal("what shows has changed")
	}
	p.check()
}

func TestPlaces(t *testing.T) {
	list := []runs.Entry{
		runs.Data(0, 2, 100, 1), runs.Data(2, 1, 102, 5), runs.Data(3, 1, 900, 5), runs.Zero(4, 1, 5), runs.Data(5, 1, 901, 6), runs.Data(7, 1, 300, 6), runs.Data(8, 1, 301, 2),
	}
	for _, c := range []struct {
		inSequence uint64
		want       int
	}{{0, 4}, {1, 3}, {5, 5}} {
		if n := places(list, c.inSequence); n != c.want {
			t.Errorf("from generation %d on in sequence: %d places, want %d", c.inSequence, n, c.want)
		}
	}
}

// A volume whose option says so is tidied when it rests, and again when more was scattered.
func TestTidyBehind(t *testing.T) {
	o := testOptions(t)
	o.tidyTick = 20 * time.Millisecond
	p := newPool(t, o, MinPoolSize)
	_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "v", Size: 8 << 20, Tidy: true})
	must(t, err)
	v := p.open("v")
	_, err = v.WriteAt(make([]byte, 8<<20), 0)
	must(t, err)
	for _, name := range []string{"s1", "s2"} {
		p.snapshot(name, "v")
		p.scatter(v, 500, 1)
		must(t, p.flush())
		deadline := time.Now().Add(20 * time.Second)
		for tick := time.NewTicker(10 * time.Millisecond); p.inPlaces(v) > 16; <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("the volume is still in %d places", p.inPlaces(v))
			}
		}
	}
	off := false
	_, err = p.ChangeVolume(t.Context(), "v", VolumeChange{Tidy: &off})
	must(t, err)
	if n := len(p.tidyVolumes()); n != 0 {
		t.Fatalf("%d volumes are tidied", n)
	}
}

func TestTidyDue(t *testing.T) {
	w := tidyWatch{}
	a, b := tidyState{1, 2, 3}, tidyState{1, 5, 3}
	if w.due(a) || !w.due(a) {
		t.Error("a volume is due at the second look that sees the same")
	}
	w.done = a
	if w.due(a) || w.due(b) || !w.due(b) {
		t.Error("what is tidy is not due; what has changed is, when it rests")
	}
	full := tidyWatch{last: a, skipped: a}
	for i := range tidyPatience + 1 {
		if due := full.due(a); due != (i == tidyPatience) {
			t.Errorf("look %d at a volume that there was no room for: due %v", i, due)
		}
	}
	restless := tidyWatch{}
	for i := range tidyPatience + 1 {
		if due := restless.due(tidyState{1, int64(i), 3}); due != (i == tidyPatience) {
			t.Errorf("look %d at a volume that does not rest: due %v", i, due)
		}
	}
}
