package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

const (
	crashRing    = 64 * 64 // bytes: so few entries that slots are used again while a commit waits for its sync
	crashLives   = 3       // of the process, within a run
	crashVolumes = 3       // of two writers each
	crashSpan    = guestBlocks / 2
	crashThick   = 2   // the volume that is thick, in some recordings
	crashOps     = 100 // of each writer, in a life
)

// guests run a workload on a pool and write down what they know.
type guests struct {
	*testPool
	disk  *fsys.Mem
	seed  uint64
	pace  *pace
	slots []*slot
	// neighbour shares the members' file systems.
	neighbour *crowded

	mu         sync.Mutex // guards what follows
	w          *world
	marks      []mark
	operations int
}

// slot is a volume in use. mu is held for reading by whoever uses dev.
type slot struct {
	mu   sync.RWMutex
	name string
	inc  *incarnation
	dev  *Volume // nil: there is no such volume
	// thick: no write may lack space; a cut of it may.
	thick bool
}

// record runs the workload of a seed. The order of its goroutines is not the seed's: what happened is on the tape.
func record(seed uint64, o Options) (*recording, error) {
	disk := crashDisk()
	_, tape := disk.Record()
	g := &guests{disk: disk, seed: seed, pace: newPace(seed), w: newWorld()}
	hold := fsys.Fault(disk, fsys.Rule{When: func(c fsys.Call) bool { g.pace.hold(c); return true }})
	g.neighbour = newCrowded(hold)
	o.fs, o.bootID = g.neighbour, &[16]byte{1}
	o.did = func(m mutation) {
		if m == mutateMetaSynced || m == mutateMetaSwitch { // before the metadata's switch, and after it
			g.note(mark{Kind: markHeld})
		}
	}
	o.wroteRing = func(off int64, p []byte) { g.note(mark{Kind: markRing, Off: off, Data: append([]byte(nil), p...)}) }
	err := g.run(o)
	disk.StopRecording()
	if n := disk.Grew("*.seg"); n > 0 && err == nil {
		err = fmt.Errorf("%d writes to segments needed space that was not there durably", n)
	}
	return &recording{Tape: tape, Marks: g.marks, Seed: seed}, err
}

func (g *guests) run(o Options) (err error) {
	pool, err := smallPoolOf(o, stopAt(g.seed), crashDirs[:1+g.seed%2]...)
	if err != nil {
		return err
	}
	g.testPool = &testPool{Pool: pool, o: o, dir: "/pool"}
	defer func() { err = errors.Join(err, g.kill()) }()
	for i := range crashVolumes + 1 {
		g.slots = append(g.slots, &slot{name: fmt.Sprintf("volume-%d", i), thick: i == crashThick && g.thick()})
		if i < crashVolumes {
			if g.slots[i].thick { // it needs its space at once
				if err := g.grow(0); err != nil {
					return err
				}
			}
			if err := g.createVolume(g.slots[i], ""); err != nil {
				return err
			}
		}
	}
	g.note(mark{Kind: markServes})
	for life := range crashLives {
		if life > 0 {
			if err := g.nextLife(); err != nil {
				return err
			}
		}
		if err := g.live(life); err != nil {
			return fmt.Errorf("life %d: %w", life, err)
		}
	}
	return g.sound()
}

// thick: a volume is, of a pool of one member and of two.
func (g *guests) thick() bool { return g.seed%8 == 2 || g.seed%8 == 5 }

// crashDisk is a machine with three devices.
func crashDisk() *fsys.Mem {
	disk := fsys.NewMem()
	for _, dir := range []string{"/second", "/third"} {
		if err := disk.AddDevice(dir); err != nil {
			panic(err)
		}
	}
	return disk
}

// smallPool makes a pool below the size that CreatePool allows, of one member or several: so little, when it has grown, that blocks
// change hands all the time.
func smallPool(o Options, dirs ...string) (*Pool, error) { return smallPoolOf(o, 0, dirs...) }

// smallPoolOf is smallPool with a limit of growth.
func smallPoolOf(o Options, stopAt int, dirs ...string) (*Pool, error) {
	o = o.withDefaults()
	var list []opened
	id := format.NewUUID()
	for i, dir := range dirs {
		m, err := member.Create(o.fs, member.Spec{
			PoolName: "p", PoolID: id, MemberID: format.NewUUID(), Index: uint32(i), Directory: dir, Size: SizeUnit, Created: time.Now(), Metadata: uint64(1 - i),
			Share: member.Share{StopAt: stopAt},
		})
		if err != nil {
			return nil, errors.Join(err, destroy(list))
		}
		list = append(list, opened{m, dir})
	}
	p, err := openNew(list, "", o)
	if err != nil {
		return nil, errors.Join(err, destroy(list))
	}
	return p, nil
}

