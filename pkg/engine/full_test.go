package engine

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// told keeps the observer's events.
type told struct {
	mu     sync.Mutex
	events []string
}

func (*told) Figures(string) *Figures { return nil }

func (o *told) Event(_, message string, kv ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, fmt.Sprint(message, kv))
}

func (o *told) has(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.events, func(e string) bool { return strings.Contains(e, text) })
}

// fillTo writes new megabytes, from one on, until the pool has no more left than so many bytes. It returns where it ended.
func (tp *testPool) fillTo(v *Volume, from, left int64) int64 {
	tp.t.Helper()
	chunk := bytes.Repeat([]byte{1}, 1<<20)
	for tp.Info().Available > left {
		_, err := v.WriteAt(chunk, from)
		must(tp.t, err)
		from += 1 << 20
	}
	return from
}

// The ladder: a word to the operator, then no new volumes and snapshots, then ENOSPC; overwrites and deletes all along; and down again.
func TestSpaceLadder(t *testing.T) {
	o := testOptions(t)
	seen := &told{}
	o.Observer, o.SpaceWait = seen, 100*time.Millisecond
	p := newPool(t, o, MinPoolSize)
	level := func(want SpaceLevel) {
		t.Helper()
		if got := p.Info(); got.Level != want || got.WarnAt != DefaultWarnAt || got.RefuseAt != DefaultRefuseAt {
			t.Fatalf("level %s of %+v, want %s", got.Level, got, want)
		}
	}
	level(SpaceAmple)
	v := p.volume("v", 512<<20)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	at := p.fillTo(v, 0, 36<<20)
	level(SpaceLow)
	until(t, "the operator is warned", func() bool { return seen.has("is filling up") })
	_, err = p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s2", Volume: "v"})
	must(t, err)
	at = p.fillTo(v, at, 12<<20)
	level(SpaceScarce)
	until(t, "the operator is warned again", func() bool { return seen.has("nearly full") })
	for what, make := range map[string]func() error{
		"volume": func() error { _, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "w", Size: 1 << 20}); return err },
		"clone": func() error {
			_, err := p.CreateVolume(t.Context(), VolumeSpec{Name: "w", FromSnapshot: "s"})
			return err
		},
		"snapshot": func() error {
			_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s3", Volume: "v"})
			return err
		},
		"group": func() error {
			_, err := p.CreateSnapshotGroup(t.Context(), SnapshotGroupSpec{Name: "g", Snapshots: []SnapshotSpec{{Name: "s3", Volume: "v"}}})
			return err
		},
	} {
		if err := make(); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "MiB left") || !strings.Contains(err.Error(), "grow it") {
			t.Errorf("%s in a nearly full pool: %v", what, err)
		}
	}
	if _, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"}); !errors.Is(err, ErrExists) {
		t.Errorf("a snapshot that is there: %v", err)
	}
	at = p.fillTo(v, at, 0)
	level(SpaceFull)
	if _, err = v.WriteAt(make([]byte, BlockSize), at); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("a new block in a full pool: %v", err)
	}
	_, err = v.WriteAt(make([]byte, 1<<20), at-1<<20)
	must(t, err)
	until(t, "the operator is told", func() bool { return seen.has("the pool is full") })
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	must(t, p.DeleteSnapshot(t.Context(), "s2"))
	must(t, v.Discard(0, v.Size()))
	must(t, p.flush())
	p.jobsDone()
	until(t, "there is space again", func() bool { return p.Info().Level == SpaceAmple && seen.has("ample space again") })
}

// What is left is told of one moment: a chunk that gets its space, or gives it back, while it is asked is counted once.
func TestSpaceLeftOfOneMoment(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	_, err := p.reserveMore(nil)
	must(t, err)
	p.preparing.space.Lock() // nobody else reserves or punches
	defer p.preparing.space.Unlock()
	want := p.spaceLeft().bytes
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ended.Store(true)
		for done, kind := 0, alloc.Reserved; done < 20_000; {
			seg, chunk, ok, err := p.alloc.TakeBack(kind, 0)
			if err != nil {
				t.Error(err)
				return
			}
			if !ok { // the preparer has made them of the other kind, or is at it
				kind = alloc.Written + alloc.Reserved - kind
				continue
			}
			p.alloc.Add(kind, seg, chunk, chunk+1)
			done++
		}
	})
	for !ended.Load() {
		if got := p.spaceLeft().bytes; got != want {
			t.Errorf("%d bytes left of %d, nothing of which is in use", got, want)
			break
		}
	}
	wg.Wait()
}

