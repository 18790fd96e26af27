package member

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func TestCreateAndOpen(t *testing.T) {
	eachPlace(t, func(t *testing.T, dir string) {
		spec := testSpec(dir)
		m := mustCreate(t, fsys.OS(), spec)
		sb := m.Superblock()
		if sb.PoolID != spec.PoolID || sb.MemberID != spec.MemberID || sb.PoolName != "fast" || sb.Size != testSize || sb.Node != "node-a" {
			t.Errorf("superblock %+v", sb)
		}
		if !m.BallastHeld() {
			t.Error("no ballast is held")
		}
		must(t, m.EnsureSegment(0))
		must(t, m.EnsureSegment(2))
		must(t, m.EnsureSegment(0))
		data := pattern(8192, 1)
		must(t, m.WriteAt(data, 2<<18|7, 0))
		must(t, m.SetSize(2*testSize))
		must(t, m.Close())
		must(t, m.Close())

		m = mustOpen(t, fsys.OS(), dir, Options{})
		sb.Size *= 2
		if got := m.Superblock(); got != sb {
			t.Errorf("superblock %+v\nwant %+v", got, sb)
		}
		if got := m.Segments(); !slices.Equal(got, []uint32{0, 2}) || !m.BallastHeld() {
			t.Errorf("segments %v, ballast %v", got, m.BallastHeld())
		}
		wantData(t, m, 2<<18|7, 0, data)
		if err := m.ReadAt(data, 1<<18, 0); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("read of a segment that is not there: %v", err)
		}
		if u, err := m.Usage(); err != nil || u.Available <= 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
	})
}

