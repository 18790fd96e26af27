package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// writer makes, rewrites, reads and deletes files in a folder of its own, and knows what each holds.
type writer struct {
	dir   string
	rng   *rand.Rand
	files map[string]file
	count int
	bytes int64 // in all files

	done    atomic.Int64 // files written, read or deleted
	written int64
	wrong   int  // files that did not hold what was written
	failed  bool // a call failed
}

// file is what makes a file's content.
type file struct {
	seed uint64
	size int
}

func newWriter(dir string, seed uint64) *writer {
	return &writer{dir: dir, rng: source(seed), files: map[string]file{}}
}

// content is the same for the same file, every time.
func (f file) content() []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(f.seed >> (8 * i))
	}
	p := make([]byte, f.size)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

// writerSpace is what a writer's files take at most.
const writerSpace = 12 * mi

// run works until ctx is done or something is wrong.
func (w *writer) run(ctx context.Context) error {
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		w.failed = true
		return err
	}
	for ctx.Err() == nil {
		before := w.wrong
		if err := w.step(); err != nil {
			w.failed = w.wrong == before
			return err
		}
		w.done.Add(1)
	}
	return nil
}

func (w *writer) step() error {
	names := slices.Sorted(maps.Keys(w.files))
	switch k := w.rng.IntN(10); {
	case len(names) > 0 && (k < 2 || w.bytes > writerSpace):
		name := names[w.rng.IntN(len(names))]
		w.bytes -= int64(w.files[name].size)
		delete(w.files, name)
		return os.Remove(filepath.Join(w.dir, name))
	case len(names) > 0 && k < 4:
		return w.read(names[w.rng.IntN(len(names))])
	case len(names) > 0 && k < 6:
		return w.write(names[w.rng.IntN(len(names))], w.next())
	}
	w.count++
	return w.write(fmt.Sprintf("file-%d", w.count), w.next())
}

func (w *writer) next() file { return file{w.rng.Uint64(), w.rng.IntN(1 << w.rng.IntN(20))} }

// write writes a file whole, over what it has. Half of them are synced, and then forgotten by the page cache.
func (w *writer) write(name string, f file) error {
	out, err := os.OpenFile(filepath.Join(w.dir, name), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err = out.Write(f.content()); err == nil {
		err = out.Truncate(int64(f.size))
	}
	if err == nil && w.rng.IntN(2) == 0 {
		if err = out.Sync(); err == nil {
			err = unix.Fadvise(int(out.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
	}
	w.bytes += int64(f.size - w.files[name].size)
	w.written += int64(f.size)
	w.files[name] = f
	return errors.Join(err, out.Close())
}

func (w *writer) read(name string) error {
	got, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, w.files[name].content()) {
		w.wrong++
		return fmt.Errorf("%s does not hold the %d bytes that were written (it has %d)", filepath.Join(w.dir, name), w.files[name].size, len(got))
	}
	return nil
}

// compare reads all files and looks for others.
func (w *writer) compare() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		before := w.wrong
		if err := w.read(name); err != nil {
			errs = append(errs, err)
			w.wrong = before + 1
		}
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, e := range entries {
		if _, ok := w.files[e.Name()]; !ok {
			w.wrong++
			errs = append(errs, fmt.Errorf("%s was deleted, or never made", filepath.Join(w.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// expect is what fill leaves for the same seed.
func (w *writer) expect(total int64) {
	for w.bytes < total {
		f := w.next()
		w.count++
		w.files[fmt.Sprintf("file-%d", w.count)] = f
		w.bytes += int64(f.size)
	}
}

// fill writes files of about total bytes and brings them to the disk, their folder's entries included.
func (w *writer) fill(total int64) error {
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		return err
	}
	w.expect(total)
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		if err := os.WriteFile(filepath.Join(w.dir, name), w.files[name].content(), 0o644); err != nil {
			return err
		}
	}
	dir, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}
