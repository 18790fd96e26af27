package engine

import (
	"errors"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// Provisioning says when a volume takes its space.
type Provisioning string

const (
	// ProvisionThin: as blocks are first written. Writes to a full pool fail.
	ProvisionThin Provisioning = "thin"
	// ProvisionThick: what the volume may yet need is set aside, in the file system, too, so that no write to it ever lacks space.
	ProvisionThick Provisioning = "thick"
)

// A thick volume's promise (alloc.Promise) is what its head may yet need: its size, less the blocks that the head owns. It is kept by what changes
// that:
//
//	                                          head owns   promise
//	a write takes n new blocks                     +n         -n   (by the allocator; what is given back unused is returned)
//	COW leaves it n old places                     +n         -n   (where no block is left that nobody was promised, it writes as ROW)
//	a round takes n blocks from the head           -n         +n   before they are held
//	a snapshot, a clone of it                       0       size   what is missing is set aside before the gates shut, or the cut is refused
//	a rollback                                      0       size   whatever is there: what the old head owns comes back behind the scenes
//	a snapshot is deleted, and joins the head      +n          0   some of the n may be hidden: volume.gain counts them
//	  its pass removes n hidden blocks             -n          0   and gain -n
//	  its pass ends                                         -gain  what is left of them serves the head
//
// Promises are not stored: they follow from sizes and counts when the pool is opened. A promise is backed by chunks that have their space, durably,
// before the record of the volume is committed; giving space back to the file system leaves that much alone.
//
// While a member is drained, what becomes free there is handed to nobody. What a head owns there and gives up is promised to it all the same, so the other
// members hold it back from the moment on at which nothing more is handed out there (Pool.leave, alloc/promise.go).

// blocksOf is how many blocks a volume of so many bytes has.
func blocksOf(size uint64) int64 { return int64(size / BlockSize) }

// provision decides of which kind a new volume is: as asked for, else as its source.
func provision(asked Provisioning, source bool) (thick bool, err error) {
	switch asked {
	case "":
		return source, nil
	case ProvisionThin, ProvisionThick:
		return asked == ProvisionThick, nil
	}
	return false, fmt.Errorf("%w: provisioning %q: want %q or %q", ErrInvalid, asked, ProvisionThin, ProvisionThick)
}

func provisioningOf(thick bool) Provisioning {
	if thick {
		return ProvisionThick
	}
	return ProvisionThin
}

// promise sets n more blocks aside for a volume. Where too few chunks have their space it takes more, which is durable when it returns.
func (p *Pool) promise(volume uint64, n int64) error {
	for {
		if p.alloc.Promise(volume, n) {
			return nil
		}
		left := p.spaceLeft()
		if left.bytes/BlockSize < n {
			return fmt.Errorf("%w: %d MiB are to be set aside in pool %q, which has %v: delete snapshots or volumes, grow it, or make the volume thin",
				ErrNoSpace, (n*BlockSize+1<<20-1)>>20, p.name(), left)
		}
		more, err := p.reserveMore(nil)
		if errors.Is(err, member.ErrFlush) {
			p.fail(err)
			return p.failure()
		}
		if err == nil && !more {
			if p.alloc.Promise(volume, n) { // the preparer got the last of it meanwhile
				return nil
			}
			err = errors.New("it has none left to prepare") // the blocks are held, and free in a moment
		}
		if err != nil {
			return fmt.Errorf("%w: set %d blocks aside in pool %q: %w", ErrNoSpace, n, p.name(), err)
		}
	}
}

// leave ends the handing out of a member's blocks, which are to be moved to the others, or says why the others cannot take it.
//
// Promise "a thick volume's write never lacks space", in this order: at one moment close the member's lane and count what thick volumes' heads were given
// there into what the others hold back, so that nobody takes it from then on - give that its space on the others, each step durable (space.go) - only
// then commit that the member is being drained (the caller). A power cut before that finds the member in use. After it, the next opening closes
// the lane and counts again (loadPromises), and the others have as much as is asked of them: blocks that were given out there and whose run the
// cut undid are promised again and no longer counted as lying there, one for one, and a discard which it undid the other way round. So no round need be
// flushed in between. What that opening counts may be more, for it takes all of a head, wherever it lies, as far as the member holds so much:
// that keeps others from space, and no thick volume.
func (p *Pool) leave(m *poolMember) error {
	if p.breaks(mutateDrainRoom) {
		p.alloc.CloseLane(m.lane)
	} else {
		p.alloc.LeaveLane(m.lane, p.thickSizes())
	}
	return p.backPromises(m)
}

// thickSizes is what the thick volumes were promised in all, by their ids. Under ops, which keeps cuts, growth and the ends of joins away: what a head has
// is what its volume's size is more than its promise.
func (p *Pool) thickSizes() map[uint64]int64 {
	sizes := map[uint64]int64{}
	for _, v := range p.catalogue.volumes {
		if v.rec.Thick {
			sizes[v.id] = blocksOf(v.rec.Size)
		}
	}
	return sizes
}

// backPromises gives the promises there are the space that they lack since blocks of a member are not handed out any more.
func (p *Pool) backPromises(leaving *poolMember) error {
	for {
		lack := -p.alloc.Unpromised()
		if lack <= 0 {
			return nil
		}
		more, err := p.reserveMore(leaving)
		if errors.Is(err, member.ErrFlush) {
			p.fail(err)
			return p.failure()
		}
		if err == nil && !more && p.alloc.Unpromised() >= 0 {
			return nil // the preparer got the last of it meanwhile
		}
		if err != nil || !more {
			return errors.Join(fmt.Errorf("%w: thick volumes need %d MiB more on the other members; add a member, or grow one", ErrNoSpace,
				(lack*BlockSize+1<<20-1)>>20), err)
		}
	}
}

// promiseNew is promise for a volume that is being made, unless it is thin; undo takes it back.
func (p *Pool) promiseNew(v *volume) (undo func(), err error) {
	if !v.rec.Thick {
		return func() {}, nil
	}
	if err := p.promise(v.id, blocksOf(v.rec.Size)); err != nil {
		p.alloc.DropPromise(v.id)
		return nil, err
	}
	return func() { p.alloc.DropPromise(v.id) }, nil
}

// cutPromise is what a cut sets aside for the new, empty heads of thick volumes.
type cutPromise struct {
	p    *Pool
	list []*volume
	more []int64
}

func (p *Pool) cutPromise(volumes []*volume) *cutPromise {
	c := &cutPromise{p: p}
	for _, v := range volumes {
		if v.rec.Thick {
			c.list, c.more = append(c.list, v), append(c.more, 0)
		}
	}
	return c
}

// take sets aside what is missing. It is called before the gates are shut, because it may take the file system some time, and again when they are,
// for what was written in between; that is not waited for.
func (c *cutPromise) take(shut bool) error {
	for i, v := range c.list {
		has, _ := c.p.alloc.PromiseOf(v.id)
		n := max(blocksOf(v.rec.Size)-has, 0)
		if shut && !c.p.alloc.Promise(v.id, n) {
			return fmt.Errorf("volume %q: %w: %d blocks written meanwhile could not be set aside at once", v.rec.Name, ErrBusy, n)
		}
		if !shut {
			if err := c.p.promise(v.id, n); err != nil {
				return fmt.Errorf("volume %q is thick, and a snapshot needs all of its size again: %w", v.rec.Name, err)
			}
		}
		c.more[i] += n
	}
	return nil
}

// undo gives back what was taken for a cut that was not made.
func (c *cutPromise) undo() {
	for i, v := range c.list {
		c.p.alloc.Return(v.id, -c.more[i])
	}
}

// done is called when the cut is durable, its gates still shut.
func (c *cutPromise) done() {
	for _, v := range c.list {
		c.p.promiseWhole(v)
	}
}

// promiseWhole is the promise of a thick volume whose head is empty.
func (p *Pool) promiseWhole(v *volume) {
	if v.rec.Thick {
		v.gain = 0
		p.alloc.SetPromise(v.id, blocksOf(v.rec.Size))
	}
}

// gained is told of blocks that a head owns since a join, or less than none that the join's pass has removed. Under ops.
func (p *Pool) gained(l *layer, n int64) {
	if v := p.volumeOf(l.rec.Head); v != nil && v.rec.Thick {
		v.gain += n
	}
}

// passEnded takes what is left of a join's gain off the head's promise, when no pass over the layer is queued any more. Under ops.
func (p *Pool) passEnded(l *layer) {
	v := p.volumeOf(l.rec.Head)
	if v == nil || !v.rec.Thick || p.joining(l.id) {
		return
	}
	p.alloc.GotSome(v.id, v.gain)
	v.gain = 0
}

func (p *Pool) joining(layer uint64) bool {
	for _, j := range p.catalogue.jobs {
		if j.Kind == format.JobJoin && j.Layer == layer {
			return true
		}
	}
	return false
}

// loadPromises makes the promises of the volumes there are, when the pool is opened. How much of what a join gave a head is hidden is not known
// until its pass has ended: until then nothing of it counts.
func (p *Pool) loadPromises() {
	for _, v := range p.catalogue.volumes {
		if !v.rec.Thick {
			continue
		}
		owned := p.catalogue.layers[v.rec.Layer].owned.Load()
		need := blocksOf(v.rec.Size) - owned
		if p.joining(v.rec.Layer) {
			v.gain = owned
			need += owned
		}
		p.alloc.SetPromise(v.id, need)
	}
	for _, m := range p.members.table.Load().list {
		if m.rec.State == format.MemberDraining && !p.breaks(mutateDrainRoom) {
			p.alloc.LeaveLane(m.lane, p.thickSizes())
		}
	}
}

func blocksIn(list []extent) (n int64) {
	for _, x := range list {
		n += int64(x.N)
	}
	return n
}

// unwritten gives blocks back that a write was given and did not use.
func (p *Pool) unwritten(v *volume, list []extent) {
	p.alloc.Lost(v.id, list...)
	p.alloc.Undo(list...)
}
