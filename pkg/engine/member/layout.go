package member

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Sizes, in the units named.
const (
	BlockSize     = 4096    // bytes
	SegmentBlocks = 1 << 18 // blocks of a segment
	SegmentBytes  = SegmentBlocks * BlockSize
	ChunkBlocks   = 1024 // blocks: what is known to be written is known by whole chunks
	MaxSegments   = 1_000_000
	// MinDevice is the smallest block device that is taken, in bytes. XFS itself refuses less than 300 MiB.
	MinDevice = 512 << 20

	segmentShift = 18
	sizeUnit     = 1 << 20
	ioBytes      = 1 << 20 // the largest single request
)

// Names in a member's folder.
const (
	superblockName = "rowan.pool"
	superblockTemp = "rowan.pool.tmp"
	segmentsName   = "segments"
	flushName      = "flush"
	ballastName    = "ballast"
	metaName       = "meta"
	metaAheadName  = "meta.copy" // of a store that is being moved here: tables, ahead of the rest
	// folderOnDevice is the member's folder in the file system made on a device: beside it, not in it, is where mkfs and fsck leave things.
	folderOnDevice = "rowan"
)

func segmentName(dir string, seg uint32) string {
	return filepath.Join(dir, segmentsName, fmt.Sprintf("%06d.seg", seg))
}

// parseSegmentName reads a name in the segments folder; files of other names are not the member's.
func parseSegmentName(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(digits) != 6 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// ballastSize is what is held back for a pool of size bytes: 1 %, and at least 256 MiB, or 16 MiB where the pool is smaller than 8 GiB. The large floor
// would eat a small pool (all of it at 256 MiB), and a small pool has small metadata: its compactions rewrite files of at most some MiB.
func ballastSize(size int64) int64 {
	floor := int64(256 << 20)
	if size < 8<<30 {
		floor = 16 << 20
	}
	return max(floor, size/100/sizeUnit*sizeUnit)
}

// defaultShare is how much of what is free a member takes that was asked for without a size, in hundredths.
const defaultShare = 90

// Where tells the file and the byte in it of one of the member's blocks, for people.
func (m *Member) Where(block uint64) (file string, off int64) {
	return segmentName(m.dir, uint32(block/SegmentBlocks)), int64(block%SegmentBlocks) * BlockSize
}
