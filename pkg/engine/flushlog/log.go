package flushlog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
)

// DefaultSlots is how many records a log holds.
const DefaultSlots = 512

// minSlots: one is written while the one before it is needed. maxSlots is what is read at most.
const (
	minSlots = 2
	maxSlots = 1 << 14
)

var (
	// ErrDamaged: a record between others is not there, or says what cannot be.
	ErrDamaged = errors.New("damaged flush log")
	// ErrNoSpace: there is no log, and no space for one.
	ErrNoSpace = errors.New("no space for the flush log")
	// ErrVersion: a program with another format wrote it.
	ErrVersion = errors.New("flush log of version")
)

// Log is an open log. Its methods are called one at a time.
type Log struct {
	f      fsys.File
	path   string
	pool   [16]byte
	buf    []byte
	slots  []record // by number modulo their count; number 0: none
	number uint64   // of the newest record
	last   uint64   // sequences up to this one are durable, in records or before them
	broken damage   // found as it was read
}

// damage is what is wrong with a log, and up to which sequence: what is committed nobody misses.
type damage struct {
	err error
	to  uint64
}

// add keeps the damage that reaches furthest.
func (d *damage) add(to uint64, format string, args ...any) {
	if d.err == nil || to > d.to {
		d.err, d.to = fmt.Errorf(format, args...), to
	}
}

// Open opens the log at a path, and makes it where there is none.
func Open(fsy fsys.FS, path string, pool [16]byte, slots int) (_ *Log, err error) {
	l := &Log{path: path, pool: pool, buf: fsys.AlignedBuffer(blockSize), slots: make([]record, max(minSlots, cmp.Or(slots, DefaultSlots)))}
	l.f, err = fsy.Open(path, fsys.Write|fsys.Direct)
	if errors.Is(err, fs.ErrNotExist) {
		l.f, err = fsy.Open(path, fsys.Create|fsys.Write|fsys.Direct)
	}
	if err != nil {
		return nil, fmt.Errorf("open flush log: %w", noSpace(err))
	}
	found, err := l.load()
	if err == nil && !found {
		_, err = l.f.WriteAt(fsys.AlignedBuffer(len(l.slots)*blockSize), 0)
	}
	if err == nil {
		// By a process before this one it may have been made and not synced.
		err = errors.Join(l.f.Sync(), fsy.SyncDir(filepath.Dir(path)))
	}
	if err == nil {
		return l, nil
	}
	if !found {
		if err = noSpace(err); errors.Is(err, ErrNoSpace) {
			err = errors.Join(err, fsy.Remove(path)) // what there is of it takes the last space
		}
	}
	return nil, errors.Join(fmt.Errorf("open flush log %s: %w", path, err), l.f.Close())
}

