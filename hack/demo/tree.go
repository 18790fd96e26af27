package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// tree is the hashes of a folder's files, by their paths.
type tree map[string][sha256.Size]byte

// copyTree copies regular files until limit bytes are reached, and answers the hashes of what it read.
func copyTree(ctx context.Context, from, to string, limit int64) (t tree, total int64, err error) {
	t = tree{}
	err = filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return first(err, ctx.Err())
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !e.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if total += int64(len(text)); total > limit {
			total -= int64(len(text))
			return fs.SkipAll
		}
		t[rel] = sha256.Sum256(text)
		return os.WriteFile(filepath.Join(to, rel), text, 0o644)
	})
	return t, total, err
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// hashTree reads a folder.
func hashTree(ctx context.Context, dir string) (tree, error) {
	t := tree{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return first(err, ctx.Err())
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		t[rel] = [sha256.Size]byte(h.Sum(nil))
		return nil
	})
	return t, err
}

// differs counts the files that are not in both with the same hash.
func (t tree) differs(other tree) (n int) {
	for path, hash := range t {
		if got, ok := other[path]; !ok || got != hash {
			n++
		}
	}
	for path := range other {
		if _, ok := t[path]; !ok {
			n++
		}
	}
	return n
}

// wreck deletes every second file and overwrites the others with noise, and brings that to the disk.
func (t tree) wreck(ctx context.Context, dir string) (deleted, overwritten int, err error) {
	noise := rand.NewChaCha8([32]byte{1})
	for i, path := range slices.Sorted(maps.Keys(t)) {
		if ctx.Err() != nil {
			return deleted, overwritten, ctx.Err()
		}
		full := filepath.Join(dir, path)
		if i%2 == 0 {
			deleted++
			if err := os.Remove(full); err != nil {
				return deleted, overwritten, err
			}
			continue
		}
		overwritten++
		st, err := os.Stat(full)
		if err != nil {
			return deleted, overwritten, err
		}
		var text bytes.Buffer
		if _, err := io.CopyN(&text, noise, st.Size()+1); err != nil {
			return deleted, overwritten, err
		}
		if err := overwrite(full, text.Bytes()); err != nil {
			return deleted, overwritten, err
		}
	}
	return deleted, overwritten, nil
}

// overwrite writes into the blocks the file has, as a database would.
func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		f.Close()
		return fmt.Errorf("overwrite: %w", err)
	}
	return f.Close()
}
