package member

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// BallastHeld tells whether the ballast is in place.
func (m *Member) BallastHeld() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ballast
}

// ReleaseBallast gives the ballast's space back to the file system, for deletes and compaction when it is full.
func (m *Member) ReleaseBallast() error {
	return m.setBallast("release", false, func(f fsys.File) error { return f.Truncate(0) })
}

// RestoreBallast takes the ballast's space again. Where there is not enough, the error is ErrNoSpace and nothing is held.
func (m *Member) RestoreBallast() error {
	return m.setBallast("restore", true, func(f fsys.File) error {
		err := f.Allocate(0, ballastSize(m.sb.Size))
		if err != nil {
			return errors.Join(err, f.Truncate(0)) // a part of it would only be in the way
		}
		return nil
	})
}

func (m *Member) setBallast(verb string, held bool, do func(fsys.File) error) error {
	if m.readOnly {
		return ErrReadOnly
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.fs.Open(filepath.Join(m.dir, ballastName), fsys.Create|fsys.Write)
	if err != nil {
		return fmt.Errorf("%s ballast: %w", verb, wrap(err))
	}
	err = do(f)
	if err == nil {
		err = f.Sync() // until then the file system may keep the space to itself
	}
	if err = errors.Join(err, f.Close()); err != nil {
		m.ballast = m.ballast && !held // a restore that failed, of one that was to grow, has given up what there was
		return fmt.Errorf("%s ballast: %w", verb, wrap(err))
	}
	m.ballast = held
	return nil
}

func (m *Member) ballastIsHeld() (bool, error) {
	info, err := m.fs.Stat(filepath.Join(m.dir, ballastName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the ballast: %w", err)
	}
	return info.Size() > 0, nil
}
