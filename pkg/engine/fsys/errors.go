package fsys

import "errors"

// ErrLocked: another open file, in this or another process, holds the lock.
var ErrLocked = errors.New("file is locked by another process")
