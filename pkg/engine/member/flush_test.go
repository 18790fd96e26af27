package member

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// deviceFlushes reads how many flushes a device has done: field 16 of its statistics (Documentation/block/stat).
func deviceFlushes(t testing.TB, device string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(device), "stat"))
	must(t, err)
	fields := strings.Fields(string(data))
	if len(fields) < 16 {
		t.Skip("needs kernel 5.5: the device's statistics do not count flushes")
	}
	n, err := strconv.Atoi(fields[15])
	must(t, err)
	return n
}

// The whole design of a flush rests on this: fdatasync of a file that has nothing to sync flushes the device for writes to other files, and so does that of
// a file with extents to convert, where others were written, too.
func TestFlushReachesDevice(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir, device := mountLoop(t, kind, 1<<30)
			m := mustCreate(t, fsys.OS(), testSpec(filepath.Join(dir, "pool")))
			must(t, m.EnsureSegment(0))
			must(t, m.EnsureSegment(1))
			prewrite(t, m, 0, 0, 1024)
			must(t, m.Reserve(1, 0, 1024))
			must(t, m.Flush())
			data := pattern(4096, 1)
			const rounds = 50
			for what, write := range map[string]func(i uint64) error{
				"written":            func(i uint64) error { return m.WriteAt(data, i, 0) },
				"unwritten":          func(i uint64) error { return m.WriteAt(data, 1<<18+i, 0) },
				"both":               func(i uint64) error { return errors.Join(m.WriteAt(data, 1<<18+rounds+i, 0), m.WriteAt(data, i, 0)) },
				"unwritten no more":  func(i uint64) error { return m.WriteAt(data, 1<<18, 0) },
				"nothing, but dirty": func(i uint64) error { return m.MarkUnsynced(1) },
			} {
				before := deviceFlushes(t, device)
				for i := range uint64(rounds) {
					must(t, write(i))
					must(t, m.Flush())
				}
				if got := deviceFlushes(t, device) - before; got < rounds {
					t.Errorf("%s: %d flushes of the member, %d of the device", what, rounds, got)
				}
			}
		})
	}
}

// BenchmarkFlush compares ways to make one 4 KiB write durable; docs/design/member-flush.md has the figures.
func BenchmarkFlush(b *testing.B) {
	for _, kind := range []string{"xfs", "ext4"} {
		b.Run(kind, func(b *testing.B) {
			dir, device := mountLoop(b, kind, 2<<30)
			m := mustCreate(b, fsys.OS(), testSpec(filepath.Join(dir, "pool")))
			for seg := range uint32(16) {
				must(b, m.EnsureSegment(seg))
				prewrite(b, m, seg, 0, ChunkBlocks)
			}
			data, zero := pattern(BlockSize, 1), pattern(BlockSize, 0)
			segs := *m.segs.Load()
			for _, c := range []struct {
				name  string
				flush func() error
			}{
				{"none", func() error { return nil }},
				{"flush-file", m.Flush},
				{"flush-file-rewritten", func() error {
					if _, err := m.flush.WriteAt(zero, 0); err != nil {
						return err
					}
					return m.flush.Sync()
				}},
				{"that-segment", func() error { return segs[0].file.Sync() }},
				{"all-16-segments", func() error {
					var err error
					for _, s := range segs {
						err = errors.Join(err, s.file.Sync())
					}
					return err
				}},
			} {
				b.Run(c.name, func(b *testing.B) {
					before := deviceFlushes(b, device)
					for i := uint64(0); b.Loop(); i++ {
						must(b, m.WriteAt(data, i%ChunkBlocks, 0))
						must(b, c.flush())
					}
					b.ReportMetric(float64(deviceFlushes(b, device)-before)/float64(b.N), "deviceflushes/op")
				})
			}
		})
	}
}