// A large write that would gather scattered blocks, and finds no space for that nor for what is new, waits like any other: what it gives back itself is
// nothing to be woken by.
func TestLargeWriteOverScatteredBlocksOfAFullPool(t *testing.T) {
	o := testOptions(t)
	o.SpaceWait = 100 * time.Millisecond
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 512<<20)
	block := make([]byte, BlockSize)
	for i := range int64(largeWrite / 2) {
		for _, at := range []int64{2 * i, 2*largeWrite + i} { // so that no two of the first stretch lie side by side
			_, err := v.WriteAt(block, at*BlockSize)
			must(t, err)
		}
	}
	at, err := p.fillTo(v, 1<<20, 2<<20), error(nil)
	for ; err == nil; at += BlockSize {
		_, err = v.WriteAt(block, at)
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(make([]byte, largeWrite*BlockSize), 0)
		wrote <- err
	}()
	select {
	case err := <-wrote:
		if !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
	case <-time.After(100 * o.SpaceWait):
		must(t, v.Discard(1<<20, v.Size()-1<<20)) // so that it ends
		t.Fatal("the write neither gets space nor is told that there is none")
	}
}

// A pool that a neighbour's files leave little space goes up the ladder, too.
func TestLadderCountsTheFileSystem(t *testing.T) {
	s := spaceLeft{size: 100 << 20, bytes: 3 << 20, warn: 0.85, refuse: 0.95, limitedByFiles: true}
	if l := s.level(0); l != SpaceScarce || !strings.Contains(s.String(), "file system") {
		t.Fatal(l, s)
	}
	if l := s.level(levelMargin); l != SpaceScarce {
		t.Fatal(l)
	}
	s.bytes = 5<<20 + 1<<19
	if s.level(0) != SpaceLow || s.level(levelMargin) != SpaceScarce {
		t.Fatal("without a margin a pool at the mark goes up and down")
	}
}

// waits tells whether some write waits for space since the time of asking.
func (tp *testPool) waits() func() bool {
	freed := tp.alloc.Freed()
	return func() bool {
		tp.full.mu.Lock()
		defer tp.full.mu.Unlock()
		return tp.full.freed == freed
	}
}

// fullPool is a pool without a free block, and a volume in it that owns from 0 to at.
func fullPool(t *testing.T, wait time.Duration) (p *testPool, v *Volume, at int64) {
	t.Helper()
	o := testOptions(t)
	o.SpaceWait = wait
	p = newPool(t, o, MinPoolSize)
	v = p.volume("v", 2*MinPoolSize)
	at = p.fillTo(v, 0, 0)
	must(t, p.flush())
	return p, v, at
}

// Growing the pool resumes the writes that wait.
func TestGrowResumesWrites(t *testing.T) {
	p, v, at := fullPool(t, 5*time.Minute)
	if _, err := p.Grow(t.Context(), MinPoolSize-SizeUnit); !errors.Is(err, ErrShrink) {
		t.Fatalf("shrink: %v", err)
	}
	if _, err := p.Grow(t.Context(), MinPoolSize+1); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a size that is no multiple: %v", err)
	}
	if _, err := p.Grow(t.Context(), 1<<50); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "MiB to give") {
		t.Fatalf("more than the file system has: %v", err)
	}
	waits := p.waits()
	done := make(chan error, 4)
	for i := range int64(cap(done)) {
		go func() { _, err := v.WriteAt(bytes.Repeat([]byte{2}, 1<<20), at+i<<20); done <- err }()
	}
	until(t, "a write waits", waits)
	info, err := p.Grow(t.Context(), MinPoolSize+64<<20)
	must(t, err)
	if info.Size != MinPoolSize+64<<20 {
		t.Errorf("%+v", info)
	}
	for range cap(done) {
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(30 * time.Second):
			t.Fatal("a write waits still")
		}
	}
	must(t, v.Close(t.Context()))
	must(t, p.Close(t.Context()))
	p.reopen()
	if got := p.Info().Size; got != MinPoolSize+64<<20 {
		t.Fatalf("after a reopening: %d", got)
	}
	v = p.open("v")
	got := make([]byte, 4<<20)
	_, err = v.ReadAt(got, at)
	must(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte{2}, 4<<20)) {
		t.Fatal("not what was written")
	}
}

