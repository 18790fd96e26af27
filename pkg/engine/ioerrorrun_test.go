package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// ioRun is one run of the workload, with one fault.
type ioRun struct {
	*guests
	t      *testing.T
	plan   *ioPlan
	disk   *fsys.Mem
	o      Options
	other  *testPool
	dev    *Volume // of the other pool
	turn   byte
	at     atomic.Value // the step under way
	err    error        // what ends the run
	gone   bool         // the pool is not open and does not open
	failed bool

	perhaps    bool // an opening failed in a way that may have left its mark
	openingHit bool // the fault came while the pool was made or opened
}

func (x *ioRun) run() error {
	x.o = crashOptions(x.t)
	x.o.RingDir, x.o.ringBytes, x.o.bootID = ringFolder(x.t), 64<<10, &[16]byte{1}
	x.use(fsys.NewMem())
	x.guests = &guests{disk: x.disk, w: newWorld()}
	if err := x.openOther(); err != nil {
		return err
	}
	x.make()
	x.script()
	return errors.Join(x.err, x.end())
}

func (x *ioRun) use(disk *fsys.Mem) {
	x.disk, x.o.fs = disk, fsys.Fault(disk, x.plan.rule())
}

// step does one thing of the workload. It may go wrong once the fault has come, and then only by telling so.
func (x *ioRun) step(name string, f func() error) {
	if x.err != nil || x.gone {
		return
	}
	x.at.Store(name)
	err := f()
	switch {
	case errors.Is(err, errWrong), err != nil && !x.plan.wasHit():
		x.err = fmt.Errorf("%s: %w", name, err)
	}
	if err := x.otherStep(); err != nil {
		x.err = errors.Join(x.err, fmt.Errorf("the other pool, after %s: %w", name, err))
	}
}

// on does something with a volume that is there.
func (x *ioRun) on(s *slot, name string, f func() error) {
	x.step(name+" "+s.name, func() error {
		if s.dev == nil {
			return nil
		}
		return f()
	})
}

func (x *ioRun) openOther() error {
	o := x.o
	o.fs = fsys.NewMem()
	pool, err := smallPool(o, "/other")
	if err != nil {
		return err
	}
	x.other = &testPool{Pool: pool, o: o, dir: "/other"}
	if _, err := pool.GrowMember(context.Background(), "0", 4<<20); err != nil {
		return err
	}
	if _, err := pool.CreateVolume(context.Background(), VolumeSpec{Name: "v", Size: SizeUnit}); err != nil {
		return err
	}
	x.dev, err = pool.OpenVolume(context.Background(), "v")
	return err
}

func (x *ioRun) otherStep() error {
	x.turn++
	b, got := bytes.Repeat([]byte{x.turn}, BlockSize), make([]byte, BlockSize)
	off := int64(x.turn%32) * BlockSize
	if _, err := x.dev.WriteAt(b, off); err != nil {
		return err
	}
	if err := x.dev.Flush(); err != nil {
		return err
	}
	if _, err := x.dev.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(b, got) {
		return errWrong
	}
	return nil
}

// make makes the pool, a second time where the first went wrong: nothing that is left stands in the way.
func (x *ioRun) make() {
	for try := 0; ; try++ {
		pool, err := smallPool(x.o, "/pool")
		x.openingHit = x.plan.wasHit()
		if err == nil {
			x.testPool = &testPool{Pool: pool, o: x.o, dir: "/pool"}
			_, err = pool.GrowMember(context.Background(), "0", 8<<20)
			if err == nil || x.plan.wasHit() {
				pool.preparing.kick()
				return
			}
		}
		if !x.plan.wasHit() || try == 1 && !x.plan.fault.good {
			x.err = fmt.Errorf("create the pool, try %d: %w", try+1, err)
		}
		if try == 1 || x.err != nil {
			x.gone = true
			return
		}
	}
}

// script is the workload: all that changes something, once or twice.
func (x *ioRun) script() {
	if x.gone {
		return
	}
	for i := range 3 {
		x.slots = append(x.slots, &slot{name: fmt.Sprintf("volume-%d", i)})
	}
	a, b, c := x.slots[0], x.slots[1], x.slots[2]
	x.step("create a", func() error { return x.createVolume(a, "") })
	x.step("create b", func() error { return x.createVolume(b, "") })
	x.traffic(a)
	x.traffic(b)
	var first, second string
	r := rand.New(rand.NewPCG(1, 5))
	x.on(a, "snapshot", func() (err error) { first, err = x.snapshot(r, a); return err })
	x.traffic(a)
	x.on(a, "second snapshot", func() (err error) { second, err = x.snapshot(r, a); return err })
	x.traffic(a)
	x.step("group", func() error { return x.takeGroup("g", a, b) })
	x.traffic(b)
	x.step("join", func() error { return x.remove(second) })
	x.step("passes", x.passes)
	x.step("restore", func() error {
		if first == "" || c.dev != nil {
			return nil
		}
		return x.createVolume(c, first)
	})
	x.traffic(c)
	x.step("kill and open", x.again)
	x.traffic(a)
	x.step("roll back", func() error {
		if s, ok := x.w.snapshots[first]; ok && s.stamps != nil && a.dev != nil {
			return x.rollback(nil, first, s.inc)
		}
		return nil
	})
	x.traffic(a)
	x.on(c, "delete volume", func() error { return x.deleteVolume(c) })
	x.step("delete", func() error { return x.remove(first) })
	x.step("passes again", x.passes)
	x.step("fill", func() error { return x.fillUp(b) })
	x.on(b, "reattach", func() (err error) {
		if err = x.closed(b); err == nil {
			b.dev, err = x.OpenVolume(context.Background(), b.name)
		}
		return err
	})
	x.step("write zeroes ahead", func() error { x.Pool.fill(true, func() bool { return true }); return nil })
	x.step("give back", func() error { x.giveBack(func() bool { return true }); return nil })
	x.step("close and open", x.closeAndOpen)
	x.traffic(a)
}

// traffic is every kind of request.
func (x *ioRun) traffic(s *slot) {
	change := func(from, to int, zero, discard bool) func() error {
		return func() error {
			err := x.change(s, mark{Kind: markBegin, Inc: s.inc.id, From: from, To: to, Zero: zero}, discard)
			if errors.Is(err, ErrNoSpace) {
				err = nil
			}
			return err
		}
	}
	x.on(s, "write to", change(0, 12*sectorsPerBlock, false, false))
	x.on(s, "write parts to", change(3, 3+2*sectorsPerBlock, false, false))
	x.on(s, "overwrite", change(0, 4*sectorsPerBlock, false, false))
	x.on(s, "flush", func() error { return x.flushOnce(s) })
	x.on(s, "large write to", change(16*sectorsPerBlock, (16+largeWrite)*sectorsPerBlock, false, false))
	x.on(s, "discard of", change(20*sectorsPerBlock, 30*sectorsPerBlock+3, true, true))
	x.on(s, "zeroes to", change(40*sectorsPerBlock+2, 42*sectorsPerBlock, true, false))
	x.on(s, "flush", func() error { return x.flushOnce(s) })
	x.on(s, "write over zeroes to", change(20*sectorsPerBlock, 24*sectorsPerBlock, false, false))
	x.on(s, "read of", func() error { return x.readAt(s, 0, guestBlocks) })
}

func (x *ioRun) takeGroup(name string, slots ...*slot) error {
	spec := SnapshotGroupSpec{Name: name}
	var marks []mark
	for _, s := range slots {
		if s.dev == nil {
			return nil
		}
		m := mark{Kind: markSnapshot, Snapshot: name + "-" + s.name, Inc: s.inc.id, Group: name}
		m.Operation = x.note(m)
		marks = append(marks, m)
		spec.Snapshots = append(spec.Snapshots, SnapshotSpec{Name: m.Snapshot, Volume: s.name})
	}
	_, err := x.CreateSnapshotGroup(context.Background(), spec)
	for _, m := range marks {
		if err == nil {
			m.Kind = markSnapshotTaken
			x.note(m)
			err = x.learn(m)
		}
	}
	return err
}

func (x *ioRun) remove(name string) error {
	if _, ok := x.w.snapshots[name]; !ok {
		return nil
	}
	return x.deleteSnapshot(name)
}

// passes waits for background passes, but not for one that rests after an error.
func (x *ioRun) passes() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if x.plan.wasHit() {
		ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
	}
	return x.WaitJobs(ctx)
}

// fillUp writes until there is no space, and gives it back.
func (x *ioRun) fillUp(s *slot) error {
	name := "filler"
	if _, err := x.CreateVolume(context.Background(), VolumeSpec{Name: name, Size: 16 << 20}); err != nil {
		return err
	}
	dev, err := x.OpenVolume(context.Background(), name)
	if err != nil {
		return err
	}
	b := bytes.Repeat([]byte{1}, 256<<10)
	for off := int64(0); err == nil && off < dev.Size(); off += int64(len(b)) {
		_, err = dev.WriteAt(b, off)
	}
	if errors.Is(err, ErrNoSpace) {
		err = nil
	}
	return errors.Join(err, dev.Discard(0, dev.Size()), dev.Flush(), dev.Close(context.Background()), x.DeleteVolume(context.Background(), name))
}

// again kills the pool and opens it, a second time where the first went wrong.
func (x *ioRun) again() error {
	err := x.kill()
	x.failed = x.failed || x.Pool.failed.Load() != nil
	return errors.Join(err, x.openAgain())
}

func (x *ioRun) closeAndOpen() error {
	for _, s := range x.slots {
		if s.dev != nil {
			_ = x.closed(s)
		}
	}
	err := x.Close(context.Background())
	x.failed = x.failed || x.Pool.failed.Load() != nil
	return errors.Join(err, x.openAgain())
}

func (x *ioRun) openAgain() (err error) {
	for try := 0; ; try++ {
		before := x.plan.wasHit()
		p, err := OpenPool(context.Background(), "/pool", x.o)
		x.openingHit = x.openingHit || !before && x.plan.wasHit()
		if err == nil {
			x.Pool = p
			break
		}
		x.failed = x.failed || errors.Is(err, ErrFailed) && strings.Contains(err.Error(), "in this boot") // else it is the opening that failed
		x.perhaps = true
		if x.gone = true; !x.plan.wasHit() || x.failed || x.plan.fault.good {
			return err
		}
		if errors.Is(err, ErrFailed) { // the metadata store is dead, and only the process's end lets go of its lock
			x.use(x.disk.KillClone(nil))
		}
		if try == 1 {
			x.err = fmt.Errorf("open the pool, which has not failed, after an error that came once: %w", err)
			return err
		}
		x.gone = false
	}
	if x.failed {
		x.err = errors.New("a pool that had failed was opened in the same boot")
	}
	for _, s := range x.slots {
		if s.dev, err = nil, nil; s.inc == nil {
			continue
		}
		// What a change that went wrong has left is not known: it is looked at in the end.
		if v := x.w.volumes[s.name]; v.changing || v.now == 0 {
			continue
		}
		if s.dev, err = x.OpenVolume(context.Background(), s.name); err != nil {
			return err
		}
	}
	return nil
}

// end looks at what is left: while the pool is open, for the next process of the boot, and after the machine was started again.
func (x *ioRun) end() error {
	x.at.Store("the end")
	x.plan.stop()
	var errs error
	if !x.gone && x.testPool != nil {
		x.failed = x.failed || x.Info().State == "Failed"
		errs = errors.Join(errs, x.look(x.testPool, cutKill, x.failed), x.kill())
		x.failed = x.failed || x.Pool.failed.Load() != nil
	}
	if x.failed && errors.Is(errs, errDead) {
		errs = nil // told by kill
	}
	errs = errors.Join(errs, x.next())
	if must := x.mustFail(); must && !x.failed {
		errs = errors.Join(errs, errors.New("a flush went wrong, and the pool has not failed"))
	}
	return errors.Join(errs, x.other.sound(), x.other.kill())
}

// mustFail: a lost flush of data, or of the log, cannot be made good.
func (x *ioRun) mustFail() bool {
	if !x.plan.wasHit() || x.plan.fault.name == "ENOSPC" {
		return false
	}
	if strings.Contains(x.plan.site, "member.(*Member).Flush") && x.plan.hit.Op == fsys.OpSync {
		return true
	}
	return x.plan.hit.Op == fsys.OpWriteDurable && !x.openingHit // of a pool that did not open yet nothing was promised
}

// next opens the pool as the next process does.
func (x *ioRun) next() error {
	if x.testPool == nil {
		return nil
	}
	x.use(x.disk.KillClone(nil)) // another process
	o, kind := x.o, cutKill
	if x.failed || x.perhaps {
		pool, err := OpenPool(context.Background(), "/pool", o)
		if err == nil && !x.failed {
			p := &testPool{Pool: pool, o: o, dir: "/pool"}
			return errors.Join(x.look(p, kind, false), p.kill())
		}
		if err == nil {
			return errors.Join(errors.New("a pool that had failed was opened in the same boot"), (&testPool{Pool: pool}).kill())
		}
		if !errors.Is(err, ErrFailed) {
			return fmt.Errorf("open a pool that had failed: %w", err)
		}
		x.failed = true
		kind, o.bootID = cutPower, &[16]byte{2}
		o.fs = x.disk.CrashClone(rand.New(rand.NewPCG(1, 9)))
	}
	pool, err := OpenPool(context.Background(), "/pool", o)
	if err != nil {
		return fmt.Errorf("open what is left: %w", err)
	}
	p := &testPool{Pool: pool, o: o, dir: "/pool"}
	return errors.Join(x.look(p, kind, false), p.kill())
}

// look compares all that is there with what may be. Where errors are to be expected only what is wrong counts.
func (x *ioRun) look(p *testPool, kind cutKind, errorsToo bool) error {
	st := &state{cut: cut{kind: kind}, w: x.w.clone()}
	var errs []error
	if !errorsToo {
		errs = append(errs, p.sound(), st.verifyGroups(p))
	}
	for _, name := range sortedKeys(st.w.volumes) {
		errs = append(errs, st.verifyVolume(p, name, st.w.volumes[name]))
	}
	for _, name := range sortedKeys(st.w.snapshots) {
		errs = append(errs, st.verifySnapshot(p, name, st.w.snapshots[name]))
	}
	for i, err := range errs {
		if errorsToo && !errors.Is(err, errWrong) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}
