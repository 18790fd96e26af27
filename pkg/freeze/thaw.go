package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	k8smount "k8s.io/mount-utils"
)

// ThawAll thaws what the notes in a folder name, of whatever process: the first thing that a process does that will freeze. It tells how many it thawed.
func ThawAll(notes string) (thawed int, err error) { return thawOlder(notes, 0) }

// thawOlder thaws what was noted so long ago.
func thawOlder(notes string, age time.Duration) (thawed int, errs error) {
	entries, err := os.ReadDir(notes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read notes: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		name := filepath.Join(notes, e.Name())
		n, err := read(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && sinceBoot()-n.At < age {
			continue
		}
		if err == nil {
			err = n.thaw()
		}
		if errors.Is(err, unix.EINVAL) { // it is not frozen: not yet, or not any more
			if age > 0 {
				continue // whoever is freezing it removes the note
			}
			err = nil
		} else if err == nil {
			thawed++
			if age > 0 {
				continue
			}
		}
		if err == nil {
			err = os.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, fmt.Errorf("thaw by note %s: %w", name, err))
		}
	}
	return thawed, errs
}

func read(name string) (n Note, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(text, &n)
}

// thaw the noted file system, wherever it is mounted now. EINVAL: it is not frozen. One that is mounted nowhere is not, either: it cannot be unmounted while
// it is frozen but by force, and is thawed by that.
func (n Note) thaw() error {
	paths := []string{n.Path}
	infos, err := k8smount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mount table: %w", err)
	}
	for _, i := range infos {
		if uint32(i.Major) == n.Major && uint32(i.Minor) == n.Minor {
			paths = append(paths, i.MountPoint)
		}
	}
	for _, path := range paths {
		dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(int(dir.Fd()), &st)
		if err == nil && unix.Major(st.Dev) == n.Major && unix.Minor(st.Dev) == n.Minor {
			err = ioctl(dir, fiThaw)
			return errors.Join(err, dir.Close())
		}
		_ = dir.Close() // another file system's
	}
	return unix.EINVAL
}

// look is how often the guard looks.
const look = 100 * time.Millisecond

// Guard thaws what is frozen for longer than Limit, until ctx ends or gone is closed: the process that freezes has ended. Then it thaws all, and returns once
// nothing is noted any more. told is told of what was thawed and of what went wrong.
func Guard(ctx context.Context, notes string, gone <-chan struct{}, told func(thawed int, err error)) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-gone:
			for ; ; <-tick.C {
				n, err := ThawAll(notes)
				if n > 0 || err != nil {
					told(n, err)
				}
				if err == nil {
					return
				}
				if ctx.Err() != nil {
					return
				}
			}
		case <-tick.C:
			if n, err := thawOlder(notes, Limit); n > 0 || err != nil {
				told(n, err)
			}
		}
	}
}
