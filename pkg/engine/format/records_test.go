package format

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

var labels = rapid.MapOfN(rapid.StringN(1, 8, 20), rapid.StringN(0, 8, 20), 0, 3)

func labelsOf(t *rapid.T) map[string]string {
	if m := labels.Draw(t, "labels"); len(m) > 0 {
		return m
	}
	return nil
}

func gensOf(t *rapid.T) (gens []uint64) {
	last := uint64(0)
	for _, step := range rapid.SliceOfN(rapid.Uint64Range(1, 1<<30), 0, 5).Draw(t, "gens") {
		last += step
		gens = append(gens, last)
	}
	return gens
}

func roundTrip[T any](t *rapid.T, rec T, b []byte, parse func([]byte) (T, error)) {
	t.Helper()
	got, err := parse(b)
	if err != nil || !reflect.DeepEqual(got, rec) {
		t.Fatalf("%+v came back as %+v, %v", rec, got, err)
	}
	cut := b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]
	if _, err := parse(cut); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("cut off at %d of %d bytes: %v", len(cut), len(b), err)
	}
	if _, err := parse(append(bytes.Clone(b), 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte too many: %v", err)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	num := rapid.Uint64()
	str := rapid.StringN(0, 20, 60)
	rapid.Check(t, func(t *rapid.T) {
		p := Pool{NextID: num.Draw(t, "a"), NextGen: num.Draw(t, "b"), NextFamily: rapid.Uint32().Draw(t, "c"), OpenEpoch: 3, Clean: true, Filled: rapid.Bool().Draw(t, "filled"), RingSeq: num.Draw(t, "d")}
		p.BootID[5] = 7
		roundTrip(t, p, p.Encode(), ParsePool)
		l := Layer{Family: 1, Parent: num.Draw(t, "parent"), Head: num.Draw(t, "head"), Name: 9, Gens: gensOf(t)}
		roundTrip(t, l, l.Encode(), ParseLayer)
		lu := LayerUse{num.Draw(t, "owned"), num.Draw(t, "pages")}
		roundTrip(t, lu, lu.Encode(), ParseLayerUse)
		v := Volume{str.Draw(t, "name"), num.Draw(t, "size"), 4, 5, rapid.Bool().Draw(t, "has"), str.Draw(t, "fs"), str.Draw(t, "fv"), byte(rapid.IntRange(0, 1).Draw(t, "mode")),
			num.Draw(t, "first"), rapid.Bool().Draw(t, "tidy"), labelsOf(t), rapid.Bool().Draw(t, "thick")}
		roundTrip(t, v, v.Encode(), ParseVolume)
		vu := VolumeUse{num.Draw(t, "mapped"), rapid.Bool().Draw(t, "written")}
		roundTrip(t, vu, vu.Encode(), ParseVolumeUse)
		s := Snapshot{str.Draw(t, "sname"), 1, 2, str.Draw(t, "vname"), str.Draw(t, "group"), 3, 4, 5, labelsOf(t), rapid.Bool().Draw(t, "thick")}
		roundTrip(t, s, s.Encode(), ParseSnapshot)
		j := Job{JobKind(rapid.IntRange(1, 2).Draw(t, "kind")), num.Draw(t, "layer"), gensOf(t)}
		roundTrip(t, j, j.Encode(), ParseJob)
		var sg Segment
		for i := range sg.Written {
			sg.Written[i] = num.Draw(t, "chunks written")
			sg.Reserved[i] = num.Draw(t, "reserved") &^ sg.Written[i]
		}
		sg.Member = rapid.Uint32().Draw(t, "member")
		roundTrip(t, sg, sg.Encode(), ParseSegment)
		m := Member{NewUUID(), MemberState(rapid.IntRange(1, 3).Draw(t, "state")), num.Draw(t, "member size"), str.Draw(t, "path")}
		roundTrip(t, m, m.Encode(), ParseMember)
	})
}

// The example's bytes are the format's.
func TestVolumeGolden(t *testing.T) {
	rec := Volume{
		Name: "orders", Size: 8 << 30, Layer: 18, Created: 1767225600000000000, HasParent: true, FromSnapshot: "orders-nightly", FromVolume: "",
		Mode: 1, FirstGen: 12, Tidy: true, Labels: map[string]string{"app": "shop"},
	}
	want, err := os.ReadFile("testdata/volume-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	if got := rec.Encode(); !bytes.Equal(got, want) {
		t.Errorf("encoded:\n% x\nwant:\n% x", got, want)
	}
	if got, err := ParseVolume(want); err != nil || !reflect.DeepEqual(got, rec) {
		t.Errorf("%+v, %v", got, err)
	}
}

// The example's bytes are the format's.
func TestSnapshotGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/snapshot-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	s := Snapshot{
		Name: "nightly-db", Layer: 7, VolumeID: 3, VolumeName: "db", Group: "nightly", Size: 1 << 30, Mapped: 300, Created: 1772366400e9,
		Labels: map[string]string{"keep": "7", "app": "shop"}, Thick: true,
	}
	if got := s.Encode(); !bytes.Equal(got, want) {
		t.Fatalf("% x, want % x", got, want)
	}
	if got, err := ParseSnapshot(want); err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// The example's bytes are the format's; one bit more makes a chunk both.
func TestSegmentGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/segment-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	s := Segment{Written: [4]uint64{1, 1, 0, 1 << 63}, Reserved: [4]uint64{2, 0, 1}, Member: 300}
	if got := s.Encode(); !bytes.Equal(got, want) {
		t.Fatalf("% x, want % x", got, want)
	}
	if got, err := ParseSegment(want); err != nil || got != s {
		t.Fatalf("%+v, %v", got, err)
	}
	want[32+8] |= 1
	if _, err := ParseSegment(want); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a chunk both written and reserved: %v", err)
	}
}

