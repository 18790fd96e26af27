package fuseloop

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	bufferHead = 4096               // the first page: headers end where it ends
	bufferLen  = bufferHead + maxIO // the payload begins on a page
	inStart    = bufferHead - inHeaderLen - writeInLen
	// smallIO is the largest payload that is copied out of the landing buffer, and what an idle buffer may keep in memory without being counted.
	smallIO = 64 << 10
	// spareBuffers are kept mapped when no reader uses them.
	spareBuffers = 64
)

// buffer takes one request and its answer. A write's payload, and a read's answer, begin at mem[bufferHead:], page-aligned, so that they go to the
// device and to the kernel without a copy. Its memory is mapped, not Go's: only pages that were touched exist.
type buffer struct {
	mem     []byte
	touched int64 // payload bytes that may be in memory
	kept    int64 // how many of them memory.kept counts
}

// land makes the whole buffer resident, as one that requests are read into must be. SIGKILL makes every page fault of the process fail, and where the
// kernel cannot copy a request into a buffer it fails that request with EIO: a device that must survive the death of its server would not.
func (b *buffer) land() {
	if b.touched == maxIO {
		return
	}
	if unix.Madvise(b.mem, unix.MADV_POPULATE_WRITE) != nil { // interrupted, or before kernel 5.14
		for i := 0; i < len(b.mem); i += 4096 {
			b.mem[i] = 0
		}
	}
	b.touched = maxIO
}

// shrink gives the payload's pages back.
func (b *buffer) shrink() {
	const dontNeedLocked = 24 // MADV_DONTNEED_LOCKED, kernel 5.18: the process may have locked its memory
	err := unix.Madvise(b.mem[bufferHead:], dontNeedLocked)
	if err != nil {
		err = unix.Madvise(b.mem[bufferHead:], unix.MADV_DONTNEED)
	}
	if err == nil {
		b.touched = 0
	}
}

// memory owns the buffers of an attacher and bounds their bytes. A request is admitted before it is carried out: when the limit is reached, the
// reader that holds it waits, and with it the attachment's later requests. Two rules keep one stuck device from stopping the others: an attachment
// uses at most a quarter, and one that has nothing under way is always admitted. With the landing buffers, the bound is limit + 3 × maxIO for each
// attachment, of which an idle one uses two thirds.
type memory struct {
	limit int64

	mu      sync.Mutex
	freed   sync.Cond
	used    int64 // of admitted requests
	kept    int64 // in idle buffers, beyond smallIO each
	waiting int
	spare   []*buffer
}

// account is an attachment's share.
type account struct{ used int64 } // guarded by memory.mu

func newMemory(limit int64) *memory {
	m := &memory{limit: limit}
	m.freed.L = &m.mu
	return m
}

func (m *memory) get() (*buffer, error) {
	m.mu.Lock()
	if n := len(m.spare); n > 0 {
		b := m.spare[n-1]
		m.spare = m.spare[:n-1]
		m.mu.Unlock()
		return b, nil
	}
	m.mu.Unlock()
	mem, err := unix.Mmap(-1, 0, bufferLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a request buffer: %w", err)
	}
	return &buffer{mem: mem}, nil
}

func (m *memory) put(b *buffer) {
	m.mu.Lock()
	m.kept -= b.kept
	b.kept = 0
	keep := len(m.spare) < spareBuffers && b.touched <= smallIO
	if keep {
		m.spare = append(m.spare, b)
	}
	m.mu.Unlock()
	if !keep {
		_ = unix.Munmap(b.mem) // cannot fail on a whole mapping of ours
	}
}

// admit waits until n bytes of payload may be under way.
func (m *memory) admit(a *account, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a.used > 0 && (m.used+n > m.limit || a.used+n > m.limit/4) {
		m.waiting++
		m.freed.Wait()
		m.waiting--
	}
	m.used += n
	a.used += n
}

// settle ends what admit began.
func (m *memory) settle(a *account, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
	a.used -= n
	if m.waiting > 0 {
		m.freed.Broadcast()
	}
}

// use ends what idle began.
func (m *memory) use(b *buffer) {
	if b.kept == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept -= b.kept
	b.kept = 0
}

// idle decides whether a buffer that waits for its next request stays in memory.
func (m *memory) idle(b *buffer) {
	if b.touched <= smallIO {
		return
	}
	m.mu.Lock()
	keep := m.kept+b.touched <= m.limit/4
	if keep {
		b.kept = b.touched
		m.kept += b.kept
	}
	m.mu.Unlock()
	if !keep {
		b.shrink()
	}
}
