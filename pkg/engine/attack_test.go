package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// memPool makes a pool in memory, under a file system that can be told to fail.
func memPool(t *testing.T) (*testPool, *fsys.FaultFS) {
	t.Helper()
	o := testOptions(t)
	disk := fsys.Fault(fsys.NewMem())
	o.fs, o.bootID = disk, &[16]byte{1}
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	t.Cleanup(func() { _ = tp.kill() })
	return tp, disk
}

// eventually fails the test when f does not return in time.
func eventually(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

// The first thing that a round does to a generation after the pool was opened is to empty pages of it; then it writes to others, which reads the index.
// What the batch took out of the index must not be believed to be in it.
func TestTouchedSetReadAfterUntouch(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 64*pageBytes)
	b := bytes.Repeat([]byte{1}, BlockSize)
	const pages = 40
	for page := range int64(pages) {
		_, err := v.WriteAt(b, page*pageBytes)
		must(t, err)
	}
	must(t, p.Close(t.Context()))
	p.reopen()
	v = p.open("v")
	for page := range int64(pages) {
		must(t, v.Discard(page*pageBytes, BlockSize))
	}
	_, err := v.WriteAt(b, pages*pageBytes)
	must(t, err)
	must(t, v.Flush())
	p.check()
	for page := range int64(pages) {
		_, err := v.WriteAt(b, page*pageBytes)
		must(t, err)
	}
	must(t, v.Flush())
	p.check()
	must(t, v.Close(t.Context()))
	must(t, p.DeleteVolume(t.Context(), "v"))
	p.jobsDone()
	if used := p.Info().Used; used != 0 {
		t.Fatalf("%d bytes are in use for ever", used)
	}
}

// A range that is zeroed while a round commits a write that is in it: the write was there before, so it must be gone after.
func TestZeroWhileRoundCommits(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", MaxVolumeSize)
	b := bytes.Repeat([]byte{1}, BlockSize)
	at := v.Size() - BlockSize
	for range 2 {
		_, err := v.WriteAt(b, at)
		must(t, err)
		var wg sync.WaitGroup
		began := v.count.discards.Load()
		wg.Go(func() {
			for v.count.discards.Load() == began {
				runtime.Gosched()
			}
			_ = p.flush()
		})
		must(t, v.WriteZeroes(0, v.Size()))
		wg.Wait()
		got := make([]byte, BlockSize)
		_, err = v.ReadAt(got, at)
		must(t, err)
		if !bytes.Equal(got, make([]byte, BlockSize)) {
			t.Fatal("a block shows its old content after WriteZeroes of the whole volume returned")
		}
	}
}

// A job over the last page that a volume can have comes to its end: the page after it has no key, and must not be looked for under another's.
func TestJobOverLastPageEnds(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", MaxVolumeSize)
	b := bytes.Repeat([]byte{1}, BlockSize)
	last := v.Size() - BlockSize
	for _, off := range []int64{0, last} {
		_, err := v.WriteAt(b, off)
		must(t, err)
	}
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	_, err = v.WriteAt(b, last)
	must(t, err)
	must(t, v.Flush())
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, p.WaitJobs(ctx))
	p.check()
}

// The process dies between two batches of one round: what the volume maps is counted right after the replay.
func TestKillBetweenBatchesCounts(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 16*pageBytes)
	p.rounds.turn.Lock()
	for page := range int64(16) {
		_, err := v.WriteAt(make([]byte, BlockSize), page*pageBytes)
		must(t, err)
	}
	sealed := p.pages.sealAll()
	must(t, p.flushMembers())
	c := roundCommit{p: p.Pool, sealed: sealed, rewritten: map[*pendingPage]struct{}{}, volumes: map[*volume]struct{}{}}
	err := p.store.commit(func(b *batch) (bool, error) {
		must(t, b.LogData(make([]byte, maxBatch-100), nil))
		more, err := c.compose(b)
		if !more {
			t.Error("the round fits one batch")
		}
		return false, err
	}, nil)
	must(t, err)
	p.rounds.turn.Unlock()
	must(t, p.kill())
	p.reopen()
	p.check()
}