func TestFlushSyncsWhatMustBe(t *testing.T) {
	r := newRecorder()
	m := mustCreate(t, r, testSpec(tempMember(t)))
	for seg := range uint32(3) {
		must(t, m.EnsureSegment(seg))
	}
	prewrite(t, m, 0, 0, 2*ChunkBlocks)
	must(t, m.MarkWritten(1, 0, ChunkBlocks))
	data := pattern(2*BlockSize, 1)
	for _, c := range []struct {
		what  string
		do    func() error
		syncs string // of segments 0, 1, 2, and of the flush file
	}{
		{"nothing", func() error { return nil }, "0 0 0 1"},
		{"written ahead", func() error { return m.WriteAt(data, 5, 0) }, "0 0 0 1"},
		{"marked as written ahead", func() error { return m.WriteAt(data, 1<<18, 0) }, "0 0 0 1"},
		{"not written ahead", func() error { return m.WriteAt(data, 2<<18, 0) }, "0 0 1 0"},
		{"nothing more", func() error { return nil }, "0 0 0 1"},
		{"half in, half out", func() error { return m.WriteAt(data, 2*ChunkBlocks-1, 0) }, "1 0 0 0"},
		{"reserved", func() error { return errors.Join(m.Reserve(2, 2048, 3072), m.WriteAt(data, 2<<18+2048, 0)) }, "0 0 1 0"},
		{"zeroes over the rest", func() error { return m.Zero(2, []Range{{2050, 3072}}) }, "0 0 0 1"},
		{"not marked", func() error { return m.WriteAt(data, 2<<18+2050, 0) }, "0 0 1 0"},
		{"marked", func() error { return errors.Join(m.MarkWritten(2, 2048, 3072), m.WriteAt(data, 2<<18+2050, 0)) }, "0 0 0 1"},
		{"an earlier process's", func() error { return m.MarkUnsynced(1) }, "0 1 0 0"},
		{"punched", func() error { return errors.Join(m.Punch(0, 0, 1), m.WriteAt(data, 5, 0)) }, "1 0 0 0"},
		{"a read", func() error { return m.ReadAt(data, 2<<18, 0) }, "0 0 0 1"},
	} {
		must(t, c.do())
		clear(r.syncs)
		must(t, m.Flush())
		got := fmt.Sprint(r.syncs["000000.seg"], r.syncs["000001.seg"], r.syncs["000002.seg"], r.syncs[flushName])
		if got != c.syncs {
			t.Errorf("%s: syncs %s, want %s", c.what, got, c.syncs)
		}
	}
}

// A write that ends while a flush runs is not covered by it: the flush must not clear its mark.
func TestRunningFlushClearsNoMark(t *testing.T) {
	r := newRecorder()
	m := mustCreate(t, r, testSpec(tempMember(t)))
	must(t, m.EnsureSegment(0))
	data := pattern(4096, 1)
	must(t, m.WriteAt(data, 0, 0))
	r.hook = func() {
		r.hook = nil
		must(t, m.WriteAt(data, 1, 0))
	}
	must(t, m.Flush())
	clear(r.syncs)
	must(t, m.Flush())
	if r.syncs["000000.seg"] != 1 {
		t.Error("the flush after did not sync the segment that was written during the one before")
	}
}

func TestFailedFlushIsFinal(t *testing.T) {
	for _, fail := range []string{flushName, "000000.seg"} {
		t.Run(fail, func(t *testing.T) {
			r := newRecorder()
			m := mustCreate(t, r, testSpec(tempMember(t)))
			must(t, m.EnsureSegment(0))
			if fail == flushName {
				prewrite(t, m, 0, 0, ChunkBlocks) // else the segment's sync takes the flush file's place
			}
			must(t, m.WriteAt(pattern(4096, 1), 0, 0))
			r.fail = fail
			first := m.Flush()
			if !errors.Is(first, ErrFlush) {
				t.Fatalf("flush: %v", first)
			}
			r.fail = ""
			if err := m.Flush(); err != first {
				t.Errorf("the flush after: %v, want the first one's error again", err)
			}
		})
	}
}

func TestFailedReserveAndZeroAreFinal(t *testing.T) {
	for what, do := range map[string]func(m *Member) error{
		"reserve": func(m *Member) error { return m.Reserve(0, 0, ChunkBlocks) },
		"zero":    func(m *Member) error { return m.Zero(0, []Range{{0, ChunkBlocks}}) },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRecorder()
			m := mustCreate(t, r, testSpec(tempMember(t)))
			must(t, m.EnsureSegment(0))
			r.fail = "000000.seg"
			if err := do(m); !errors.Is(err, ErrFlush) {
				t.Errorf("%s: %v", what, err)
			}
			r.fail = ""
			if err := m.Flush(); !errors.Is(err, ErrFlush) {
				t.Errorf("the flush after: %v", err)
			}
		})
	}
}
