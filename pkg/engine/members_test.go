package engine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// newPoolOf makes a pool of several members, each in a folder of its own.
func newPoolOf(t *testing.T, o Options, members int, allocation string) *testPool {
	t.Helper()
	dir := t.TempDir()
	NeedFileSystem(t, dir)
	spec := PoolSpec{Name: "p", Allocation: allocation}
	for i := range members {
		m := MemberSpec{Directory: filepath.Join(dir, string(rune('a'+i))), Size: MinPoolSize}
		if i == 0 {
			spec.Directory, spec.Size = m.Directory, m.Size
		} else {
			spec.More = append(spec.More, m)
		}
	}
	return createPool(t, spec, o)
}

// fillPattern writes n MiB that can be told from others, and returns them.
func fillPattern(t *testing.T, v *Volume, mib int) []byte {
	t.Helper()
	all := make([]byte, mib<<20)
	for i := range all {
		all[i] = byte(i>>12) ^ byte(i>>20) ^ byte(i)
	}
	for off := 0; off < len(all); off += 1 << 20 {
		_, err := v.WriteAt(all[off:off+1<<20], int64(off))
		must(t, err)
	}
	return all
}

func wantContent(t *testing.T, v *Volume, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := v.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatal("the volume shows something else")
	}
}

// A striped volume's extents go round the members; a flush reaches each that was written to, and none that was not.
func TestStripedMembers(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 3, "")
	v := p.volume("v", 64<<20)
	p.quiet() // each has space: a writer does not wait for the next one's
	want := fillPattern(t, v, 48)
	must(t, p.flush())
	info := p.Info()
	if info.Size != 3*MinPoolSize || info.Used != 48<<20 || info.Free != info.Size-info.Used || info.Allocation != AllocationStriped || info.State != "Ready" {
		t.Fatalf("%+v", info)
	}
	for _, m := range info.Members {
		if m.Used != 16<<20 || m.State != "InUse" || m.Metadata != (m.Index == 0) {
			t.Errorf("member %+v", m)
		}
	}
	before := p.flushesByMember()
	_, err := v.WriteAt(want[:4096], 0) // in place, on one member
	must(t, err)
	must(t, v.Flush())
	flushed := 0
	for i, n := range p.flushesByMember() {
		flushed += int(n - before[i])
	}
	if flushed != 1 {
		t.Errorf("%d members were flushed, one was written to", flushed)
	}
	must(t, p.kill())
	p.reopen()
	wantContent(t, p.open("v"), want)
}

func (tp *testPool) flushesByMember() (n []uint64) {
	for _, m := range tp.members.table.Load().present() {
		n = append(n, m.Counters().Flushes)
	}
	return n
}

// Filled members: the second is written to when the first is full, and their sizes are one capacity.
func TestFilledMembers(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, AllocationFilled)
	v := p.volume("v", 1<<30)
	fillPattern(t, v, 64)
	must(t, p.flush())
	if m := p.Info().Members; m[0].Used != 64<<20 || m[1].Used != 0 {
		t.Fatalf("%+v", m)
	}
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 1
	}
	for off := int64(64 << 20); off < 2*MinPoolSize; off += int64(len(b)) {
		_, err := v.WriteAt(b, off)
		must(t, err)
	}
	must(t, p.flush())
	for _, m := range p.Info().Members {
		if m.Used != MinPoolSize {
			t.Errorf("%+v", m)
		}
	}
	must(t, p.Close(t.Context()))
	p.reopen()
	if i := p.Info(); i.Allocation != AllocationFilled || i.Used != 2*MinPoolSize {
		t.Errorf("%+v", i)
	}
}

