package volume

import "errors"

// What the caller asked for is wrong; asking again changes nothing.
var (
	// ErrInvalid: a name, parameter or source is not acceptable. The text says which and what is allowed.
	ErrInvalid = errors.New("invalid argument")
	// ErrOutOfRange: no size satisfies the range that was asked for.
	ErrOutOfRange = errors.New("size out of range")
	// ErrMalformedID: the text is no handle of ours, so nothing has it.
	ErrMalformedID = errors.New("no such handle")
	// ErrNotFound: no volume or snapshot has that handle.
	ErrNotFound = errors.New("not found")
	// ErrSourceNotFound: the snapshot or volume to copy is gone.
	ErrSourceNotFound = errors.New("source not found")
	// ErrExists: the name is taken by something made with other parameters.
	ErrExists = errors.New("already exists with other parameters")
	// ErrGrouped: the snapshot is of a group, with which alone it is deleted. The text names the group.
	ErrGrouped = errors.New("part of a snapshot group")
	// ErrBadToken: the token does not come from an earlier page; list from the start.
	ErrBadToken = errors.New("invalid token, list again from the start")
)

// The object, or its node, is in a state that does not allow it now.
var (
	// ErrInUse: the volume is attached, or its device is still open.
	ErrInUse = errors.New("in use")
	// ErrPending: another operation on the same object is under way, or could not finish in its time; ask again.
	ErrPending = errors.New("operation pending, try again")
	// ErrNotAttached: the volume has no device on this node.
	ErrNotAttached = errors.New("not attached on this node")
	// ErrPlacement: what is needed is on a node that the request excludes. The text names the node.
	ErrPlacement = errors.New("not possible on the nodes asked for")
	// ErrApart: volumes that are to be cut at the same moment are not in one pool. The text says which are where.
	ErrApart = errors.New("volumes are not in one pool")
	// ErrLost: the volume was made once and its engine has it no more, or has another one under its name. It is never made again, blank.
	ErrLost = errors.New("lost")
	// ErrNoSpace: the pool cannot take it. Another pool, or this one once it has grown, may.
	ErrNoSpace = errors.New("not enough space")
	// ErrFailed: the pool is out of service; the text says why and what to do.
	ErrFailed = errors.New("pool is out of service")
	// ErrNodeAway: the node's agent has not said anything for long, so nothing was asked of it.
	ErrNodeAway = errors.New("node does not answer")
	// ErrUnavailable: the engine, or what stands between it and the caller, does not answer; it may after a restart.
	ErrUnavailable = errors.New("engine is not available")
)

// What the node found on a device or in its mount table.
var (
	// ErrNotStaged: the volume is not staged where the call says.
	ErrNotStaged = errors.New("not staged")
	// ErrNotPublished: the volume is not at the path the call names.
	ErrNotPublished = errors.New("volume is not at this path")
	// ErrContent: the device's content is not what was asked for, and making it so would destroy it.
	ErrContent = errors.New("unexpected content")
	// ErrPublished: the volume is published elsewhere and its access mode allows one place.
	ErrPublished = errors.New("already published elsewhere")
	// ErrMismatch: the path shows the volume, but not in the way asked for now; or it shows something else.
	ErrMismatch = errors.New("path is taken in another way")
)
