package fsys

const (
	sectorSize  = 512
	pageSectors = pageSize / sectorSize
)

// memSector is never changed once it is in a page, so that copies of a file system share it. nil is zeroes.
type memSector [sectorSize]byte

// memVersion is a content that a sector got after its durable one.
type memVersion struct {
	data   *memSector
	direct bool // a flush of the device makes it durable
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
	sizes  []int64 // the durable size, and each later one up to now

	pages   map[int64]*memPage
	dirty   map[*memPage]struct{} // pages with something later than durable
	written memBits               // blocks whose extent is written, durably
	writing memBits               // blocks that become written with the next Sync of the file
	space   memBits               // blocks that have their space, durably
	spacing memBits               // blocks that have it with the next Sync of the file
	grew    int                   // writes to blocks that had not
}

func newMemData(d *memDevice) *memData {
	return &memData{device: d, sizes: []int64{0}, pages: map[int64]*memPage{}, dirty: map[*memPage]struct{}{}, written: memBits{}, writing: memBits{}, space: memBits{}, spacing: memBits{}}
}

// memBits is a set of block numbers.
type memBits map[int64]uint64

func (b memBits) has(i int64) bool { return b[i>>6]&(1<<(i&63)) != 0 }
func (b memBits) add(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b memBits) remove(i int64)   { b[i>>6] &^= 1 << (i & 63) }

// allocate takes space for a range, durably with the file's next Sync.
func (d *memData) allocate(off, length int64) {
	for number := off / pageSize; number*pageSize < off+length; number++ {
		if !d.space.has(number) {
			d.spacing.add(number)
		}
	}
	d.resize(max(d.size, off+length))
}

func (d *memData) resize(size int64) {
	if size != d.size {
		d.size = size
		d.sizes = append(d.sizes, size)
	}
}

func (d *memData) truncate(size int64) {
	if size < d.size {
		d.zero(size, d.size-size)
	}
	d.resize(size)
}

// zero makes a range read as zeroes, as a change of the file's metadata: only the file's own Sync makes it durable.
func (d *memData) zero(off, length int64) {
	for number := off / pageSize; number <= (off+length-1)/pageSize && length > 0; number++ {
		from, to := max(off-number*pageSize, 0), min(off+length-number*pageSize, pageSize)
		if from == 0 && to == pageSize {
			d.written.remove(number)
			d.writing.remove(number)
			d.space.remove(number)
			d.spacing.remove(number)
		}
		if page := d.pages[number]; page != nil {
			for i := from / sectorSize; i*sectorSize < to; i++ {
				var content memSector
				if old := page.now(int(i)); old != nil {
					content = *old
				}
				clear(content[max(from-i*sectorSize, 0):min(to-i*sectorSize, sectorSize)])
				d.put(page, int(i), &content, false)
			}
		}
	}
}

// write puts bytes over a range and tells whether a flush of the device alone would make all of them durable.
func (d *memData) write(p []byte, off int64, direct bool) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		number, i, from := at/pageSize, int(at%pageSize/sectorSize), int(at%sectorSize)
		n := min(sectorSize-from, len(p)-done)
		d.writeSector(number, i, from, p[done:done+n], direct && d.written.has(number))
		if !d.written.has(number) {
			d.writing.add(number)
		}
		if !d.space.has(number) {
			if i == 0 || done == 0 { // once a block
				d.grew++
			}
			d.spacing.add(number)
		}
		done += n
	}
	if end := off + int64(len(p)); end > d.size {
		d.resize(end)
	}
}

func (d *memData) writeSector(number int64, i, from int, p []byte, direct bool) {
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
	d.put(page, i, &content, direct)
}

func (d *memData) put(page *memPage, i int, content *memSector, direct bool) {
	if *content == (memSector{}) {
		content = nil
	}
	if same(page.now(i), content) {
		// A write of what is there changes nothing that a power cut could leave, but for how the sector becomes durable.
		if n := len(page.later[i]); n == 0 || page.later[i][n-1].direct || !direct {
			return
		}
	}
	page.later[i] = append(page.later[i], memVersion{data: content, direct: direct})
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

// sync makes the whole file durable, and flushes its device.
func (d *memData) sync() {
	for page := range d.dirty {
		for i := range page.later {
			page.durable[i], page.later[i] = page.now(i), nil
		}
	}
	clear(d.dirty)
	for word, bits := range d.writing {
		d.written[word] |= bits
	}
	clear(d.writing)
	for word, bits := range d.spacing {
		d.space[word] |= bits
	}
	clear(d.spacing)
	d.sizes = append(d.sizes[:0], d.size)
	d.device.flush()
}

// flush makes direct writes durable, and nothing that came to the same sectors later through the page cache.
func (dev *memDevice) flush() {
	for page := range dev.dirty {
		for i, later := range page.later {
			for n := len(later); n > 0; n-- {
				if later[n-1].direct {
					page.durable[i], page.later[i] = later[n-1].data, later[n:]
					break
				}
			}
		}
	}
	clear(dev.dirty)
}

// settle makes one range durable, with the size and the extents it needs.
func (d *memData) settle(off, length int64) {
	for at := off / sectorSize * sectorSize; at < off+length; at += sectorSize {
		number, i := at/pageSize, at%pageSize/sectorSize
		if d.writing.has(number) {
			d.writing.remove(number)
			d.written.add(number)
			d.spacing.remove(number)
			d.space.add(number)
		}
		if page := d.pages[number]; page != nil {
			page.durable[i], page.later[i] = page.now(int(i)), nil
		}
	}
	if off+length > d.sizes[0] {
		d.sizes = append(d.sizes[:0], d.size)
	}
}
