package format

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt: bytes on disk do not decode, or what they say is out of its bounds.
var ErrCorrupt = errors.New("damaged record")

// Tags are the first bytes of keys in the metadata store.
const (
	tagPool       = 'P' // the pool's own record
	tagMember     = 'M' // index -> Member
	tagLayer      = 'L' // layer id -> Layer
	tagVolume     = 'V' // volume id -> Volume
	tagSnapshot   = 'S' // snapshot id -> Snapshot
	tagJob        = 'J' // job id -> Job
	tagLayerUse   = 'l' // layer id -> LayerUse
	tagVolumeUse  = 'v' // volume id -> VolumeUse
	tagRun        = 'r' // family, page, ^generation, block -> Run
	tagTouched    = 'g' // generation, page -> nothing
	tagBitmap     = 'b' // chunk -> Bitmap
	tagSegment    = 's' // segment -> Segment
	tagSegmentUse = 'u' // segment -> blocks in use
)

// Sizes of keys and fixed values, in bytes.
const (
	RunKeyLen  = 1 + 4 + 3 + 6 + 2
	BitmapLen  = 128
	maxPage    = 1<<24 - 1
	maxGen     = 1<<48 - 1
	pageBlocks = 1024
)

// PoolKey is the key of the pool's record.
func PoolKey() []byte { return []byte{tagPool} }

// MemberKey is the key of a member's record.
func MemberKey(index uint32) []byte { return chunkKey(tagMember, index) }

// LayerKey, VolumeKey, SnapshotKey, JobKey, LayerUseKey and VolumeUseKey are the keys of the catalogue's records.
func LayerKey(id uint64) []byte     { return idKey(tagLayer, id) }
func VolumeKey(id uint64) []byte    { return idKey(tagVolume, id) }
func SnapshotKey(id uint64) []byte  { return idKey(tagSnapshot, id) }
func JobKey(id uint64) []byte       { return idKey(tagJob, id) }
func LayerUseKey(id uint64) []byte  { return idKey(tagLayerUse, id) }
func VolumeUseKey(id uint64) []byte { return idKey(tagVolumeUse, id) }

func idKey(tag byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tag}, id)
}

// ParseID returns the id in a key made by one of the functions above.
func ParseID(key []byte) (uint64, error) {
	if len(key) != 9 {
		return 0, fmt.Errorf("%w: catalogue key of %d bytes", ErrCorrupt, len(key))
	}
	return binary.BigEndian.Uint64(key[1:]), nil
}

// Kind tells which records a key belongs to: the range [lower, upper) of all keys with its tag.
func Kind(key []byte) (lower, upper []byte) { return []byte{key[0]}, []byte{key[0] + 1} }

// RunPage is where a run lives.
type RunPage struct {
	Family uint32
	Page   uint32
}

// RunKey is (family, page, ^generation, block): within a page the newest generation comes first.
func RunKey(family, page uint32, gen uint64, block int) []byte {
	return AppendRunKey(make([]byte, 0, RunKeyLen), family, page, gen, block)
}

// AppendRunKey appends RunKey to b.
func AppendRunKey(b []byte, family, page uint32, gen uint64, block int) []byte {
	b = append(b, tagRun)
	b = binary.BigEndian.AppendUint32(b, family)
	b = append(b, byte(page>>16), byte(page>>8), byte(page))
	b = append48(b, ^gen)
	return binary.BigEndian.AppendUint16(b, uint16(block))
}

// RunPagePrefix is what all the run keys of a page begin with; RunFamilyPrefix, those of a family.
func RunPagePrefix(family, page uint32) []byte { return RunKey(family, page, maxGen, 0)[:8] }

// RunFamilyPrefix is what all the run keys of a family begin with.
func RunFamilyPrefix(family uint32) []byte { return RunKey(family, 0, maxGen, 0)[:5] }

// RunPrefix is what all run keys begin with.
func RunPrefix() []byte { return []byte{tagRun} }

// ParseRunKey takes a run's key apart.
func ParseRunKey(key []byte) (p RunPage, gen uint64, block int, err error) {
	if len(key) != RunKeyLen || key[0] != tagRun {
		return p, 0, 0, fmt.Errorf("%w: run key % x", ErrCorrupt, key)
	}
	p.Family = binary.BigEndian.Uint32(key[1:])
	p.Page = uint32(key[5])<<16 | uint32(key[6])<<8 | uint32(key[7])
	gen = ^get48(key[8:]) & maxGen
	block = int(binary.BigEndian.Uint16(key[14:]))
	if block >= pageBlocks || gen == 0 {
		return p, 0, 0, fmt.Errorf("%w: run key % x: block %d, generation %d", ErrCorrupt, key, block, gen)
	}
	return p, gen, block, nil
}

// TouchedKey says that a generation has runs in a page.
func TouchedKey(gen uint64, page uint32) []byte {
	b := append48([]byte{tagTouched}, gen)
	return append(b, byte(page>>16), byte(page>>8), byte(page))
}

// TouchedPrefix is what the keys of one generation begin with.
func TouchedPrefix(gen uint64) []byte { return append48([]byte{tagTouched}, gen) }

// TouchedAll is what all such keys begin with.
func TouchedAll() []byte { return []byte{tagTouched} }

// ParseTouchedKey takes it apart.
func ParseTouchedKey(key []byte) (gen uint64, page uint32, err error) {
	if len(key) != 10 || key[0] != tagTouched {
		return 0, 0, fmt.Errorf("%w: touched-page key % x", ErrCorrupt, key)
	}
	return get48(key[1:]), uint32(key[7])<<16 | uint32(key[8])<<8 | uint32(key[9]), nil
}

// BitmapKey is the key of a chunk's bitmap. A chunk is 1,024 pool blocks.
func BitmapKey(chunk uint32) []byte { return chunkKey(tagBitmap, chunk) }

// SegmentKey is the key of what a segment's chunks have.
func SegmentKey(segment uint32) []byte { return chunkKey(tagSegment, segment) }

// SegmentUseKey is the key of a segment's count of blocks in use.
func SegmentUseKey(segment uint32) []byte { return chunkKey(tagSegmentUse, segment) }

func chunkKey(tag byte, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{tag}, n) }

// ParseNumber returns the chunk, segment or index of a key made by one of the three functions above or MemberKey.
func ParseNumber(key []byte) (uint32, error) {
	if len(key) != 5 {
		return 0, fmt.Errorf("%w: key % x", ErrCorrupt, key)
	}
	return binary.BigEndian.Uint32(key[1:]), nil
}

// Upper returns the first key after all that begin with prefix.
func Upper(prefix []byte) []byte {
	u := append([]byte(nil), prefix...)
	for i := len(u) - 1; i >= 0; i-- {
		if u[i]++; u[i] != 0 {
			return u[:i+1]
		}
	}
	return nil
}

func append48(b []byte, v uint64) []byte {
	return append(b, byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func get48(b []byte) uint64 {
	return uint64(b[0])<<40 | uint64(b[1])<<32 | uint64(b[2])<<24 | uint64(b[3])<<16 | uint64(b[4])<<8 | uint64(b[5])
}
