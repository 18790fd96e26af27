package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

const (
	// maxFollowers may wait for their turn to read; one more that finishes leaves. At depth 32 with 8 of them readers left and were made again without
	// end, each with a stack to grow: 4 % of the processor.
	maxFollowers = 32
	// leaders read at once. With one, the next request waited for its successor to wake: two took a fifth more on 2 cores, four no more than two.
	leaders = 2
)

// server answers the requests of one mount. Its readers take turns: the leaders are blocked in read(2), each with a landing buffer; when a request
// has come its reader passes the turn on and carries the request out itself. A leader that nobody follows starts another reader, up to the limit.
//
// Why so few at a time: a landing buffer must be resident (see buffer.land), and takes 1 MiB whatever comes. Payloads of up to smallIO are copied out
// of it; for larger ones the leader swaps it for its own buffer. Why one descriptor, not a clone of it for each reader: requests that were read
// through a clone fail as soon as the dead process's clone is closed, unless the keeper had every one of them.
type server struct {
	fuse  *os.File
	dev   block.Device
	mem   *memory
	share account
	name  string // the file's
	ro    bool
	limit int32 // of readers

	followers atomic.Int32
	readers   atomic.Int32
	stopping  atomic.Bool
	ended     chan struct{} // closed when the last reader left

	ready    chan struct{} // closed when INIT was answered
	initOnce sync.Once
	proto    protocol // valid once ready is closed
	initErr  error

	turns   chan *buffer // landing buffers: who takes one may read
	leading atomic.Int32 // how many have one and may be reading

	released func()       // called when the kernel closed the file
	tap      func(uint32) // where not nil, called with each request's opcode before it is carried out: tests die there
	mu       sync.Mutex
	err      error // the first thing that went wrong
}

func newServer(fuse *os.File, dev block.Device, mem *memory, name string, ro bool, limit int) *server {
	return &server{fuse: fuse, dev: dev, mem: mem, name: name, ro: ro, limit: int32(limit), ended: make(chan struct{}), ready: make(chan struct{}),
		turns: make(chan *buffer, leaders), released: func() {}}
}

// start serves a new mount: INIT comes first.
func (s *server) start() error { return s.begin() }

// resume serves a mount that a dead process served: everything it had read and not answered is asked for again, before anything new is read.
func (s *server) resume(p protocol) error {
	s.proto = p
	s.initOnce.Do(func() { close(s.ready) })
	if p.Caps&capResend != 0 {
		if _, err := unix.Write(int(s.fuse.Fd()), notification(notifyResend, nil)); err != nil {
			return fmt.Errorf("ask for the dead process's requests again: %w", err)
		}
	}
	return s.begin()
}

// begin gets the landing buffers and the first reader.
func (s *server) begin() error {
	for range leaders {
		b, err := s.mem.get()
		if err != nil {
			return err
		}
		b.land()
		s.turns <- b
	}
	return s.spawn()
}

func (s *server) spawn() error {
	b, err := s.mem.get()
	if err != nil {
		return err
	}
	s.readers.Add(1)
	go s.read(b)
	return nil
}

// stop ends the readers once they have answered what they read. What comes later stays in the kernel's queue.
func (s *server) stop() {
	if !s.stopping.Swap(true) {
		s.poke()
	}
}

// abandoned waits for the readers of a mount that is gone.
func (s *server) abandoned(ctx context.Context) error {
	s.stop()
	if s.readers.Load() == 0 {
		return nil // it never had any, or they have ended
	}
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of an abandoned mount: %w", ctx.Err())
	}
}

// poke wakes one waiting reader: it makes the kernel queue a message for which nobody waits. Nothing interrupts a read(2) otherwise, short of a
// signal, and polling before each read would cost a system call for each request. A message left over is ignored by the next server.
func (s *server) poke() {
	body := make([]byte, 32)            // notify_unique, nodeid, offset, size
	order.PutUint64(body[8:], fileNode) // kernels refuse to answer for a folder
	raw, err := s.fuse.SyscallConn()
	if err != nil {
		return // closed: there are no readers
	}
	// Control keeps the descriptor's number from being closed, and used for something else, meanwhile. The write fails only where the connection is
	// gone, and then the readers know.
	_ = raw.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), notification(notifyRetrieve, body)) })
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *server) read(b *buffer) {
	for s.followers.Load() < maxFollowers {
		s.followers.Add(1)
		landing := <-s.turns
		s.followers.Add(-1)
		s.leading.Add(1) // before the look at stopping: who stops wakes those that may have looked too early
		if s.stopping.Load() {
			s.pass(landing)
			break
		}
		b = s.next(b, landing)
	}
	if s.stopping.Load() && s.leading.Load() > 0 {
		s.poke() // one message wakes one reader
	}
	s.mem.put(b)
	if s.readers.Add(-1) == 0 {
		for range leaders {
			s.mem.put(<-s.turns)
		}
		close(s.ended)
	}
}

// pass gives the turn on.
func (s *server) pass(landing *buffer) {
	s.leading.Add(-1)
	s.turns <- landing
}

// next reads a request, passes the turn on, and carries the request out. own is the reader's buffer; it returns the one it has then.
func (s *server) next(own, landing *buffer) *buffer {
	n, err := unix.Read(int(s.fuse.Fd()), landing.mem[inStart:])
	if err != nil {
		defer s.pass(landing)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOENT) { // ENOENT: the request was withdrawn meanwhile
			s.fail(fmt.Errorf("read request: %w (%w)", attach.ErrGone, err)) // ENODEV: aborted, or nobody has the file any more
			s.stopping.Store(true)
		}
		return own
	}
	in := landing.mem[inStart : inStart+n]
	r, err := parseRequest(in)
	if err != nil {
		defer s.pass(landing)
		s.fail(err) // nothing to address an answer to
		return own
	}
	if s.tap != nil {
		s.tap(r.opcode)
	}
	charge := r.charge()
	// Waiting here, with the turn, is what holds the attachment's later requests back.
	s.mem.admit(&s.share, charge)
	s.mem.use(own)
	if n <= inHeaderLen+writeInLen+smallIO {
		r.body = own.mem[inStart+inHeaderLen : inStart+n]
		copy(own.mem[inStart:], in)
	} else {
		own.land()
		landing, own = own, landing
	}
	if s.followers.Load() == 0 && s.readers.Load() < s.limit {
		if err := s.spawn(); err != nil {
			s.fail(err) // go on with the readers there are
		}
	}
	s.pass(landing)
	own.touched = max(own.touched, charge)
	s.handle(own, r)
	s.mem.settle(&s.share, charge)
	s.mem.idle(own)
	return own
}
