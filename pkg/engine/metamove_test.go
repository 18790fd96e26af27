package engine

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// metadataOn waits until a member has the metadata, and no other one anything of it.
func (tp *testPool) metadataOn(index int) {
	tp.t.Helper()
	until(tp.t, "the metadata has moved", func() bool {
		t := tp.members.table.Load()
		for _, m := range t.list {
			sb := m.dev.Superblock()
			_, err := os.Stat(m.dev.MetaDir())
			has := t.meta.index == m.index && sb.Metadata != 0 && sb.MovingTo.IsZero() && err == nil && m.dev.BallastHeld()
			none := sb.Metadata == 0 && os.IsNotExist(err) && !m.dev.BallastHeld()
			if int(m.index) == index && !has || int(m.index) != index && !none {
				return false
			}
		}
		return true
	})
}

// The first member is drained and taken out while volumes are read, written, flushed and snapshots taken: the metadata moves, nobody sees an error, and the
// pool is opened by what is left. Then the next one, back to where the first was.
func TestDrainMetadataMember(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	v := p.volume("v", 64<<20)
	want := fillPattern(t, v, 48)
	p.snapshot("first", "v")
	was := append([]byte(nil), want...)
	done := make(chan struct{})
	var guests sync.WaitGroup
	guests.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			off := i * 5 * BlockSize % len(want) / BlockSize * BlockSize
			for j := range want[off : off+BlockSize] {
				want[off+j]++
			}
			if _, err := v.WriteAt(want[off:off+BlockSize], int64(off)); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			if err := v.Flush(); err != nil {
				t.Errorf("flush: %v", err)
				return
			}
		}
	})
	guests.Go(func() {
		b := make([]byte, 1<<20)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if _, err := v.ReadAt(b, int64(i%48)<<20); err != nil {
				t.Errorf("read: %v", err)
				return
			}
		}
	})
	open := p.store.db.NewSnapshot() // somebody reads the old store all the while
	if _, err := p.DrainMember(t.Context(), "0", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the metadata is on the second member", func() bool { return p.members.table.Load().meta.index == 1 })
	report, err := checkMetadata(t.Context(), open, func(uint64) bool { return true })
	if err != nil || len(report.Problems) > 0 {
		t.Fatalf("the moment that was kept: %v, %v", report.Problems, err)
	}
	must(t, open.Close())
	p.metadataOn(1)
	p.snapshot("second", "v")
	close(done)
	guests.Wait()
	info, err := p.RemoveMember(t.Context(), "0")
	if err != nil || len(info.Members) != 1 || !info.Members[0].Metadata || info.MetadataBytes == 0 {
		t.Fatalf("%+v, %v", info, err)
	}
	a, b := p.dir, filepath.Join(filepath.Dir(p.dir), "b")
	if left, err := os.ReadDir(a); err != nil || len(left) > 0 {
		t.Fatalf("left in its folder: %v, %v", left, err)
	}
	wantContent(t, v, want)
	p.check()
	must(t, p.kill())
	p.dir = b
	p.reopen()
	v = p.open("v")
	wantContent(t, v, want)
	p.check()

	if _, err := p.AddMember(t.Context(), MemberSpec{Directory: a, Size: MinPoolSize}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.DrainMember(t.Context(), "1", false); err != nil {
		t.Fatal(err)
	}
	p.metadataOn(2)
	if _, err := p.RemoveMember(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	wantContent(t, v, want)
	must(t, p.Close(t.Context()))
	p.dir = a
	p.reopen()
	wantContent(t, p.open("v"), want)
	r, err := p.OpenSnapshot(t.Context(), "first")
	must(t, err)
	got := make([]byte, len(was))
	_, err = r.ReadAt(got, 0)
	must(t, err)
	if string(got) != string(was) {
		t.Error("the first snapshot shows something else")
	}
	must(t, r.Close())
}

// What an interrupted move has left: a pool that is opened by the member that was to give the metadata away is not, and names the other; opened by both it is
// what the superblocks say.
func TestInterruptedMetadataMove(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	want := fillPattern(t, p.volume("v", 64<<20), 16)
	list := p.members.table.Load().list
	a, b := list[0].dev, list[1].dev
	must(t, a.SetMetadata(1, list[1].rec.ID))
	must(t, os.MkdirAll(b.MetaDir(), 0o755))
	must(t, os.WriteFile(filepath.Join(b.MetaDir(), "MANIFEST-000001"), []byte("half of it"), 0o600))
	must(t, b.RestoreBallast())
	must(t, p.kill())
	if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrMemberMissing) || !strings.Contains(err.Error(), list[1].rec.ID.String()) {
		t.Fatalf("opened by one alone: %v", err)
	}
	p.o.Members = []string{filepath.Join(filepath.Dir(p.dir), "b")}
	p.reopen()
	p.metadataOn(0)
	wantContent(t, p.open("v"), want)

	// As far as the switch, and not to the end.
	list = p.members.table.Load().list
	must(t, p.Close(t.Context()))
	ao, err := openMember(p.dir, p.o.withDefaults())
	must(t, err)
	bo, err := openMember(p.o.Members[0], p.o.withDefaults())
	must(t, err)
	must(t, ao.SetMetadata(1, list[1].rec.ID))
	must(t, os.CopyFS(bo.MetaDir(), os.DirFS(ao.MetaDir())))
	must(t, bo.SetMetadata(2, format.UUID{}))
	must(t, ao.Close())
	must(t, bo.Close())
	if _, err := OpenPool(t.Context(), p.dir, Options{RingDir: p.o.RingDir, anyRingFS: true}); !errors.Is(err, ErrMemberMissing) {
		t.Fatalf("opened by the old one alone: %v", err)
	}
	p.reopen()
	p.metadataOn(1)
	wantContent(t, p.open("v"), want)
}

// movable is a pool in memory of two members whose first has the metadata and is drained but for that; no drain is under way.
func movable(t *testing.T) (*testPool, *fsys.FaultFS, []byte) {
	t.Helper()
	disk := fsys.Fault(crashDisk())
	p, want := movableOn(t, disk)
	return p, disk, want
}

func movableOn(t *testing.T, disk fsys.FS) (*testPool, []byte) {
	t.Helper()
	o := testOptions(t)
	o.fs, o.bootID, o.logBytes, o.patience = disk, &[16]byte{1}, 64<<10, 300*time.Millisecond
	pool, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize, More: []MemberSpec{{Directory: "/second/pool", Size: MinPoolSize}}}, o)
	must(t, err)
	p := &testPool{t, pool, o, "/pool"}
	t.Cleanup(func() { _ = p.kill() })
	p.alloc.CloseLane(0)
	v := p.volume("v", 4<<20)
	want := fillPattern(t, v, 2)
	must(t, p.flush())
	m := *p.members.table.Load().list[0]
	m.rec.State = format.MemberDraining
	must(t, p.putMember(&m))
	return p, want
}

