package group

import "encoding/binary"

const (
	recordSize = 4096 // bytes: a block, so that none is read for it
	writers    = 4
)

// Record is what a slot holds. The zero Record is a slot of zeroes.
type Record struct {
	Run    uint64 // tells runs of the test apart, not 0
	Writer uint64
	N      uint64
	Known  [writers]uint64 // how many records of each writer had returned when this one was sent
}

func (r Record) words() [3 + writers]uint64 {
	w := [3 + writers]uint64{r.Run, r.Writer, r.N}
	copy(w[3:], r.Known[:])
	return w
}

// encode fills a slot: every sector of it with the whole record and what tells the sector's place.
func (r Record) encode(p []byte) {
	head := r.words()
	for i := range recordSize / 8 {
		w := mix(head, i)
		if i%64 < len(head) {
			w = head[i%64] ^ uint64(i/64)
		}
		binary.LittleEndian.PutUint64(p[8*i:], w)
	}
}

// decode reads a slot; ok is false where it is neither a whole record nor zeroes.
func decode(p []byte) (r Record, ok bool) {
	var head [3 + writers]uint64
	for i := range head {
		head[i] = binary.LittleEndian.Uint64(p[8*i:])
	}
	r = Record{Run: head[0], Writer: head[1], N: head[2]}
	copy(r.Known[:], head[3:])
	for i := range recordSize / 8 {
		w := binary.LittleEndian.Uint64(p[8*i:])
		want := mix(head, i)
		switch {
		case r == Record{}:
			want = 0
		case i%64 < len(head):
			want = head[i%64] ^ uint64(i/64)
		}
		if w != want {
			return r, false
		}
	}
	return r, true
}

// mix is word i of a record's filling, different in each place of each record.
func mix(head [3 + writers]uint64, i int) uint64 {
	x := uint64(i + 1)
	for _, h := range head {
		x = (x ^ h) * 0x9e3779b97f4a7c15
		x ^= x >> 32
	}
	return x
}
