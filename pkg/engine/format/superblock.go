package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrUnknownFeatures: what was written needs a newer version of this program. The text says which features.
var ErrUnknownFeatures = errors.New("needs features that this version does not have")

// Sizes of the superblock and its strings, in bytes.
const (
	SuperblockSize    = 4096
	SuperblockVersion = 1
	MaxPoolName       = 128
	MaxDeviceNote     = 256
	MaxNode           = 256
)

// superblockMagic begins every superblock.
const superblockMagic = "ROWANSB\x00"

// Features that this version knows. Whoever does not know an incompatible one must not open the pool at all; whoever does not know a compatible one
// may use the pool, and clears the flag when writing the superblock again.
const (
	// Unfinished: the pool is being made. Nothing was promised of what the member holds, so whoever makes a pool here takes its place.
	Unfinished uint64 = 1 << 0
	// FlushLog: flushed writes may be in the flush log alone, beside the metadata here.
	FlushLog uint64 = 1 << 1

	KnownIncompatible        = Unfinished | FlushLog
	KnownCompatible   uint64 = 0
)

// Offsets of the superblock's fields, as in FORMAT.md.
const (
	sbMagic        = 0
	sbVersion      = 8
	sbMemberIndex  = 12
	sbIncompatible = 16
	sbCompatible   = 24
	sbPoolID       = 32
	sbMemberID     = 48
	sbSize         = 64
	sbCreated      = 72
	sbSectorSize   = 80
	sbNameLen      = 84
	sbDeviceLen    = 86
	sbNodeLen      = 88
	sbStopAt       = 90
	sbName         = 96
	sbDevice       = sbName + MaxPoolName
	sbNode         = sbDevice + MaxDeviceNote
	sbMetadata     = sbNode + MaxNode
	sbMovingTo     = sbMetadata + 8
	sbEnd          = sbMovingTo + 16
	sbCRC          = SuperblockSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Superblock says what a member is: the content of its file rowan.pool.
type Superblock struct {
	Incompatible, Compatible uint64 // feature flags
	PoolID, MemberID         UUID
	MemberIndex              uint32
	PoolName                 string
	Size                     int64 // bytes of data that the member may hold, a multiple of 1 MiB
	StopAt                   int   // hundredths of the file system, from whose use on the member takes no more of it; 0: no such limit
	SectorSize               int   // bytes: 512 or 4096; what the member's I/O is aligned to
	Created                  time.Time
	Device                   string // the block device that the member was made on; "" for a folder
	Node                     string // the identity of the node that the pool was made for, the same on all members
	// Metadata is 0 on a member without the pool's metadata. Of several that hold it, the one with the highest number has the valid one: moving it to
	// another member gives that the next number. MovingTo is set before: while it is, only that member can tell whether the metadata here is valid.
	Metadata uint64
	MovingTo UUID
}

// Encode makes the file's content. It refuses what DecodeSuperblock would.
func (s Superblock) Encode() ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	b := make([]byte, SuperblockSize)
	le := binary.LittleEndian
	copy(b[sbMagic:], superblockMagic)
	le.PutUint32(b[sbVersion:], SuperblockVersion)
	le.PutUint32(b[sbMemberIndex:], s.MemberIndex)
	le.PutUint64(b[sbIncompatible:], s.Incompatible)
	le.PutUint64(b[sbCompatible:], s.Compatible)
	copy(b[sbPoolID:], s.PoolID[:])
	copy(b[sbMemberID:], s.MemberID[:])
	le.PutUint64(b[sbSize:], uint64(s.Size))
	le.PutUint64(b[sbCreated:], uint64(s.Created.UnixNano()))
	le.PutUint32(b[sbSectorSize:], uint32(s.SectorSize))
	le.PutUint16(b[sbNameLen:], uint16(copy(b[sbName:sbDevice], s.PoolName)))
	le.PutUint16(b[sbDeviceLen:], uint16(copy(b[sbDevice:sbNode], s.Device)))
	le.PutUint16(b[sbNodeLen:], uint16(copy(b[sbNode:sbMetadata], s.Node)))
	le.PutUint16(b[sbStopAt:], uint16(s.StopAt))
	le.PutUint64(b[sbMetadata:], s.Metadata)
	copy(b[sbMovingTo:], s.MovingTo[:])
	le.PutUint32(b[sbCRC:], crc32.Checksum(b[:sbCRC], castagnoli))
	return b, nil
}

