package engine

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// BenchmarkFirstWriteFlush is one guest that flushes after each write of a new block, as a database does after a snapshot, on the disk below BENCH_DIR
// (default: the temporary folder), beside the same with a plain file. It tells what each part takes, in µs.
func BenchmarkFirstWriteFlush(b *testing.B) {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "flush-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	const size = 256 << 20
	block := fsys.AlignedBuffer(BlockSize)
	copy(block, bytes.Repeat([]byte{1}, BlockSize))
	b.Run("plain", func(b *testing.B) {
		f, err := os.OpenFile(filepath.Join(dir, "plain"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		whole := fsys.AlignedBuffer(1 << 20)
		for off := int64(0); off < size; off += 1 << 20 {
			if _, err := f.WriteAt(whole, off); err != nil {
				b.Fatal(err)
			}
		}
		b.ResetTimer()
		for i := range b.N {
			if _, err := f.WriteAt(block, eachOnce(i, size)); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("engine", func(b *testing.B) {
		f := &Figures{}
		o := Options{RingDir: ringFolder(b), ChecksumRate: -1, Observer: observed{f}}
		p, err := CreatePool(b.Context(), PoolSpec{Name: "p", Directory: filepath.Join(dir, "pool"), Size: 8 * size}, o)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := p.Close(b.Context()); err != nil {
				b.Error(err)
			}
			_ = os.RemoveAll(filepath.Join(dir, "pool"))
		})
		if _, err = p.CreateVolume(b.Context(), VolumeSpec{Name: "v", Size: size}); err != nil {
			b.Fatal(err)
		}
		v, err := p.OpenVolume(b.Context(), "v")
		if err != nil {
			b.Fatal(err)
		}
		if err := v.Flush(); err != nil {
			b.Fatal(err)
		}
		before := [2]HistogramValue{f.LogTime.Value(), f.MemberFlush.Value()}
		b.ResetTimer()
		writing := time.Duration(0)
		for i := range b.N {
			began := time.Now()
			if _, err := v.WriteAt(block, eachOnce(i, size)); err != nil {
				b.Fatal(err)
			}
			writing += time.Since(began)
			if err := v.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		mean := func(was, is HistogramValue) float64 {
			return float64(is.Sum-was.Sum) / max(float64(is.Count-was.Count), 1) / 1e3
		}
		b.ReportMetric(float64(writing.Microseconds())/float64(b.N), "write-µs/op")
		b.ReportMetric(mean(before[0], f.LogTime.Value()), "log-round-µs/op")
		b.ReportMetric(mean(before[1], f.MemberFlush.Value()), "member-flush-µs/op")
	})
}

// eachOnce visits the blocks of so many bytes, a power of two, each once.
func eachOnce(i int, size int64) int64 {
	blocks := size / BlockSize
	return int64(i) * 40503 % blocks * BlockSize
}
