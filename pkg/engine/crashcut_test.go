package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// recording is a run that can be cut anywhere: the disk it began with is empty.
type recording struct {
	Tape  *fsys.Tape
	Marks []mark
	Seed  uint64
}

// cutKind says what ends a run.
type cutKind uint8

const (
	cutPower     cutKind = iota
	cutKill              // the process dies, the machine goes on
	cutKillPower         // and the power fails while the next process opens the pool
	cutKinds
)

func (k cutKind) String() string {
	return [...]string{"power cut", "death of the process", "death of the process, then a power cut"}[k]
}

// cut is where a recording is cut and the seed of all choices that are left open there.
type cut struct {
	at     int // steps of the tape that happened, in part or whole
	kind   cutKind
	choice uint64
}

func (c cut) String() string { return fmt.Sprintf("%v at step %d, choice %d", c.kind, c.at, c.choice) }

// cuts chooses n cuts of a recording, in order. Of four, one comes where a hold made to order is in effect, and two just before a sync or a durable write
// ends, where most is under way.
func (r *recording) cuts(n int, rng *rand.Rand) (list []cut) {
	first := slices.IndexFunc(r.Tape.Steps, func(s fsys.Step) bool { return s.Kind == fsys.StepMark && r.Marks[s.Operation].Kind == markServes })
	var ends, held []int
	for i, s := range r.Tape.Steps {
		switch {
		case i <= first:
		case s.EndsSync():
			ends = append(ends, i)
		case s.Kind == fsys.StepMark && r.Marks[s.Operation].Kind == markHeld:
			held = append(held, i)
		}
	}
	for range n {
		c := cut{at: first + 1 + rng.IntN(len(r.Tape.Steps)-first), kind: cutKind(rng.IntN(int(cutKinds))), choice: rng.Uint64()}
		switch k := rng.IntN(4); {
		case k == 0 && len(held) > 0:
			c.at = held[rng.IntN(len(held))]
		case k < 3:
			c.at = ends[rng.IntN(len(ends))]
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b cut) int { return a.at - b.at })
	return list
}

// state is what is left at a cut, and what the outside knows then.
type state struct {
	cut
	seed uint64 // the recording's
	disk *fsys.Mem
	late *fsys.Late // of cutKill
	w    *world
}

// play calls visit with the state at each cut; the cuts are in order.
func (r *recording) play(cuts []cut, visit func(*state) error) error {
	p, w := fsys.Play(crashDisk(), r.Tape), newWorld()
	at := 0
	for _, c := range cuts {
		for ; at < c.at; at++ {
			if s, ok := p.Next(); ok && s.Kind == fsys.StepMark {
				w.apply(r.Marks[s.Operation])
			}
		}
		rng := rand.New(rand.NewPCG(c.choice, 1))
		st := &state{cut: c, seed: r.Seed, w: w.clone()}
		switch c.kind {
		case cutPower:
			st.disk = p.Mem.CrashClone(rng)
		case cutKill:
			st.disk, st.late = p.Mem.DeadClone(rng, "*.seg")
		default:
			st.disk = p.Mem.KillClone(rng)
		}
		if err := visit(st); err != nil {
			return err
		}
	}
	return nil
}

// judge opens what a cut has left and checks DESIGN's promises on it. ringDir is an empty folder, and left so.
func (st *state) judge(o Options, ringDir string) (err error) {
	defer func() {
		files, _ := filepath.Glob(filepath.Join(ringDir, "*"))
		for _, f := range files {
			err = errors.Join(err, os.Remove(f))
		}
	}()
	o.RingDir, o.fs, o.bootID, o.wroteRing = ringDir, st.disk, &[16]byte{2}, nil
	if st.kind == cutPower {
		return st.verify(o)
	}
	o.bootID = &[16]byte{1}
	if st.w.ring != nil {
		if err := os.WriteFile(filepath.Join(ringDir, st.ringName()), st.w.ring, 0o600); err != nil {
			return err
		}
	}
	if st.kind == cutKill {
		return st.outlive(o)
	}
	start, tape := st.disk.Record()
	pool, _, err := openCrashed(o)
	if err != nil {
		return err
	}
	if err := (&testPool{Pool: pool}).kill(); err != nil {
		return err
	}
	st.disk.StopRecording()
	rng := rand.New(rand.NewPCG(st.choice, 2))
	p := fsys.Play(start, tape)
	steps := len(tape.Steps) // half of the time it fails just after
	if rng.IntN(2) == 0 {
		steps = 1 + rng.IntN(steps)
	}
	for range steps {
		p.Next()
	}
	st.disk = p.Mem.CrashClone(rng)
	o.fs, o.bootID = st.disk, &[16]byte{2}
	return st.verify(o)
}

// ringName is what the ring's file is called: the pool's id is in its header.
func (st *state) ringName() string { return fmt.Sprintf("%x.ring", st.w.ring[16:32]) }

