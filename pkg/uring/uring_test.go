package uring

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const block = 4096

func aligned(n int) []byte {
	b := make([]byte, n+block)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (block - 1)
	return b[skip : skip+n : skip+n]
}

func openDirect(t testing.TB, size int64) int {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EINVAL) {
		t.Skipf("%s: no direct I/O here", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return fd
}

func newIO(t testing.TB, mode Mode) *IO {
	t.Helper()
	io, err := NewIO(mode)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := io.Close(); err != nil {
			t.Error(err)
		}
	})
	return io
}

// TestConcurrent: many callers write and read stamped blocks, more at once than the ring is deep, while the garbage collector runs and stacks move.
func TestConcurrent(t *testing.T) {
	const callers, blocks, each = depth + 300, 4, 40
	io := newIO(t, Always)
	fd := openDirect(t, callers*blocks*block)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			runtime.GC()
		}
	}()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(c)))
			want := [blocks]byte{}
			for i := range each {
				n := 1 + r.IntN(blocks-1)
				at := r.IntN(blocks - n + 1)
				off := int64(c*blocks+at) * block
				p := aligned(n * block) // new memory each time, and a stack that may have moved
				if r.IntN(2) == 0 {
					for b := range n {
						want[at+b] = byte(1 + (c+i+b)%250)
						copy(p[b*block:], bytes.Repeat(want[at+b:at+b+1], block))
					}
					if got, err := io.Pwrite(fd, p, off); err != nil || got != len(p) {
						t.Errorf("write: %d, %v", got, err)
						return
					}
					continue
				}
				if got, err := io.Pread(fd, p, off); err != nil || got != len(p) {
					t.Errorf("read: %d, %v", got, err)
					return
				}
				for b := range n {
					if !bytes.Equal(p[b*block:(b+1)*block], bytes.Repeat(want[at+b:at+b+1], block)) {
						t.Errorf("caller %d, block %d: read %d, wrote %d", c, at+b, p[b*block], want[at+b])
						return
					}
				}
			}
		})
	}
	wg.Wait()
	<-done
	if n := io.under.Load(); n != 0 {
		t.Errorf("%d requests under way after all have ended", n)
	}
}

// TestLikeSystemCalls: short reads, nothing to do and errors are those of pread and pwrite.
func TestLikeSystemCalls(t *testing.T) {
	io := newIO(t, Always)
	fd := openDirect(t, 3*block)
	p := aligned(2 * block)
	if n, err := io.Pread(fd, p, 2*block); n != block || err != nil {
		t.Errorf("across the end: %d, %v; want %d", n, err, block)
	}
	if n, err := io.Pread(fd, p, 3*block); n != 0 || err != nil {
		t.Errorf("at the end: %d, %v; want 0", n, err)
	}
	if n, err := io.Pwrite(fd, p[:0], 0); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	if _, err := io.Pwrite(fd, p[:100], 0); err != unix.EINVAL {
		t.Errorf("unaligned: %v, want EINVAL", err)
	}
	if _, err := io.Pwrite(-1, p, 0); err != unix.EBADF {
		t.Errorf("no file: %v, want EBADF", err)
	}
	if _, err := io.Pread(fd, p, -block); err != unix.EINVAL {
		t.Errorf("before the beginning: %v, want EINVAL", err)
	}
}

