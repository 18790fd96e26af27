// Package runs holds the algebra of one page's runs: sorted lists of non-overlapping entries, each a stretch of blocks with its place and generation.
//
// A page has Blocks blocks; an entry never crosses it. Lists are plain slices, sorted by offset; the functions here keep them so. Nothing here locks.
package runs

import (
	"fmt"
	"math/bits"
)

const (
	// Blocks is the number of blocks in a page.
	Blocks = 1024
	// MaxPlace is the highest pool block an entry can name.
	MaxPlace = 1<<placeBits - 2
	// MaxGen is the highest generation an entry can carry.
	MaxGen = 1<<genBits - 1

	placeBits = 40
	offBits   = 10
	genBits   = 48
	zeroPlace = 1<<placeBits - 1
)

// Entry is one stretch of a page, packed into 16 bytes without pointers so that slabs of them can live outside the Go heap. Offset and length are in
// blocks of the page.
type Entry struct {
	where uint64 // place | offset << 40 | (length-1) << 50
	gen   uint64 // generation | flags << 48
}

const flagReplaces = 1 << genBits

// Data makes an entry that maps [off, off+n) to the pool blocks from place on.
func Data(off, n int, place, gen uint64) Entry {
	if place > MaxPlace {
		panic(fmt.Sprintf("runs: place %d out of range", place))
	}
	return pack(off, n, place, gen)
}

// Zero makes an entry that hides what lies below [off, off+n): it reads as zeroes.
func Zero(off, n int, gen uint64) Entry { return pack(off, n, zeroPlace, gen) }

func pack(off, n int, place, gen uint64) Entry {
	if off < 0 || n < 1 || off+n > Blocks || gen > MaxGen {
		panic(fmt.Sprintf("runs: entry offset %d length %d generation %d out of range", off, n, gen))
	}
	return Entry{where: place | uint64(off)<<placeBits | uint64(n-1)<<(placeBits+offBits), gen: gen}
}

// Off is the first block within the page.
func (e Entry) Off() int { return int(e.where >> placeBits & (Blocks - 1)) }

// Len is the number of blocks.
func (e Entry) Len() int { return int(e.where>>(placeBits+offBits)) + 1 }

// End is the block after the last.
func (e Entry) End() int { return e.Off() + e.Len() }

// IsZero tells a zero run.
func (e Entry) IsZero() bool { return e.where&zeroPlace == zeroPlace }

// Place is the pool block of the first block; it has no meaning for a zero run.
func (e Entry) Place() uint64 { return e.where & zeroPlace }

// Gen is the generation that wrote the run.
func (e Entry) Gen() uint64 { return e.gen & MaxGen }

// Replaces tells that the run was written over runs of its own layer's generations, which its commit must remove.
func (e Entry) Replaces() bool { return e.gen&flagReplaces != 0 }

// Replacing returns the entry marked so.
func (e Entry) Replacing() Entry { e.gen |= flagReplaces; return e }

// Plain returns the entry without its mark.
func (e Entry) Plain() Entry { e.gen &= MaxGen; return e }

// Sub returns the part of the entry within [off, end), which must not be empty.
func (e Entry) Sub(off, end int) Entry {
	off, end = max(off, e.Off()), min(end, e.End())
	place := uint64(zeroPlace)
	if !e.IsZero() {
		place = e.Place() + uint64(off-e.Off())
	}
	return Entry{where: place | uint64(off)<<placeBits | uint64(end-off-1)<<(placeBits+offBits), gen: e.gen}
}

// follows tells that b continues a: same generation, adjacent blocks, adjacent places.
func follows(a, b Entry) bool {
	if a.gen != b.gen || a.End() != b.Off() || a.IsZero() != b.IsZero() {
		return false
	}
	return a.IsZero() || a.Place()+uint64(a.Len()) == b.Place()
}

func join(a, b Entry) Entry {
	a.where = a.where&(1<<(placeBits+offBits)-1) | uint64(a.Len()+b.Len()-1)<<(placeBits+offBits)
	return a
}

func (e Entry) String() string {
	if e.IsZero() {
		return fmt.Sprintf("[%d+%d zero g%d]", e.Off(), e.Len(), e.Gen())
	}
	return fmt.Sprintf("[%d+%d @%d g%d]", e.Off(), e.Len(), e.Place(), e.Gen())
}

