package fsys

const (
	sectorSize  = 512
	pageSectors = pageSize / sectorSize
)

// memSector is never changed once it is in a page, so that copies of a file system share it. nil is zeroes.
type memSector [sectorSize]byte

// memChange is a write or another change, and when it returned; 0: it is under way.
type memChange struct{ ended uint64 }

// before tells whether it had returned at a moment.
func (c *memChange) before(then uint64) bool { return c.ended != 0 && c.ended <= then }

// memVersion is a content that a sector got after its durable one.
type memVersion struct {
	data   *memSector
	direct bool // a flush of the device makes it durable
	by     *memChange
}

// memSize is a size that a file got.
type memSize struct {
	size int64
	by   *memChange // nil: durable
}

// memPage holds the sectors of one block that are or were anything but zeroes.
type memPage struct {
	durable [pageSectors]*memSector
	later   [pageSectors][]memVersion
}

func (p *memPage) now(i int) *memSector {
	if n := len(p.later[i]); n > 0 {
		return p.later[i][n-1].data
	}
	return p.durable[i]
}

// memData is a file's content. Its fields are guarded by the file system's lock.
type memData struct {
	device *memDevice
	size   int64
	sizes  []memSize // the durable size, and each later one up to now

	pages   map[int64]*memPage
	dirty   map[*memPage]struct{} // pages with something later than durable
	written memBits               // blocks whose extent is written, durably
	space   memBits               // blocks that have their space, durably
	writing map[int64]*memChange  // blocks that become written with a Sync of the file that begins after this
	spacing map[int64]*memChange  // blocks that have their space with such a Sync
	grew    int                   // writes to blocks that had not
}

func newMemData(d *memDevice) *memData {
	return &memData{
		device: d, sizes: []memSize{{}}, pages: map[int64]*memPage{}, dirty: map[*memPage]struct{}{}, written: memBits{}, space: memBits{},
		writing: map[int64]*memChange{}, spacing: map[int64]*memChange{},
	}
}

// memBits is a set of block numbers.
type memBits map[int64]uint64

func (b memBits) has(i int64) bool { return b[i>>6]&(1<<(i&63)) != 0 }
func (b memBits) add(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b memBits) remove(i int64)   { b[i>>6] &^= 1 << (i & 63) }

// allocate takes space for a range, durably with the file's next Sync.
func (d *memData) allocate(off, length int64, by *memChange) {
	for number := off / pageSize; number*pageSize < off+length; number++ {
		if _, ok := d.spacing[number]; !ok && !d.space.has(number) {
			d.spacing[number] = by
		}
	}
	d.resize(max(d.size, off+length), by)
}

func (d *memData) resize(size int64, by *memChange) {
	if size != d.size {
		d.size = size
		d.sizes = append(d.sizes, memSize{size, by})
	}
}

func (d *memData) truncate(size int64, by *memChange) {
	if size < d.size {
		d.zero(size, d.size-size, by)
	}
	d.resize(size, by)
}

// zero makes a range read as zeroes, as a change of the file's metadata: only the file's own Sync makes it durable.
func (d *memData) zero(off, length int64, by *memChange) {
	for number := off / pageSize; number <= (off+length-1)/pageSize && length > 0; number++ {
		from, to := max(off-number*pageSize, 0), min(off+length-number*pageSize, pageSize)
		if from == 0 && to == pageSize {
			d.written.remove(number)
			d.space.remove(number)
			delete(d.writing, number)
			delete(d.spacing, number)
		}
		if page := d.pages[number]; page != nil {
			for i := from / sectorSize; i*sectorSize < to; i++ {
				var content memSector
				if old := page.now(int(i)); old != nil {
					content = *old
				}
				clear(content[max(from-i*sectorSize, 0):min(to-i*sectorSize, sectorSize)])
				d.put(page, int(i), &content, false, by)
			}
		}
	}
}

// write puts bytes over a range and tells whether a flush of the device alone would make all of them durable.
func (d *memData) write(p []byte, off int64, direct bool, by *memChange) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		number, i, from := at/pageSize, int(at%pageSize/sectorSize), int(at%sectorSize)
		n := min(sectorSize-from, len(p)-done)
		d.writeSector(number, i, from, p[done:done+n], direct && d.written.has(number), by)
		if i == 0 || done == 0 { // once a block
			d.extend(number, by)
		}
		done += n
	}
	if end := off + int64(len(p)); end > d.size {
		d.resize(end, by)
	}
}

