package member

import (
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Flush makes every WriteAt that returned before it was called durable: by one fdatasync of each segment that was written in extents that may be
// unwritten, else by one of the flush file. Each of these flushes the device's cache after Flush was called, for all that was written to any segment:
// that of a segment either finds nothing to commit and flushes like the flush file's, or commits the file system's journal, whose write carries a flush
// before it. So one kind is enough. docs/design/member-flush.md has the measurement, TestFlushReachesDevice holds both.
func (m *Member) Flush() error {
	if err := m.failed.Load(); err != nil {
		return *err
	}
	wrote := m.wrote() // of what returns from now on it does not vouch
	flushed := false
	for _, s := range *m.segs.Load() {
		if s == nil {
			continue
		}
		if dirty := s.dirty.Load(); dirty > s.synced.Load() {
			if err := s.file.Sync(); err != nil {
				return m.fail(fmt.Errorf("%w: segment %d: %w", ErrFlush, s.index, err))
			}
			raise(&s.synced, dirty)
			flushed = true
		}
	}
	if !flushed {
		if err := m.flush.Sync(); err != nil {
			return m.fail(fmt.Errorf("%w: member %s: %w", ErrFlush, m.dir, err))
		}
	}
	// One that began before a failure and ended well after it must not vouch either: the kernel reports a lost write to one caller only.
	if err := m.failed.Load(); err != nil {
		return *err
	}
	m.counters.flushes.Add(1)
	raise(&m.flushed, wrote)
	return nil
}

// Written tells whether a write has returned since the last good Flush began, or none was ever made here: what a process before this one wrote is not
// known. A Flush that fails or is under way leaves it as it is.
func (m *Member) Written() bool { return m.wrote() > m.flushed.Load() }

// wrote counts writes, and one for those of an earlier process. A write counts before it is answered.
func (m *Member) wrote() uint64 { return uint64(m.counters.writes.Load()) + 1 }

// fail keeps the first failed flush for good and returns it.
func (m *Member) fail(err error) error {
	m.failed.CompareAndSwap(nil, &err)
	return *m.failed.Load()
}

// raise sets v to at least n: of two flushes that ran side by side, the later one may have ended first.
func raise(v interface {
	Load() uint64
	CompareAndSwap(old, new uint64) bool
}, n uint64) {
	for old := v.Load(); old < n && !v.CompareAndSwap(old, n); old = v.Load() {
	}
}

// prepareFlush writes the flush file's one block, so that there is never anything of its own to sync, and makes it durable.
func prepareFlush(f fsys.File) error {
	if _, err := f.WriteAt(zeroes()[:BlockSize], 0); err != nil {
		return fmt.Errorf("write flush file: %w", err)
	}
	if err := f.Truncate(BlockSize); err != nil {
		return fmt.Errorf("write flush file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync flush file: %w", err)
	}
	return nil
}