func destroy(list []opened) (err error) {
	for _, m := range list {
		err = errors.Join(err, m.Destroy())
	}
	return err
}

// nextLife lets the process die, which the tape does not show, and another open the pool.
func (g *guests) nextLife() error {
	if err := g.kill(); err != nil {
		return err
	}
	p, _, err := openCrashed(g.o)
	if err != nil {
		return err
	}
	g.Pool = p
	for _, s := range g.slots {
		if s.dev != nil {
			if s.dev, err = g.OpenVolume(context.Background(), s.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// live runs all guests side by side, until the writers have done their part.
func (g *guests) live(life int) error {
	if err := g.grow(life); err != nil {
		return err
	}
	var writers, others sync.WaitGroup
	errs := make(chan error, 100)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	run := func(wg *sync.WaitGroup, n int, f func(r *rand.Rand) error) {
		r := rand.New(rand.NewPCG(g.seed, uint64(life*100+n)))
		wg.Go(func() {
			if err := f(r); err != nil {
				errs <- err
				stop()
			}
		})
	}
	for i := range crashVolumes * 2 {
		run(&writers, i, func(r *rand.Rand) error { return g.write(ctx, r, g.slots[i/2], i%2*crashSpan, crashOps) })
	}
	if g.seed%2 == 1 {
		run(&others, 21, func(r *rand.Rand) error { return g.changeMembers(ctx, r) })
	}
	run(&others, 20, func(r *rand.Rand) error { return g.manage(ctx, r) })
	for i := range 2 {
		run(&others, 30+i, func(r *rand.Rand) error { return g.read(ctx, r) })
	}
	writers.Wait()
	stop()
	others.Wait()
	close(errs)
	return errors.Join(<-errs, <-errs)
}

// grow gives the pool a chunk more now and then, so that space is reserved while it is wanted.
func (g *guests) grow(life int) error {
	for _, m := range g.members.table.Load().list {
		chunks := int64(1)
		if m.index < 2 {
			chunks = [][crashLives]int64{{1, 1, 2}, {0, 1, 1}}[m.index][life]
		}
		if m.index == 0 && g.thick() {
			chunks++
		}
		if size := max(chunks*alloc.ChunkBlocks*BlockSize, SizeUnit); size > int64(m.rec.Size) {
			if err := g.heldReserve(m.index, size); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *guests) note(m mark) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.noteLocked(m)
}

func (g *guests) noteLocked(m mark) int {
	if m.Operation == 0 {
		g.operations++
		m.Operation = g.operations
	}
	g.w.apply(m)
	g.marks = append(g.marks, m)
	g.disk.Mark(len(g.marks) - 1)
	return m.Operation
}

// write works on a range of a volume's blocks that is this goroutine's alone.
func (g *guests) write(ctx context.Context, r *rand.Rand, s *slot, first, n int) error {
	for i := 0; i < n && ctx.Err() == nil; i++ {
		s.mu.RLock()
		err := g.writeOnce(r, s, first)
		s.mu.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *guests) writeOnce(r *rand.Rand, s *slot, first int) error {
	if r.IntN(24) == 0 {
		return g.flushOnce(s)
	}
	from, n := first+r.IntN(crashSpan), 1
	sectors := [2]int{0, sectorsPerBlock}
	switch k := r.IntN(20); {
	case k < 4: // part of a block, or of two
		sectors[0] = r.IntN(sectorsPerBlock)
		sectors[1] = sectors[0] + 1 + r.IntN(sectorsPerBlock)
	case k < 8:
		n = 1 + r.IntN(12)
	case k < 10:
		n = largeWrite // and no more: a write may need so many entries in the ring at once
		from = first + r.IntN(crashSpan-n+1)
	}
	m := mark{Kind: markBegin, Inc: s.inc.id, From: from*sectorsPerBlock + sectors[0], To: (from+n-1)*sectorsPerBlock + sectors[1], Zero: r.IntN(4) == 0}
	m.To = min(m.To, (first+crashSpan)*sectorsPerBlock)
	err := g.change(s, m, r.IntN(2) == 0)
	if errors.Is(err, ErrNoSpace) && !s.thick {
		half := crashSpan / 2 * r.IntN(2)
		m.From, m.To, m.Zero = (first+half)*sectorsPerBlock, (first+half+crashSpan/2)*sectorsPerBlock, true
		if err = g.change(s, m, true); errors.Is(err, ErrNoSpace) {
			err = nil
		}
	}
	return err
}

// change does one write, discard or write of zeroes.
func (g *guests) change(s *slot, m mark, discard bool) error {
	g.mu.Lock()
	m.Operation = 0
	m.Operation = g.noteLocked(m)
	data := make([]byte, (m.To-m.From)*sectorSize)
	for i := m.From; i < m.To && !m.Zero; i++ {
		newStamp(m.Inc, i, uint32(len(s.inc.blocks[i/sectorsPerBlock].ops))).fill(data[(i-m.From)*sectorSize:][:sectorSize])
	}
	g.mu.Unlock()
	off := int64(m.From) * sectorSize
	var err error
	switch {
	case m.Zero && discard:
		err = s.dev.Discard(off, int64(len(data)))
	case m.Zero:
		err = s.dev.WriteZeroes(off, int64(len(data)))
	default:
		_, err = s.dev.WriteAt(data, off)
	}
	m.Kind = markAck
	if err != nil {
		m.Kind = markFailed
	}
	g.note(m)
	return err
}

func (g *guests) flushOnce(s *slot) error {
	n := g.note(mark{Kind: markFlush})
	if err := s.dev.Flush(); err != nil {
		return err
	}
	g.note(mark{Kind: markFlushed, Operation: n})
	return nil
}

// read reads anything of any volume, and compares it with what was acknowledged when the read began and what was begun when it ended.
func (g *guests) read(ctx context.Context, r *rand.Rand) error {
	for ctx.Err() == nil {
		s := g.slots[r.IntN(crashVolumes)]
		s.mu.RLock()
		err := g.readOnce(r, s)
		s.mu.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *guests) readOnce(r *rand.Rand, s *slot) error {
	from := r.IntN(guestBlocks)
	return g.readAt(s, from, 1+r.IntN(min(8, guestBlocks-from)))
}

func (g *guests) readAt(s *slot, from, n int) error {
	all := make([]byte, n*BlockSize)
	g.mu.Lock()
	lo := s.inc.bounds().acked
	g.mu.Unlock()
	if _, err := s.dev.ReadAt(all, int64(from)*BlockSize); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := s.inc.check(from*sectorsPerBlock, all, lo, s.inc.bounds().issued); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// pace holds some calls up, so that others come in between: until something happens that a broken rule would make harmful, or for a few milliseconds.
type pace struct {
	mu    sync.Mutex
	r     *rand.Rand
	calls int
	held  map[chan struct{}]waiter
	armed *armed
}

type waiter struct {
	until int // calls
	file  string
	off   int64
	end   int64 // of what must be overwritten; 0: only calls count
}

func newPace(seed uint64) *pace {
	return &pace{r: rand.New(rand.NewPCG(seed, 99)), held: map[chan struct{}]waiter{}}
}

func (p *pace) hold(c fsys.Call) {
	if a := p.armedFor(c); a != nil {
		a.hold()
		return
	}
	ch, limit := p.enter(c)
	if ch == nil {
		return
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-ch:
	case <-timeout.C:
		p.mu.Lock()
		delete(p.held, ch)
		p.mu.Unlock()
	}
}

// enter counts a call, lets those go that waited for it, and says whether it is to wait, and how long at most.
func (p *pace) enter(c fsys.Call) (chan struct{}, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	for ch, w := range p.held {
		over := c.Op == fsys.OpWrite && c.Name == w.file && c.Off < w.end && w.off < c.Off+c.Len
		if over || p.calls >= w.until {
			delete(p.held, ch)
			close(ch)
		}
	}
	w := waiter{file: c.Name}
	limit := 3 * time.Millisecond
	segment := filepath.Ext(c.Name) == ".seg"
	switch n := p.r.IntN(100); {
	case c.Op == fsys.OpRead && segment && n < 10: // until what it reads is overwritten, which must not happen
		w.until, w.off, w.end = p.calls+2000, c.Off, c.Off+c.Len
		limit = 15 * time.Millisecond
	case c.Op == fsys.OpWrite && segment && n < 8:
		w.until = p.calls + p.r.IntN(60)
	case c.Op == fsys.OpWriteDurable && n < 40:
		w.until = p.calls + 1<<p.r.IntN(9)
		limit = 6 * time.Millisecond
	case c.Op == fsys.OpSync && n < 20:
		w.until = p.calls + p.r.IntN(40)
	default:
		return nil, 0
	}
	ch := make(chan struct{})
	p.held[ch] = w
	return ch, limit
}
