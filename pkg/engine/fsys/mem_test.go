package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMem(t *testing.T) { testFS(t, NewMem(), "/pool") }

func TestHookedMem(t *testing.T) { testFS(t, Record(Fault(NewMem())), "/pool") }

// sector fills one sector with one byte.
func sector(b byte) []byte {
	p := AlignedBuffer(sectorSize)
	for i := range p {
		p[i] = b
	}
	return p
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// outcomes crashes the file system often and collects, in order, what the file's first sectors then hold, a byte each; "-" where the file is missing.
func outcomes(t *testing.T, m *Mem, name string, sectors int) []string {
	t.Helper()
	seen := map[string]bool{}
	for seed := range uint64(400) {
		f, err := m.CrashClone(newRand(seed)).Open(name, 0)
		if err != nil {
			seen["-"] = true
			continue
		}
		size, err := f.Size()
		must(t, err)
		p := make([]byte, size)
		_, err = f.ReadAt(p, 0)
		must(t, err)
		var state string
		for i := range min(sectors, int(size/sectorSize)) {
			s := p[i*sectorSize : (i+1)*sectorSize]
			if !bytes.Equal(s, bytes.Repeat(s[:1], sectorSize)) {
				t.Fatalf("sector %d is a mixture", i)
			}
			if s[0] == 0 {
				state += "0"
			} else {
				state += string(rune(s[0]))
			}
		}
		seen[state] = true
	}
	var all []string
	for s := range seen {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

func wantOutcomes(t *testing.T, m *Mem, name string, sectors int, want ...string) {
	t.Helper()
	if got := outcomes(t, m, name, sectors); !slices.Equal(got, want) {
		t.Fatalf("after a crash %s may be %q, want %q", name, got, want)
	}
}

// prewritten makes a durable file of whole pages of zeroes.
func prewritten(t *testing.T, m *Mem, name string, flags OpenFlags) File {
	t.Helper()
	f := mustOpen(t, m, name, Create|Write|flags)
	mustWrite(t, f, AlignedBuffer(2*pageSize), 0)
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	return f
}

func TestCrashSectors(t *testing.T) {
	m := NewMem()
	f := prewritten(t, m, "/a", 0)
	mustWrite(t, f, append(sector('a'), sector('a')...), 0)
	mustWrite(t, f, sector('b'), sectorSize)
	wantOutcomes(t, m, "/a", 2, "00", "0a", "0b", "a0", "aa", "ab")
	must(t, f.Sync())
	wantOutcomes(t, m, "/a", 2, "ab")
	if n, err := f.WriteAtDurable(sector('c'), 0); n != sectorSize || err != nil {
		t.Fatal(n, err)
	}
	wantOutcomes(t, m, "/a", 2, "cb")
	must(t, f.Punch(0, pageSize))
	wantOutcomes(t, m, "/a", 2, "00", "0b", "c0", "cb")
	must(t, f.Sync())
	wantOutcomes(t, m, "/a", 2, "00")
}

func TestDeviceFlush(t *testing.T) {
	m := NewMem()
	must(t, m.AddDevice("/other"))
	direct, buffered := prewritten(t, m, "/direct", Direct), prewritten(t, m, "/buffered", 0)
	flush := prewritten(t, m, "/flush", Direct)
	foreign := mustOpen(t, m, "/other/flush", Create|Write)
	mustWrite(t, direct, sector('d'), 0)
	mustWrite(t, buffered, sector('b'), 0)
	must(t, foreign.Sync())
	wantOutcomes(t, m, "/direct", 1, "0", "d")
	must(t, flush.Sync())
	wantOutcomes(t, m, "/direct", 1, "d")
	wantOutcomes(t, m, "/buffered", 1, "0", "b")
	// A durable write flushes nothing but itself.
	mustWrite(t, direct, sector('e'), 0)
	if _, err := flush.WriteAtDurable(sector('f'), 0); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, m, "/direct", 1, "d", "e")
	// What came through the page cache after a direct write is not flushed with it.
	cached := mustOpen(t, m, "/direct", Write)
	mustWrite(t, cached, sector('c'), 0)
	must(t, flush.Sync())
	wantOutcomes(t, m, "/direct", 1, "c", "e")
}

func TestUnwrittenExtentsNeedTheirOwnSync(t *testing.T) {
	m := NewMem()
	flush := prewritten(t, m, "/flush", Direct)
	f := mustOpen(t, m, "/a", Create|Write|Direct)
	must(t, f.Allocate(0, 2*pageSize))
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	mustWrite(t, f, sector('a'), 0)
	must(t, flush.Sync())
	wantOutcomes(t, m, "/a", 1, "0", "a")
	must(t, f.Sync())
	mustWrite(t, f, sector('b'), 0)
	must(t, flush.Sync())
	wantOutcomes(t, m, "/a", 1, "b")
	must(t, f.Punch(0, pageSize))
	must(t, f.Sync())
	mustWrite(t, f, sector('c'), 0)
	must(t, flush.Sync())
	wantOutcomes(t, m, "/a", 1, "0", "c")
}

func TestCrashSize(t *testing.T) {
	m := NewMem()
	f := mustOpen(t, m, "/a", Create|Write)
	must(t, m.SyncDir("/"))
	mustWrite(t, f, sector('a'), 0)
	mustWrite(t, f, sector('b'), sectorSize)
	wantOutcomes(t, m, "/a", 2, "", "0", "00", "0b", "a", "a0", "ab")
	must(t, f.Sync())
	must(t, f.Truncate(sectorSize))
	wantOutcomes(t, m, "/a", 2, "a", "a0", "ab")
	must(t, f.Sync())
	must(t, f.Truncate(2*sectorSize))
	must(t, f.Sync())
	wantOutcomes(t, m, "/a", 2, "a0")
}

func TestCrashNames(t *testing.T) {
	m := NewMem()
	f := mustOpen(t, m, "/a", Create|Write)
	mustWrite(t, f, sector('a'), 0)
	must(t, f.Sync())
	wantOutcomes(t, m, "/a", 1, "-", "a")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, "/a", 1, "a")
	g := mustOpen(t, m, "/b", Create|Write)
	mustWrite(t, g, sector('b'), 0)
	must(t, g.Sync())
	must(t, m.Rename("/b", "/a"))
	wantOutcomes(t, m, "/a", 1, "a", "b") // never without the name
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, "/a", 1, "b")
	must(t, m.Remove("/a"))
	wantOutcomes(t, m, "/a", 1, "-", "b")
}