func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Look reads the log at a path, for its Entries only. Where there is no file, there are none.
func Look(fsy fsys.FS, path string, pool [16]byte) (_ *Log, err error) {
	l := &Log{path: path, pool: pool}
	l.f, err = fsy.Open(path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		_, err = l.load()
		err = errors.Join(err, l.f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("look at flush log %s: %w", path, err)
	}
	return l, nil
}

// load reads the records, and tells whether there is anything in their places. Where there is, the number of slots is the file's: each record stays in its
// own.
func (l *Log) load() (found bool, err error) {
	size, err := l.f.Size()
	if err != nil {
		return false, err
	}
	slots := int(min(size/blockSize, maxSlots))
	if slots < minSlots {
		return false, nil
	}
	records, unread := make([]record, slots), make([]error, slots)
	block := l.reader(slots)
	for i := range records {
		var r record
		p, err := block(i)
		if err == nil {
			r, err = decode(p, l.pool)
		}
		switch {
		case err == errNoRecord:
			continue
		case errors.Is(err, ErrVersion):
			return false, err
		case err == errOther:
			l.broken.add(math.MaxUint64, "%w %s: slot %d has a record of another pool", ErrDamaged, l.path, i)
		case err != nil:
			unread[i] = err
		case r.number%uint64(slots) != uint64(i):
			l.broken.add(r.last, "%w %s: record %d is in slot %d of %d", ErrDamaged, l.path, r.number, i, slots)
		default:
			records[i] = r
			if r.number > l.number {
				l.number, l.last = r.number, r.last
			}
		}
		found = true
	}
	// Of the other slots that cannot be read the records around them tell whether they are missed.
	if err := unread[(l.number+1)%uint64(slots)]; err != nil {
		l.broken.add(math.MaxUint64, "%w %s: what comes after record %d cannot be read: %w", ErrDamaged, l.path, l.number, err)
	}
	if found || slots > len(l.slots) {
		l.slots = records
	}
	return found, nil
}

// reader reads slots: all at once, or one by one where not all can be read.
func (l *Log) reader(slots int) func(i int) ([]byte, error) {
	all := fsys.AlignedBuffer(slots * blockSize)
	n, err := l.f.ReadAt(all, 0)
	whole := n == len(all) && (err == nil || err == io.EOF)
	return func(i int) ([]byte, error) {
		p := all[i*blockSize : (i+1)*blockSize]
		if whole {
			return p, nil
		}
		n, err := l.f.ReadAt(p, int64(i)*blockSize)
		if n == len(p) {
			err = nil
		}
		return p, err
	}
}

// Forget takes all records away, durably: what they have is given up.
func (l *Log) Forget() error {
	if _, err := l.f.WriteAt(fsys.AlignedBuffer(len(l.slots)*blockSize), 0); err != nil {
		return fmt.Errorf("empty flush log: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("empty flush log: %w", err)
	}
	clear(l.slots)
	l.number, l.last, l.broken = 0, 0, damage{}
	return nil
}

// Entries are those above a sequence, in order, and up to where the log reaches: all that flushes have made durable beyond the commit of that sequence. With
// ErrDamaged they are those before the damage, as far as can be told.
func (l *Log) Entries(committed uint64) (list []ring.Entry, last uint64, err error) {
	if l.broken.err != nil && l.broken.to > committed {
		err = l.broken.err
	}
	newest := slices.Clone(l.slots)
	slices.SortFunc(newest, func(a, b record) int { return cmp.Compare(a.number, b.number) })
	last = committed
	for _, r := range newest {
		if r.number == 0 || r.last <= committed {
			continue
		}
		if r.after > last {
			return list, last, fmt.Errorf("%w %s: record %d goes on from sequence %d, and what is before it from %d is not there", ErrDamaged, l.path, r.number,
				r.after, last)
		}
		for _, e := range r.entries {
			if e.Sequence > last {
				list = append(list, e)
			}
		}
		last = max(last, r.last)
	}
	return list, last, err
}

// Last is up to which sequence all is durable, by the records, or by what Begin was told.
func (l *Log) Last() uint64 { return l.last }

// Begin says that all up to a sequence is committed durably, and that records follow from there. Nobody asks for Entries any more.
func (l *Log) Begin(committed uint64) {
	l.last = committed
	for i := range l.slots {
		l.slots[i].entries = nil
	}
}

// Slots is how many records there is room for.
func (l *Log) Slots() int { return len(l.slots) }

// Free tells how many records can be written before the oldest that is not committed is in the way.
func (l *Log) Free(committed uint64) (n int) {
	for n < len(l.slots) && l.slots[(l.number+1+uint64(n))%uint64(len(l.slots))].last <= committed {
		n++
	}
	return n
}

// Append makes entries durable: all those above after and up to last, in order. committed is up to where commits are durable; it, or Last, is after.
func (l *Log) Append(entries []ring.Entry, after, last, committed uint64) error {
	if l.Free(committed) == 0 || len(entries) > MaxEntries {
		return fmt.Errorf("append %d entries to flush log %s: no room", len(entries), l.path)
	}
	r := record{number: l.number + 1, after: after, last: last, entries: entries}
	r.encode(l.buf, l.pool)
	slot := r.number % uint64(len(l.slots))
	if _, err := l.f.WriteAtDurable(l.buf, int64(slot)*blockSize); err != nil {
		return fmt.Errorf("write flush log: %w", err)
	}
	r.entries = nil
	l.slots[slot], l.number, l.last = r, r.number, last
	return nil
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }
