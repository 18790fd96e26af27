package engine

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// twoSmallMembers is a pool of two members of 8 MiB, in memory.
func twoSmallMembers(t *testing.T) (*testPool, *fsys.FaultFS) {
	t.Helper()
	o := testOptions(t)
	disk := fsys.Fault(crashDisk())
	o.fs, o.bootID, o.smallest = disk, &[16]byte{1}, SizeUnit
	o.SpaceWait, o.RefuseAt = 100*time.Millisecond, 2
	pool, err := smallPool(o, crashDirs[:2]...)
	must(t, err)
	p := &testPool{t, pool, o, crashDirs[0]}
	t.Cleanup(func() { _ = p.kill() })
	for i := range 2 {
		_, err := p.GrowMember(t.Context(), string(rune('0'+i)), 8<<20)
		must(t, err)
	}
	return p, disk
}

// stallDrains keeps what is copied off the second member from being read.
func stallDrains(t *testing.T, disk *fsys.FaultFS) {
	t.Helper()
	stalled := make(chan struct{})
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "/second/pool/*.seg", When: func(fsys.Call) bool { <-stalled; return true }})
	t.Cleanup(sync.OnceFunc(func() { close(stalled) })) // before the pool is killed
}

// fillRest has a thin volume take all that it can get.
func (tp *testPool) fillRest(name string) {
	tp.t.Helper()
	if _, err := tp.CreateVolume(tp.t.Context(), VolumeSpec{Name: name, Size: 64 << 20}); err != nil {
		tp.t.Fatal(err)
	}
	if err := tp.fillVolume(name); !errors.Is(err, ErrNoSpace) {
		tp.t.Fatalf("a thin volume finds no end of a small pool: %v", err)
	}
}

// A thick volume discards what it has on a member that is being drained, and writes it again, when others have taken what they can get; after the death of
// the process as well.
func TestThickVolumeDiscardsOnDrainedMember(t *testing.T) {
	p, disk := twoSmallMembers(t)
	p.quietRest()
	v := p.thick("thick", 4<<20, RedirectOnWrite)
	must(t, p.fillVolume("thick"))
	must(t, p.flush())
	second := p.members.table.Load().find(1)
	if n := p.usedOn(p.members.table.Load(), second); n < 64 {
		t.Fatalf("%d of the volume's blocks are on the member that is to be drained", n)
	}
	stallDrains(t, disk)
	before := p.Info().Reserved
	info, err := p.DrainMember(t.Context(), "1", false)
	must(t, err)
	if info.Reserved <= before {
		t.Fatalf("%d bytes are set aside while a member is drained, %d were before", info.Reserved, before)
	}
	p.fillRest("rest")
	rewrite := func(first, size int64) {
		t.Helper()
		must(t, v.Discard(first, size))
		must(t, p.flush())
		for off, b := first, bytes.Repeat([]byte{7}, 64<<10); off < first+size; off += int64(len(b)) {
			if _, err := v.WriteAt(b, off); err != nil {
				t.Fatalf("%v\n%s", err, p.spaceText())
			}
		}
		p.promises()
	}
	rewrite(0, 1<<20)
	must(t, p.kill())
	p.o.Members = crashDirs[1:2]
	p.reopen()
	v = p.open("thick")
	p.fillRest("more")
	rewrite(0, v.Size())
	p.check()
}

// A drain is refused where the others' file systems have no room for what thick volumes have on the member, and all is as before.
func TestDrainWithoutRoomForThickVolumes(t *testing.T) {
	p, disk := twoSmallMembers(t)
	p.thick("thick", 10<<20, RedirectOnWrite)
	must(t, p.fillVolume("thick"))
	p.quietRest()
	disk.Add(fsys.Rule{Op: fsys.OpAllocate, Glob: "*.seg", Err: unix.ENOSPC})
	_, err := p.GrowMember(t.Context(), "0", 16<<20)
	must(t, err)
	before := p.Info()
	if _, err := p.DrainMember(t.Context(), "1", false); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "thick volumes need") {
		t.Fatalf("the other has no room: %v", err)
	}
	if after := p.Info(); after.Members[1].State != "InUse" || after.Reserved != before.Reserved || after.Free != before.Free {
		t.Fatalf("after a drain that was refused: %+v, before: %+v", after, before)
	}
	must(t, p.fillVolume("thick"))
	p.promises()
	p.check()
}

// quietRest waits until the members have all the space that their sizes allow.
func (tp *testPool) quietRest() {
	tp.t.Helper()
	until(tp.t, "all is reserved", func() bool { return !tp.mayReserve() })
}

// A volume is promised its size though the preparer takes the last of the pool's space while that is looked for.
func TestPromiseBesideThePreparer(t *testing.T) {
	o := testOptions(t)
	reserving, looked := make(chan struct{}), make(chan struct{})
	var first, second sync.Once
	disk := fsys.Fault(crashDisk(), fsys.Rule{Op: fsys.OpAllocate, Glob: "*.seg", When: func(fsys.Call) bool {
		first.Do(func() { close(reserving) })
		<-looked
		return true
	}}, fsys.Rule{Op: fsys.OpUsage, When: func(fsys.Call) bool {
		select {
		case <-reserving: // by who has found too little, and holds nothing yet that the preparer waits for
			second.Do(func() { close(looked) })
		default:
		}
		return true
	}})
	o.fs, o.bootID, o.smallest, o.RefuseAt = disk, &[16]byte{1}, SizeUnit, 2
	pool, err := smallPool(o, crashDirs[0])
	must(t, err)
	p := &testPool{t, pool, o, crashDirs[0]}
	t.Cleanup(func() { _ = p.kill() })
	_, err = p.Grow(t.Context(), 8<<20)
	must(t, err)
	<-reserving
	p.thick("thick", 4<<20, RedirectOnWrite)
	p.promises()
}