// Members are found by who they are: by any of their paths, where they were, and where they have been moved to.
func TestMembersFoundAgain(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	want := fillPattern(t, p.volume("v", 64<<20), 16)
	must(t, p.Close(t.Context()))
	root := filepath.Dir(p.dir)
	a, b := p.dir, filepath.Join(root, "b")

	if _, err := OpenPool(t.Context(), b, p.o); !errors.Is(err, ErrMemberMissing) || !strings.Contains(err.Error(), "metadata") {
		t.Fatalf("opened by the member without the metadata alone: %v", err)
	}
	p.o.Members, p.dir = []string{a}, b
	p.reopen()
	wantContent(t, p.open("v"), want)
	must(t, p.Close(t.Context()))

	// Both change places.
	must(t, os.Rename(a, a+".moved"))
	must(t, os.Rename(b, a))
	must(t, os.Rename(a+".moved", b))
	p.o.Members, p.dir = []string{b}, a
	p.reopen()
	wantContent(t, p.open("v"), want)
	must(t, p.Close(t.Context()))
	p.o.Members, p.dir = nil, b // the metadata knows where the other one is now
	p.reopen()
	if i := p.Info(); i.State != "Ready" || i.Member != b || i.Members[1].Path != a {
		t.Errorf("%+v", i)
	}
	wantContent(t, p.open("v"), want)
}

// Another pool's member, and a copy of one, are refused by name.
func TestForeignMembers(t *testing.T) {
	p, q := newPoolOf(t, testOptions(t), 2, ""), newPoolOf(t, testOptions(t), 2, "")
	must(t, p.Close(t.Context()))
	must(t, q.Close(t.Context()))
	other := filepath.Join(filepath.Dir(q.dir), "b")
	o := p.o
	o.Members = []string{other}
	if _, err := OpenPool(t.Context(), p.dir, o); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), other) {
		t.Errorf("another pool's member: %v", err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, os.CopyFS(copied, os.DirFS(p.dir)))
	o.Members = []string{copied}
	if _, err := OpenPool(t.Context(), p.dir, o); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), copied) {
		t.Errorf("a copy: %v", err)
	}
	// A member that is put where another one of its pool was is not taken for it.
	b := filepath.Join(filepath.Dir(p.dir), "b")
	must(t, os.Rename(b, b+".away"))
	must(t, os.Rename(other, b))
	pool, err := OpenPool(t.Context(), p.dir, p.o)
	must(t, err)
	if i := pool.Info(); i.State != "Degraded" || !strings.Contains(i.Reason, b) {
		t.Errorf("%+v", i)
	}
	must(t, pool.Close(t.Context()))
	must(t, os.Rename(b, other))
	must(t, os.Rename(b+".away", b))
	p.reopen()
	q.reopen()
}

// A write over the end of one segment goes on in the next, whose member is another.
func TestRunAcrossMembers(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	t0 := p.members.table.Load()
	b := make([]byte, 8*BlockSize)
	for i := range b {
		b[i] = byte(i >> 12)
	}
	var places []uint64
	err := t0.each(b[:0], 0, 0, nil)
	must(t, err)
	calls := 0
	fake := *t0
	fake.bySegment = []*poolMember{t0.list[0], t0.list[1]}
	for _, m := range fake.list {
		must(t, m.dev.EnsureSegment(0))
		must(t, m.dev.EnsureSegment(1))
	}
	err = fake.each(b, alloc.SegmentBlocks-3, BlockSize, func(m *member.Member, p []byte, place uint64, off int) error {
		calls++
		places = append(places, place)
		return m.WriteAt(p, place, off)
	})
	must(t, err)
	if calls != 2 || places[0] != alloc.SegmentBlocks-2 || places[1] != alloc.SegmentBlocks {
		t.Fatalf("%d calls, at %v", calls, places)
	}
	got := make([]byte, 6*BlockSize)
	must(t, t0.list[1].dev.ReadAt(got, alloc.SegmentBlocks, 0))
	if !bytes.Equal(got, b[2*BlockSize:]) {
		t.Fatal("the second member has something else")
	}
}

