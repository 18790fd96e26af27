package format

import (
	"encoding/binary"
	"fmt"
)

// SegmentLen is the length of an encoded Segment, in bytes.
const SegmentLen = 64

// Segment says what the chunks of a segment have. Bit i mod 64 of word i / 64 is chunk i's. No bit is set in both.
type Segment struct {
	Written  [4]uint64 // every block was written before, with zeroes or data, and synced
	Reserved [4]uint64 // the file system's space is taken; blocks that are not in use may lie in unwritten extents
}

// Encode encodes it.
func (s Segment) Encode() []byte {
	b := make([]byte, 0, SegmentLen)
	for _, set := range [...][4]uint64{s.Written, s.Reserved} {
		for _, w := range set {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	return b
}

// ParseSegment decodes it.
func ParseSegment(b []byte) (s Segment, err error) {
	if len(b) != SegmentLen {
		return s, fmt.Errorf("%w: segment record of %d bytes", ErrCorrupt, len(b))
	}
	for i := range s.Written {
		s.Written[i] = binary.LittleEndian.Uint64(b[i*8:])
		s.Reserved[i] = binary.LittleEndian.Uint64(b[32+i*8:])
		if both := s.Written[i] & s.Reserved[i]; both != 0 {
			return Segment{}, fmt.Errorf("%w: segment record has chunks %#x of its %dth 64 both written and reserved", ErrCorrupt, both, i)
		}
	}
	return s, nil
}
