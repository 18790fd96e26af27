package flushlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/ring"
)

var pool = [16]byte{1, 2, 3}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, disk fsys.FS, slots int) *Log {
	t.Helper()
	l, err := Open(disk, "/log", pool, slots)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func entries(from, to uint64) (list []ring.Entry) {
	for s := from; s <= to; s++ {
		list = append(list, ring.Entry{Sequence: s, Generation: 7, Block: s * 3, Place: s * 5, Length: 1})
	}
	return list
}

// want compares what the log has above a sequence.
func want(t *testing.T, l *Log, committed uint64, list []ring.Entry, last uint64) {
	t.Helper()
	got, end, err := l.Entries(committed)
	must(t, err)
	if !reflect.DeepEqual(got, list) || end != last {
		t.Fatalf("%v up to %d, want %v up to %d", got, end, list, last)
	}
}

// Records go round the slots, as far as commits allow, and the next process finds those that are not committed.
func TestAppend(t *testing.T) {
	disk := fsys.NewMem()
	l := open(t, disk, 4)
	want(t, l, 0, nil, 0)
	l.Begin(10)
	committed, last := uint64(10), uint64(10)
	for i := range uint64(20) {
		if l.Free(committed) == 0 {
			if err := l.Append(entries(last+1, last+1), last, last+1, committed); err == nil {
				t.Fatal("a record was written over one that is not committed")
			}
			committed = last - 1
		}
		must(t, l.Append(entries(last+1, last+i%3), last, last+i%3+1, committed)) // a sequence at the end that nobody wrote
		last += i%3 + 1
		if l.Last() != last {
			t.Fatalf("durable up to %d, want %d", l.Last(), last)
		}
	}
	must(t, l.Close())
	l = open(t, disk, 8) // it keeps the four that it has
	if l.Slots() != 4 {
		t.Fatalf("%d slots", l.Slots())
	}
	list, end, err := l.Entries(committed)
	must(t, err)
	if end != last || len(list) == 0 || list[0].Sequence <= committed {
		t.Fatalf("%v up to %d, want all from %d to %d", list, end, committed+1, last)
	}
	want(t, l, last, nil, last)
}

// A log of another pool, or of a program with another format, is told and left as it is.
func TestOthers(t *testing.T) {
	disk := fsys.NewMem()
	l := open(t, disk, 4)
	must(t, l.Append(entries(1, 1), 0, 1, 0))
	other, err := Open(disk, "/log", [16]byte{9}, 4)
	must(t, err)
	if _, _, err := other.Entries(100); !errors.Is(err, ErrDamaged) {
		t.Fatalf("another pool's: %v", err)
	}
	must(t, other.Close())
	want(t, open(t, disk, 4), 0, entries(1, 1), 1)

	rec := record{number: 2, after: 1, last: 2, entries: entries(2, 2)}
	rec.encode(l.buf, pool)
	l.buf[8]++
	clear(l.buf[12:16])
	binary.LittleEndian.PutUint32(l.buf[12:], crc32.Checksum(l.buf, castagnoli))
	_, err = l.f.WriteAt(l.buf, 2*blockSize)
	must(t, err)
	if _, err := Open(disk, "/log", pool, 4); !errors.Is(err, ErrVersion) {
		t.Fatalf("a newer record: %v", err)
	}
	got := make([]byte, blockSize)
	_, err = l.f.ReadAt(got, 2*blockSize)
	must(t, err)
	if !bytes.Equal(got, l.buf) {
		t.Fatal("a newer record was overwritten")
	}
}

// A slot that cannot be read is damage where a record that is needed may be in it, and only there. Given up, it is written anew.
func TestUnreadable(t *testing.T) {
	disk := fsys.NewMem()
	l := open(t, disk, 8)
	for s := uint64(1); s <= 10; s++ {
		must(t, l.Append(entries(s, s), s-1, s, s-1))
	}
	for slot, damaged := range map[int]bool{0: true, 1: true, 2: true, 3: true, 4: false, 7: true} { // 8, 9, 10; none, where 11 may have been; 4, 7
		fault := fsys.Fault(disk)
		fault.Add(fsys.Rule{Op: fsys.OpRead, Glob: "log", Err: syscall.EIO, When: func(c fsys.Call) bool {
			return c.Off <= int64(slot)*blockSize && int64(slot)*blockSize < c.Off+int64(c.Len)
		}})
		l, err := Open(fault, "/log", pool, 8)
		must(t, err)
		list, last, err := l.Entries(6)
		if errors.Is(err, ErrDamaged) != damaged || err != nil && !damaged {
			t.Fatalf("slot %d: %v", slot, err)
		}
		if !damaged && (last != 10 || len(list) != 4) {
			t.Fatalf("slot %d: %v up to %d", slot, list, last)
		}
		must(t, l.Close())
	}
}

// Without space no log is left; one that is longer than asked for, and empty, is taken as it is.
func TestNoSpace(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		for op, making := range map[fsys.Op]fsys.OpenFlags{fsys.OpOpen: fsys.Create, fsys.OpWrite: 0} {
			disk := fsys.Fault(fsys.NewMem())
			disk.Add(fsys.Rule{Op: op, Glob: "log", Err: errno, Short: op == fsys.OpWrite, When: func(c fsys.Call) bool { return c.Flags&making == making }})
			if _, err := Open(disk, "/log", pool, 8); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("%v: %v", errno, err)
			}
			if _, err := disk.Stat("/log"); err == nil {
				t.Fatal("part of a log was left")
			}
		}
	}
	disk := fsys.NewMem()
	open(t, disk, 16)
	l := open(t, disk, 8)
	for s := uint64(1); s <= 12; s++ {
		must(t, l.Append(entries(s, s), s-1, s, 0))
	}
	want(t, open(t, disk, 8), 0, entries(1, 12), 12)
}

