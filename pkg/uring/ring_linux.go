package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// depth is how many requests the kernel takes at once; more wait their turn.
	depth = 1024
	// submitMost is how many requests go to the kernel in one call. With more the device gets them in lumps and answers in lumps, and stands idle in
	// between: 32 at once gave 75,000 writes a second where 2 to 4 gave 110,000.
	submitMost = 4
	// threadNice: every request waits for the ring's thread, and it needs little itself.
	threadNice = -15
	// wakeToken is the userData of the poll on the wake-up descriptor; requests have their number in loop.flying.
	wakeToken = ^uint64(0)
)

// ErrClosed: the ring was closed.
var ErrClosed = errors.New("the io_uring was closed")

// request is one read or write on its way. It lives on the heap with the buffer in it, so that neither moves nor goes while the kernel has them.
type request struct {
	buf  []byte
	fd   int
	off  int64
	op   uint8
	res  int32
	err  error // it never reached the kernel
	done chan struct{}
}

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

// Ring is one io_uring and its thread. It is safe for concurrent use.
type Ring struct {
	wake int // eventfd

	mu      sync.Mutex
	queue   []*request
	asleep  bool // the thread waits for completions and would not see the queue
	closing bool
	failed  error
	ended   chan struct{}
}

// New makes a ring.
func New() (*Ring, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	r := &Ring{wake: wake, ended: make(chan struct{})}
	started := make(chan error)
	go r.thread(started)
	if err := <-started; err != nil {
		return nil, errors.Join(err, unix.Close(wake))
	}
	return r, nil
}

// Read reads once into p; like pread it may return less than asked for.
func (r *Ring) Read(fd int, p []byte, off int64) (int, error) { return r.do(opRead, fd, p, off) }

// Write writes p once; like pwrite it may write less.
func (r *Ring) Write(fd int, p []byte, off int64) (int, error) { return r.do(opWrite, fd, p, off) }

func (r *Ring) do(op uint8, fd int, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	q := requests.Get().(*request)
	q.op, q.fd, q.buf, q.off, q.res, q.err = op, fd, p, off, 0, nil
	err := r.submit(q)
	if err == nil {
		<-q.done
		err = q.err
	}
	res := q.res
	q.buf = nil
	requests.Put(q)
	if err != nil {
		return 0, err
	}
	if res < 0 {
		return 0, unix.Errno(-res)
	}
	return int(res), nil
}

func (r *Ring) submit(q *request) error {
	r.mu.Lock()
	if r.closing || r.failed != nil {
		defer r.mu.Unlock()
		return errors.Join(ErrClosed, r.failed)
	}
	r.queue = append(r.queue, q)
	if r.asleep {
		r.asleep = false
		r.kick()
	}
	r.mu.Unlock()
	return nil
}

// kick ends the thread's wait. Its poll looks at edges only, so nobody needs to read the counter. The lock is held, so that the thread cannot have gone
// and the descriptor's number be another file's.
func (r *Ring) kick() {
	one := [8]byte{1}
	_, _ = unix.Write(r.wake, one[:])
}

// Close waits for the requests under way; later ones fail with ErrClosed.
func (r *Ring) Close() error {
	r.mu.Lock()
	if !r.closing {
		r.closing = true
		r.kick()
	}
	r.mu.Unlock()
	<-r.ended
	return r.failed
}

// thread owns the queues: DEFER_TASKRUN makes completions cheap by doing them only where one thread asks for them.
func (r *Ring) thread(started chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), threadNice)
	q, err := setup(depth)
	started <- err
	if err != nil {
		return
	}
	l := loop{ring: r, queues: q, flying: make([]*request, 0, depth)}
	l.run()
	q.close()
	_ = unix.Close(r.wake) // closing is set, so nobody kicks any more
	close(r.ended)
}

// loop is the thread's state.
type loop struct {
	ring    *Ring
	queues  *queues
	batch   []*request // taken from the ring's queue, not yet in the kernel's
	flying  []*request // by userData
	free    []uint32   // numbers in flying that are free
	polling bool
}

func (l *loop) idle() bool { return len(l.free) == len(l.flying) }

func (l *loop) run() {
	for {
		sleep, closing := l.take()
		if closing && len(l.batch) == 0 && l.idle() {
			return
		}
		l.fill()
		if err := l.queues.enter(sleep); err != nil {
			l.fail(err)
		}
		l.queues.reap(l.complete)
	}
}

// fail ends the ring for new requests, and those that the kernel has not seen. The others have their buffers in the kernel's hands: they are waited for.
func (l *loop) fail(err error) {
	r := l.ring
	r.mu.Lock()
	r.failed, r.closing = err, true
	for _, q := range append(l.batch, r.queue...) {
		q.err = errors.Join(ErrClosed, err)
		q.done <- struct{}{}
	}
	l.batch, r.queue = nil, nil
	r.mu.Unlock()
	l.queues.takeBack(func(userData uint64) {
		if userData != wakeToken {
			q := l.land(userData)
			q.err = errors.Join(ErrClosed, err)
			q.done <- struct{}{}
		}
	})
	time.Sleep(time.Millisecond) // enter may fail again and again, and not wait
}

// take moves what waits to the batch. With nothing new the thread may sleep.
func (l *loop) take() (sleep, closing bool) {
	r := l.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	l.batch = append(l.batch, r.queue...)
	clear(r.queue)
	r.queue = r.queue[:0]
	r.asleep = len(l.batch) == 0 || len(l.flying)-len(l.free) == depth
	return r.asleep, r.closing
}

// fill turns the batch into entries, as far as there is room.
func (l *loop) fill() {
	if !l.polling {
		if e := l.queues.next(); e != nil {
			*e = sqe{opcode: opPollAdd, fd: int32(l.ring.wake), len: pollMulti, rwFlags: unix.POLLIN, userData: wakeToken}
			l.queues.push()
			l.polling = true
		}
	}
	n := 0
	for ; n < len(l.batch) && n < submitMost; n++ {
		if len(l.free) == 0 && len(l.flying) == depth {
			break
		}
		e := l.queues.next()
		if e == nil {
			break
		}
		q := l.batch[n]
		*e = sqe{opcode: q.op, fd: int32(q.fd), off: uint64(q.off), addr: uint64(uintptr(unsafe.Pointer(&q.buf[0]))), len: uint32(len(q.buf)),
			userData: l.number(q)}
		l.queues.push()
	}
	rest := copy(l.batch, l.batch[n:])
	clear(l.batch[rest:])
	l.batch = l.batch[:rest]
}

// number finds a request's place in flying.
func (l *loop) number(q *request) uint64 {
	if n := len(l.free); n > 0 {
		i := l.free[n-1]
		l.free = l.free[:n-1]
		l.flying[i] = q
		return uint64(i)
	}
	l.flying = append(l.flying, q)
	return uint64(len(l.flying) - 1)
}

func (l *loop) complete(c cqe) {
	if c.userData == wakeToken {
		l.polling = c.flags&cqeMore != 0
		return
	}
	q := l.land(c.userData)
	q.res = c.res
	q.done <- struct{}{}
}

// land takes a request out of flying.
func (l *loop) land(number uint64) *request {
	q := l.flying[number]
	l.flying[number] = nil
	l.free = append(l.free, uint32(number))
	return q
}