// The example's bytes are the format's.
func TestMemberGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/member-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	m := Member{ID: exampleSuperblock().MemberID, State: MemberDraining, Size: 12 << 30, Path: "/dev/disk/by-id/nvme-2"}
	if got := m.Encode(); !bytes.Equal(got, want) {
		t.Fatalf("% x, want % x", got, want)
	}
	if got, err := ParseMember(want); err != nil || got != m {
		t.Fatalf("%+v, %v", got, err)
	}
	want[1] = 9
	if _, err := ParseMember(want); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a state that does not exist: %v", err)
	}
}

func TestRunKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fam, page := rapid.Uint32().Draw(t, "family"), rapid.Uint32Range(0, maxPage).Draw(t, "page")
		gen, block := rapid.Uint64Range(1, maxGen).Draw(t, "gen"), rapid.IntRange(0, pageBlocks-1).Draw(t, "block")
		key := RunKey(fam, page, gen, block)
		p, g, b, err := ParseRunKey(key)
		if err != nil || p != (RunPage{fam, page}) || g != gen || b != block {
			t.Fatalf("% x is %v %d %d, %v", key, p, g, b, err)
		}
		prefix := RunPagePrefix(fam, page)
		if !bytes.HasPrefix(key, prefix) || !bytes.HasPrefix(key, RunFamilyPrefix(fam)) || bytes.Compare(key, Upper(prefix)) >= 0 {
			t.Fatalf("% x is not within its page's % x", key, prefix)
		}
		if gen > 1 && bytes.Compare(RunKey(fam, page, gen-1, 0), RunKey(fam, page, gen, pageBlocks-1)) <= 0 {
			t.Fatal("an older generation sorts before a newer one")
		}
		r := Run{Len: rapid.IntRange(1, pageBlocks-block).Draw(t, "len"), Zero: rapid.Bool().Draw(t, "zero")}
		if !r.Zero {
			r.Place = rapid.Uint64Range(0, 1<<40-2).Draw(t, "place")
		}
		if got, err := ParseRun(AppendRun(nil, r), block); err != nil || got != r {
			t.Fatalf("run %+v came back as %+v, %v", r, got, err)
		}
		g2, p2, err := ParseTouchedKey(TouchedKey(gen, page))
		if err != nil || g2 != gen || p2 != page {
			t.Fatal(g2, p2, err)
		}
	})
}

// FuzzRecords: no decoder panics, and what decodes encodes to something that decodes alike.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5})
	f.Add(Volume{Name: "v", Labels: map[string]string{"a": "b"}}.Encode())
	f.Add(Snapshot{Name: "s", VolumeName: "v", Group: "g"}.Encode())
	f.Add(Layer{Gens: []uint64{1, 5}}.Encode())
	f.Add(Member{ID: exampleSuperblock().MemberID, State: MemberInUse, Path: "/p"}.Encode())
	f.Add(Segment{Written: [4]uint64{1, 1}, Reserved: [4]uint64{2, 0, 1}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, ParsePool, Pool.Encode)
		again(t, b, ParseLayer, Layer.Encode)
		again(t, b, ParseLayerUse, LayerUse.Encode)
		again(t, b, ParseVolume, Volume.Encode)
		again(t, b, ParseVolumeUse, VolumeUse.Encode)
		again(t, b, ParseSnapshot, Snapshot.Encode)
		again(t, b, ParseJob, Job.Encode)
		again(t, b, ParseSegment, Segment.Encode)
		again(t, b, ParseMember, Member.Encode)
		again(t, b, func(b []byte) (Run, error) { return ParseRun(b, 0) }, func(r Run) []byte { return AppendRun(nil, r) })
		for _, parse := range []func([]byte) error{
			func(b []byte) error { _, _, _, err := ParseRunKey(b); return err },
			func(b []byte) error { _, _, err := ParseTouchedKey(b); return err },
			func(b []byte) error { _, err := ParseID(b); return err },
			func(b []byte) error { _, err := ParseNumber(b); return err },
		} {
			if err := parse(b); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}

func again[T any](t *testing.T, b []byte, parse func([]byte) (T, error), encode func(T) []byte) {
	rec, err := parse(b)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if got, err := parse(encode(rec)); err != nil || !reflect.DeepEqual(got, rec) {
		t.Fatalf("%+v came back as %+v, %v", rec, got, err)
	}
}