func TestDuring(t *testing.T) {
	m := NewMem()
	f := prewritten(t, m, "/a", Direct)
	var got []string
	m.During(func(op Op, name string) {
		got = append(got, fmt.Sprint(op, name, outcomes(t, m, "/a", 1)))
	})
	if _, err := f.WriteAtDurable(sector('a'), 0); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, f, sector('b'), 0)
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	m.During(nil)
	want := []string{"write-durable/a[0 a]", "write/a[a b]", "sync/a[a b]", "sync-dir/[b]"}
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
}

func TestKillClone(t *testing.T) {
	m := NewMem()
	f := prewritten(t, m, "/a", Direct)
	flush := prewritten(t, m, "/flush", Direct)
	must(t, f.Lock())
	mustWrite(t, f, sector('a'), 0)
	mustOpen(t, m, "/new", Create|Write)
	killed := m.KillClone(nil)
	mustWrite(t, f, sector('x'), 0) // of the dead one
	g := mustOpen(t, killed, "/a", Write|Direct)
	must(t, g.Lock())
	wantBytes(t, g, 0, sector('a'))
	wantOutcomes(t, killed, "/a", 1, "0", "a")
	wantOutcomes(t, killed, "/new", 1, "", "-")
	must(t, mustOpen(t, killed, "/flush", Direct|Write).Sync())
	wantOutcomes(t, killed, "/a", 1, "a")
	must(t, flush.Sync())
	wantOutcomes(t, m, "/a", 1, "x")
}

// What a dead process had under way lands later, and until then its locks keep others out.
func TestDeadClone(t *testing.T) {
	m := NewMem()
	must(t, m.MkdirAll("/d"))
	f, err := m.Open("/d/a.seg", Create|Write)
	must(t, err)
	_, err = m.Open("/d/b.seg", Create|Write)
	must(t, err)
	log, err := m.Open("/d/x.log", Create|Write)
	must(t, err)
	var clone *Mem
	var late *Late
	m.During(func(Op, string) { clone, late = m.DeadClone(rand.New(rand.NewPCG(1, 1)), "*.seg") })
	locked := func(name string) bool {
		file, err := clone.Open(name, Write)
		must(t, err)
		defer file.Close()
		return errors.Is(file.Lock(), ErrLocked)
	}
	sectors := func(name string) int {
		file, err := clone.Open(name, Write)
		must(t, err)
		defer file.Close()
		b := make([]byte, 32*sectorSize)
		_, err = file.ReadAt(b, 0)
		must(t, err)
		return bytes.Count(b, []byte{7}) / sectorSize
	}
	data := bytes.Repeat([]byte{7}, 32*sectorSize)
	_, err = f.WriteAt(data, 0)
	must(t, err)
	if n := sectors("/d/a.seg"); n == 0 || n == 32 || !locked("/d/a.seg") || locked("/d/b.seg") {
		t.Fatalf("%d sectors landed; locked: %v, the other: %v", n, locked("/d/a.seg"), locked("/d/b.seg"))
	}
	early := sectors("/d/a.seg")
	late.Land(0.5, rand.New(rand.NewPCG(1, 2)))
	if n := sectors("/d/a.seg"); n <= early || n == 32 || !locked("/d/a.seg") {
		t.Fatalf("%d sectors landed, %d before", n, early)
	}
	late.Land(1, nil)
	if n := sectors("/d/a.seg"); n != 32 || locked("/d/a.seg") {
		t.Fatalf("%d sectors landed at last, locked: %v", n, locked("/d/a.seg"))
	}
	_, err = log.WriteAt(data, 0)
	must(t, err)
	if !locked("/d/a.seg") || !locked("/d/b.seg") {
		t.Fatal("a thread inside the kernel keeps every descriptor of its process, and a lock went")
	}

}

