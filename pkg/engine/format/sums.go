package format

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

const (
	tagSums   = 'c' // generation, page -> Sums
	tagSummed = 'd' // generation -> nothing
)

// Sums are the checksums of one generation's blocks in one page: CRC32C of each block's 4096 bytes. What they are of is told by the content's identity
// (generation, page, block), not by its place, so they stay right when the blocks move.
type Sums struct {
	has [pageBlocks / 64]uint64
	crc [pageBlocks]uint32
}

// Set gives a block of the page a checksum.
func (s *Sums) Set(block int, crc uint32) {
	s.has[block/64] |= 1 << (block % 64)
	s.crc[block] = crc
}

// Get returns a block's checksum, if it has one.
func (s *Sums) Get(block int) (crc uint32, ok bool) {
	return s.crc[block], s.has[block/64]>>(block%64)&1 != 0
}

// Remove takes a block's checksum away.
func (s *Sums) Remove(block int) {
	s.has[block/64] &^= 1 << (block % 64)
	s.crc[block] = 0
}

// Count is how many blocks have one.
func (s *Sums) Count() (n int) {
	for _, w := range s.has {
		n += bits.OnesCount64(w)
	}
	return n
}

// stretches calls f for every stretch of blocks side by side that have checksums, in order.
func (s *Sums) stretches(f func(from, end int)) {
	for at := 0; at < pageBlocks; at++ {
		if _, ok := s.Get(at); !ok {
			continue
		}
		from := at
		for at < pageBlocks && s.has[at/64]>>(at%64)&1 != 0 {
			at++
		}
		f(from, at)
	}
}

// Encode encodes them: uvarint number of stretches, for each the blocks left out before it and its length, then the checksums, four bytes each.
func (s *Sums) Encode() []byte {
	n := 0
	s.stretches(func(_, _ int) { n++ })
	b := binary.AppendUvarint(make([]byte, 0, 3*n+4*s.Count()+2), uint64(n))
	last := 0
	s.stretches(func(from, end int) {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(from-last)), uint64(end-from))
		last = end
	})
	s.stretches(func(from, end int) {
		for _, crc := range s.crc[from:end] {
			b = binary.LittleEndian.AppendUint32(b, crc)
		}
	})
	return b
}

// ParseSums decodes them. A record without a checksum is no record.
func ParseSums(b []byte) (*Sums, error) {
	s := &Sums{}
	d := decoder{b: b}
	n := d.uvarint()
	if d.err == nil && (n == 0 || n > pageBlocks) {
		d.err = fmt.Errorf("%w: %d stretches", ErrCorrupt, n)
	}
	var order []int
	end := 0
	for i := uint64(0); i < n && d.err == nil; i++ {
		gap, length := d.uvarint(), d.uvarint()
		if d.err == nil && (gap > pageBlocks || length == 0 || length > pageBlocks || end+int(gap)+int(length) > pageBlocks || (i > 0 && gap == 0)) {
			d.err = fmt.Errorf("%w: stretch of %d blocks, %d after block %d", ErrCorrupt, length, gap, end)
			break
		}
		end += int(gap)
		for range length {
			order = append(order, end)
			end++
		}
	}
	crcs := d.bytes(4 * uint64(len(order)))
	if d.err == nil {
		for i, block := range order {
			s.Set(block, binary.LittleEndian.Uint32(crcs[4*i:]))
		}
	}
	if err := d.wrap("checksums"); err != nil {
		return nil, err
	}
	return s, nil
}

// FindSums looks up the checksums of n blocks from one on in a record, without decoding all of it, and calls f for those that are there.
func FindSums(b []byte, block, n int, f func(block int, crc uint32)) error {
	d := decoder{b: b}
	count := d.uvarint()
	type stretch struct{ block, at, n int } // within the wanted blocks, and which checksum of the record is its first
	var found [8]stretch
	list := found[:0]
	end, before := 0, 0
	for i := uint64(0); i < count && d.err == nil; i++ {
		gap, length := d.uvarint(), d.uvarint()
		if d.err == nil && (gap > pageBlocks || length > pageBlocks || end+int(gap)+int(length) > pageBlocks) {
			d.err = fmt.Errorf("%w: stretch of %d blocks, %d after block %d", ErrCorrupt, length, gap, end)
			break
		}
		from := end + int(gap)
		end = from + int(length)
		if lo, hi := max(from, block), min(end, block+n); lo < hi {
			list = append(list, stretch{lo, before + lo - from, hi - lo})
		}
		before += int(length)
	}
	crcs := d.bytes(4 * uint64(before))
	if err := d.wrap("checksums"); err != nil {
		return err
	}
	for _, s := range list {
		for i := range s.n {
			f(s.block+i, binary.LittleEndian.Uint32(crcs[4*(s.at+i):]))
		}
	}
	return nil
}

// SumsKey is the key of a generation's checksums in a page.
func SumsKey(gen uint64, page uint32) []byte {
	b := append48([]byte{tagSums}, gen)
	return append(b, byte(page>>16), byte(page>>8), byte(page))
}

// SumsPrefix is what the keys of one generation's checksums begin with.
func SumsPrefix(gen uint64) []byte { return append48([]byte{tagSums}, gen) }

// SumsAll is what all such keys begin with.
func SumsAll() []byte { return []byte{tagSums} }

// ParseSumsKey takes it apart.
func ParseSumsKey(key []byte) (gen uint64, page uint32, err error) {
	if len(key) != 10 || key[0] != tagSums || get48(key[1:]) == 0 {
		return 0, 0, fmt.Errorf("%w: checksums key % x", ErrCorrupt, key)
	}
	return get48(key[1:]), uint32(key[7])<<16 | uint32(key[8])<<8 | uint32(key[9]), nil
}

// SummedKey says that every block of a generation has its checksum.
func SummedKey(gen uint64) []byte { return append48([]byte{tagSummed}, gen) }

// SummedAll is what all such keys begin with.
func SummedAll() []byte { return []byte{tagSummed} }

// ParseSummedKey takes it apart.
func ParseSummedKey(key []byte) (gen uint64, err error) {
	if len(key) != 7 || key[0] != tagSummed || get48(key[1:]) == 0 {
		return 0, fmt.Errorf("%w: checksums' mark % x", ErrCorrupt, key)
	}
	return get48(key[1:]), nil
}