// search returns the index of the first entry that ends after off.
func search(list []Entry, off int) int {
	// Each entry has a block at least: entry i ends after i, and as many blocks as there are entries from i on must fit behind where it begins. In a page in
	// pieces of a block, which is where lists are long, this leaves nothing to search.
	lo, hi := max(0, len(list)-Blocks+off), min(off, len(list))
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if list[mid].End() <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// Insert puts e in front of whatever the list has in its range, joining it to neighbours it continues. It may reuse list's memory.
func Insert(list []Entry, e Entry) []Entry {
	i := search(list, e.Off())
	j := i
	var left, right Entry
	var hasLeft, hasRight bool
	for j < len(list) && list[j].Off() < e.End() {
		if list[j].Off() < e.Off() {
			left, hasLeft = list[j].Sub(list[j].Off(), e.Off()), true
		}
		if list[j].End() > e.End() {
			right, hasRight = list[j].Sub(e.End(), list[j].End()), true
		}
		j++
	}
	if !hasLeft && i > 0 && follows(list[i-1], e) {
		i--
		left, hasLeft = list[i], true
	}
	if !hasRight && j < len(list) && follows(e, list[j]) {
		right, hasRight = list[j], true
		j++
	}
	var put [3]Entry
	n := 0
	if hasLeft {
		if follows(left, e) {
			e = join(left, e)
		} else {
			put[n] = left
			n++
		}
	}
	if hasRight && follows(e, right) {
		e, hasRight = join(e, right), false
	}
	put[n] = e
	n++
	if hasRight {
		put[n] = right
		n++
	}
	return splice(list, i, j, put[:n])
}

// Remove takes [off, end) out of the list.
func Remove(list []Entry, off, end int) []Entry {
	i := search(list, off)
	j := i
	var put [2]Entry
	n := 0
	for j < len(list) && list[j].Off() < end {
		if list[j].Off() < off {
			put[n] = list[j].Sub(list[j].Off(), off)
			n++
		}
		if list[j].End() > end {
			put[n] = list[j].Sub(end, list[j].End())
			n++
		}
		j++
	}
	return splice(list, i, j, put[:n])
}

// splice replaces list[i:j] by put.
func splice(list []Entry, i, j int, put []Entry) []Entry {
	grow := len(put) - (j - i)
	switch {
	case grow > 0:
		for range grow {
			list = append(list, Entry{})
		}
		copy(list[j+grow:], list[j:len(list)-grow])
	case grow < 0:
		copy(list[j+grow:], list[j:])
		list = list[:len(list)+grow]
	}
	copy(list[i:], put)
	return list
}

// Fill adds the parts of e that the list does not cover yet: e is older than what is there.
func Fill(list []Entry, e Entry) []Entry {
	off := e.Off()
	for off < e.End() {
		i := search(list, off)
		end := e.End()
		if i < len(list) {
			if list[i].Off() <= off {
				off = list[i].End()
				continue
			}
			end = min(end, list[i].Off())
		}
		list = Insert(list, e.Sub(off, end))
		off = end
	}
	return list
}

// Flatten is Fill for a whole list, the newest entries first, which may overlap: what a reader sees of them, sorted and joined.
func Flatten(newestFirst []Entry) []Entry {
	var covered [Blocks / 64]uint64
	var starts [Blocks / 64]uint64
	var at [Blocks]Entry // by offset
	pieces := 0
	for _, e := range newestFirst {
		for off := e.Off(); off < e.End(); {
			from := next(&covered, off, e.End(), false)
			to := next(&covered, from, e.End(), true)
			if from < to {
				set(&covered, from, to)
				starts[from/64] |= 1 << (from % 64)
				at[from] = e.Sub(from, to)
				pieces++
			}
			off = to
		}
	}
	list := make([]Entry, 0, pieces)
	for off := next(&starts, 0, Blocks, true); off < Blocks; off = next(&starts, off+1, Blocks, true) {
		if n := len(list); n > 0 && follows(list[n-1], at[off]) {
			list[n-1] = join(list[n-1], at[off])
		} else {
			list = append(list, at[off])
		}
	}
	return list
}

// next returns the first bit in [from, end) that is set, or not set, or end.
func next(bitmap *[Blocks / 64]uint64, from, end int, want bool) int {
	for from < end {
		word := bitmap[from/64]
		if !want {
			word = ^word
		}
		if word >>= from % 64; word != 0 {
			return min(from+bits.TrailingZeros64(word), end)
		}
		from = (from/64 + 1) * 64
	}
	return end
}

func set(bitmap *[Blocks / 64]uint64, from, end int) {
	for from < end {
		n := min(64-from%64, end-from)
		bitmap[from/64] |= ^uint64(0) >> (64 - n) << (from % 64)
		from += n
	}
}

// Slice appends to out the parts of list within [off, end).
func Slice(out, list []Entry, off, end int) []Entry {
	for i := search(list, off); i < len(list) && list[i].Off() < end; i++ {
		out = append(out, list[i].Sub(off, end))
	}
	return out
}

// At returns the whole entry that has a block.
func At(list []Entry, off int) (e Entry, ok bool) {
	if i := search(list, off); off >= 0 && i < len(list) && list[i].Off() <= off {
		return list[i], true
	}
	return e, false
}

// ByPlace joins entries that continue one another in blocks and places, whatever their generations: for who only wants to read or write there. It
// reuses the list; the generations in it mean nothing any more.
func ByPlace(list []Entry) []Entry {
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].End() == e.Off() && !e.IsZero() && !out[n-1].IsZero() && out[n-1].Place()+uint64(out[n-1].Len()) == e.Place() {
			out[n-1] = join(out[n-1], e)
		} else {
			out = append(out, e)
		}
	}
	return out
}

// Overlaps tells whether any entry touches [off, end).
func Overlaps(list []Entry, off, end int) bool {
	i := search(list, off)
	return i < len(list) && list[i].Off() < end
}

// Covered counts the blocks the list covers; Mapped counts those that have a place.
func Covered(list []Entry) (n int) {
	for _, e := range list {
		n += e.Len()
	}
	return n
}

// Mapped counts the blocks of the list that have a place.
func Mapped(list []Entry) (n int) {
	for _, e := range list {
		if !e.IsZero() {
			n += e.Len()
		}
	}
	return n
}

// MappedOver is Mapped of a list with another below it: blocks that have a place in the list, or are not in it and have one below.
func MappedOver(list, below []Entry) (n int) {
	n = Mapped(list)
	for _, b := range below {
		if b.IsZero() {
			continue
		}
		n += b.Len()
		for i := search(list, b.Off()); i < len(list) && list[i].Off() < b.End(); i++ {
			n -= min(list[i].End(), b.End()) - max(list[i].Off(), b.Off())
		}
	}
	return n
}

// Valid reports the first breach of the list's order, or nil.
func Valid(list []Entry) error {
	end := 0
	for i, e := range list {
		if e.Off() < end {
			return fmt.Errorf("entry %d %v begins before block %d", i, e, end)
		}
		end = e.End()
		if end > Blocks {
			return fmt.Errorf("entry %d %v leaves the page", i, e)
		}
	}
	return nil
}
