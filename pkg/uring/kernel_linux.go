package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From the kernel's include/uapi/linux/io_uring.h.
const (
	opPollAdd = 6
	opRead    = 22
	opWrite   = 23

	pollMulti = 1 << 0 // in sqe.len of opPollAdd: stays armed

	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1

	enterGetEvents = 1 << 0
	cqeMore        = 1 << 1

	offSQRing = 0
	offSQEs   = 0x10000000
)

type sqRingOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, resv1 uint32
	userAddr                                                        uint64
}

type cqRingOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, resv1 uint32
	userAddr                                                        uint64
}

type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sq                                                                     sqRingOffsets
	cq                                                                     cqRingOffsets
}

// sqe is struct io_uring_sqe, the fields used here.
type sqe struct {
	opcode      uint8
	flags       uint8
	ioprio      uint16
	fd          int32
	off         uint64
	addr        uint64
	len         uint32
	rwFlags     uint32 // poll events for opPollAdd
	userData    uint64
	bufIndex    uint16
	personality uint16
	spliceFD    int32
	addr3, pad  uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// queues are the memory shared with the kernel. Only the ring's own thread uses them.
type queues struct {
	fd         int
	ring, sqes []byte // mappings

	sqTail, sqHead  *uint32
	sqMask, sqDepth uint32
	entries         []sqe
	cqHead, cqTail  *uint32
	cqMask          uint32
	completions     []cqe
	toSubmit        uint32 // filled but not yet given to the kernel
}

func setup(depth uint32) (*queues, error) {
	p := params{flags: setupClamp | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("%w: io_uring_setup: %w", ErrUnavailable, errno)
	}
	q := &queues{fd: int(fd)}
	if p.features&(featSingleMmap|featNoDrop) != featSingleMmap|featNoDrop {
		q.close()
		return nil, fmt.Errorf("%w: the kernel's io_uring lacks features (%#x)", ErrUnavailable, p.features)
	}
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(int(p.sq.array+p.sqEntries*4), int(p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{}))))
	var err error
	if q.ring, err = unix.Mmap(q.fd, offSQRing, size, prot, flags); err == nil {
		q.sqes, err = unix.Mmap(q.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags)
	}
	if err != nil {
		q.close()
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&q.ring[off])) }
	q.sqHead, q.sqTail, q.sqMask, q.sqDepth = word(p.sq.head), word(p.sq.tail), *word(p.sq.ringMask), p.sqEntries
	q.cqHead, q.cqTail, q.cqMask = word(p.cq.head), word(p.cq.tail), *word(p.cq.ringMask)
	q.entries = unsafe.Slice((*sqe)(unsafe.Pointer(&q.sqes[0])), p.sqEntries)
	q.completions = unsafe.Slice((*cqe)(unsafe.Pointer(&q.ring[p.cq.cqes])), p.cqEntries)
	// Entry i of the queue is always sqe i.
	for i, a := uint32(0), unsafe.Slice(word(p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		a[i] = i
	}
	return q, nil
}

// next returns a cleared entry to fill, or nil when the submission queue is full.
func (q *queues) next() *sqe {
	tail := *q.sqTail
	if tail-atomic.LoadUint32(q.sqHead) == q.sqDepth {
		return nil
	}
	e := &q.entries[tail&q.sqMask]
	*e = sqe{}
	return e
}

// push gives the entry that next returned to the next enter.
func (q *queues) push() {
	atomic.StoreUint32(q.sqTail, *q.sqTail+1)
	q.toSubmit++
}

// enter submits what was pushed and, with wait, returns when there is a completion to reap.
func (q *queues) enter(wait bool) error {
	least := uintptr(0)
	if wait {
		least = 1
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(q.fd), uintptr(q.toSubmit), least, enterGetEvents, 0, 0)
	if errno != 0 {
		// Interrupted, or the kernel is short of memory or wants completions reaped first: the entries stay queued for the next call.
		if errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.EBUSY {
			return nil
		}
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	q.toSubmit -= uint32(n)
	return nil
}

// takeBack visits the entries that the kernel has not taken, and drops them.
func (q *queues) takeBack(visit func(userData uint64)) {
	head := atomic.LoadUint32(q.sqHead)
	for i := head; i != *q.sqTail; i++ {
		visit(q.entries[i&q.sqMask].userData)
	}
	atomic.StoreUint32(q.sqTail, head)
	q.toSubmit = 0
}

// reap visits the completions there are.
func (q *queues) reap(visit func(cqe)) {
	head := *q.cqHead
	for tail := atomic.LoadUint32(q.cqTail); head != tail; head++ {
		c := q.completions[head&q.cqMask]
		atomic.StoreUint32(q.cqHead, head+1)
		visit(c)
	}
}

func (q *queues) close() {
	for _, m := range [][]byte{q.ring, q.sqes} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	_ = unix.Close(q.fd)
}

// ErrUnavailable: the kernel has no io_uring for this process, or a too old one.
var ErrUnavailable = errors.New("io_uring is not available")
