package ring

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// testConfig is a small ring on the host's tmpfs, or anywhere if it has none.
func testConfig(t testing.TB) Config {
	c := Config{PoolID: [16]byte{1, 2, 3}, BootID: [16]byte{9, 8, 7}, Bytes: 4096}
	dir, err := os.MkdirTemp("/dev/shm", "ring-test-")
	if err != nil {
		dir, c.AnyFileSystem = t.TempDir(), true
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c.Dir = dir
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want one that is %v", err, target)
	}
}

// ready makes or opens a ring and replays it.
func ready(t testing.TB, r *Ring, err error, after uint64) (*Ring, []Entry) {
	t.Helper()
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	entries, err := r.Replay(after)
	must(t, err)
	return r, entries
}

func entry(seq uint64) Entry {
	e := Entry{Sequence: seq, Generation: seq * 3, Block: seq * 5, Place: seq * 7, Length: uint32(seq%1024) + 1, Kind: uint16(seq)}
	if seq%4 == 0 {
		e.Place = ZeroPlace
	}
	return e
}

func push(t testing.TB, r *Ring, seqs ...uint64) {
	t.Helper()
	for _, seq := range seqs {
		if !r.TryReserve(1) {
			t.Fatalf("no room for %d", seq)
		}
		must(t, r.Append(entry(seq)))
	}
}

func wantSeqs(t testing.TB, entries []Entry, epoch uint32, seqs ...uint64) {
	t.Helper()
	if len(entries) != len(seqs) {
		t.Fatalf("%d entries, want %d: %+v", len(entries), len(seqs), entries)
	}
	for i, e := range entries {
		want := entry(seqs[i])
		want.Epoch = epoch
		if e != want {
			t.Fatalf("entry %d is %+v, want %+v", i, e, want)
		}
	}
}

func reopen(t testing.TB, c Config, r *Ring, epoch, after uint64) (*Ring, []Entry) {
	t.Helper()
	must(t, r.Close())
	r, err := Open(c, epoch)
	return ready(t, r, err, after)
}

func TestReplay(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 5)
	r, got := ready(t, r, err, 10)
	wantSeqs(t, got, 0)
	push(t, r, 12, 11, 15) // out of order, and 13 and 14 were never written
	if r.Used() != 5 || r.Cap() != 64 {
		t.Fatalf("used %d of %d, want 5 of 64", r.Used(), r.Cap())
	}
	r, got = reopen(t, c, r, 5, 10)
	wantSeqs(t, got, 5, 11, 12, 15)
	must(t, r.SetEpoch(6))
	// A death before the metadata had the new epoch, and one after it.
	r, got = reopen(t, c, r, 5, 10)
	wantSeqs(t, got, 5, 11, 12, 15)
	r, got = reopen(t, c, r, 6, 12)
	wantSeqs(t, got, 5, 15)
	r.Retire(15)
	push(t, r, 16)
	_, got = reopen(t, c, r, 6, 15)
	wantSeqs(t, got, 6, 16)
}

func TestReplayWrapsAround(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 1)
	r, _ = ready(t, r, err, 0)
	for seq := uint64(1); seq <= 1000; seq++ {
		push(t, r, seq)
		if seq >= 60 {
			r.Retire(seq - 59)
		}
	}
	_, got := reopen(t, c, r, 1, 941)
	if len(got) != 59 || got[0].Sequence != 942 || got[58].Sequence != 1000 {
		t.Fatalf("%d entries: %+v", len(got), got)
	}
}

func TestMetadataBehindTheRing(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 1)
	r, _ = ready(t, r, err, 1000)
	push(t, r, 1001)
	must(t, r.Close())
	r, err = Open(c, 1)
	must(t, err)
	defer r.Close()
	_, err = r.Replay(900)
	wantIs(t, err, ErrDamaged)
	if r.TryReserve(1) {
		t.Fatal("a ring that could not be replayed takes writes")
	}
}

func TestStates(t *testing.T) {
	c := testConfig(t)
	_, err := Open(c, 1)
	wantIs(t, err, ErrMissing)
	r, err := Create(c, 7)
	must(t, err)
	must(t, r.Close())
	for _, epoch := range []uint64{5, 8, 9} {
		_, err = Open(c, epoch)
		wantIs(t, err, ErrStaleEpoch)
	}
	other := c
	other.BootID[0]++
	_, err = Open(other, 7)
	wantIs(t, err, ErrOtherBoot)
	other = c
	other.PoolID[0]++
	must(t, os.Link(c.Path(), other.Path()))
	_, err = Open(other, 7)
	wantIs(t, err, ErrOtherPool)
	must(t, os.Truncate(c.Path(), 8000))
	_, err = Open(c, 7)
	wantIs(t, err, ErrDamaged)
	must(t, os.WriteFile(c.Path(), []byte("short"), 0o600))
	_, err = Open(c, 7)
	wantIs(t, err, ErrDamaged)

	dir := c
	dir.Dir, dir.AnyFileSystem = "/proc/self", false
	_, err = Create(dir, 1)
	wantIs(t, err, ErrFileSystem)
	for _, size := range []int64{-1, 64, 5000, 4096 + 64, 1 << 40} {
		bad := c
		bad.Bytes = size
		_, err = Create(bad, 1)
		wantIs(t, err, ErrUse)
	}
}

func TestHeaderCopies(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 1)
	must(t, err)
	must(t, r.SetEpoch(2))
	must(t, r.Close())
	f, err := os.OpenFile(c.Path(), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	flip := func(off int64) {
		var b [1]byte
		_, err := f.ReadAt(b[:], off)
		must(t, err)
		_, err = f.WriteAt([]byte{b[0] ^ 1}, off)
		must(t, err)
	}
	flip(48) // epoch of the newer copy (serial 2, at 0), as a death in the middle of an update leaves it
	r, err = Open(c, 1)
	must(t, err)
	if r.Epoch() != 1 {
		t.Fatalf("epoch %d, want the older copy's 1", r.Epoch())
	}
	must(t, r.Close())
	flip(copyStride + 48)
	_, err = Open(c, 1)
	wantIs(t, err, ErrDamaged)
}

