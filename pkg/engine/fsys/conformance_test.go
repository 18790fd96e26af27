package fsys

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// testFS is the contract of FS and File, run by every implementation. dir is an empty folder of it.
func testFS(t *testing.T, fsys FS, dir string) {
	tests := []struct {
		name string
		run  func(t *testing.T, fsys FS, dir string)
	}{
		{"OpenFlags", testOpenFlags}, {"ReadWrite", testReadWrite}, {"Direct", testDirect}, {"Allocate", testAllocate}, {"Names", testNames},
		{"Lock", testLock}, {"Close", testClose}, {"OpenAfterRemove", testOpenAfterRemove}, {"Parallel", testParallel}, {"Usage", testUsage},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			sub := filepath.Join(dir, test.name)
			must(t, fsys.MkdirAll(sub))
			test.run(t, fsys, sub)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want one that is %v", err, target)
	}
}

func mustOpen(t *testing.T, fsys FS, name string, flags OpenFlags) File {
	t.Helper()
	f, err := fsys.Open(name, flags)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mustWrite(t *testing.T, f File, p []byte, off int64) {
	t.Helper()
	n, err := f.WriteAt(p, off)
	must(t, err)
	if n != len(p) {
		t.Fatalf("wrote %d bytes of %d", n, len(p))
	}
}

func wantBytes(t *testing.T, f File, off int64, want []byte) {
	t.Helper()
	got := AlignedBuffer(len(want))
	n, err := f.ReadAt(got, off)
	if err != nil && !(err == io.EOF && n == len(want)) {
		t.Fatalf("read %d bytes at %d: %v", len(want), off, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("at %d: other bytes than expected", off)
	}
}

func pattern(n int, seed byte) []byte {
	p := AlignedBuffer(n)
	for i := range p {
		p[i] = byte(i)*7 + byte(i>>8) + seed
	}
	return p
}

func testOpenFlags(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "a")
	_, err := fsys.Open(name, Write)
	wantIs(t, err, fs.ErrNotExist)
	_, err = fsys.Open(name, Exclusive)
	if err == nil {
		t.Fatal("Exclusive without Create was accepted")
	}
	f := mustOpen(t, fsys, name, Create|Exclusive|Write)
	mustWrite(t, f, []byte("hello"), 0)
	_, err = fsys.Open(name, Create|Exclusive|Write)
	wantIs(t, err, fs.ErrExist)
	_, err = fsys.Open(name, Truncate)
	if err == nil {
		t.Fatal("Truncate without Write was accepted")
	}
	r := mustOpen(t, fsys, name, 0)
	if _, err := r.WriteAt([]byte("x"), 0); err == nil {
		t.Fatal("a file opened for reading took a write")
	}
	wantBytes(t, r, 0, []byte("hello"))
	mustOpen(t, fsys, name, Write|Truncate)
	if size, err := r.Size(); err != nil || size != 0 {
		t.Fatalf("size %d, %v after Truncate, want 0", size, err)
	}
	_, err = fsys.Open(filepath.Join(dir, "no", "such"), Create|Write)
	wantIs(t, err, fs.ErrNotExist)
}

func testReadWrite(t *testing.T, fsys FS, dir string) {
	f := mustOpen(t, fsys, filepath.Join(dir, "a"), Create|Write)
	p := pattern(10_000, 1)
	mustWrite(t, f, p, 3000)
	wantBytes(t, f, 3000, p)
	wantBytes(t, f, 0, make([]byte, 3000))
	got := make([]byte, 100)
	if n, err := f.ReadAt(got, 12_950); n != 50 || err != io.EOF || !bytes.Equal(got[:50], p[9950:]) {
		t.Fatalf("read across the end: %d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(got, 50_000); n != 0 || err != io.EOF {
		t.Fatalf("read beyond the end: %d bytes, %v", n, err)
	}
	if n, err := f.WriteAtDurable([]byte("abc"), 20_000); n != 3 || err != nil {
		t.Fatalf("durable write: %d, %v", n, err)
	}
	must(t, f.Sync())
	must(t, f.Truncate(3500))
	must(t, f.Truncate(9000))
	wantBytes(t, f, 3000, append(slices.Clone(p[:500]), make([]byte, 5500)...))
	if size, err := f.Size(); err != nil || size != 9000 {
		t.Fatalf("size %d, %v, want 9000", size, err)
	}
	if f.Alignment() != 1 {
		t.Fatalf("alignment %d of a buffered file, want 1", f.Alignment())
	}
}

func testDirect(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "a")
	f, err := fsys.Open(name, Create|Write|Direct)
	must(t, err)
	defer f.Close()
	if a := f.Alignment(); a < 512 || 4096%a != 0 {
		t.Fatalf("alignment %d", a)
	}
	p := pattern(64<<10, 2)
	mustWrite(t, f, p, 8192)
	wantBytes(t, f, 8192, p)
	if n, err := f.WriteAtDurable(p[:4096], 0); n != 4096 || err != nil {
		t.Fatalf("durable write: %d, %v", n, err)
	}
	// A second file, buffered, sees what the first wrote; and a size that is no multiple reads to its end.
	b := mustOpen(t, fsys, name, Write)
	wantBytes(t, b, 8192, p)
	must(t, b.Truncate(5000))
	got := AlignedBuffer(8192)
	if n, err := f.ReadAt(got, 0); n != 5000 || err != io.EOF || !bytes.Equal(got[:4096], p[:4096]) {
		t.Fatalf("direct read across an unaligned end: %d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(got, 16<<10); n != 0 || err != io.EOF {
		t.Fatalf("direct read beyond the end: %d bytes, %v", n, err)
	}
	must(t, f.Sync())
}

func testAllocate(t *testing.T, fsys FS, dir string) {
	f := mustOpen(t, fsys, filepath.Join(dir, "a"), Create|Write)
	p := pattern(256<<10, 3)
	mustWrite(t, f, p, 0)
	must(t, f.Allocate(0, 1<<20))
	if size, err := f.Size(); err != nil || size != 1<<20 {
		t.Fatalf("size %d, %v after Allocate, want 1 MiB", size, err)
	}
	wantBytes(t, f, 0, p)
	wantBytes(t, f, 256<<10, make([]byte, 768<<10))
	must(t, f.Punch(64<<10, 64<<10))
	must(t, f.Punch(1<<20, 64<<10)) // beyond the end: nothing changes
	clear(p[64<<10 : 128<<10])
	wantBytes(t, f, 0, p)
	must(t, f.Punch(1000, 5000)) // not of whole blocks: zeroes all the same
	clear(p[1000:6000])
	wantBytes(t, f, 0, p)
	if size, err := f.Size(); err != nil || size != 1<<20 {
		t.Fatalf("size %d, %v after Punch, want 1 MiB", size, err)
	}
}

func testNames(t *testing.T, fsys FS, dir string) {
	must(t, fsys.MkdirAll(filepath.Join(dir, "x", "y")))
	must(t, fsys.MkdirAll(filepath.Join(dir, "x", "y")))
	a, b := filepath.Join(dir, "x", "a"), filepath.Join(dir, "x", "y", "b")
	mustWrite(t, mustOpen(t, fsys, a, Create|Write), []byte("of a"), 0)
	mustWrite(t, mustOpen(t, fsys, b, Create|Write), []byte("of b"), 0)
	must(t, fsys.SyncDir(filepath.Join(dir, "x")))
	if names, err := fsys.ReadDir(filepath.Join(dir, "x")); err != nil || !slices.Equal(names, []string{"a", "y"}) {
		t.Fatalf("names %q, %v", names, err)
	}
	must(t, fsys.Rename(a, b)) // over what is there
	wantBytes(t, mustOpen(t, fsys, b, 0), 0, []byte("of a"))
	info, err := fsys.Stat(b)
	must(t, err)
	if info.Name() != "b" || info.Size() != 4 || info.IsDir() {
		t.Fatalf("stat: %q, %d bytes, folder %v", info.Name(), info.Size(), info.IsDir())
	}
	if info, err := fsys.Stat(filepath.Join(dir, "x")); err != nil || !info.IsDir() {
		t.Fatalf("stat of a folder: %v, %v", info, err)
	}
	for _, err := range []error{
		fsys.Remove(a), fsys.Rename(a, b), fsys.SyncDir(a), second(fsys.Stat(a)), second(fsys.ReadDir(a)), second(fsys.Usage(a)),
	} {
		wantIs(t, err, fs.ErrNotExist)
	}
	if err := fsys.Remove(filepath.Join(dir, "x")); err == nil {
		t.Fatal("a folder with files in it was removed")
	}
	must(t, fsys.RemoveAll(filepath.Join(dir, "x")))
	must(t, fsys.RemoveAll(filepath.Join(dir, "x")))
	wantIs(t, second(fsys.Stat(b)), fs.ErrNotExist)
}

func second[T any](_ T, err error) error { return err }

func testLock(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "a")
	one, two := mustOpen(t, fsys, name, Create|Write), mustOpen(t, fsys, name, Write)
	must(t, one.Lock())
	must(t, one.Lock()) // the same descriptor again
	wantIs(t, two.Lock(), ErrLocked)
	must(t, fsys.Rename(name, name+"2")) // locks belong to the file, not to the name
	wantIs(t, two.Lock(), ErrLocked)
	must(t, one.Close())
	must(t, two.Lock())
}

func testClose(t *testing.T, fsys FS, dir string) {
	f := mustOpen(t, fsys, filepath.Join(dir, "a"), Create|Write)
	mustWrite(t, f, []byte("a"), 0)
	must(t, f.Close())
	for _, err := range []error{
		second(f.ReadAt(make([]byte, 1), 0)), second(f.WriteAt([]byte("a"), 0)), second(f.WriteAtDurable([]byte("a"), 0)), f.Sync(), f.Truncate(0),
		f.Allocate(0, 1), f.Punch(0, 1), f.Lock(), second(f.Size()), f.Close(),
	} {
		wantIs(t, err, fs.ErrClosed)
	}
	if f.Fd() != ^uintptr(0) {
		t.Fatal("a closed file shows a descriptor")
	}
}

func testOpenAfterRemove(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "a")
	f := mustOpen(t, fsys, name, Create|Write)
	mustWrite(t, f, []byte("still here"), 0)
	must(t, fsys.Remove(name))
	wantBytes(t, f, 0, []byte("still here"))
	mustWrite(t, mustOpen(t, fsys, name, Create|Write|Exclusive), []byte("a new one"), 0)
	wantBytes(t, f, 0, []byte("still here"))
	must(t, f.Sync())
}

func testParallel(t *testing.T, fsys FS, dir string) {
	f := mustOpen(t, fsys, filepath.Join(dir, "a"), Create|Write|Direct)
	const workers, rounds = 8, 16
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				if _, err := f.WriteAt(pattern(4096, byte(w*rounds+i)), int64(w*rounds+i)*4096); err != nil {
					t.Error(err)
				}
				if i%8 == 7 {
					if err := f.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range workers * rounds {
		wantBytes(t, f, int64(i)*4096, pattern(4096, byte(i)))
	}
}

func testUsage(t *testing.T, fsys FS, dir string) {
	u, err := fsys.Usage(dir)
	must(t, err)
	if u.Type == "" || u.Total <= 0 || u.Available < 0 || u.Available > u.Total {
		t.Fatalf("usage %+v", u)
	}
}
