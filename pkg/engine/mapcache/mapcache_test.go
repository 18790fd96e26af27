package mapcache

import (
	"math/rand/v2"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

func page(r *rand.Rand, n int) []runs.Entry {
	list := make([]runs.Entry, n)
	for i := range list {
		list[i] = runs.Data(i, 1, r.Uint64N(1<<30), 1+r.Uint64N(9))
	}
	return list
}

// What the cache returns is what was last put, whatever it evicted in between, and it never holds more than its limit.
func TestReturnsWhatWasPut(t *testing.T) {
	c, err := New(MinSize * 2)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 2))
	want := map[Key][]runs.Entry{}
	hits := 0
	for range 200000 {
		k := Key(r.IntN(3000))
		switch r.IntN(10) {
		case 0:
			c.Drop(k)
			delete(want, k)
		case 1, 2, 3:
			n := r.IntN(40)
			if r.IntN(20) == 0 {
				n = r.IntN(runs.Blocks + 1)
			}
			want[k] = page(r, n)
			c.Put(k, want[k])
		default:
			got, ok := c.Get(k)
			if !ok {
				continue
			}
			hits++
			if len(got) != len(want[k]) {
				t.Fatalf("page %d has %d entries, want %d", k, len(got), len(want[k]))
			}
			for i := range got {
				if got[i] != want[k][i] {
					t.Fatalf("page %d entry %d is %v, want %v", k, i, got[i], want[k][i])
				}
			}
		}
	}
	if hits == 0 || c.Evictions == 0 {
		t.Fatalf("%d hits and %d evictions: the test did not reach what it is for", hits, c.Evictions)
	}
	live := 0
	for _, s := range c.slabs {
		live += s.live
	}
	if live != c.Len() {
		t.Fatalf("%d items live, %d indexed", live, c.Len())
	}
}

func TestPutOfItsOwnSlice(t *testing.T) {
	c, err := New(MinSize)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(3, 4))
	want := page(r, 4)
	c.Put(1, want)
	got, _ := c.Get(1)
	c.Put(1, runs.Insert(got, runs.Data(100, 1, 5, 5))) // grows into the next class
	got, _ = c.Get(1)
	if len(got) != 5 || got[0] != want[0] || got[4].Place() != 5 {
		t.Fatalf("page is %v", got)
	}
}

func BenchmarkGet(b *testing.B) {
	c, err := New(64 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for k := range Key(10000) {
		c.Put(k, page(r, 16))
	}
	for b.Loop() {
		c.Get(Key(r.IntN(10000)))
	}
}
