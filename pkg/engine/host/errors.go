package host

import "errors"

var (
	// ErrNotOpen: the pool is registered but is not open; the text says why.
	ErrNotOpen = errors.New("pool is not open")
	// ErrStopping: the engine is on its way down; ask its successor.
	ErrStopping = errors.New("engine is stopping")
)
