package group

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// play writes the first n records.
func play(l Layout, n uint64) [][]uint64 {
	held := make([][]uint64, l.Volumes)
	for v := range held {
		held[v] = make([]uint64, l.Slots)
	}
	for r := uint64(1); r <= n; r++ {
		v, s := l.At(r)
		held[v][s] = r
	}
	return held
}

func TestLayout(t *testing.T) {
	for _, l := range []Layout{{1, 1}, {2, 1}, {1, 3}, {3, 4}, {8, 5}} {
		for n := range uint64(4 * l.Volumes * l.Slots) {
			held := play(l, n)
			for v, slots := range held {
				for s, record := range slots {
					if got := l.Holds(n, v, s); got != record {
						t.Fatalf("%+v after %d records: volume %d slot %d holds %d, want %d", l, n, v, s, got, record)
					}
				}
			}
			if got, err := l.Prefix(held); err != nil || got != n {
				t.Fatalf("%+v after %d records: %d, %v", l, n, got, err)
			}
		}
	}
}

// TestPrefixRefuses: volumes cut one after the other, each at a later record than the one before, are a beginning of the order only where no record of
// another volume came in between.
func TestPrefixRefuses(t *testing.T) {
	l := Layout{Volumes: 4, Slots: 6}
	for n := uint64(1); n < 100; n++ {
		for later := n + 1; later < n+10; later++ {
			held := play(l, n)
			last := l.Volumes - 1
			held[last] = play(l, later)[last] // cut when more records were there
			_, err := l.Prefix(held)
			missed := false // a record of another volume that is older than one that is in
			for r := n + 1; r <= later; r++ {
				if v, _ := l.At(r); v != last {
					for after := r + 1; after <= later; after++ {
						if w, _ := l.At(after); w == last {
							missed = true
						}
					}
				}
			}
			if (err != nil) != missed {
				t.Fatalf("cut at %d and %d: %v, want an error: %t", n, later, err, missed)
			}
		}
	}
}

func TestRecord(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, recordSize)
	if r, ok := decode(p); !ok || r.N != 0 {
		t.Errorf("zeroes: %+v, %t", r, ok)
	}
	want := Record{Run: 7, Writer: 2, N: 1 << 40, Known: [writers]uint64{1, 2, 3, 4}}
	want.encode(p)
	if r, ok := decode(p); !ok || r != want {
		t.Errorf("%+v, %t, want %+v", r, ok, want)
	}
	q := bytes.Clone(p)
	for range 1000 {
		at := rng.IntN(len(q))
		q[at] ^= 1 << rng.IntN(8)
		if _, ok := decode(q); ok {
			t.Fatalf("a record with a wrong byte at %d is taken for whole", at)
		}
		copy(q, p)
	}
	other := want
	other.N++
	other.encode(q)
	copy(q[512:], p[512:]) // torn between sectors
	if _, ok := decode(q); ok {
		t.Error("a torn record is taken for whole")
	}
}