// TestClose: requests under way end, later ones are done by system calls.
func TestClose(t *testing.T) {
	io := newIO(t, Always)
	fd := openDirect(t, 64*block)
	var ended atomic.Int32
	var wg sync.WaitGroup
	for c := range 64 {
		wg.Go(func() {
			p := aligned(block)
			for range 50 {
				if _, err := io.Pwrite(fd, p, int64(c)*block); err != nil {
					t.Errorf("write: %v", err)
				}
			}
			ended.Add(1)
		})
	}
	for io.count.Load() == 0 && io.under.Load() == 0 && ended.Load() == 0 {
		runtime.Gosched()
	}
	if err := errors.Join(io.Close(), io.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n, err := io.ring.Read(fd, aligned(block), 0); n != 0 || !errors.Is(err, ErrClosed) {
		t.Errorf("a closed ring: %d, %v; want ErrClosed", n, err)
	}
}

// TestNil: the nil IO is plain system calls.
func TestNil(t *testing.T) {
	io, err := NewIO(Never)
	if io != nil || err != nil {
		t.Fatalf("%v, %v; want nil", io, err)
	}
	fd, p := openDirect(t, block), aligned(block)
	p[0] = 7
	if n, err := io.Pwrite(fd, p, 0); n != block || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	p[0] = 0
	if n, err := io.Pread(fd, p, 0); n != block || err != nil || p[0] != 7 {
		t.Errorf("read: %d, %v, %d", n, err, p[0])
	}
	if err := io.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailure: when the kernel refuses the ring's calls, requests that it has not seen go back to their callers, who use system calls.
func TestFailure(t *testing.T) {
	io := newIO(t, Always)
	fd, p := openDirect(t, block), aligned(block)
	if _, err := io.Pwrite(fd, p, 0); err != nil {
		t.Fatal(err)
	}
	// Another file under the ring's number: io_uring_enter fails with EOPNOTSUPP.
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, ringDescriptor(t), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := io.ring.Close(); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("close: %v, want the failure", err)
		}
		io.ring.failed = nil // it was told
	}()
	for range 100 {
		if n, err := io.Pwrite(fd, p, 0); n != block || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
}

// ringDescriptor finds the one ring of this process.
func ringDescriptor(t *testing.T) (fd int) {
	t.Helper()
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range names {
		if to, _ := os.Readlink(name); to == "anon_inode:[io_uring]" {
			found++
			if fd, err = strconv.Atoi(filepath.Base(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if found != 1 {
		t.Fatalf("%d rings in %v, want 1", found, names)
	}
	return fd
}

func TestModes(t *testing.T) {
	for m := range modes {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("sometimes"); err == nil {
		t.Error("an unknown mode is taken")
	}
}

func TestMeter(t *testing.T) {
	var m meter
	defer m.close()
	idle, total, err := m.read()
	if err != nil || idle == 0 || idle >= total {
		t.Errorf("/proc/stat: idle %d of %d, %v", idle, total, err)
	}
	for _, c := range []struct {
		was, want bool
		idle      float64
	}{{false, false, 0.5}, {false, false, 0.2}, {false, true, 0.1}, {true, true, 0.2}, {true, true, 0.4}, {true, false, 0.5}} {
		if got := judge(c.was, c.idle); got != c.want {
			t.Errorf("was %t, %.0f %% idle: %t", c.was, c.idle*100, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3\n"))
	f.Add([]byte("cpu  10 20 30 40\n"))
	f.Add([]byte("cpu  10 20 30 40 50"))
	f.Add([]byte("cpu  1 -2 x 4 5\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		idle, total, err := parseStat(b)
		if err == nil && bytes.HasPrefix(b, []byte("cpu  10 20 30 40 50 60 70 80 ")) && (idle != 90 || total != 360) {
			t.Errorf("idle %d of %d; want 90 of 360", idle, total)
		}
	})
}

var (
	benchDir   = flag.String("bench-dir", "", "folder for the benchmark's file (default: a temporary one)")
	benchDepth = flag.Int("bench-depth", 32, "callers")
)

const benchSize = 1 << 30

// benchFile is a written file.
func benchFile(b *testing.B) (fd int) {
	if *benchDir == "" {
		*benchDir = b.TempDir()
	}
	name := filepath.Join(*benchDir, fmt.Sprintf("uring-bench-%d", os.Getpid()))
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(unix.Close(fd), os.Remove(name)) })
	for off, p := int64(0), aligned(1<<20); off < benchSize; off += 1 << 20 {
		if _, err := unix.Pwrite(fd, p, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Fsync(fd); err != nil {
		b.Fatal(err)
	}
	return fd
}

// BenchmarkRead4K reads at random, one read after the other, by system calls: Go's own, and with what keeps the runtime from taking the processor away.
func BenchmarkRead4K(b *testing.B) {
	fd := benchFile(b)
	for name, read := range map[string]func(int, []byte, int64) (int, error){"unix": unix.Pread, "io": (*IO)(nil).Pread} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(32, runtime.NumCPU())))
			p, cpu := aligned(block), processorTime(b)
			for b.Loop() {
				if _, err := read(fd, p, rand.Int64N(benchSize/block)*block); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
			b.ReportMetric(float64(processorTime(b)-cpu)/float64(b.N)/1000, "cpu-us/read")
		})
	}
}

// BenchmarkWrite4K overwrites a written file at random, by system calls and through the ring.
func BenchmarkWrite4K(b *testing.B) {
	fd := benchFile(b)
	for _, mode := range []Mode{Never, Always, Auto} {
		b.Run(mode.String(), func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(32, runtime.NumCPU())))
			io := newIO(b, mode)
			var left atomic.Int64
			left.Store(int64(b.N))
			cpu, start := processorTime(b), time.Now()
			var wg sync.WaitGroup
			for range *benchDepth {
				wg.Go(func() {
					p := aligned(block)
					for left.Add(-1) >= 0 {
						if _, err := io.Pwrite(fd, p, rand.Int64N(benchSize/block)*block); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "writes/s")
			b.ReportMetric(float64(processorTime(b)-cpu)/float64(b.N)/1000, "cpu-us/write")
		})
	}
}

func processorTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
