package enginetest

import (
	"errors"
	"slices"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const mebi = 1 << 20

// span chooses a range: sectors, whole blocks, or much.
func (r *run) span(size int64) (off, n int64) {
	unit, most := int64(sector), int64(40)
	switch r.draw("kind of range", 0, 9) {
	case 4, 5, 6, 7, 8: // whole blocks
		unit, most = block, 8
	case 9: // large, over pages
		most = size / sector
	}
	off = r.draw64("offset", 0, size/unit-1)
	return off * unit, r.draw64("length", 1, min(most, size/unit-off)) * unit
}

func (r *run) write() {
	v := r.anyVolume()
	for range r.draw("writes", 1, 8) {
		off, n := r.span(v.size)
		r.stamps++
		p := stamped(r.stamps, n)
		r.changed(v.image, off, n)
		v.image.write(p, off, n)
		_, err := v.dev.WriteAt(p, off)
		r.must(err)
	}
}

func (r *run) zero() {
	v := r.anyVolume()
	off, n := r.span(v.size)
	r.changed(v.image, off, n)
	v.image.write(nil, off, n)
	if rapid.Bool().Draw(r.T, "discard") {
		r.must(v.dev.Discard(off, n))
	} else {
		r.must(v.dev.WriteZeroes(off, n))
	}
}

func (r *run) read() {
	v := r.anyVolume()
	off, n := r.span(v.size)
	r.must(v.compare("volume "+v.name, v.dev, off, n))
}

func (r *run) flush() { r.must(r.anyVolume().dev.Flush()) }

func (r *run) create() {
	if len(r.volumes) == maxVolumes {
		r.Skip("enough volumes")
	}
	v := &volume{name: r.name("v"), image: newImage(r.draw64("MiB", 1, 9) * mebi)}
	_, err := r.pool.CreateVolume(r.ctx, engine.VolumeSpec{Name: v.name, Size: v.size, Mode: r.anyMode()})
	r.must(err)
	r.changed(v.image, 0, 0) // the beginning of its family
	r.volumes[v.name] = v
	r.open(v)
	r.check()
}

func (r *run) snapshot() {
	if len(r.snapshots) >= maxSnapshots {
		r.Skip("enough snapshots")
	}
	v, name := r.anyVolume(), r.name("s")
	info, err := r.pool.CreateSnapshot(r.ctx, engine.SnapshotSpec{Name: name, Volume: v.name})
	r.must(err)
	if info.Name != name || info.Volume != v.name || info.Size != v.size {
		r.Fatalf("asked for %s of %s with %d bytes, got %+v", name, v.name, v.size, info)
	}
	r.snapshots[name] = &snapshot{v.name, "", v.image.clone()}
	r.check()
}

// group cuts some of the volumes at once, open and closed ones.
func (r *run) group() {
	if len(r.snapshots) >= maxSnapshots || len(r.volumes) == 0 {
		r.Skip("enough snapshots, or no volume")
	}
	spec := engine.SnapshotGroupSpec{Name: r.name("g")}
	names := rapid.Permutation(sortedKeys(r.volumes)).Draw(r.T, "volumes")
	var closed []*volume
	for _, name := range names[:r.draw("of them", 1, len(names))] {
		v := r.volumes[name]
		if r.chance("closed", 3) {
			r.must(v.dev.Close(r.ctx))
			closed = append(closed, v)
		}
		spec.Snapshots = append(spec.Snapshots, engine.SnapshotSpec{Name: spec.Name + "-" + name, Volume: name})
		r.snapshots[spec.Name+"-"+name] = &snapshot{name, spec.Name, v.image.clone()}
	}
	infos, err := r.pool.CreateSnapshotGroup(r.ctx, spec)
	r.must(err)
	for i, info := range infos {
		if info.Name != spec.Snapshots[i].Name || info.Volume != spec.Snapshots[i].Volume || info.Group != spec.Name {
			r.Fatalf("asked for %+v of group %s, got %+v", spec.Snapshots[i], spec.Name, info)
		}
	}
	for _, v := range closed {
		r.open(v)
	}
	r.check()
}

func (r *run) deleteSnapshot() {
	name, _ := r.anySnapshot()
	r.must(r.pool.DeleteSnapshot(r.ctx, name))
	delete(r.snapshots, name)
	if rapid.Bool().Draw(r.T, "wait") {
		r.must(r.pool.WaitJobs(r.ctx))
	}
	r.check()
}

func (r *run) from(spec engine.VolumeSpec, img *image) {
	if len(r.volumes) == maxVolumes {
		r.Skip("enough volumes")
	}
	v := &volume{name: r.name("r"), image: img.clone()}
	if rapid.Bool().Draw(r.T, "larger") {
		v.size += r.draw64("MiB more", 0, 3) * mebi
		spec.Size = v.size
	}
	spec.Name, spec.Mode = v.name, r.anyMode()
	_, err := r.pool.CreateVolume(r.ctx, spec)
	r.must(err)
	r.volumes[v.name] = v
	r.open(v)
	r.check()
}

func (r *run) restore() {
	name, s := r.anySnapshot()
	r.from(engine.VolumeSpec{FromSnapshot: name}, s.image)
}

func (r *run) cloneVolume() {
	v := r.anyVolume()
	r.from(engine.VolumeSpec{FromVolume: v.name}, v.image)
}

// rollback puts a volume back; it keeps its size.
func (r *run) rollback() {
	name, s := r.anySnapshot()
	v := r.volumes[s.volume]
	if v == nil {
		r.Skip("its volume is gone")
	}
	r.must(v.dev.Close(r.ctx))
	_, err := r.pool.RollbackVolume(r.ctx, v.name, name, "")
	r.must(err)
	size := v.size
	v.image = s.image.clone()
	v.size = size
	r.open(v)
	r.check()
}

func (r *run) deleteVolume() {
	v := r.anyVolume()
	r.must(v.dev.Close(r.ctx))
	r.must(r.pool.DeleteVolume(r.ctx, v.name))
	delete(r.volumes, v.name)
	r.check()
}

func (r *run) grow() {
	v := r.anyVolume()
	v.size += r.draw64("MiB more", 1, 3) * mebi
	info, err := r.pool.GrowVolume(r.ctx, v.name, v.size)
	r.must(err)
	if info.Size != v.size || v.dev.Size() != v.size {
		r.Fatalf("grown to %d bytes, it says %d, and its device %d", v.size, info.Size, v.dev.Size())
	}
	r.check()
}

func (r *run) anyMode() engine.Mode { return engine.Mode(r.draw("mode", 0, 1)) }

func (r *run) mode() {
	v, mode := r.anyVolume(), r.anyMode()
	info, err := r.pool.ChangeVolume(r.ctx, v.name, engine.VolumeChange{Mode: &mode})
	r.must(err)
	if info.Mode != mode {
		r.Fatalf("set to %v, it says %v", mode, info.Mode)
	}
}

func (r *run) move() {
	v := r.anyVolume()
	r.must(r.backend.Move(r.pool, v.name, uint32(r.draw("page", 0, 2))))
	r.check()
}

func (r *run) label() {
	v := r.anyVolume()
	_, err := r.pool.SetVolumeLabels(r.ctx, v.name, map[string]string{"k": r.name("value")})
	r.must(err)
}

func (r *run) reattach() {
	v := r.anyVolume()
	r.must(v.dev.Close(r.ctx))
	r.open(v)
	r.check()
}

// diffs asks for lists of ranges and compares them: what is not in them is equal, and what is was changed on one of the two ways from where they parted.
func (r *run) diffs() {
	spec := engine.DiffSpec{}
	var target, from *image
	if len(r.snapshots) > 0 && rapid.Bool().Draw(r.T, "of a snapshot") {
		name, s := r.anySnapshot()
		spec.Snapshot, target = name, s.image
	} else {
		v := r.anyVolume()
		spec.Volume, target = v.name, v.image
	}
	var events []event
	if len(r.snapshots) > 0 && !r.chance("allocated", 4) {
		name, s := r.anySnapshot()
		spec.From, from, events = name, s.image, s.events
	}
	parted := 0
	for parted < min(len(target.events), len(events)) && target.events[parted] == events[parted] {
		parted++
	}
	if spec.From != "" && parted == 0 {
		if _, err := r.pool.Diff(r.ctx, spec); !errors.Is(err, engine.ErrUnrelated) {
			r.Fatalf("%+v, of two families: %v", spec, err)
		}
		return
	}
	ranges := r.ranges(spec, target.size, 0)
	if paged := r.ranges(spec, target.size, r.draw("a page", 1, 5)); !slices.Equal(paged, ranges) {
		r.Fatalf("%+v in pages: %v, at once: %v", spec, paged, ranges)
	}
	r.compareRanges(spec, ranges, target, from, slices.Concat(target.events[parted:], events[parted:]))
}

// ranges reads a whole list, so many at a time.
func (r *run) ranges(spec engine.DiffSpec, size int64, most int) (all []engine.Range) {
	for spec.Max = most; ; {
		page, err := r.pool.Diff(r.ctx, spec)
		r.must(err)
		if page.Size != size || most > 0 && len(page.Ranges) > most {
			r.Fatalf("%+v: %d ranges of %d bytes, wanted %d of %d at most", spec, len(page.Ranges), page.Size, most, size)
		}
		if all = append(all, page.Ranges...); page.Next == 0 {
			return all
		}
		spec.Start = page.Next
	}
}

func (r *run) compareRanges(spec engine.DiffSpec, ranges []engine.Range, target, from *image, events []event) {
	size := target.size
	if from == nil {
		from = newImage(size)
	}
	size = max(size, from.size)
	touched, listed := make([]bool, size/block), make([]bool, size/block)
	for _, e := range events {
		for i := e.off / block; i < (e.off+e.n+block-1)/block; i++ {
			touched[i] = true
		}
	}
	end := int64(-1)
	for _, x := range ranges {
		if x.Offset <= end || x.Length <= 0 || x.Offset%block != 0 || x.Length%block != 0 || x.Offset+x.Length > size {
			r.Fatalf("%+v: range %+v, the one before ends at %d", spec, x, end)
		}
		end = x.Offset + x.Length
		for i := x.Offset / block; i < end/block; i++ {
			listed[i] = true
		}
	}
	for i := range size / block {
		beyond := i*block >= min(target.size, from.size)
		switch {
		case !listed[i] && (beyond || !slices.Equal(target.at(i), from.at(i))):
			r.Fatalf("%+v: block %d differs and is not listed in %v", spec, i, ranges)
		case listed[i] && !beyond && !touched[i]:
			r.Fatalf("%+v: block %d is listed, and nobody touched it", spec, i)
		}
	}
}
