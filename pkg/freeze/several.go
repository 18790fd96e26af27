package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Set is file systems that are frozen together.
type Set []*Frozen

// Devices freezes the file systems that are mounted from devices, all or none; ErrNotMounted where one is mounted nowhere.
func (f *Freezer) Devices(ctx context.Context, devices []string) (Set, error) {
	var paths []string
	for _, device := range devices {
		path, err := f.mounted(device)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return f.freezeAll(ctx, paths)
}

// Until is until when all stay frozen: the first one's time.
func (s Set) Until() time.Time {
	var first time.Time
	for _, z := range s {
		if u := z.Until(); first.IsZero() || u.Before(first) {
			first = u
		}
	}
	return first
}

// Thaw all of them, whatever becomes of each; see Frozen.Thaw.
func (s Set) Thaw() error {
	return s.each(func(_ int, z *Frozen) error { return z.Thaw() })
}

func (s Set) each(do func(int, *Frozen) error) error {
	errs := make(chan error, len(s))
	for i, z := range s {
		go func() { errs <- do(i, z) }()
	}
	var all error
	for range s {
		all = errors.Join(all, <-errs)
	}
	return all
}

// freezeAll freezes what is mounted at paths. Each step is done with all side by side, and the next begins when it is done with all: none is frozen while
// another's dirty data is still being written out, for its writers would wait for that, too. Where one fails the others are thawed again.
func (f *Freezer) freezeAll(ctx context.Context, paths []string) (Set, error) {
	dirs := make([]*os.File, len(paths))
	set := make(Set, len(paths))
	shut := func() {
		for _, d := range dirs {
			if d != nil {
				_ = d.Close() // nothing was written
			}
		}
	}
	for i, path := range paths {
		var err error
		if dirs[i], err = os.OpenFile(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			shut()
			return nil, fmt.Errorf("freeze: %w", err)
		}
	}
	err := set.each(func(i int, _ *Frozen) error {
		if err := syncOut(ctx, dirs[i]); err != nil {
			return fmt.Errorf("freeze %s: %w", paths[i], err)
		}
		return nil
	})
	if err != nil {
		shut()
		return nil, err
	}
	err = set.each(func(i int, _ *Frozen) (err error) {
		set[i], err = f.hold(ctx, dirs[i], paths[i])
		return err
	})
	if err == nil {
		left := time.Until(set.Until())
		if left >= spare {
			return set, nil
		}
		err = fmt.Errorf("freeze %d file systems: %w: when the last was, the first had %s left", len(set), ErrSlow, left)
	}
	return nil, errors.Join(err, set.each(func(_ int, z *Frozen) error {
		if z == nil {
			return nil
		}
		return z.thaw()
	}))
}
