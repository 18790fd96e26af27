package ring

import (
	"testing"

	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Sequence: rapid.Uint64Min(1).Draw(t, "sequence"), Generation: rapid.Uint64().Draw(t, "generation"),
			Block: rapid.Uint64Max(1<<63).Draw(t, "block"), Place: rapid.Uint64Max(1<<63).Draw(t, "place"),
			Length: rapid.Uint32Min(1).Draw(t, "length"), Kind: rapid.Uint16().Draw(t, "kind"), Epoch: rapid.Uint32().Draw(t, "epoch"),
		}
		var p [entrySize]byte
		e.encode(&p)
		if got, err := decodeEntry(&p); err != nil || got != e {
			t.Fatalf("%+v, %v; want %+v", got, err, e)
		}
		// Any prefix of the new bytes over any old ones, as a death leaves it with the last word cleared, is no entry.
		var torn [entrySize]byte
		copy(torn[:], p[:rapid.IntRange(0, entrySize-8).Draw(t, "torn at")])
		if _, err := decodeEntry(&torn); err != errEmpty {
			t.Fatalf("torn entry: %v", err)
		}
		h := header{
			log2: rapid.Uint32Range(minLog2, maxLog2).Draw(t, "log2"), epoch: e.Place, serial: e.Block,
			failed: rapid.Bool().Draw(t, "failed"), reason: rapid.StringN(0, -1, maxReason).Draw(t, "reason"),
		}
		var hp [headerSize]byte
		h.encode(&hp)
		if got, err := decodeHeader(&hp); err != nil || got != h {
			t.Fatalf("%+v, %v; want %+v", got, err, h)
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	var p [entrySize]byte
	e := entry(5)
	e.encode(&p)
	f.Add(p[:])
	f.Add(make([]byte, entrySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != entrySize {
			return
		}
		in := [entrySize]byte(b)
		for range 2 { // as it is, and with its checksum set right
			if e, err := decodeEntry(&in); err == nil {
				var out [entrySize]byte
				if e.encode(&out); out != in {
					t.Fatalf("%x decodes to %+v, which encodes to %x", in, e, out)
				}
			}
			crc := entryCRC(&in)
			in[60], in[61], in[62], in[63] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	var p [headerSize]byte
	h := header{log2: 10, epoch: 3, serial: 4, failed: true, reason: "flush"}
	h.encode(&p)
	f.Add(p[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != headerSize {
			return
		}
		h, err := decodeHeader((*[headerSize]byte)(b))
		if err != nil {
			return
		}
		var out [headerSize]byte
		h.encode(&out)
		if again, err := decodeHeader(&out); err != nil || again != h {
			t.Fatalf("%+v, %v; want %+v", again, err, h)
		}
	})
}
