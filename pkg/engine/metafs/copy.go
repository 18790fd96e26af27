package metafs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Copy makes a copy of an open DB in another folder, on any file system, for a DB that moves. Tables never change once they are written, so nearly all of it
// is copied Ahead, while the DB is used; what came since, and what says which tables there are, is copied by Finish, while nobody writes to the DB. Finish
// writes the memtables out first, so logs are not copied: there is nothing in them that is not in a table.
type Copy struct {
	// Unsynced leaves out every sync of the copy: a test's.
	Unsynced bool

	fs    *FS
	db    *pebble.DB
	from  string
	ahead string
	to    string
}

// Errors of Finish after which it can be tried again when more was copied ahead. The DB is as it was.
var (
	ErrBehind = errors.New("the copy of the metadata is behind")
	errFlush  = fmt.Errorf("%w: the memtables were not written out in time", ErrBehind)
)

const (
	// copyPiece is how much is copied at once, in bytes.
	copyPiece = 1 << 20
	// flushPatience is how long Finish waits for the memtables.
	flushPatience = time.Second
)

// NewCopy prepares to copy this file system's DB from its folder to another, that is not there yet. What is copied ahead is kept in a third, beside the
// second. What an earlier copy has left in both must be gone.
func (fs *FS) NewCopy(db *pebble.DB, from, ahead, to string) (*Copy, error) {
	c := &Copy{fs: fs, db: db, from: from, ahead: ahead, to: to}
	if err := fs.fsys.MkdirAll(ahead); err != nil {
		return nil, err
	}
	// The new DB's first log: zeroes take a while to write.
	return c, fs.prewrite(filepath.Join(ahead, firstSlot))
}

const firstSlot = slotPrefix + "1" + logSuffix

// Ahead copies what is not copied yet, or wait says no, and returns how many bytes that was. wait is told before each piece.
func (c *Copy) Ahead(wait func(bytes int) bool) (copied int64, err error) {
	if flushed, err := c.db.AsyncFlush(); err != nil {
		return 0, err
	} else if !within(flushed, flushPatience) {
		return 0, errFlush
	}
	list, err := c.missing()
	for _, t := range list {
		if err != nil {
			break
		}
		var n int64
		n, err = c.table(t.name, filepath.Join(c.ahead, t.name), wait)
		copied += n
		if errors.Is(err, fs.ErrNotExist) { // compacted away
			err = nil
		}
	}
	return copied, err
}

func within(done <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

type table struct {
	name string
	size int64
}

// missing lists the tables that are not copied as they are. One that is being written is copied in part, and then once more.
func (c *Copy) missing() (list []table, err error) {
	names, err := c.fs.fsys.ReadDir(c.from)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if ext := filepath.Ext(name); ext != ".sst" && ext != ".blob" {
			continue
		}
		is, err := c.fs.fsys.Stat(filepath.Join(c.from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if has, err := c.fs.fsys.Stat(filepath.Join(c.ahead, name)); err != nil || has.Size() != is.Size() {
			list = append(list, table{name, is.Size()})
		}
	}
	return list, nil
}

// table copies one, durably but for its name.
func (c *Copy) table(name, to string, wait func(bytes int) bool) (copied int64, err error) {
	src, err := c.fs.fsys.Open(filepath.Join(c.from, name), 0)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	dst, err := c.fs.fsys.Open(to, fsys.Create|fsys.Write|fsys.Truncate)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	b := make([]byte, copyPiece)
	for {
		if wait != nil && !wait(len(b)) {
			return copied, errStopped
		}
		n, err := src.ReadAt(b, copied)
		if err != nil && !errors.Is(err, io.EOF) {
			return copied, err
		}
		if n > 0 {
			if _, err := dst.WriteAt(b[:n], copied); err != nil {
				return copied, err
			}
		}
		if copied += int64(n); n < len(b) {
			break
		}
	}
	if c.Unsynced {
		return copied, nil
	}
	return copied, dst.Sync()
}

var errStopped = errors.New("stopped")

// Finish makes the copy whole and durable, names included up to the folder that holds it. Nobody writes to the DB meanwhile. It takes a second for the
// memtables, and the time for most bytes of tables and some twenty syncs, at most.
func (c *Copy) Finish(most int64) error {
	flushed, err := c.db.AsyncFlush()
	if err != nil {
		return err
	}
	if !within(flushed, flushPatience) {
		return errFlush
	}
	list, err := c.missing()
	if err != nil {
		return err
	}
	left := int64(0)
	for _, t := range list {
		left += t.size
	}
	if left > most {
		return fmt.Errorf("%w: %d MiB of tables are not copied", ErrBehind, left>>20)
	}
	c.fs.copying.Store(c)
	err = c.db.Checkpoint(c.to)
	c.fs.copying.Store(nil)
	if err != nil {
		return err
	}
	return c.logs()
}

// logs removes what stands for the logs in the checkpoint, and makes the new DB's folder of logs.
func (c *Copy) logs() error {
	names, err := c.fs.fsys.ReadDir(c.to)
	for _, name := range names {
		if err == nil && filepath.Ext(name) == logSuffix {
			err = c.fs.fsys.Remove(filepath.Join(c.to, name))
		}
	}
	folder := filepath.Join(c.to, logFolder)
	if err == nil {
		err = c.fs.fsys.MkdirAll(folder)
	}
	if err == nil {
		err = c.fs.fsys.Rename(filepath.Join(c.ahead, firstSlot), filepath.Join(folder, firstSlot))
	}
	for _, dir := range []string{folder, c.to, filepath.Dir(c.to)} {
		if err == nil && !c.Unsynced {
			err = c.fs.fsys.SyncDir(dir)
		}
	}
	return err
}

// link is asked by Pebble's checkpoint for a table. One that was copied ahead is put in its place.
func (c *Copy) link(oldname, newname string) error {
	if filepath.Dir(oldname) != c.from || filepath.Dir(newname) != c.to {
		return fmt.Errorf("link %s as %s: %w", oldname, newname, vfs.ErrUnsupported)
	}
	name := filepath.Base(oldname)
	is, err := c.fs.fsys.Stat(oldname)
	if err != nil {
		return err
	}
	ahead := filepath.Join(c.ahead, name)
	if has, err := c.fs.fsys.Stat(ahead); err == nil && has.Size() == is.Size() {
		return c.fs.fsys.Rename(ahead, newname)
	}
	_, err = c.table(name, newname, nil)
	return err
}

// owns tells that a file or folder is of the copy that is being finished, if one is. An error of its folders' sync must not reach Pebble, which panics on some,
// and is no reason to give the DB up.
func (c *Copy) owns(name string) bool {
	return c != nil && name != c.from && !strings.HasPrefix(name, c.from+string(os.PathSeparator))
}

// emptyLog is what a log looks like to the checkpoint.
type emptyLog struct{ vfs.File }

func (emptyLog) Read([]byte) (int, error)          { return 0, io.EOF }
func (emptyLog) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