// Whatever a power cut leaves of the last record's write, all before it is there, and it is there in full or not at all.
func TestPowerCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	both := 0
	for range 300 {
		disk := fsys.NewMem()
		l := open(t, disk, 4)
		l.Begin(0)
		n := uint64(1 + r.IntN(12))
		for s := uint64(1); s < n; s++ {
			must(t, l.Append(entries(s, s), s-1, s, max(s, 3)-3))
		}
		// The last one's write is under way: made, and not durable.
		rec := record{number: n, after: n - 1, last: n + 9, entries: entries(n, n+9)}
		rec.encode(l.buf, pool)
		_, err := l.f.WriteAt(l.buf, int64(n%4)*blockSize)
		must(t, err)
		after := open(t, disk.CrashClone(r), 4)
		list, last, err := after.Entries(max(n, 4) - 4)
		must(t, err)
		switch {
		case last == n+9 && len(list) > 0 && list[len(list)-1].Sequence == last:
			both |= 1
		case last == n-1:
			both |= 2
		default:
			t.Fatalf("%d records, and one under way: %v up to %d", n-1, list, last)
		}
	}
	if both != 3 {
		t.Fatalf("the last record was always there, or never (%d): nothing is shown", both)
	}
}

// A record that is missing between others is told, not stepped over.
func TestDamage(t *testing.T) {
	disk := fsys.NewMem()
	l := open(t, disk, 8)
	l.Begin(0)
	for s := uint64(1); s <= 5; s++ {
		must(t, l.Append(entries(s, s), s-1, s, 0))
	}
	f, err := disk.Open("/log", fsys.Write)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 512), 3*blockSize)
	must(t, err)
	l = open(t, disk, 8)
	if _, _, err := l.Entries(2); !errors.Is(err, ErrDamaged) {
		t.Fatalf("record 3 is gone: %v", err)
	}
	want(t, l, 3, entries(4, 5), 5) // nobody needs it
	_, err = f.WriteAt(make([]byte, blockSize), 5*blockSize)
	must(t, err)
	b := make([]byte, blockSize)
	_, err = f.ReadAt(b, 4*blockSize)
	must(t, err)
	_, err = f.WriteAt(b, 6*blockSize)
	must(t, err)
	l = open(t, disk, 8)
	if _, _, err := l.Entries(0); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a record in another's slot: %v", err)
	}
	// Given up, none comes back.
	must(t, l.Forget())
	must(t, l.Append(entries(1, 2), 0, 2, 0))
	want(t, open(t, disk, 8), 0, entries(1, 2), 2)
}

// Whoever only looks sees the same, and makes nothing.
func TestLook(t *testing.T) {
	disk := fsys.NewMem()
	l, err := Look(disk, "/log", pool)
	must(t, err)
	want(t, l, 0, nil, 0)
	if _, err := disk.Stat("/log"); err == nil {
		t.Fatal("looking made a log")
	}
	must(t, open(t, disk, 4).Append(entries(1, 3), 0, 3, 0))
	l, err = Look(disk, "/log", pool)
	must(t, err)
	want(t, l, 0, entries(1, 3), 3)
}

// A file that a power cut has left short is made whole.
func TestShortFile(t *testing.T) {
	for _, size := range []int{0, 100, blockSize, 3 * blockSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			disk := fsys.NewMem()
			f, err := disk.Open("/log", fsys.Write|fsys.Create)
			must(t, err)
			_, err = f.WriteAt(make([]byte, size), 0)
			must(t, err)
			l := open(t, disk, 8)
			if n, err := f.Size(); err != nil || n != 8*blockSize || l.Slots() != 8 {
				t.Fatalf("%d bytes, %v, %d slots", n, err, l.Slots())
			}
			must(t, l.Append(entries(1, MaxEntries), 0, MaxEntries, 0))
			want(t, open(t, disk, 8), 0, entries(1, MaxEntries), MaxEntries)
		})
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := record{number: rapid.Uint64Min(1).Draw(t, "number"), after: rapid.Uint64Max(1<<60).Draw(t, "after")}
		r.last = r.after
		for range rapid.IntRange(0, MaxEntries).Draw(t, "entries") {
			r.last += rapid.Uint64Range(1, 3).Draw(t, "step")
			r.entries = append(r.entries, ring.Entry{
				Sequence: r.last, Generation: rapid.Uint64().Draw(t, "generation"), Block: rapid.Uint64().Draw(t, "block"),
				Place: rapid.Uint64().Draw(t, "place"), Length: rapid.Uint32Min(1).Draw(t, "length"), Kind: rapid.Uint16().Draw(t, "kind"),
			})
		}
		p := make([]byte, blockSize)
		r.encode(p, pool)
		if got, err := decode(p, pool); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v, %v; want %+v", got, err, r)
		}
		p[rapid.IntRange(0, blockSize-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := decode(p, pool); err != errNoRecord {
			t.Fatalf("with a bit changed: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	p := make([]byte, blockSize)
	f.Add(p)
	r := record{number: 1, last: 3, entries: entries(1, 3)}
	r.encode(p, pool)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) != blockSize {
			return
		}
		r, err := decode(p, pool)
		if err != nil {
			return
		}
		out := make([]byte, blockSize)
		if r.encode(out, pool); len(r.entries) > MaxEntries || r.number == 0 {
			t.Fatalf("%+v", r)
		}
		if again, err := decode(out, pool); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v, %v; want %+v", again, err, r)
		}
	})
}