// A pool that has been full for the time a write waits has writes wait no more, until something has become free.
func TestFullPoolIsToldOnce(t *testing.T) {
	const wait = 2 * time.Second
	p, v, at := fullPool(t, wait)
	write := func(least, most time.Duration) {
		t.Helper()
		began := time.Now()
		if _, err := v.WriteAt(make([]byte, BlockSize), at); !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
		if took := time.Since(began); took < least || took > most {
			t.Fatalf("ENOSPC after %v, want %v to %v", took, least, most)
		}
	}
	write(wait*9/10, time.Minute)
	for range 20 {
		write(0, wait*9/10)
	}
	place, n, err := p.alloc.Alloc(99, 1, alloc.Written)
	if !errors.Is(err, alloc.ErrNone) {
		t.Fatal(place, n, err)
	}
	must(t, v.Discard(0, 1<<20))
	_, err = v.WriteAt(make([]byte, 1<<20), 0) // what the discard freed, after a flush
	must(t, err)
	write(wait*9/10, time.Minute)
}

// Two large writes share what is left of a full pool: one of them gets it.
func TestLastBlocksGoToOne(t *testing.T) {
	p, v, at := fullPool(t, 5*time.Minute)
	must(t, v.Discard(0, 1<<20+512<<10))
	must(t, p.flush())
	until(t, "what was discarded is free", func() bool { free, _, _ := p.alloc.Free(); return free == 384 })
	done := make(chan error, 2)
	for i := range int64(2) {
		go func() { _, err := v.WriteAt(bytes.Repeat([]byte{2}, 1<<20), at+i<<20); done <- err }()
	}
	first := func() {
		t.Helper()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(30 * time.Second):
			t.Fatal("both wait")
		}
	}
	first()
	must(t, v.Discard(2<<20, 1<<20))
	must(t, p.flush())
	first()
}

// A file system that takes longer to answer than a write waits is slow, not full: the write waits for the answer, and then says what it was.
func TestSlowFileSystemIsNoFullPool(t *testing.T) {
	answer := make(chan struct{})
	disk := fsys.Fault(fsys.NewMem())
	o := testOptions(t)
	o.fs, o.bootID, o.SpaceWait = disk, &[16]byte{1}, time.Millisecond
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	defer tp.kill()
	v := tp.volume("v", MinPoolSize)
	tp.quiet()
	disk.Add(fsys.Rule{Op: fsys.OpAllocate, Glob: "*.seg", Err: unix.ENOSPC, When: func(fsys.Call) bool { <-answer; return true }})
	done := make(chan error, 1)
	go func() {
		chunk := bytes.Repeat([]byte{1}, 1<<20)
		for at := int64(0); ; at += 1 << 20 {
			if _, err := v.WriteAt(chunk, at); err != nil {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		t.Fatalf("before the file system has answered: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(answer)
	if err := <-done; !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "the file system under pool") {
		t.Fatal(err)
	}
}

// crowded is a file system that a neighbour fills.
type crowded struct {
	fsys.FS
	available atomic.Int64 // of 100 GiB; negative: as it is
}

func (c *crowded) Usage(name string) (fsys.Usage, error) {
	u, err := c.FS.Usage(name)
	if n := c.available.Load(); n >= 0 {
		u.Total, u.Available = 100<<30, n
	}
	return u, err
}

// From a part of the file system in use on, whoever uses it, the pool takes no more of it: what it has it can use, the rest waits. The limit is the member's
// for good.
func TestGrowthStops(t *testing.T) {
	o := testOptions(t)
	disk := &crowded{FS: fsys.OS()}
	disk.available.Store(90 << 30)
	o.fs, o.SpaceWait = disk, 50*time.Millisecond
	dir := t.TempDir()
	NeedFileSystem(t, dir)
	p := createPool(t, PoolSpec{Name: "p", Directory: filepath.Join(dir, "p"), Size: 4 * MinPoolSize, Share: Share{StopAt: 80}}, o)
	if m := p.Info().Members[0]; m.GrowthStopped || m.Reason != "" {
		t.Fatalf("%+v", m)
	}
	p.volume("v", 4*MinPoolSize)
	must(t, p.Close(t.Context()))
	disk.available.Store(20 << 30)
	p.reopen()
	v := p.open("v")
	b := bytes.Repeat([]byte{1}, 1<<20)
	var err error
	for off := int64(0); off < 4*MinPoolSize && err == nil; off += 1 << 20 {
		_, err = v.WriteAt(b, off)
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "over 80 % of the file system") {
		t.Fatalf("written on: %v", err)
	}
	if i := p.Info(); !i.Members[0].GrowthStopped || !strings.Contains(i.Members[0].Reason, "over 80 %") || i.Level != SpaceFull {
		t.Errorf("%+v", i)
	}
	must(t, v.Flush())
	disk.available.Store(50 << 30)
	until(t, "writes go on when there is room again", func() bool {
		_, err := v.WriteAt(b, 2*MinPoolSize)
		return err == nil
	})
	if m := p.Info().Members[0]; m.GrowthStopped {
		t.Errorf("%+v", m)
	}
}