// extend notes what a write to a block changes of its file's extents.
func (d *memData) extend(number int64, by *memChange) {
	// The first write that a sync covers is enough.
	if _, ok := d.writing[number]; !ok && !d.written.has(number) {
		d.writing[number] = by
	}
	if !d.space.has(number) {
		d.grew++
		if _, ok := d.spacing[number]; !ok {
			d.spacing[number] = by
		}
	}
}

func (d *memData) writeSector(number int64, i, from int, p []byte, direct bool, by *memChange) {
	page := d.pages[number]
	var content memSector
	if page != nil {
		if old := page.now(i); old != nil {
			content = *old
		}
	}
	copy(content[from:], p)
	if page == nil {
		if content == (memSector{}) {
			return
		}
		page = &memPage{}
		d.pages[number] = page
	}
	d.put(page, i, &content, direct, by)
}

func (d *memData) put(page *memPage, i int, content *memSector, direct bool, by *memChange) {
	if *content == (memSector{}) {
		content = nil
	}
	if same(page.now(i), content) {
		// A write of what is there changes nothing that a power cut could leave, but for how the sector becomes durable.
		if n := len(page.later[i]); n == 0 || page.later[i][n-1].direct || !direct {
			return
		}
	}
	page.later[i] = append(page.later[i], memVersion{data: content, direct: direct, by: by})
	d.dirty[page] = struct{}{}
	if direct {
		d.device.dirty[page] = struct{}{}
	}
}

func same(a, b *memSector) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (d *memData) read(p []byte, off int64) int {
	p = p[:max(min(int64(len(p)), d.size-off), 0)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		number, i, from := at/pageSize, int(at%pageSize/sectorSize), int(at%sectorSize)
		n := min(sectorSize-from, len(p)-done)
		var content *memSector
		if page := d.pages[number]; page != nil {
			content = page.now(i)
		}
		if content == nil {
			clear(p[done : done+n])
		} else {
			copy(p[done:done+n], content[from:])
		}
		done += n
	}
	return len(p)
}

// sync makes what had returned at a moment durable: all of the file, and all direct writes to its device.
func (d *memData) sync(then uint64) {
	for page := range d.dirty {
		later := 0
		for i := range page.later {
			page.settle(i, func(v memVersion) bool { return v.by.before(then) })
			later += len(page.later[i])
		}
		if later == 0 {
			delete(d.dirty, page)
		}
	}
	settleBits(d.written, d.writing, then)
	settleBits(d.space, d.spacing, then)
	for len(d.sizes) > 1 && d.sizes[1].by.before(then) {
		d.sizes = d.sizes[1:]
	}
	d.device.flush(then)
}

func settleBits(durable memBits, later map[int64]*memChange, then uint64) {
	for number, by := range later {
		if by.before(then) {
			durable.add(number)
			delete(later, number)
		}
	}
}

// settle makes the last version of a sector durable that is covered. What came to the sector later stays later.
func (p *memPage) settle(i int, covered func(memVersion) bool) {
	for n := len(p.later[i]); n > 0; n-- {
		if v := p.later[i][n-1]; covered(v) {
			p.durable[i], p.later[i] = v.data, p.later[i][n:]
			if len(p.later[i]) == 0 {
				p.later[i] = nil
			}
			return
		}
	}
}

// flush makes direct writes durable that had returned at a moment, and nothing that came to the same sectors later, or through the page cache.
func (dev *memDevice) flush(then uint64) {
	for page := range dev.dirty {
		left := false
		for i := range page.later {
			page.settle(i, func(v memVersion) bool { return v.direct && v.by.before(then) })
			for _, v := range page.later[i] {
				left = left || v.direct
			}
		}
		if !left {
			delete(dev.dirty, page)
		}
	}
}

// settle makes one write durable, with the size and the extents it needs.
func (d *memData) settle(off, length int64, by *memChange) {
	for at := off / sectorSize * sectorSize; at < off+length; at += sectorSize {
		number, i := at/pageSize, at%pageSize/sectorSize
		if w := d.writing[number]; w != nil && w.ended != 0 {
			delete(d.writing, number)
			delete(d.spacing, number)
			d.written.add(number)
			d.space.add(number)
		}
		if page := d.pages[number]; page != nil {
			// What it wrote may have been there already.
			page.settle(int(i), func(v memVersion) bool { return v.by.before(by.ended) })
		}
	}
	if off+length > d.sizes[0].size {
		d.sizes = append(d.sizes[:0:0], memSize{size: d.size})
	}
}