// Whatever call on the new place goes wrong, the pool goes on with the old one, and the move is made later; or, where it is not known whether the switch was
// made, the pool fails, and is whole when it is opened again.
func TestMetadataMoveErrors(t *testing.T) {
	if _, moved := eachCallFails(t, func(name string) bool {
		return strings.HasPrefix(name, "/second/pool") && !strings.HasPrefix(name, "/second/pool/segments") && name != "/second/pool/flush"
	}); moved < 20 {
		t.Errorf("the metadata of %d pools moved in the end", moved)
	}
	// Of all those calls the few of the switch may be stepped over, for what Pebble does beside them differs from run to run. So once more those alone.
	if failed, _ := eachCallFails(t, func(name string) bool { return strings.HasPrefix(name, "/second/pool/rowan.pool") }); failed < 3 {
		t.Errorf("%d pools failed, want one for each call that replaces the superblock", failed)
	}
}

// eachCallFails moves metadata with an error of the first, then the second and so on of the calls on the files named. It counts the pools that failed by
// it, and those whose metadata moved afterwards.
func eachCallFails(t *testing.T, named func(string) bool) (failed, moved int) {
	t.Helper()
	for n, met := 0, true; met; n++ {
		p, disk, want := movable(t)
		var mu sync.Mutex // guards calls and met while the rule is there
		calls := 0
		met = false
		disk.Add(fsys.Rule{Err: unix.EIO, When: func(c fsys.Call) bool {
			switch c.Op {
			case fsys.OpRead, fsys.OpStat, fsys.OpUsage, fsys.OpReadDir, fsys.OpClose:
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			if met || !named(c.Name) {
				return false
			}
			calls++
			met = calls > n
			return met
		}})
		err := p.moveMetadata()
		disk.Clear()
		mu.Lock()
		if !met {
			must(t, err)
		}
		mu.Unlock()
		if err := p.failure(); err != nil {
			failed++
			must(t, p.kill())
			p.o.bootID, p.o.Members = &[16]byte{2}, []string{"/second/pool"}
			p.reopen()
		}
		p.check()
		v := p.catalogue.volumes["v"].open
		if v == nil {
			v = p.open("v")
		}
		wantContent(t, v, want)
		must(t, put(v, 0, BlockSize, 9))
		must(t, v.Flush())
		if p.metaStuck == nil {
			must(t, p.moveMetadata())
			moved++
		}
		must(t, p.kill())
		p.o.Members = []string{"/second/pool"}
		p.reopen()
		until(t, "the metadata is on the second member, where it was or as a drain goes on", func() bool { return p.members.table.Load().meta.index == 1 })
		p.check()
		must(t, p.kill())
	}
	return failed, moved
}

var pauseRuns = flag.Int("pause.runs", 50_000, "runs in the store whose move TestMetadataMovePause times")

// Flushes wait for the move of the metadata no longer than for what was written since most of it was copied, however large it is.
func TestMetadataMovePause(t *testing.T) {
	o := testOptions(t)
	o.Observer, o.ringBytes = nil, 1<<20
	p := newPoolOf(t, o, 2, "")
	t.Cleanup(func() { _ = p.kill() }) // the runs below are nobody's: no check
	v := p.volume("v", 64<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for done := 0; done < *pauseRuns; {
		b := p.store.db.newBatch()
		for range min(10_000, *pauseRuns-done) {
			place := rng.Uint64N(1 << 30)
			val := format.AppendRun(nil, format.Run{Len: 1, Place: place})
			must(t, b.Set(format.RunKey(9, uint32(done/500), 1+rng.Uint64N(4), done%500*2), val, nil))
			done++
		}
		must(t, b.Commit(pebble.NoSync))
	}
	var longest atomic.Int64
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			if err := errors.Join(put(v, i*BlockSize%(32<<20), BlockSize, byte(i)), v.Flush()); err != nil {
				t.Error(err)
				return
			}
			longest.Store(max(longest.Load(), int64(time.Since(began))))
		}
	})
	m := *p.members.table.Load().list[0]
	m.rec.State = format.MemberDraining
	must(t, p.putMember(&m))
	began := time.Now()
	mv := &metaMove{p: p.Pool, from: &m, to: p.members.table.Load().list[1], number: 1, old: p.store.db.at}
	bytes := p.store.db.bytes()
	must(t, errors.Join(mv.prepare(), mv.carry()))
	took := time.Since(began)
	close(stop)
	guest.Wait()
	t.Logf("%d runs, %d MiB of metadata, moved in %v: commits waited %v, the longest write and flush took %v", *pauseRuns, bytes>>20,
		took.Round(time.Millisecond), mv.pause, time.Duration(longest.Load()))
	if mv.pause > 5*time.Second {
		t.Error("too long")
	}
	must(t, mv.leave())
}
