package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

// scatterHead makes a volume whose first MiB is the head's own, block by block in random order.
func scatterHead(t *testing.T, p *testPool) (*Volume, []byte) {
	t.Helper()
	v := p.volume("v", 4<<20)
	want := fill(t, v, 1)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	for _, i := range rand.Perm(256) {
		b := want[i*BlockSize : (i+1)*BlockSize]
		copy(b, bytes.Repeat([]byte{byte(i)}, BlockSize))
		_, err := v.WriteAt(b, int64(i)*BlockSize)
		must(t, err)
	}
	return v, want
}

// A large write over scattered blocks of the head is one request to the device, whether or not they were committed before; the old blocks are free again
// afterwards; and what it wrote survives the death of the process.
func TestGather(t *testing.T) {
	for _, committed := range []bool{false, true} {
		p, _ := memPool(t)
		v, want := scatterHead(t, p)
		must(t, p.flush())
		used := p.Info().Used
		if !committed {
			for i := 0; i < 256; i += 2 { // pending over committed
				_, err := v.WriteAt(bytes.Repeat([]byte{200}, BlockSize), int64(i)*BlockSize)
				must(t, err)
			}
		}
		before := *v.Info().Counters
		copy(want, bytes.Repeat([]byte{77}, 1<<20))
		_, err := v.WriteAt(want[:1<<20], 0)
		must(t, err)
		_, err = v.ReadAt(make([]byte, 1<<20), 0)
		must(t, err)
		if c := v.Info().Counters; c.DataWrites != before.DataWrites+1 || c.DataReads != before.DataReads+1 {
			t.Errorf("%d writes and %d reads for 1 MiB each, want one", c.DataWrites-before.DataWrites, c.DataReads-before.DataReads)
		}
		expect(t, v, want)
		must(t, p.kill())
		p.reopen()
		v = p.open("v")
		expect(t, v, want)
		p.check()
		must(t, p.flush())
		p.jobsDone()
		if now := p.Info().Used; now != used {
			t.Errorf("%d bytes are used, %d were before", now, used)
		}
		// What the snapshot has is untouched.
		r, err := p.OpenSnapshot(t.Context(), "s")
		must(t, err)
		expect(t, r, bytes.Repeat([]byte{1}, 4<<20))
		must(t, r.Close())
		p.check()
	}
}

// In a full pool a large write over scattered blocks of the head goes where they are.
func TestGatherInFullPool(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v, want := scatterHead(t, p)
	big := p.volume("big", 512<<20)
	var err error
	for n, off := 1<<20, int64(0); n >= BlockSize; off += int64(n) {
		if _, err = big.WriteAt(make([]byte, n), off); errors.Is(err, ErrNoSpace) {
			n /= 4
			off -= int64(n)
			continue
		}
		must(t, err)
	}
	copy(want, bytes.Repeat([]byte{77}, 1<<20))
	_, err = v.WriteAt(want[:1<<20], 0)
	must(t, err)
	expect(t, v, want)
	must(t, p.flush())
	expect(t, v, want)
}

// Writes of single blocks go on in place while large ones gather them, rounds commit and snapshots are cut: a block always shows the last write that was
// acknowledged to it, or one that was under way with it.
func TestGatherBesideWritesInPlace(t *testing.T) {
	const rounds, blocks, small = 40, 256, 3
	p := newPool(t, testOptions(t), MinPoolSize)
	v, _ := scatterHead(t, p)
	stamp := func(b []byte, writer, round int) {
		for at := 0; at < len(b); at += BlockSize {
			binary.LittleEndian.PutUint64(b[at:], uint64(writer))
			binary.LittleEndian.PutUint64(b[at+8:], uint64(round))
		}
	}
	for round := range rounds {
		var wg sync.WaitGroup
		for w := range small {
			wg.Go(func() {
				b := make([]byte, BlockSize)
				for i := w; i < blocks; i += small {
					stamp(b, 1, round)
					if _, err := v.WriteAt(b, int64(i)*BlockSize); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			b := make([]byte, blocks*BlockSize)
			stamp(b, 2, round)
			if _, err := v.WriteAt(b, 0); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := v.Flush(); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		got := make([]byte, blocks*BlockSize)
		_, err := v.ReadAt(got, 0)
		must(t, err)
		for i := range blocks {
			b := got[i*BlockSize:]
			if w, r := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]); (w != 1 && w != 2) || r != uint64(round) {
				t.Fatalf("round %d: block %d shows writer %d, round %d", round, i, w, r)
			}
		}
		// Scattered again, now and then from a snapshot's blocks.
		if round%10 == 0 {
			if _, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "again", Volume: "v"}); err != nil {
				t.Fatal(err)
			}
			must(t, p.DeleteSnapshot(t.Context(), "again"))
		}
		must(t, v.Discard(0, 1<<20))
		for _, i := range rand.Perm(blocks) {
			_, err := v.WriteAt(got[i*BlockSize:(i+1)*BlockSize], int64(i)*BlockSize)
			must(t, err)
		}
		if t.Failed() {
			return
		}
	}
	p.jobsDone()
	p.check()
}

// Pages that a commit must read and rewrite are committed before a cut shuts the gates: with a page of a thousand runs each takes up to half a
// millisecond, and 43 of them kept writers out for 16 ms.
func TestCutRewritesPagesBeforeGates(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 128<<20)
	const pages = cutCareful + 1
	b := make([]byte, 1<<20)
	for page := range int64(pages) {
		for _, i := range rand.Perm(256) {
			_, err := v.WriteAt(b[:BlockSize], page*pageBytes+int64(i)*BlockSize)
			must(t, err)
		}
	}
	must(t, p.flush())
	if n := p.pages.careful(); n != 0 {
		t.Fatalf("%d pages are to be rewritten when nothing is pending", n)
	}
	// No round begins by itself: its turn is ours.
	p.rounds.turn.Lock()
	for page := range int64(pages) {
		_, err := v.WriteAt(b, page*pageBytes)
		must(t, err)
	}
	if n := p.pages.careful(); n != pages {
		t.Fatalf("%d pages are to be rewritten, want %d", n, pages)
	}
	p.rounds.turn.Unlock()
	v.gate.enter()
	cut := make(chan error, 1)
	go func() {
		_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
		cut <- err
	}()
	// A writer is inside the gate, so the cut cannot be made; the rewrites become durable all the same.
	for p.pages.careful() > 0 {
		runtime.Gosched()
	}
	v.gate.leave()
	must(t, <-cut)
	p.check()
}
