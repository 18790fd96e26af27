package format

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestSumsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Sums{}
		want := rapid.MapOfN(rapid.IntRange(0, pageBlocks-1), rapid.Uint32(), 1, 60).Draw(t, "sums")
		for block, crc := range want {
			s.Set(block, crc)
		}
		from := rapid.IntRange(0, pageBlocks-1).Draw(t, "from")
		for block := from; block < rapid.IntRange(from, pageBlocks).Draw(t, "end"); block++ {
			s.Set(block, uint32(block))
			want[block] = uint32(block)
		}
		if s.Count() != len(want) {
			t.Fatalf("%d checksums, want %d", s.Count(), len(want))
		}
		b := s.Encode()
		if len(b) > 2+5*len(want)+4*len(want) {
			t.Fatalf("%d bytes for %d checksums", len(b), len(want))
		}
		got, err := ParseSums(b)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Fatalf("came back otherwise: %v", err)
		}
		for block := range pageBlocks {
			crc, ok := got.Get(block)
			if w, has := want[block]; ok != has || crc != w {
				t.Fatalf("block %d: %x %v, want %x %v", block, crc, ok, w, has)
			}
		}
		at := rapid.IntRange(0, pageBlocks-1).Draw(t, "at")
		n := rapid.IntRange(1, pageBlocks-at).Draw(t, "n")
		found := map[int]uint32{}
		if err := FindSums(b, at, n, func(block int, crc uint32) { found[block] = crc }); err != nil {
			t.Fatal(err)
		}
		for block := range pageBlocks {
			crc, ok := found[block]
			if w, has := want[block]; ok != (has && at <= block && block < at+n) || ok && crc != w {
				t.Fatalf("of %d+%d, block %d: found %x %v, want %x %v", at, n, block, crc, ok, w, has)
			}
		}
		if _, err := ParseSums(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut off: %v", err)
		}
		for block := range want {
			s.Remove(block)
		}
		if s.Count() != 0 || !reflect.DeepEqual(s, &Sums{}) {
			t.Fatal("removing all leaves some")
		}
		gen, page := rapid.Uint64Range(1, maxGen).Draw(t, "gen"), rapid.Uint32Range(0, maxPage).Draw(t, "page")
		if g, p, err := ParseSumsKey(SumsKey(gen, page)); err != nil || g != gen || p != page || !bytes.HasPrefix(SumsKey(gen, page), SumsPrefix(gen)) {
			t.Fatal(g, p, err)
		}
		if g, err := ParseSummedKey(SummedKey(gen)); err != nil || g != gen {
			t.Fatal(g, err)
		}
	})
}

// A whole page costs its four bytes a block and a few for the record.
func TestSumsSize(t *testing.T) {
	s := &Sums{}
	for i := range pageBlocks {
		s.Set(i, 7)
	}
	if n := len(s.Encode()); n > 4*pageBlocks+8 {
		t.Fatalf("a page of checksums takes %d bytes", n)
	}
}

// The example's bytes are the format's.
func TestSumsGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/sums-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	s := &Sums{}
	for block, crc := range map[int]uint32{0: 0x01020304, 1: 0, 700: 0xe3069283, 1023: 0xffffffff} {
		s.Set(block, crc)
	}
	if got := s.Encode(); !bytes.Equal(got, want) {
		t.Fatalf("% x, want % x", got, want)
	}
	if got, err := ParseSums(want); err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// Every record has one encoding: what decodes is what would be encoded, but for how a number is written.
func FuzzSums(f *testing.F) {
	s := &Sums{}
	s.Set(5, 1)
	s.Set(6, 2)
	s.Set(1023, 3)
	f.Add(s.Encode())
	f.Add([]byte{1, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{2, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, ParseSums, (*Sums).Encode)
		if err := FindSums(b, 3, 900, func(int, uint32) {}); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		for _, parse := range []func([]byte) error{
			func(b []byte) error { _, _, err := ParseSumsKey(b); return err },
			func(b []byte) error { _, err := ParseSummedKey(b); return err },
		} {
			if err := parse(b); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}
