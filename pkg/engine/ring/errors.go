package ring

import "errors"

// Why a ring that is there, or should be, cannot be used.
var (
	// ErrMissing: there is no ring of this pool.
	ErrMissing = errors.New("ring is missing")
	// ErrVersion: the ring was written by a program with another format.
	ErrVersion = errors.New("ring has another version")
	// ErrDamaged: the header or an entry does not decode.
	ErrDamaged = errors.New("ring is damaged")
	// ErrOtherPool: the file carries another pool's id.
	ErrOtherPool = errors.New("ring belongs to another pool")
	// ErrOtherBoot: the ring is of an earlier boot; what it holds was never flushed, and is void.
	ErrOtherBoot = errors.New("ring is of another boot")
	// ErrStaleEpoch: the pool was opened without this ring since it was written.
	ErrStaleEpoch = errors.New("ring missed an opening of the pool")
)

// What a caller asked for cannot be done.
var (
	// ErrFileSystem: the folder is not on a tmpfs. A ring on a disk would cost a page-cache write back and buy nothing.
	ErrFileSystem = errors.New("ring must be on a tmpfs")
	// ErrUse: a sequence outside of the window, an append without a reservation: a defect of the caller.
	ErrUse = errors.New("ring is used wrongly")
	// ErrClosed: the ring was closed.
	ErrClosed = errors.New("ring is closed")
)