func (st *state) verify(o Options) (err error) {
	if err := st.verifyMetadata(o); err != nil {
		return err
	}
	neighbour := newCrowded(o.fs)
	if limited(st.seed) {
		neighbour.available.Store(crashCrowded)
	}
	o.fs = neighbour
	pool, dir, err := openCrashed(o)
	if err != nil {
		return err
	}
	p := &testPool{Pool: pool, o: o, dir: dir}
	defer func() { err = errors.Join(err, p.kill()) }()
	since := p.spaced()
	if err := st.verifyPool(p); err != nil || !limited(st.seed) {
		return err
	}
	return st.verifyLimit(p, neighbour, since)
}

func (st *state) verifyPool(p *testPool) error {
	if err := p.degraded(); err != nil { // a member is in the pool when it is whole, and goes when it is not in the pool
		return err
	}
	if err := p.sound(); err != nil {
		return err
	}
	if err := st.verifyGroups(p); err != nil {
		return err
	}
	for name, v := range st.w.volumes {
		if err := st.verifyVolume(p, name, v); err != nil {
			return err
		}
	}
	for name, s := range st.w.snapshots {
		if err := st.verifySnapshot(p, name, s); err != nil {
			return err
		}
	}
	if err := p.WaitJobs(context.Background()); err != nil {
		return err
	}
	if err := p.sound(); err != nil {
		return fmt.Errorf("after the background passes: %w", err)
	}
	return st.verifyThick(p)
}

func (tp *testPool) sound() error {
	report, err := tp.Check(context.Background())
	if err == nil && len(report.Problems) > 0 {
		err = fmt.Errorf("check: %v", report.Problems)
	}
	return errors.Join(err, tp.scrubbed())
}

func (st *state) verifyVolume(p *testPool, name string, v guestVolume) error {
	may, err := st.verifyHold(p, name, v)
	if err != nil {
		return err
	}
	dev, err := p.opened(name)
	if errors.Is(err, ErrNotFound) && v.changing && (v.now == 0 || v.next == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	all := make([]byte, guestBlocks*BlockSize)
	if _, err := dev.ReadAt(all, 0); err != nil {
		return err
	}
	err = fmt.Errorf("%w: volume %s is there and should not be", errWrong, name)
	for _, id := range may {
		if id == 0 {
			continue
		}
		b := st.w.inc(id).bounds()
		lo := b.acked
		if st.kind != cutKill {
			lo = b.flushed
		}
		if err = st.w.inc(id).check(0, all, lo, b.issued); err == nil {
			return nil
		}
	}
	return err
}

// verifyGroups: of a group's snapshots, those that nobody deletes, all are there, or none.
func (st *state) verifyGroups(p *testPool) error {
	there := map[string]bool{}
	for _, info := range p.Snapshots("") {
		there[info.Name] = true
		if s, ok := st.w.snapshots[info.Name]; ok && s.group != info.Group {
			return fmt.Errorf("snapshot %s is of group %q, was taken with %q", info.Name, info.Group, s.group)
		}
	}
	first := map[string]string{}
	for _, name := range sortedKeys(st.w.snapshots) {
		s := st.w.snapshots[name]
		if s.group == "" || s.going && !s.taking {
			continue
		}
		if other, ok := first[s.group]; ok && there[other] != there[name] {
			return fmt.Errorf("of group %s: snapshot %s is there: %v, %s: %v", s.group, other, there[other], name, there[name])
		}
		first[s.group] = name
	}
	return nil
}

func (st *state) verifySnapshot(p *testPool, name string, s guestSnapshot) error {
	err := p.checkSnapshot(name, st.w.inc(s.inc), s)
	if errors.Is(err, ErrNotFound) && s.going {
		return nil
	}
	return err
}

// checkSnapshot reads a snapshot and compares it with what is known of it.
func (tp *testPool) checkSnapshot(name string, c *incarnation, s guestSnapshot) error {
	all, err := tp.readSnapshot(name)
	if err != nil {
		return err
	}
	for i, want := range s.stamps {
		if got, ok := stampOf(all[i*sectorSize : (i+1)*sectorSize]); !ok || got != want {
			return fmt.Errorf("%w: snapshot %s has changed: block %d sector %d shows %v (whole: %v), was %v", errWrong, name, i/sectorsPerBlock, i%sectorsPerBlock, got, ok, want)
		}
	}
	if s.stamps == nil {
		if err := c.check(0, all, s.lo, s.hi); err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
	}
	return nil
}

func (tp *testPool) readSnapshot(name string) (all []byte, err error) {
	r, err := tp.OpenSnapshot(context.Background(), name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	all = make([]byte, guestBlocks*BlockSize)
	_, err = r.ReadAt(all, 0)
	return all, err
}
