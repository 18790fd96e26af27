package member

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// readSuperblock reads a folder's superblock. Without one the error is ErrNotFound.
func readSuperblock(fsy fsys.FS, dir string) (format.Superblock, error) {
	name := filepath.Join(dir, superblockName)
	f, err := fsy.Open(name, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return format.Superblock{}, fmt.Errorf("%w in %s: it has no %s", ErrNotFound, dir, superblockName)
	}
	if err != nil {
		return format.Superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	defer f.Close()
	b := make([]byte, format.SuperblockSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return format.Superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	sb, err := format.DecodeSuperblock(b[:n])
	if err != nil {
		return sb, fmt.Errorf("read superblock %s: %w", name, err)
	}
	return sb, nil
}

// writeSuperblock replaces the superblock: a reader, and a power cut, see the old or the new one whole.
func writeSuperblock(fsy fsys.FS, dir string, sb format.Superblock) error {
	b, err := sb.Encode()
	if err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	temp := filepath.Join(dir, superblockTemp)
	f, err := fsy.Open(temp, fsys.Create|fsys.Write|fsys.Truncate)
	if err != nil {
		return fmt.Errorf("write superblock: %w", wrap(err))
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsy.Rename(temp, filepath.Join(dir, superblockName))
	}
	if err == nil {
		err = fsy.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write superblock: %w", wrap(err))
	}
	return nil
}