func TestReadAndWrite(t *testing.T) {
	eachPlace(t, func(t *testing.T, dir string) {
		m := mustCreate(t, fsys.OS(), testSpec(dir))
		must(t, m.EnsureSegment(0))
		must(t, m.EnsureSegment(1))
		sector := m.Alignment()

		// Over the end of a segment, from memory that is and is not aligned, larger than one bounce buffer.
		for i, skew := range []int{0, 1, 9} {
			data := append(make([]byte, skew), pattern(3<<20, byte(i))...)[skew:]
			const block = 1<<18 - 300
			must(t, m.WriteAt(data, block, 0))
			wantData(t, m, block, 0, data)
			got := make([]byte, len(data)+skew)[skew:]
			must(t, m.ReadAt(got, block, 0))
			if !bytes.Equal(got, data) {
				t.Fatalf("memory off by %d: read other bytes", skew)
			}
		}
		// Single sectors within a block, and an offset beyond the first block.
		block := fsys.AlignedBuffer(BlockSize)
		must(t, m.WriteAt(block, 10, 0))
		one := pattern(sector, 9)
		must(t, m.WriteAt(one, 10, BlockSize-sector))
		copy(block[BlockSize-sector:], one)
		wantData(t, m, 10, 0, block)
		wantData(t, m, 9, 2*BlockSize-sector, one)

		for _, c := range []struct{ off, n int }{{1, sector}, {0, sector + 1}, {-sector, sector}} {
			if err := m.WriteAt(make([]byte, c.n), 10, c.off); !errors.Is(err, ErrOutOfRange) {
				t.Errorf("write of %d bytes at %d: %v", c.n, c.off, err)
			}
		}
		if err := m.WriteAt(block, 1<<40, 0); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("write beyond all segments: %v", err)
		}
		if err := m.EnsureSegment(MaxSegments); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("segment beyond the last: %v", err)
		}
		if c := m.Counters(); c.WriteBytes != uint64(3*3<<20+BlockSize+sector) || c.Writes < 8 || c.Reads == 0 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestReserveZeroAndPunch(t *testing.T) {
	eachPlace(t, func(t *testing.T, dir string) {
		m := mustCreate(t, fsys.OS(), testSpec(dir))
		must(t, m.EnsureSegment(0))
		before, err := m.Usage()
		must(t, err)
		prewrite(t, m, 0, 1024, 1024+8192) // 32 MiB
		after, err := m.Usage()
		must(t, err)
		// The folder's file system is the whole machine's: others use it at the same time.
		if used := before.Available - after.Available; used < 32<<20 && !strings.Contains(t.Name(), "folder") {
			t.Errorf("writing 32 MiB ahead took %d bytes", used)
		}
		if n := m.Counters().PrewrittenBytes; n != 32<<20 {
			t.Errorf("counted %d bytes", n)
		}
		data := pattern(64<<10, 4)
		must(t, m.WriteAt(data, 2048, 0))
		must(t, m.Punch(0, 1024, 8192))
		wantData(t, m, 2048, 0, make([]byte, 64<<10))
		for name, err := range map[string]error{
			"backwards":     m.Reserve(0, 10, 9),
			"beyond":        m.Reserve(0, 0, SegmentBlocks+1),
			"nowhere":       m.Reserve(9, 0, 10),
			"zero beyond":   m.Zero(0, []Range{{0, 1}, {1, SegmentBlocks + 1}}),
			"unsynced":      m.MarkUnsynced(9),
			"punch beyond":  m.Punch(0, SegmentBlocks-1, 2),
			"punch huge":    m.Punch(0, 1, 1<<32-1),
			"marked beyond": m.MarkWritten(0, 0, SegmentBlocks+1),
		} {
			if !errors.Is(err, ErrOutOfRange) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestBallast(t *testing.T) {
	eachPlace(t, func(t *testing.T, dir string) {
		m := mustCreate(t, fsys.OS(), testSpec(dir))
		name := filepath.Join(dir, ballastName)
		held := func() int64 {
			info, err := os.Stat(name)
			must(t, err)
			return info.Size()
		}
		if got := held(); got != 16<<20 {
			t.Errorf("ballast of %d bytes", got)
		}
		must(t, m.ReleaseBallast())
		if m.BallastHeld() || held() != 0 {
			t.Error("the ballast is still held")
		}
		must(t, m.Close())
		m = mustOpen(t, fsys.OS(), dir, Options{})
		if m.BallastHeld() {
			t.Error("the ballast came back by itself")
		}
		must(t, m.RestoreBallast())
		if !m.BallastHeld() || held() != 16<<20 {
			t.Error("the ballast was not restored")
		}
	})
}

func TestSizes(t *testing.T) {
	const gib = 1 << 30
	for size, want := range map[int64]int64{256 << 20: 16 << 20, 4 * gib: 40 << 20, 8 * gib: 256 << 20, 100 * gib: 1 * gib} {
		if got := ballastSize(size); got != want {
			t.Errorf("ballast for %d MiB: %d MiB, want %d", size>>20, got>>20, want>>20)
		}
	}
	for _, c := range []struct {
		share                  Share
		total, available, want int64
	}{
		{Share{}, 10*gib + 99, 10 * gib, 9*gib - 16},
		{Share{OfFree: 40}, 100 * gib, 80 * gib, 32 * gib},
		{Share{OfFree: 40, FullAt: 75}, 100 * gib, 80 * gib, 32 * gib},
		{Share{OfFree: 40, FullAt: 75}, 1000 * gib, 300 * gib, 50*gib - gib/2}, // 75 % used are 50 GiB more, ballast and all
		{Share{OfFree: 40, FullAt: 75}, 1000 * gib, 200 * gib, 0},
	} {
		got := c.share.of(fsys.Usage{Total: c.total, Available: c.available})
		if got%sizeUnit != 0 || got > c.want || got < c.want-64<<20 {
			t.Errorf("%+v of %d, %d free: %d, want about %d", c.share, c.total, c.available, got, c.want)
		}
	}
	for _, s := range []Share{{OfFree: 101}, {FullAt: -1}} {
		if err := s.check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for _, name := range []string{"000000.seg", "999999.seg"} {
		if n, ok := parseSegmentName(name); !ok || filepath.Base(segmentName("/x", n)) != name {
			t.Errorf("%s: %d, %v", name, n, ok)
		}
	}
	for _, name := range []string{"0.seg", "000000", "-00001.seg", "0000000.seg", "00000a.seg", "000000.seg~"} {
		if _, ok := parseSegmentName(name); ok {
			t.Errorf("%s is taken for a segment", name)
		}
	}
}

func TestReadOnly(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.EnsureSegment(0))
	must(t, m.Close())
	m = mustOpen(t, fsys.OS(), dir, Options{ReadOnly: true})
	wantData(t, m, 0, 0, make([]byte, 4096))
	for name, err := range map[string]error{
		"write": m.WriteAt(make([]byte, 4096), 0, 0), "reserve": m.Reserve(0, 0, 1), "zero": m.Zero(0, []Range{{0, 1}}), "punch": m.Punch(0, 0, 1), "segment": m.EnsureSegment(1),
		"size": m.SetSize(1 << 30), "ballast": m.ReleaseBallast(), "destroy": m.Destroy(),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDestroy(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.EnsureSegment(0))
	must(t, m.Destroy())
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	mustCreate(t, fsys.OS(), testSpec(dir))
}

// An unfinished member's place can be taken, whatever of it is left; a finished one's cannot.
func TestUnfinished(t *testing.T) {
	dir := tempMember(t)
	spec := testSpec(dir)
	spec.Unfinished = true
	for name, leave := range map[string]func(m *Member){
		"whole": func(m *Member) {
			must(t, os.MkdirAll(m.MetaDir(), 0o700))
			must(t, os.WriteFile(filepath.Join(m.MetaDir(), "MANIFEST-000001"), []byte("x"), 0o600))
			must(t, m.EnsureSegment(0))
			must(t, m.Close())
		},
		"half removed": func(m *Member) {
			must(t, m.Close())
			must(t, os.Remove(filepath.Join(dir, flushName)))
			_, err := Open(fsys.OS(), dir, Options{})
			wantRefusal(t, err, ErrNotFound, "fast", "never finished")
		},
	} {
		m := mustCreate(t, fsys.OS(), spec)
		wantRefusal(t, create(testSpec(dir)), ErrLocked)
		leave(m)
		spec.MemberID = format.NewUUID()
		m = mustCreate(t, fsys.OS(), spec)
		if _, err := os.Stat(m.MetaDir()); !errors.Is(err, os.ErrNotExist) || len(m.Segments()) > 0 || m.Superblock().MemberID != spec.MemberID {
			t.Errorf("%s: made again with segments %v, metadata: %v", name, m.Segments(), err)
		}
		must(t, m.Close())
	}
	m := mustOpen(t, fsys.OS(), dir, Options{})
	if !m.Unfinished() {
		t.Error("opening has finished it")
	}
	must(t, m.Finish())
	must(t, m.Close())
	wantRefusal(t, create(spec), ErrForeign, "fast")
	if m = mustOpen(t, fsys.OS(), dir, Options{}); m.Unfinished() {
		t.Error("it is unfinished again")
	}
}

// A process that died may leave a segment or the flush file short.
func TestOpenAfterDeath(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.EnsureSegment(0))
	must(t, m.Close())
	must(t, os.Truncate(segmentName(dir, 0), 0))
	must(t, os.Truncate(filepath.Join(dir, flushName), 0))
	must(t, os.WriteFile(filepath.Join(dir, superblockTemp), []byte("half"), 0o600))
	m = mustOpen(t, fsys.OS(), dir, Options{})
	wantData(t, m, SegmentBlocks-1, 0, make([]byte, 4096))
	must(t, m.Flush())
	must(t, m.SetSize(1<<30))
	must(t, m.Close())

	must(t, os.Truncate(segmentName(dir, 0), SegmentBytes+1))
	if _, err := Open(fsys.OS(), dir, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a segment that is too long: %v", err)
	}
	must(t, os.Truncate(segmentName(dir, 0), SegmentBytes))
	must(t, os.Remove(filepath.Join(dir, flushName)))
	if _, err := Open(fsys.OS(), dir, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no flush file: %v", err)
	}
}

func TestSectorGrew(t *testing.T) {
	dir := tempMember(t)
	m := mustCreate(t, fsys.OS(), testSpec(dir))
	must(t, m.Close())
	if m.Alignment() != 512 {
		t.Skipf("needs 512: this device's sectors are of %d bytes", m.Alignment())
	}
	if _, err := Open(largeSectors{fsys.OS()}, dir, Options{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("opened on a device with larger sectors: %v", err)
	}
	// The other way round is fine: the member keeps its sector size.
	other := filepath.Join(t.TempDir(), "large")
	m = mustCreate(t, largeSectors{fsys.OS()}, testSpec(other))
	must(t, m.Close())
	m = mustOpen(t, fsys.OS(), other, Options{})
	if sb := m.Superblock(); m.Alignment() != 4096 || sb.SectorSize != format.SuperblockSize {
		t.Errorf("alignment %d, superblock says %d", m.Alignment(), sb.SectorSize)
	}
}

// largeSectors is a file system on a device with 4096-byte sectors.
type largeSectors struct{ fsys.FS }

type largeFile struct{ fsys.File }

func (l largeSectors) Open(name string, flags fsys.OpenFlags) (fsys.File, error) {
	f, err := l.FS.Open(name, flags)
	if err != nil || flags&fsys.Direct == 0 {
		return f, err
	}
	return largeFile{f}, nil
}

func (largeFile) Alignment() int { return 4096 }