// DecodeSuperblock reads a superblock. Its errors are ErrCorrupt and ErrUnknownFeatures; with the latter, what it could read is returned too, so that
// a message can name the pool.
func DecodeSuperblock(b []byte) (Superblock, error) {
	if len(b) != SuperblockSize {
		return Superblock{}, fmt.Errorf("%w: superblock of %d bytes, want %d", ErrCorrupt, len(b), SuperblockSize)
	}
	if string(b[sbMagic:sbMagic+8]) != superblockMagic {
		return Superblock{}, fmt.Errorf("%w: superblock begins with %q, want %q", ErrCorrupt, b[:8], superblockMagic)
	}
	le := binary.LittleEndian
	if got, want := crc32.Checksum(b[:sbCRC], castagnoli), le.Uint32(b[sbCRC:]); got != want {
		return Superblock{}, fmt.Errorf("%w: superblock's checksum is %08x, the file says %08x", ErrCorrupt, got, want)
	}
	// The checksum's place and these two fields are the same in every version.
	if v := le.Uint32(b[sbVersion:]); v != SuperblockVersion {
		return Superblock{}, fmt.Errorf("%w: superblock version %d, this version reads %d", ErrUnknownFeatures, v, SuperblockVersion)
	}
	s := Superblock{
		Incompatible: le.Uint64(b[sbIncompatible:]),
		Compatible:   le.Uint64(b[sbCompatible:]),
		PoolID:       UUID(b[sbPoolID : sbPoolID+16]),
		MemberID:     UUID(b[sbMemberID : sbMemberID+16]),
		MemberIndex:  le.Uint32(b[sbMemberIndex:]),
		Size:         int64(le.Uint64(b[sbSize:])),
		SectorSize:   int(le.Uint32(b[sbSectorSize:])),
		StopAt:       int(le.Uint16(b[sbStopAt:])),
		Created:      time.Unix(0, int64(le.Uint64(b[sbCreated:]))).UTC(),
		Metadata:     le.Uint64(b[sbMetadata:]),
		MovingTo:     UUID(b[sbMovingTo : sbMovingTo+16]),
	}
	var err error
	if s.PoolName, err = sbString(b[sbName:sbDevice], le.Uint16(b[sbNameLen:]), "pool name"); err != nil {
		return Superblock{}, err
	}
	if s.Device, err = sbString(b[sbDevice:sbNode], le.Uint16(b[sbDeviceLen:]), "device note"); err != nil {
		return Superblock{}, err
	}
	if s.Node, err = sbString(b[sbNode:sbMetadata], le.Uint16(b[sbNodeLen:]), "node"); err != nil {
		return Superblock{}, err
	}
	if unknown := s.Incompatible &^ KnownIncompatible; unknown != 0 {
		return s, fmt.Errorf("%w: pool %q has incompatible features %s; open it with the version that wrote it", ErrUnknownFeatures, s.PoolName,
			bitNames(unknown))
	}
	// A compatible feature of a newer version may keep something in the reserved bytes.
	if s.Compatible&^KnownCompatible == 0 && (!allZero(b[sbStopAt+2:sbName]) || !allZero(b[sbEnd:sbCRC])) {
		return Superblock{}, fmt.Errorf("%w: superblock's reserved bytes are not zero", ErrCorrupt)
	}
	s.Compatible &= KnownCompatible
	return s, s.validate()
}

func (s Superblock) validate() error {
	switch {
	case s.Incompatible&^KnownIncompatible != 0 || s.Compatible&^KnownCompatible != 0:
		return fmt.Errorf("%w: superblock with feature flags %#x, %#x", ErrUnknownFeatures, s.Incompatible, s.Compatible)
	case s.PoolID.IsZero() || s.MemberID.IsZero():
		return fmt.Errorf("%w: superblock without pool or member id", ErrCorrupt)
	case s.Metadata == 0 && !s.MovingTo.IsZero():
		return fmt.Errorf("%w: superblock of a member that holds no metadata says that it moves", ErrCorrupt)
	case s.PoolName == "" || len(s.PoolName) > MaxPoolName || !printable(s.PoolName):
		return fmt.Errorf("%w: superblock's pool name %q: 1 to %d bytes of printable text", ErrCorrupt, s.PoolName, MaxPoolName)
	case len(s.Device) > MaxDeviceNote || !printable(s.Device):
		return fmt.Errorf("%w: superblock's device note %q: at most %d bytes of printable text", ErrCorrupt, s.Device, MaxDeviceNote)
	case len(s.Node) > MaxNode || !printable(s.Node):
		return fmt.Errorf("%w: superblock's node %q: at most %d bytes of printable text", ErrCorrupt, s.Node, MaxNode)
	case s.Size <= 0 || s.Size%(1<<20) != 0:
		return fmt.Errorf("%w: superblock's size of %d bytes is no multiple of 1 MiB", ErrCorrupt, s.Size)
	case s.StopAt < 0 || s.StopAt > 100:
		return fmt.Errorf("%w: superblock's limit of growth, %d %% of the file system: want 0 to 100", ErrCorrupt, s.StopAt)
	case s.SectorSize != 512 && s.SectorSize != 4096:
		return fmt.Errorf("%w: superblock's sector size %d: want 512 or 4096", ErrCorrupt, s.SectorSize)
	case !time.Unix(0, s.Created.UnixNano()).Equal(s.Created):
		return fmt.Errorf("%w: superblock's time of creation %v is before 1678 or after 2262", ErrCorrupt, s.Created)
	}
	return nil
}

func sbString(field []byte, n uint16, what string) (string, error) {
	if int(n) > len(field) || !allZero(field[min(int(n), len(field)):]) {
		return "", fmt.Errorf("%w: superblock's %s: length %d of at most %d, or bytes behind its end", ErrCorrupt, what, n, len(field))
	}
	return string(field[:n]), nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// bitNames names flags by their bits: names of features that do not exist yet cannot be known.
func bitNames(flags uint64) string {
	var names []string
	for ; flags != 0; flags &= flags - 1 {
		names = append(names, fmt.Sprintf("bit %d", bits.TrailingZeros64(flags)))
	}
	return strings.Join(names, ", ")
}
