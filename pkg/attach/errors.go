package attach

import "errors"

// What the caller asked for is wrong.
var (
	// ErrInvalid: an id, option or device is out of its bounds. The text says which and what is allowed.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound: no attachment of that id.
	ErrNotFound = errors.New("no such attachment")
	// ErrExists: there is an attachment of that id.
	ErrExists = errors.New("attachment exists already")
)

// The machine or the attachment is in a state that does not allow it now.
var (
	// ErrInUse: somebody has the device open or mounted.
	ErrInUse = errors.New("device is in use")
	// ErrUnavailable: the machine lacks what this mechanism needs; the text says what.
	ErrUnavailable = errors.New("attach mechanism is not available")
	// ErrClosed: the attacher was closed, or no longer serves this attachment.
	ErrClosed = errors.New("attacher is closed")
	// ErrGone: the kernel's side of the attachment was taken away from outside (an aborted connection, a device cleared by hand).
	ErrGone = errors.New("attachment is gone")
)
