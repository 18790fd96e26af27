package alloc

import "math/bits"

// Bitmap has a bit set for every block of a chunk that is in use.
type Bitmap [words]uint64

// Chunks is a set of a segment's chunks.
type Chunks [SegmentChunks / 64]uint64

// Has, Add, Remove and Count are what their names say.
func (c *Chunks) Has(k int) bool { return c[k/64]&(1<<(k%64)) != 0 }
func (c *Chunks) Add(k int)      { c[k/64] |= 1 << (k % 64) }
func (c *Chunks) Remove(k int)   { c[k/64] &^= 1 << (k % 64) }
func (c *Chunks) Count() (n int) {
	for _, w := range c {
		n += bits.OnesCount64(w)
	}
	return n
}

func (b *Bitmap) set(from, n int) {
	for i := from; i < from+n; {
		m := min(64-i%64, from+n-i)
		b[i/64] |= mask(i%64, m)
		i += m
	}
}

func (b *Bitmap) clear(from, n int) {
	for i := from; i < from+n; {
		m := min(64-i%64, from+n-i)
		b[i/64] &^= mask(i%64, m)
		i += m
	}
}

func mask(off, n int) uint64 { return (^uint64(0) >> (64 - n)) << off }

// Set marks blocks in use, Clear marks them free, Has asks for one.
func (b *Bitmap) Set(from, n int)   { b.set(from, n) }
func (b *Bitmap) Clear(from, n int) { b.clear(from, n) }
func (b *Bitmap) Has(i int) bool    { return b[i/64]&(1<<(i%64)) != 0 }

// Count returns how many blocks are in use.
func (b *Bitmap) Count() int { return b.count() }

func (b *Bitmap) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// findFree returns the first stretch of clear bits at or after from, at most want long.
func (b *Bitmap) findFree(from, want int) (at, n int) {
	i := from
	for i < ChunkBlocks {
		rest := ^b[i/64] >> (i % 64)
		if rest == 0 {
			i = (i/64 + 1) * 64
			continue
		}
		at = i + bits.TrailingZeros64(rest)
		for i = at; i < ChunkBlocks && i-at < want && !b.Has(i); i++ {
		}
		return at, i - at
	}
	return 0, 0
}
