package engine

import (
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// Limits, in the units named.
const (
	BlockSize     = 4096      // bytes: the unit of mapping, ownership and accounting
	PageBlocks    = 1024      // blocks: the unit of map loading and of locking
	MaxVolumeSize = 64 << 40  // bytes
	MaxNameLen    = 128       // bytes of a pool's, volume's or snapshot's name
	MaxLabelsLen  = 4 << 10   // bytes of all keys and values of an object's labels
	SizeUnit      = 1 << 20   // bytes: a volume's size is a multiple of it
	MinPoolSize   = 256 << 20 // bytes of data
	MaxGroup      = 256       // snapshots of one group
	MaxRanges     = 65536     // ranges of one answer of Diff
)

// How a pool's members are filled.
const (
	AllocationStriped = "striped" // each volume's extents go round the members
	AllocationFilled  = "filled"  // one member after the other
)

// PoolSpec describes a pool to make. Exactly one of Directory and Device is set.
type PoolSpec struct {
	Name       string
	Node       string // the identity of the node it is made for, kept on every member; default: the host's name
	Allocation string // AllocationStriped, the default, or AllocationFilled
	More       []MemberSpec
	// The first member's, which has the metadata:
	Directory string // on XFS or ext4; made if missing; holds the member's files
	Device    string // a blank block device: XFS is made on it and mounted at MountDir/<pool name>
	Wipe      bool   // Device only: destroy what is on it
	Size      int64  // bytes of data it may hold; 0: a part of the file system, see Share
	Share     Share
}

// MemberSpec describes a member to make. Exactly one of Directory and Device is set.
type MemberSpec struct {
	Directory string // on XFS or ext4; made if missing
	Device    string // a blank block device: XFS is made on it
	Wipe      bool   // Device only: destroy what is on it
	Size      int64  // bytes of data it may hold; 0: a part of the file system, see Share
	Share     Share
}

// Share is how much of its file system a member may take that is made without a size, in hundredths of what there is then.
type Share struct {
	OfFree int // of what is free; 0: 90
	FullAt int // never so much that more than this of the file system would be used; 0: no such limit
	StopAt int // with a size, too, and kept: from the use of so much of the file system on, whoever uses it, the member takes no more of it; 0: no such limit
}

// Options say how a pool is opened. Zero values take the defaults.
type Options struct {
	Members    []string  // folders or devices where OpenPool looks for members, beside where they were last seen
	RingDir    string    // folder on a tmpfs of the host; default /run/rowan/rings
	MountDir   string    // where devices are mounted; default /var/lib/rowan/mnt
	MapCache   int64     // bytes of flattened map kept in memory; default 128 MiB
	AcceptLoss bool      // open although the ring is missing or damaged
	ReadOnly   bool      // open for looking only (check of a pool that has failed)
	IO         *uring.IO // how segments are read and written, shared by pools; nil: system calls
	// WarnAt and RefuseAt are watermarks: the parts of a pool's space, over 0, from whose use on it warns, and refuses new volumes and snapshots.
	// Default 0.85 and 0.95; over 1: never.
	WarnAt, RefuseAt float64
	SpaceWait        time.Duration // how long writes wait for space in a full pool before they get ENOSPC; default DefaultSpaceWait
	Observer         Observer

	// LockWait is how long to wait for another engine's locks, whose I/O may end late; default 10 s, negative: not at all.
	LockWait time.Duration

	// ChecksumRate is how many bytes of frozen blocks are read a second, at most, to make their checksums in the background; default 64 MiB, negative:
	// none are made. ChecksumDelay is how long a layer is frozen before its turn; default 1 minute, negative: none.
	ChecksumRate  int64
	ChecksumDelay time.Duration
	// ScrubEvery is how often all frozen blocks are read and compared with their checksums, counted from the opening; 0: only on request.
	// ScrubRate is how many bytes a second that reads; default 64 MiB.
	ScrubEvery time.Duration
	ScrubRate  int64

	// for tests
	fs        fsys.FS
	ringBytes int64
	anyRingFS bool
	bootID    *[16]byte
	patience  time.Duration // for other engines' locks
	// pinPatience is for readers of what COW moves; 0: the constant.
	pinPatience time.Duration
	smallest    int64 // size of a member; 0: MinPoolSize
	tidyTick    time.Duration
	logBytes    int64 // how much of a metadata log is prewritten
	flushSlots  int   // records in the flush log; 0: its default
	wroteRing   func(off int64, p []byte)
	mutate      mutation
	did         func(mutation) // told when a rule's step is taken
}

func (o Options) boot() ([16]byte, error) {
	if o.bootID != nil {
		return *o.bootID, nil
	}
	return bootID()
}

// Observer is told what happens inside, for logs and metrics. Its methods return at once, and may be called from many goroutines; nil means nobody listens,
// and nothing is counted.
type Observer interface {
	// Event reports something an operator should know: a failed flush, a quarantined block, a stalled commit.
	Event(pool, message string, keysAndValues ...any)
	// Figures are where a pool counts; nil: it does not. It is asked once, when the pool is opened.
	Figures(pool string) *Figures
}

// PoolInfo is a pool as it is now. Sizes are in bytes.
type PoolInfo struct {
	Name, ID      string
	Node          string // the identity of the node that it was made for
	Member        string // the folder of the member with the metadata
	Device        string // what it was made on, if a device
	State         string // "Ready", "Degraded" (members are missing), "ReadOnly" or "Failed"
	Reason        string // why, when not Ready
	Size          int64  // data the pool may hold
	Used          int64  // blocks owned by some layer, in bytes
	Free          int64  // Size - Used
	Available     int64  // what new blocks can take now: less than Free where the file system has not the space
	Reserved      int64  // set aside for thick volumes and not yet used; not in Available
	Thick         int64  // the part of Provisioned that is of thick volumes
	Level         SpaceLevel
	WarnAt        float64 // the watermarks it has, as in Options
	RefuseAt      float64
	Provisioned   int64 // the sum of the volumes' sizes
	MetadataBytes int64 // Pebble's files
	ChecksumBytes int64 // keys and values of checksums that were put into the metadata since the pool was opened
	Unsummed      int   // generations of frozen layers that lack checksums
	Volumes       int
	Snapshots     int
	Jobs          int // layers queued for freeing or joining
	Allocation    string
	Members       []MemberInfo
}

// MemberInfo is a member of a pool as it is now. Sizes are in bytes.
type MemberInfo struct {
	Index     int
	ID        string
	Path      string // what it is opened by: its folder, or the device
	Directory string // its folder; empty while it is missing
	Device    string // what it was made on, if a device
	State     string // "InUse", "Draining" or "Missing"
	Reason    string // why it is missing, what is in the way of its drain, or why it takes no more space
	Metadata  bool   // it holds the metadata
	Size      int64  // data it may hold
	Used      int64
	// GrowthStopped: the file system is used beyond Share.StopAt, and the member has not yet all the space that its size allows.
	GrowthStopped bool
}

// Mode says who moves when a volume writes what a snapshot keeps.
type Mode uint8

const (
	// RedirectOnWrite (ROW): the new data goes to a new block. Best for writes.
	RedirectOnWrite Mode = 0
	// CopyOnWrite (COW): the old data is copied to a new block, and the new takes its place, so that the volume keeps its layout. Best for reads.
	CopyOnWrite Mode = 1
)

func (m Mode) String() string {
	switch m {
	case RedirectOnWrite:
		return "row"
	case CopyOnWrite:
		return "cow"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseMode reads what String gives. Empty is RedirectOnWrite.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "row", "":
		return RedirectOnWrite, nil
	case "cow":
		return CopyOnWrite, nil
	}
	return 0, fmt.Errorf("%w: mode %q: want row (new data goes to new blocks) or cow (old data is copied away)", ErrInvalid, s)
}

func (m Mode) check() error {
	if m > CopyOnWrite {
		return fmt.Errorf("%w: %v", ErrInvalid, m)
	}
	return nil
}

// VolumeSpec describes a volume to make. At most one of FromSnapshot and FromVolume is set.
type VolumeSpec struct {
	Name         string
	Size         int64 // bytes, a multiple of SizeUnit; 0 with a source: the source's size
	FromSnapshot string
	FromVolume   string
	Mode         Mode
	Tidy         bool // move its scattered blocks back into sequence in the background
	Labels       map[string]string
	Provisioning Provisioning // empty: the source's, or thin
}

// VolumeInfo is a volume as it is now. Sizes are in bytes.
type VolumeInfo struct {
	Name, ID     string
	Size         int64
	Mapped       int64 // what the volume maps, its ancestry's blocks included
	Owned        int64 // what its head owns by itself
	Written      bool  // something was written to it since it was made
	HasParent    bool  // made from, or rolled back to, a snapshot
	FromSnapshot string
	FromVolume   string
	Open         bool
	Mode         Mode
	Tidy         bool
	Provisioning Provisioning
	Reserved     int64 // what is set aside for it and not yet used; 0 of a thin one
	CreatedAt    time.Time
	Labels       map[string]string
	Counters     *Counters // while open
}

// Counters count a volume's work since it was opened.
type Counters struct {
	Reads, ReadBytes             uint64 // asked for by the guest
	Writes, WriteBytes           uint64
	Discards, Flushes            uint64
	DataReads, DataReadBytes     uint64 // done on the pool's segments on its behalf
	DataWrites, DataWriteBytes   uint64
	FirstWrites, FirstWriteBytes uint64 // guest writes that were redirected to new blocks
	Copies, CopyBytes            uint64 // stretches of old data that COW copied away for guest writes
}

// SnapshotSpec describes a snapshot to take.
type SnapshotSpec struct {
	Name   string
	Volume string
	Labels map[string]string
}

// SnapshotGroupSpec describes snapshots to take in one cut: all of them, or none.
type SnapshotGroupSpec struct {
	Name      string         // no snapshot's group yet
	Snapshots []SnapshotSpec // 1 to MaxGroup, each of another volume
}

// SnapshotInfo is a snapshot as it is now. Sizes are in bytes.
type SnapshotInfo struct {
	Name, ID  string
	Volume    string // its source's name when it was taken
	VolumeID  string
	Group     string // the group it was taken with; empty: by itself
	Size      int64  // the volume's size when it was taken
	Owned     int64  // what its layer owns
	CreatedAt time.Time
	Labels    map[string]string
	// Provisioning is its volume's when it was taken, and a restore's that asks for none.
	Provisioning Provisioning
}
