package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// workersEach is how many work on a volume; each has sectors of its own, and shares a block with the next.
const workersEach = 3

// RunConcurrent does random operations side by side: several at work on each volume, what they do drawn before, and one who takes, reads and deletes
// snapshots and groups, restores and clones. Now and then all stop, everything is compared, and the pool may be killed or closed.
func RunConcurrent(t *rapid.T, b Backend) {
	r := newRun(t, b)
	for len(r.volumes) < 2 {
		r.create()
	}
	for range r.draw("turns", 1, 3) {
		r.turn()
		r.verify()
		switch r.draw("then", 0, 3) {
		case 1:
			r.reopen(r.backend.Kill(r.pool))
		case 2:
			r.reopen(r.pool.Close(r.ctx))
		}
	}
	r.verify()
	r.deleteAll()
	r.must(r.pool.Close(r.ctx))
}

// turn lets all work until the workers have done what was drawn.
func (r *run) turn() {
	c := &turn{run: r}
	var programs []*worker
	for _, name := range sortedKeys(r.volumes) {
		programs = append(programs, r.workers(r.volumes[name])...)
	}
	c.workers = programs
	manager := rapid.SliceOfN(rapid.IntRange(0, 8), 1, 12).Draw(r.T, "manager")
	picks := rapid.SliceOfN(rapid.IntRange(0, 1000), len(manager), len(manager)).Draw(r.T, "picks")
	errs := make(chan error, len(programs)+1)
	var wg sync.WaitGroup
	for _, w := range programs {
		wg.Go(func() { errs <- w.work() })
	}
	wg.Go(func() { errs <- c.manage(manager, picks) })
	wg.Wait()
	close(errs)
	for err := range errs {
		r.must(err)
	}
	for _, w := range programs {
		for _, o := range w.ops {
			r.changed(w.v.image, o.off, o.n)
			w.v.image.write(o.data, o.off, o.n)
		}
	}
}

// worker does its operations on its own sectors, one after the other.
type worker struct {
	v        *volume
	from, to int64 // bytes
	base     *image
	ops      []operation

	mu            sync.Mutex
	begun, ended_ int // operations
}

type operation struct {
	off, n int64
	data   []byte // nil: zeroes
	kind   int
}

func (r *run) workers(v *volume) (list []*worker) {
	const each = 7*block + 3*sector // neighbours share a block
	start := r.draw64("start", 0, v.size/block-workersEach*8) * block
	for i := range int64(workersEach) {
		w := &worker{v: v, from: start + i*each, to: start + (i+1)*each, base: v.image.clone()}
		for range r.draw("operations", 0, 25) {
			r.stamps++
			off := r.draw64("sector", 0, each/sector-1)
			o := operation{off: w.from + off*sector, n: r.draw64("sectors", 1, min(24, each/sector-off)) * sector, kind: r.draw("kind", 0, 9)}
			if o.kind < 7 {
				o.data = stamped(r.stamps, o.n)
			}
			w.ops = append(w.ops, o)
		}
		list = append(list, w)
	}
	return list
}