// A join becomes durable while the committer composes a round that does not know of it yet. The pass over the pages that the child has touched must
// not begin before that round is applied, or it misses what the round hides.
func TestJoinPassWaitsForRound(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 16*pageBytes)
	b := bytes.Repeat([]byte{1}, BlockSize)
	for page := range int64(8) {
		_, err := v.WriteAt(b, page*pageBytes)
		must(t, err)
	}
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	p.rounds.turn.Lock() // no other round than the one below
	_, err = v.WriteAt(b, 3*pageBytes)
	must(t, err)
	must(t, p.flushMembers())
	sealed := p.pages.sealAll()

	logHeld, logGo := make(chan struct{}), make(chan struct{})
	var once sync.Once
	disk.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", Times: 1, When: func(fsys.Call) bool {
		once.Do(func() { close(logHeld) })
		<-logGo
		return true
	}})
	deleted := make(chan error, 1)
	go func() { deleted <- p.DeleteSnapshot(context.Background(), "s") }()
	<-logHeld // the join is applied, and not durable
	c := roundCommit{p: p.Pool, sealed: sealed, rewritten: map[*pendingPage]struct{}{}, volumes: map[*volume]struct{}{}}
	err = p.store.commit(func(b *batch) (bool, error) {
		more, err := c.compose(b)
		close(logGo)
		must(t, <-deleted)
		// The pass now either waits for this round, or looks for pages and comes to its end.
		for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); {
			if !p.ops.TryLock() {
				break
			}
			p.ops.Unlock()
		}
		return more, err
	}, func() {
		p.ring.Retire(sealed.seq)
		p.pages.settle(sealed, c.rewritten)
		p.release(c.freed)
	})
	p.rounds.turn.Unlock()
	must(t, err)
	p.jobsDone()
	p.check()
}

// The disk of the metadata fails while it is being closed: Close returns.
func TestCloseOnFailingLog(t *testing.T) {
	p, disk := memPool(t)
	p.volume("v", 1<<20)
	p.closed.Store(true)
	close(p.stop)
	p.wg.Wait()
	disk.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", Err: unix.EIO})
	eventually(t, "Close", func() { t.Log(p.store.close()) })
}

// Whoever comes after Close is told so.
func TestUseAfterPoolClose(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 1<<20)
	_, err := v.WriteAt(make([]byte, BlockSize), 0)
	must(t, err)
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	r, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	b := make([]byte, BlockSize)
	_, err = r.ReadAt(b, 0)
	must(t, err)
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	must(t, p.Close(t.Context()))
	ctx := context.Background()
	for what, f := range map[string]func() error{
		"read":     func() error { _, err := r.ReadAt(b, 0); return err },
		"close":    func() error { return r.Close() },
		"create":   func() error { _, err := p.CreateVolume(ctx, VolumeSpec{Name: "w", Size: 1 << 20}); return err },
		"delete":   func() error { return p.DeleteVolume(ctx, "v") },
		"snapshot": func() error { _, err := p.CreateSnapshot(ctx, SnapshotSpec{Name: "t", Volume: "v"}); return err },
		"check":    func() error { _, err := p.Check(ctx); return err },
	} {
		err := func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v", r)
				}
			}()
			return f()
		}()
		if want := map[string]error{"close": nil}; err != want[what] && !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_ = p.Info()
}

// aligned is a device that takes whole blocks only.
type aligned struct{ dataDevice }

func (aligned) Alignment() int { return BlockSize }

func (d aligned) ReadAt(p []byte, place uint64, off int) error {
	if off%BlockSize != 0 || len(p)%BlockSize != 0 {
		return fmt.Errorf("read of %d bytes at %d: %w", len(p), off, unix.EINVAL)
	}
	return d.dataDevice.ReadAt(p, place, off)
}

func (d aligned) WriteAt(p []byte, place uint64, off int) error {
	if off%BlockSize != 0 || len(p)%BlockSize != 0 {
		return fmt.Errorf("write of %d bytes at %d: %w", len(p), off, unix.EINVAL)
	}
	return d.dataDevice.WriteAt(p, place, off)
}

// A member of 4096-byte sectors under a volume of 512-byte ones.
func TestSectorsOnLargeSectorMember(t *testing.T) {
	p, _ := memPool(t)
	p.data = aligned{p.data}
	v := p.volume("v", 1<<20)
	want := make([]byte, 5*BlockSize)
	for i := range want {
		want[i] = byte(i/sectorSize + 1)
	}
	for _, r := range [][2]int{{0, 5 * BlockSize}, {sectorSize, 2*sectorSize + BlockSize}, {3 * BlockSize, sectorSize}} {
		_, err := v.WriteAt(want[r[0]:r[0]+r[1]], int64(r[0]))
		must(t, err)
	}
	for off := 0; off < len(want); off += 3 * sectorSize {
		for n := sectorSize; off+n <= len(want); n += 5 * sectorSize {
			got := make([]byte, n)
			_, err := v.ReadAt(got, int64(off))
			must(t, err)
			if !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("%d bytes at %d", n, off)
			}
		}
	}
}

// The later parts of a long read that its volume's Close overtook: what the map names has gone to another volume.
func TestReadPartAfterVolumeClose(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 8<<20)
	_, err := v.WriteAt(bytes.Repeat([]byte{1}, BlockSize), pageBytes)
	must(t, err)
	b := make([]byte, BlockSize)
	_, err = v.ReadAt(b, pageBytes)
	must(t, err)
	must(t, v.Close(t.Context()))
	must(t, p.DeleteVolume(t.Context(), "v"))
	p.jobsDone()
	if err := readMapped(p.Pool, &v.mapping, &v.count, b, pageBytes); !errors.Is(err, ErrClosed) {
		t.Fatalf("a closed volume shows %x: %v", b[:4], err)
	}
}
