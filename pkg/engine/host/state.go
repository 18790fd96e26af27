package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	stateFile    = "pools.json"
	lockFile     = "lock"
	stateVersion = 1
	lockRetry    = 50 * time.Millisecond
)

// registered is one pool to open at every start.
type registered struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Member string `json:"member"` // what OpenPool takes: the folder, or the block device, of the member with the metadata
	// Members are those of the others.
	Members []string `json:"members,omitempty"`
}

type stateJSON struct {
	Version int          `json:"version"`
	Pools   []registered `json:"pools"`
}

// stateDir holds pools.json, under a lock that goes with the process.
type stateDir struct {
	path string
	lock *os.File
}

// openState makes the folder if need be and takes its lock. A predecessor on its way out is waited for until ctx ends.
func openState(ctx context.Context, path string) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	name := filepath.Join(path, lockFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state folder's lock: %w", err)
	}
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &stateDir{path: path, lock: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: another rowan-engine has it; stop that one, or give this one a state folder of its own: %w",
				name, engine.ErrLocked)
		}
	}
}

func (s *stateDir) close() error { return s.lock.Close() }

// load reads the registered pools; a missing file is an empty list.
func (s *stateDir) load() ([]registered, error) {
	name := filepath.Join(s.path, stateFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of pools: %w", err)
	}
	var st stateJSON
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&st); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w: move it away and open each pool again (rowanctl pool open)", name, engine.ErrCorrupt, err)
	}
	if st.Version != stateVersion {
		return nil, fmt.Errorf("read %s: %w: its version is %d, this engine knows %d", name, engine.ErrIncompatible, st.Version, stateVersion)
	}
	seen := map[string]bool{}
	for _, r := range st.Pools {
		if r.Name == "" || !filepath.IsAbs(r.Member) || seen[r.Name] {
			return nil, fmt.Errorf("read %s: %w: pool %q at %q is incomplete or there twice", name, engine.ErrCorrupt, r.Name, r.Member)
		}
		seen[r.Name] = true
	}
	return st.Pools, nil
}

// save replaces the list; after a crash the file holds the old list or the new one.
func (s *stateDir) save(pools []registered) error {
	pools = slices.Clone(pools)
	slices.SortFunc(pools, func(a, b registered) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.MarshalIndent(stateJSON{Version: stateVersion, Pools: pools}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the list of pools: %w", err)
	}
	name := filepath.Join(s.path, stateFile)
	if err := writeSynced(name+".new", append(data, '\n')); err != nil {
		return fmt.Errorf("write the list of pools: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write the list of pools: %w", err)
	}
	dir, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("sync state folder: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync state folder: %w", err)
	}
	return nil
}

func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
