package metafs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// opening is what is known of pebble.Open while it runs. Once it has flushed what it found in its logs to a table, a goroutine of Pebble's own reads that
// table's statistics; where Open then meets an error it closes the cache that this one uses, and the process would panic, other pools and all. And where it
// cannot write the table it tries again without end, and Open waits for that. So from the first table on such an error is fatal, as a log's is.
type opening struct {
	over  atomic.Bool
	table atomic.Bool
}

// Opened is called when pebble.Open has returned.
func (fs *FS) Opened() { fs.opening.over.Store(true) }

// met is given every error on its way to Pebble that it gives up for: not those of Stat and Remove.
func (o *opening) met(m *FS, call string, err error) error {
	switch {
	case err == nil, o.over.Load(), !o.table.Load():
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist), errors.Is(err, io.EOF), errors.Is(err, vfs.ErrUnsupported):
		// Pebble's own ways of asking.
	case errors.Is(err, fsys.ErrLocked):
	default:
		m.fatal(fmt.Errorf("%s while the metadata is opened: %w", call, err))
	}
	return err
}

func (o *opening) making(name string) {
	if filepath.Ext(name) == ".sst" {
		o.table.Store(true)
	}
}
