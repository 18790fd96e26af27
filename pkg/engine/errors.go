package engine

import (
	"errors"

	"github.com/rowan-csi/rowan/pkg/block"
)

// What the caller asked for is wrong; asking again changes nothing.
var (
	// ErrInvalid: a name, size or option is out of its bounds. The text says which and what is allowed.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound: no pool, volume or snapshot of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrShrink: the new size is smaller than the present one.
	ErrShrink = errors.New("shrinking is not supported")
	// ErrNotDescendant: a volume can only be rolled back to a snapshot of its own.
	ErrNotDescendant = errors.New("snapshot is not one of this volume's")
	// ErrUnrelated: a difference is known within a family only, among what descends from one volume.
	ErrUnrelated = errors.New("not of one family")
)

// The object is in a state that does not allow it now.
var (
	// ErrInUse: the volume is open (attached).
	ErrInUse = errors.New("in use")
	// ErrBusy: the operation could not finish in its time and changed nothing; ask again.
	ErrBusy = errors.New("busy, try again")
	// ErrNoSpace: the pool is full. It is block.ErrNoSpace, so that a device's write error and a refused volume are told apart from others alike.
	ErrNoSpace = block.ErrNoSpace
	// ErrClosed: the pool, volume or snapshot reader was closed.
	ErrClosed = block.ErrClosed
)

// The pool cannot be opened or went out of service.
var (
	// ErrFailed: a flush failed or the metadata is damaged: the pool takes no more writes until its process and, for a failed flush, the machine
	// was restarted. The text says why.
	ErrFailed = errors.New("pool has failed")
	// ErrLocked: another engine has the pool open.
	ErrLocked = errors.New("pool is open in another process")
	// ErrLost: the ring of a pool that was not closed in this boot is missing or damaged: writes acknowledged before the engine died may be lost.
	// Open with AcceptLoss to go on without them.
	ErrLost = errors.New("acknowledged writes may be lost")
	// ErrIncompatible: the pool was written by a newer version; the text names the features.
	ErrIncompatible = errors.New("pool needs features this version does not have")
	// ErrCorrupt: a superblock, ring or metadata record does not decode or contradicts another.
	ErrCorrupt = errors.New("damaged")
	// ErrMemberMissing: a member of the pool is not there; the text says which. What is whole without it is served.
	ErrMemberMissing = errors.New("member is missing")
	// ErrForeign: the folder or device belongs to another pool.
	ErrForeign = errors.New("belongs to another pool")
	// ErrUnsupported: the folder's file system is neither XFS nor ext4, or the device cannot do direct I/O.
	ErrUnsupported = errors.New("unsupported")
	// ErrNotBlank: the device holds a file system, partition table or other signature; the text names it.
	ErrNotBlank = errors.New("device is not blank")
)
