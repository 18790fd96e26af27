package crash

import (
	"encoding/binary"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/block"
)

// sectorSize is the unit of everything here, in bytes.
const sectorSize = block.SectorSize

// Stamp is what a sector holds. The zero Stamp is a sector of zeroes.
type Stamp struct {
	Run     uint64 // tells runs of the test apart, not 0
	Volume  uint32
	Sector  int64
	Version uint64 // of the write; no two writes to a volume have the same
}

func (s Stamp) String() string {
	if s == (Stamp{}) {
		return "zeroes"
	}
	return fmt.Sprintf("volume %d, sector %d, version %d.%d", s.Volume, s.Sector, s.Version>>versionBits, s.Version&(1<<versionBits-1))
}

const stampWords = sectorSize / 8

// encode fills a sector.
func (s Stamp) encode(p []byte) {
	if s.Version == 0 {
		clear(p[:sectorSize])
		return
	}
	head := [4]uint64{s.Run, uint64(s.Volume), uint64(s.Sector), s.Version}
	for i := range stampWords {
		w := fill(head, i)
		if i < len(head) {
			w = head[i]
		}
		binary.LittleEndian.PutUint64(p[8*i:], w)
	}
}

// decode reads a sector; ok is false where it is neither a whole stamp nor zeroes.
func decode(p []byte) (s Stamp, ok bool) {
	var head [4]uint64
	for i := range head {
		head[i] = binary.LittleEndian.Uint64(p[8*i:])
	}
	s = Stamp{Run: head[0], Volume: uint32(head[1]), Sector: int64(head[2]), Version: head[3]}
	for i := len(head); i < stampWords; i++ {
		w := binary.LittleEndian.Uint64(p[8*i:])
		if s == (Stamp{}) && w == 0 {
			continue
		}
		if w != fill(head, i) {
			return s, false
		}
	}
	return s, head[1] == uint64(s.Volume) && (s == (Stamp{}) || s.Version != 0)
}

// fill is word i of a sector, different in each place of each sector.
func fill(head [4]uint64, i int) uint64 {
	x := uint64(i + 1)
	for _, h := range head {
		x = (x ^ h) * 0x9e3779b97f4a7c15
		x ^= x >> 32
	}
	return x
}
