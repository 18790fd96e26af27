package host

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// CheckName says whether name may be a pool's, volume's or snapshot's: what names it in the error. The rule is the engine's; it is held here too
// because names become attachment ids and keys of locks before the engine sees them.
func CheckName(what, name string) error {
	if name == "" {
		return fmt.Errorf("%s name: %w: it is empty", what, engine.ErrInvalid)
	}
	if len(name) > engine.MaxNameLen {
		return fmt.Errorf("%s name: %w: it has %d bytes, %d are allowed", what, engine.ErrInvalid, len(name), engine.MaxNameLen)
	}
	bad := func(r rune) bool { return r == '/' || r <= ' ' || r == 0x7f || r == utf8.RuneError }
	if name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%s name %q: %w: slashes, blanks and control characters are not allowed", what, name, engine.ErrInvalid)
	}
	return nil
}

// checkLabels bounds what a caller may make us keep.
func checkLabels(labels map[string]string) error {
	n := 0
	for k, v := range labels {
		if k == "" {
			return fmt.Errorf("labels: %w: a key is empty", engine.ErrInvalid)
		}
		n += len(k) + len(v)
	}
	if n > engine.MaxLabelsLen {
		return fmt.Errorf("labels: %w: %d bytes of keys and values, %d are allowed", engine.ErrInvalid, n, engine.MaxLabelsLen)
	}
	return nil
}

func checkSnapshotSpec(s engine.SnapshotSpec) error {
	if err := CheckName("snapshot", s.Name); err != nil {
		return err
	}
	if err := CheckName("volume", s.Volume); err != nil {
		return err
	}
	if err := checkLabels(s.Labels); err != nil {
		return fmt.Errorf("create snapshot %q: %w", s.Name, err)
	}
	return nil
}

func checkPoolSpec(s engine.PoolSpec) error {
	if err := CheckName("pool", s.Name); err != nil {
		return err
	}
	if err := checkPlace(s.Directory, s.Device, s.Wipe, s.Size); err != nil {
		return fmt.Errorf("create pool %q: %w", s.Name, err)
	}
	for _, m := range s.More {
		if err := checkPlace(m.Directory, m.Device, m.Wipe, m.Size); err != nil {
			return fmt.Errorf("create pool %q: %w", s.Name, err)
		}
	}
	return nil
}

// checkPlace is what holds for every member.
func checkPlace(directory, device string, wipe bool, size int64) error {
	if (directory == "") == (device == "") {
		return fmt.Errorf("%w: give a directory or a device, one of the two", engine.ErrInvalid)
	}
	if p := directory + device; !filepath.IsAbs(p) || filepath.Clean(p) != p {
		return fmt.Errorf("%w: %q is not an absolute path in its shortest form", engine.ErrInvalid, p)
	}
	if wipe && device == "" {
		return fmt.Errorf("%w: wipe is for devices only", engine.ErrInvalid)
	}
	if size < 0 {
		return fmt.Errorf("%w: size %d is negative", engine.ErrInvalid, size)
	}
	return nil
}

// ID is the attacher's name for a volume's device.
func ID(pool, volume string) string { return pool + "/" + volume }

// parseID is ID's inverse; ids of others are not ours to touch.
func parseID(id string) (pool, volume string, ok bool) {
	pool, volume, ok = strings.Cut(id, "/")
	return pool, volume, ok && CheckName("pool", pool) == nil && CheckName("volume", volume) == nil
}