func (w *worker) work() error {
	mine := w.base.clone()
	for i, o := range w.ops {
		w.mu.Lock()
		w.begun = i + 1
		w.mu.Unlock()
		var err error
		switch {
		case o.kind < 7:
			_, err = w.v.dev.WriteAt(o.data, o.off)
		case o.kind < 9:
			err = w.v.dev.Discard(o.off, o.n)
		default:
			err = errors.Join(w.v.dev.WriteZeroes(o.off, o.n), w.v.dev.Flush())
		}
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.ended_ = i + 1
		w.mu.Unlock()
		mine.write(o.data, o.off, o.n)
		if i%4 == 3 {
			if err := mine.compare("volume "+w.v.name, w.v.dev, w.from, w.to-w.from); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) state() (begun, ended int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.begun, w.ended_
}

// turn is what one manager does beside the workers.
type turn struct {
	*run
	workers []*worker
}

func (c *turn) manage(kinds, picks []int) error {
	for i, kind := range kinds {
		names := sortedKeys(c.volumes)
		v := c.volumes[names[picks[i]%len(names)]]
		var err error
		switch {
		case kind < 3 && len(c.snapshots) < maxSnapshots:
			err = c.take("", v)
		case kind == 3 && len(c.snapshots) < maxSnapshots:
			err = c.take(c.name("g"), slices.Collect(maps.Values(c.volumes))...)
		case kind == 7:
			mode := engine.Mode(picks[i] % 2)
			_, err = c.pool.ChangeVolume(c.ctx, v.name, engine.VolumeChange{Mode: &mode})
		case kind == 8:
			err = c.backend.Move(c.pool, v.name, 0)
		case len(c.snapshots) == 0:
		case kind == 4:
			err = c.restoreAndDelete(picks[i])
		default:
			snapshots := sortedKeys(c.snapshots)
			name := snapshots[picks[i]%len(snapshots)]
			delete(c.snapshots, name)
			err = c.pool.DeleteSnapshot(c.ctx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// take takes a snapshot, or a group's, and learns what it holds: for every sector what its worker wrote last before the request, or something later
// that was sent before the answer.
func (c *turn) take(group string, volumes ...*volume) error {
	lo, hi := map[*worker]int{}, map[*worker]int{}
	for _, w := range c.workers {
		_, lo[w] = w.state()
	}
	spec := engine.SnapshotGroupSpec{Name: group}
	for _, v := range volumes {
		spec.Snapshots = append(spec.Snapshots, engine.SnapshotSpec{Name: c.name("s"), Volume: v.name})
	}
	var err error
	if group == "" {
		_, err = c.pool.CreateSnapshot(c.ctx, spec.Snapshots[0])
	} else {
		_, err = c.pool.CreateSnapshotGroup(c.ctx, spec)
	}
	if errors.Is(err, engine.ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, w := range c.workers {
		hi[w], _ = w.state()
	}
	for i, v := range volumes {
		name := spec.Snapshots[i].Name
		img, err := c.learn(name, v, lo, hi)
		if err != nil {
			return err
		}
		c.snapshots[name] = &snapshot{v.name, group, img}
	}
	return nil
}

func (c *turn) learn(name string, v *volume, lo, hi map[*worker]int) (*image, error) {
	dev, err := c.pool.OpenSnapshot(c.ctx, name)
	if err != nil {
		return nil, err
	}
	img := v.image.clone()
	for _, w := range c.workers {
		if w.v != v {
			continue
		}
		got := make([]byte, w.to-w.from)
		if _, err := dev.ReadAt(got, w.from); err != nil {
			return nil, err
		}
		for at := w.from; at < w.to; at += sector {
			if b := got[at-w.from:][:sector]; !w.allows(at, b, lo[w], hi[w]) {
				return nil, fmt.Errorf("snapshot %s of %s, sector %d: shows %x…, wanted one of its worker's operations %d to %d", name, v.name, at/sector, b[:16],
					lo[w], hi[w])
			}
		}
		img.write(got, w.from, w.to-w.from)
		for _, o := range w.ops[:hi[w]] {
			c.changed(img, o.off, o.n)
		}
	}
	if err := img.compareAll("snapshot "+name, dev); err != nil {
		return nil, err
	}
	return img, dev.Close()
}

// allows tells whether a sector may show b when the worker's operations lo to hi may have been its last.
func (w *worker) allows(at int64, b []byte, lo, hi int) bool {
	for n := hi; n > 0; n-- {
		o := w.ops[n-1]
		if at < o.off || at >= o.off+o.n {
			continue
		}
		want := zeroes[:sector]
		if o.data != nil {
			want = o.data[at-o.off:][:sector]
		}
		if bytes.Equal(b, want) {
			return true
		}
		if n <= lo {
			return false
		}
	}
	return bytes.Equal(b, w.base.at(at / block)[at%block:][:sector])
}

// restoreAndDelete makes a volume from a snapshot, looks at it and deletes it.
func (c *turn) restoreAndDelete(pick int) error {
	snapshots := sortedKeys(c.snapshots)
	from := snapshots[pick%len(snapshots)]
	name := c.name("x")
	if _, err := c.pool.CreateVolume(c.ctx, engine.VolumeSpec{Name: name, FromSnapshot: from}); err != nil {
		return err
	}
	dev, err := c.pool.OpenVolume(c.ctx, name)
	if err != nil {
		return err
	}
	if err := c.snapshots[from].compareAll("volume from "+from, dev); err != nil {
		return err
	}
	p := stamped(uint64(pick), block)
	if _, err := dev.WriteAt(p, 0); err != nil {
		return err
	}
	return errors.Join(dev.Close(c.ctx), c.pool.DeleteVolume(c.ctx, name))
}
