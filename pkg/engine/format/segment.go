package format

import (
	"encoding/binary"
	"fmt"
)

// segmentSets is the length of a Segment's two sets, in bytes.
const segmentSets = 64

// Segment says what the chunks of a segment have. Bit i mod 64 of word i / 64 is chunk i's. No bit is set in both.
type Segment struct {
	Written  [4]uint64 // every block was written before, with zeroes or data, and synced
	Reserved [4]uint64 // the file system's space is taken; blocks that are not in use may lie in unwritten extents
	Member   uint32    // index of the member that the segment's file is on
}

// Encode encodes it.
func (s Segment) Encode() []byte {
	b := make([]byte, 0, segmentSets+1)
	for _, set := range [...][4]uint64{s.Written, s.Reserved} {
		for _, w := range set {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	return binary.AppendUvarint(b, uint64(s.Member))
}

// ParseSegment decodes it.
func ParseSegment(b []byte) (s Segment, err error) {
	if len(b) < segmentSets {
		return s, fmt.Errorf("%w: segment record of %d bytes", ErrCorrupt, len(b))
	}
	for i := range s.Written {
		s.Written[i] = binary.LittleEndian.Uint64(b[i*8:])
		s.Reserved[i] = binary.LittleEndian.Uint64(b[32+i*8:])
		if both := s.Written[i] & s.Reserved[i]; both != 0 {
			return Segment{}, fmt.Errorf("%w: segment record has chunks %#x of its %dth 64 both written and reserved", ErrCorrupt, both, i)
		}
	}
	d := decoder{b: b[segmentSets:]}
	s.Member = d.uint32()
	return s, d.wrap("segment record")
}