func TestDamagedAndTornEntries(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 1)
	r, _ = ready(t, r, err, 0)
	push(t, r, 1, 2, 3, 4)
	clear(r.slot(2)[entrySize-8:]) // torn: an append of sequence 2 that stopped before its last store
	r, got := reopen(t, c, r, 1, 0)
	wantSeqs(t, got, 1, 1, 3, 4)
	r.slot(3)[8] ^= 4
	must(t, r.Close())
	r, err = Open(c, 1)
	must(t, err)
	got, err = r.Replay(0)
	wantIs(t, err, ErrDamaged)
	wantSeqs(t, got, 1, 1, 4)
	push(t, r, 5) // the loss was accepted
	must(t, r.Close())
}

func TestFailed(t *testing.T) {
	c := testConfig(t)
	r, err := Create(c, 1)
	must(t, err)
	long := strings.Repeat("fdatasync: input/output error é", 20)
	must(t, r.SetFailed(long))
	must(t, r.SetFailed("later"))
	must(t, r.Close())
	r, err = Open(c, 1)
	must(t, err)
	reason, failed := r.Failed()
	if !failed || !strings.HasPrefix(long, reason) || len(reason) < maxReason-utf8.UTFMax || !utf8.ValidString(reason) {
		t.Fatalf("failed %v, reason %q", failed, reason)
	}
	must(t, r.Remove())
	wantIs(t, r.SetFailed("x"), ErrClosed)
	wantIs(t, r.Append(entry(1)), ErrClosed)
	wantIs(t, r.Wait(t.Context(), 1), ErrClosed)
	if names, _ := filepath.Glob(c.Dir + "/*"); len(names) != 0 {
		t.Fatalf("left behind: %q", names)
	}
}

func TestWrongUse(t *testing.T) {
	r, err := Create(testConfig(t), 1)
	must(t, err)
	defer r.Close()
	if r.TryReserve(1) {
		t.Fatal("reserved before Replay")
	}
	_, err = r.Replay(100)
	must(t, err)
	_, err = r.Replay(100)
	wantIs(t, err, ErrUse)
	wantIs(t, r.Append(entry(101)), ErrUse) // not reserved
	if !r.TryReserve(2) || r.TryReserve(63) || r.TryReserve(-1) {
		t.Fatal("reservations are miscounted")
	}
	for _, e := range []Entry{entry(100), entry(165), {Sequence: 101}, {Sequence: 101, Length: 2, Block: ^uint64(0)}} {
		wantIs(t, r.Append(e), ErrUse)
	}
	must(t, r.Append(entry(164)))
	wantIs(t, r.Wait(t.Context(), 65), ErrUse)
}

func TestFullRingMakesWritersWait(t *testing.T) {
	r, err := Create(testConfig(t), 1)
	r, _ = ready(t, r, err, 0)
	for seq := range uint64(60) {
		push(t, r, seq+1)
	}
	if !r.TryReserve(4) || r.TryReserve(1) {
		t.Fatal("64 slots should be taken now")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, free := range []func(){func() { r.Release(2) }, func() { r.Retire(1) }} {
		done := make(chan error)
		go func() { done <- r.Wait(ctx, 2) }()
		free()
		if free(); r.Used() > 62 {
			t.Fatalf("%d used", r.Used())
		}
		must(t, <-done)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if !r.TryReserve(r.Cap() - r.Used()) {
		t.Fatal("reserve the rest")
	}
	wantIs(t, r.Wait(ended, 1), context.Canceled)
	done := make(chan error)
	go func() { done <- r.Wait(ctx, 1) }()
	must(t, r.Close())
	wantIs(t, <-done, ErrClosed)
}

func TestConcurrentAppends(t *testing.T) {
	c := testConfig(t)
	c.Bytes = 64 << 10
	r, err := Create(c, 1)
	r, _ = ready(t, r, err, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const total = 20_000
	var mu sync.Mutex
	next, finished, applied := uint64(0), map[uint64]bool{}, uint64(0)
	var wg sync.WaitGroup
	for w := range 8 {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for {
				for !r.TryReserve(1) {
					if err := r.Wait(ctx, 1); err != nil {
						t.Error(err)
						return
					}
				}
				mu.Lock()
				if next == total {
					mu.Unlock()
					r.Release(1)
					return
				}
				next++
				seq := next
				mu.Unlock()
				if err := r.Append(entry(seq)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				finished[seq] = true
				for finished[applied+1] && (rng.IntN(2) == 0 || r.Used() > 900) {
					applied++
					delete(finished, applied)
				}
				retire := applied
				mu.Unlock()
				r.Retire(retire)
			}
		})
	}
	wg.Wait()
	_, got := reopen(t, c, r, 1, applied)
	if len(got) != int(total-applied) {
		t.Fatalf("%d entries replayed, want %d", len(got), total-applied)
	}
}

func BenchmarkAppend(b *testing.B) {
	c := testConfig(b)
	c.Bytes = DefaultBytes
	r, err := Create(c, 1)
	r, _ = ready(b, r, err, 0)
	seq := uint64(0)
	for b.Loop() {
		seq++
		if !r.TryReserve(1) {
			b.Fatal("no room")
		}
		if err := r.Append(entry(seq)); err != nil {
			b.Fatal(err)
		}
		if seq%1024 == 0 {
			r.Retire(seq)
		}
	}
}