func TestSparse(t *testing.T) {
	m := NewMem()
	f := mustOpen(t, m, "/a", Create|Write|Direct)
	zeroes := AlignedBuffer(1 << 20)
	for off := int64(0); off < 1<<30; off += 1 << 20 {
		mustWrite(t, f, zeroes, off)
	}
	must(t, f.Sync())
	mustWrite(t, f, sector('a'), 1<<40)
	if u, err := m.Usage("/a"); err != nil || u.Total-u.Available != pageSize {
		t.Fatalf("%d bytes used, %v", u.Total-u.Available, err)
	}
}

func TestAlignmentIsChecked(t *testing.T) {
	f := mustOpen(t, NewMem(), "/a", Create|Write|Direct)
	p := AlignedBuffer(2 * sectorSize)
	for _, bad := range []struct {
		p   []byte
		off int64
	}{{p[:100], 0}, {p[:sectorSize], 8}, {p[8 : 8+sectorSize], 0}} {
		if _, err := f.WriteAt(bad.p, bad.off); err == nil {
			t.Error("unaligned write was accepted")
		}
		if _, err := f.ReadAt(bad.p, bad.off); err == nil {
			t.Error("unaligned read was accepted")
		}
	}
}

// TestMemRandom compares with a plain model: what is read, what a kill leaves, and that a crash leaves nothing but contents a sector had.
func TestMemRandom(t *testing.T) {
	for seed := range uint64(30) {
		rng := newRand(seed)
		m := NewMem()
		f, cached := prewritten(t, m, "/a", Direct), mustOpen(t, m, "/a", Write)
		now := make([]byte, 16)
		allowed := make([]map[byte]bool, len(now)) // what a crash may leave in each sector
		settle := func(i int) { allowed[i] = map[byte]bool{now[i]: true} }
		for i := range now {
			settle(i)
		}
		for step := range 200 {
			i := rng.IntN(15)
			b := byte(step + 1)
			switch rng.IntN(8) {
			case 0:
				must(t, f.Sync())
				for i := range now {
					settle(i)
				}
			case 1:
				_, err := f.WriteAtDurable(sector(b), int64(i)*sectorSize)
				must(t, err)
				now[i] = b
				settle(i)
			case 2:
				mustWrite(t, cached, append(sector(b), sector(b)...), int64(i)*sectorSize)
				now[i], now[i+1] = b, b
				allowed[i][b], allowed[i+1][b] = true, true
			default:
				mustWrite(t, f, sector(b), int64(i)*sectorSize)
				now[i] = b
				allowed[i][b] = true
			}
			for i := range now {
				wantBytes(t, f, int64(i)*sectorSize, sector(now[i]))
			}
			g, err := m.CrashClone(rng).Open("/a", 0)
			must(t, err)
			p := make([]byte, 16*sectorSize)
			_, err = g.ReadAt(p, 0)
			must(t, err)
			for i := range now {
				s := p[i*sectorSize : (i+1)*sectorSize]
				if !bytes.Equal(s, bytes.Repeat(s[:1], sectorSize)) || !allowed[i][s[0]] {
					t.Fatalf("seed %d, step %d: sector %d holds %d, which it cannot", seed, step, i, s[0])
				}
			}
		}
	}
}

// A write needs space unless what was allocated, or written before, was synced since; a punch takes it away, and so does a power cut what was not synced.
func TestGrew(t *testing.T) {
	m := NewMem()
	f := mustOpen(t, m, "/a.seg", Create|Write)
	must(t, m.SyncDir("/"))
	page := make([]byte, pageSize)
	want := func(n int) {
		t.Helper()
		if got := m.Grew("*.seg"); got != n {
			t.Fatalf("%d writes needed space, want %d", got, n)
		}
	}
	must(t, f.Allocate(0, 2*pageSize))
	mustWrite(t, f, page, 0)
	want(1)
	must(t, f.Sync())
	mustWrite(t, f, page, 0)
	mustWrite(t, f, page, pageSize)
	want(1)
	must(t, f.Punch(0, pageSize))
	mustWrite(t, f, page, 0)
	want(2)
	must(t, f.Allocate(2*pageSize, pageSize))
	crashed := m.CrashClone(rand.New(rand.NewPCG(1, 1)))
	left := mustOpen(t, crashed, "/a.seg", Write)
	mustWrite(t, left, page, pageSize)
	mustWrite(t, left, page, 2*pageSize)
	if got := crashed.Grew("*.seg"); got != 1 {
		t.Fatalf("after a power cut %d writes needed space, want 1", got)
	}
	if m.Grew("*.log") != 0 {
		t.Fatal("other names count")
	}
}