// A pool without one of its members says which, serves what is whole, and has everything again when the member is back: at the next opening, or while it is
// open. What is written meanwhile stays.
func TestMissingMember(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, AllocationFilled)
	p.quiet()
	whole := fillPattern(t, p.volume("whole", 64<<20), 16)
	p.alloc.CloseLane(0) // what follows goes to the second member
	half := fillPattern(t, p.volume("half", 64<<20), 16)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "half"})
	must(t, err)
	must(t, p.Close(t.Context()))
	second := filepath.Join(filepath.Dir(p.dir), "b")
	away := func() { must(t, os.Rename(second, second+".away")) }
	back := func() { must(t, os.Rename(second+".away", second)) }
	for _, online := range []bool{false, true} {
		away()
		p.reopen()
		info := p.Info()
		if info.State != "Degraded" || !strings.Contains(info.Reason, second) || info.Members[1].State != "Missing" {
			t.Fatalf("%+v", info)
		}
		_, err := p.OpenVolume(t.Context(), "half")
		if !errors.Is(err, ErrMemberMissing) || !strings.Contains(err.Error(), second) {
			t.Fatalf("a volume with blocks on the missing member: %v", err)
		}
		if _, err := p.OpenSnapshot(t.Context(), "s"); !errors.Is(err, ErrMemberMissing) {
			t.Fatalf("a snapshot with blocks there: %v", err)
		}
		v := p.open("whole")
		wantContent(t, v, whole)
		for off := 0; off < len(whole); off += 3 << 20 {
			for i := range whole[off : off+8192] {
				whole[off+i]++
			}
			_, err := v.WriteAt(whole[off:off+8192], int64(off))
			must(t, err)
		}
		if _, err := v.WriteAt(whole[:1<<20], 32<<20); err != nil { // new blocks, on the member that is there
			t.Fatal(err)
		}
		must(t, v.Flush())
		p.check()
		if online {
			if _, err := p.FindMembers(t.Context(), nil); !errors.Is(err, ErrMemberMissing) {
				t.Fatalf("found: %v", err)
			}
			back()
			if i, err := p.FindMembers(t.Context(), nil); err != nil || i.State != "Ready" {
				t.Fatalf("%+v, %v", i, err)
			}
		} else {
			must(t, v.Close(t.Context()))
			must(t, p.Close(t.Context()))
			back()
			p.reopen()
			wantContent(t, p.open("whole"), whole)
		}
		wantContent(t, p.open("half"), half)
		must(t, p.WaitChecksums(t.Context()))
		p.check()
		if r, err := p.Scrub(t.Context(), ScrubSpec{}); err != nil || r.Verified != 16<<20 {
			t.Fatalf("scrub: %+v, %v", r, err)
		}
		must(t, p.Close(t.Context()))
	}
	p.reopen()
}

// The engine died with writes that only the ring knows, to a member that is gone: they are not committed, and not forgotten without being told to.
func TestMissingMemberInRing(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, AllocationFilled)
	p.quiet()
	v := p.volume("v", 64<<20)
	p.alloc.CloseLane(0)
	p.rounds.turn.Lock() // no round commits it
	want := fillPattern(t, v, 1)
	second := filepath.Join(filepath.Dir(p.dir), "b")
	must(t, p.kill())
	p.rounds.turn.Unlock()
	must(t, os.Rename(second, second+".away"))
	if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), second) {
		t.Fatalf("opened without it: %v", err)
	}
	must(t, os.Rename(second+".away", second))
	p.reopen()
	wantContent(t, p.open("v"), want)
}

// What the flush log knows was flushed, on that member too: it is committed without it, and whole when the member is back.
func TestMissingMemberInFlushLog(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, AllocationFilled)
	p.quiet()
	v := p.volume("v", 64<<20)
	p.alloc.CloseLane(0)
	p.rounds.turn.Lock() // no round commits it
	want := fillPattern(t, v, 1)
	logged, err := p.logPending()
	must(t, err)
	if !logged {
		t.Fatal("the flush needs a commit")
	}
	second := filepath.Join(filepath.Dir(p.dir), "b")
	must(t, p.kill())
	p.rounds.turn.Unlock()
	must(t, os.Rename(second, second+".away"))
	p.reopen()
	if _, err := p.OpenVolume(t.Context(), "v"); !errors.Is(err, ErrMemberMissing) {
		t.Fatalf("opened without its member: %v", err)
	}
	must(t, p.kill())
	must(t, os.Rename(second+".away", second))
	p.reopen()
	wantContent(t, p.open("v"), want)
}

// A full pool's waiting write goes on when a member is added, and an add that was interrupted can be done again.
func TestAddMember(t *testing.T) {
	o := testOptions(t)
	o.SpaceWait = time.Minute
	p := newPoolOf(t, o, 1, "")
	v := p.volume("v", 1<<30)
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i>>9) | 1
	}
	written := make(chan error, 1)
	go func() {
		for off := int64(0); off < MinPoolSize+64<<20; off += int64(len(b)) {
			if _, err := v.WriteAt(b, off); err != nil {
				written <- err
				return
			}
		}
		written <- p.flush()
	}()
	until(t, "the pool is full", func() bool { return p.Info().Level == SpaceFull })
	dir := filepath.Join(filepath.Dir(p.dir), "b")
	left, err := member.Create(p.fs, member.Spec{
		PoolName: "p", PoolID: p.identity.PoolID, MemberID: format.NewUUID(), Index: 9, Directory: dir, Size: MinPoolSize, Created: time.Now(),
	})
	must(t, err)
	must(t, left.Close())
	info, err := p.AddMember(t.Context(), MemberSpec{Directory: dir, Size: MinPoolSize})
	if err != nil || len(info.Members) != 2 || info.Members[1].Index != 1 || info.Size != 2*MinPoolSize {
		t.Fatalf("%+v, %v", info, err)
	}
	must(t, <-written)
	if m := p.Info().Members; m[1].Used != 64<<20 {
		t.Errorf("%+v", m)
	}
	if _, err := p.AddMember(t.Context(), MemberSpec{Directory: dir, Size: MinPoolSize}); !errors.Is(err, ErrForeign) {
		t.Errorf("added twice: %v", err)
	}
	must(t, p.kill())
	p.reopen()
	got := make([]byte, len(b))
	_, err = p.open("v").ReadAt(got, MinPoolSize+32<<20)
	must(t, err)
	if !bytes.Equal(got, b) {
		t.Fatal("what is on the new member shows something else")
	}
	p.check()
}

// drained waits until a member holds nothing.
func (tp *testPool) drained(index int) {
	tp.t.Helper()
	until(tp.t, "the member is drained", func() bool {
		t := tp.members.table.Load()
		m := t.find(uint32(index))
		return tp.usedOn(t, m) == 0 && tp.alloc.Unsettled(m.lane) == 0
	})
}

// A member is drained while its volumes are written to; the engine dies in the middle, and the next one goes on. Then it is taken out, and its folder is
// empty. Another one can be made there.
func TestDrainMember(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 3, "")
	p.quiet()
	v := p.volume("v", 64<<20)
	want := fillPattern(t, v, 60)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	if _, err := p.RemoveMember(t.Context(), "1"); !errors.Is(err, ErrInvalid) {
		t.Fatalf("removed without a drain: %v", err)
	}
	if i, err := p.DrainMember(t.Context(), "1", false); err != nil || i.Members[1].State != "Draining" {
		t.Fatalf("%+v, %v", i, err)
	}
	if _, err := p.RemoveMember(t.Context(), "1"); !errors.Is(err, ErrBusy) {
		t.Fatalf("removed with blocks on it: %v", err)
	}
	write := func(v *Volume, by byte) {
		for off := 0; off < len(want); off += 1 << 20 {
			for i := range want[off : off+4096] {
				want[off+i] += by
			}
			_, err := v.WriteAt(want[off:off+4096], int64(off))
			must(t, err)
		}
	}
	write(v, 1)
	must(t, p.kill())
	p.reopen()
	v = p.open("v")
	wantContent(t, v, want)
	if s := p.Info().Members[1].State; s != "Draining" {
		t.Fatalf("after a restart it is %s", s)
	}
	write(v, 1)
	p.drained(1)
	write(v, 1)
	wantContent(t, v, want)
	p.check()
	dir := filepath.Join(filepath.Dir(p.dir), "b")
	info, err := p.RemoveMember(t.Context(), dir)
	if err != nil || len(info.Members) != 2 || info.Size != 2*MinPoolSize {
		t.Fatalf("%+v, %v", info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in its folder: %v, %v", left, err)
	}
	wantContent(t, v, want)
	must(t, v.Flush())
	p.check()
	if i, err := p.AddMember(t.Context(), MemberSpec{Directory: dir, Size: MinPoolSize}); err != nil || i.Members[2].Index != 3 {
		t.Fatalf("%+v, %v", i, err)
	}
	must(t, p.kill())
	p.reopen()
	wantContent(t, p.open("v"), want)
	r, err := p.OpenSnapshot(t.Context(), "s")
	must(t, err)
	must(t, r.Close())
}

// A drain that cannot succeed is refused, and one that was begun can be called off.
func TestDrainRefusedAndCancelled(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	p.quiet()
	fillPattern(t, p.volume("v", 1<<30), 32)
	_, err := p.DrainMember(t.Context(), "1", false)
	must(t, err)
	if _, err := p.DrainMember(t.Context(), "0", false); !errors.Is(err, ErrInvalid) {
		t.Errorf("the last one in use: %v", err)
	}
	if i, err := p.DrainMember(t.Context(), "1", true); err != nil || i.Members[1].State != "InUse" {
		t.Errorf("%+v, %v", i, err)
	}
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 7
	}
	v := p.catalogue.volumes["v"].open
	for off := int64(32 << 20); off < MinPoolSize+64<<20; off += int64(len(b)) {
		_, err := v.WriteAt(b, off)
		must(t, err)
	}
	must(t, p.flush())
	if _, err := p.DrainMember(t.Context(), "1", false); !errors.Is(err, ErrNoSpace) {
		t.Errorf("nowhere to go: %v", err)
	}
}

// A removal that was interrupted when the pool no longer knew the member leaves a folder, in which a member can be made.
func TestRemoveInterrupted(t *testing.T) {
	p := newPoolOf(t, testOptions(t), 2, "")
	p.quiet()
	want := fillPattern(t, p.volume("v", 64<<20), 16)
	_, err := p.DrainMember(t.Context(), "1", false)
	must(t, err)
	p.drained(1)
	m, err := p.takeOut("1")
	must(t, err)
	must(t, m.dev.Close())
	dir := m.dev.Dir()
	must(t, p.kill())
	p.o.Members = []string{dir}
	p.reopen()
	if i := p.Info(); i.State != "Ready" || len(i.Members) != 1 {
		t.Fatalf("%+v", i)
	}
	if i, err := p.AddMember(t.Context(), MemberSpec{Directory: dir, Size: MinPoolSize}); err != nil || len(i.Members) != 2 || i.Members[1].Index != 2 {
		t.Fatalf("%+v, %v", i, err)
	}
	wantContent(t, p.open("v"), want)
}

// What a pool's volumes are found by stays with the pool: members that come later have it too, and so it outlives the member that it was made with.
func TestNodeStaysWithPool(t *testing.T) {
	dir := t.TempDir()
	NeedFileSystem(t, dir)
	p := createPool(t, PoolSpec{Name: "p", Node: "node-1", Directory: filepath.Join(dir, "a"), Size: MinPoolSize}, testOptions(t))
	_, err := p.AddMember(t.Context(), MemberSpec{Directory: filepath.Join(dir, "b"), Size: MinPoolSize})
	must(t, err)
	_, err = p.DrainMember(t.Context(), "0", false)
	must(t, err)
	until(t, "the first member is drained", func() bool {
		_, err := p.RemoveMember(t.Context(), "0")
		return err == nil
	})
	must(t, p.Close(t.Context()))
	p.dir = filepath.Join(dir, "b")
	p.reopen()
	if i := p.Info(); i.Node != "node-1" || len(i.Members) != 1 {
		t.Errorf("%+v", i)
	}
}
