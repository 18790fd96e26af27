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

// idleReaders may wait for requests; one more that finishes leaves.
const idleReaders = 8

// server answers the requests of one mount. Readers are goroutines blocked in read(2) of one shared descriptor; each carries out what it read, itself, so
// that a request costs no switch of goroutines. A reader that leaves nobody waiting starts another, up to the limit.
//
// The descriptor is not cloned for each reader: requests that were read through a clone fail as soon as the dead process's clone is closed, unless the
// keeper has every one of them.
type server struct {
	fuse  *os.File
	dev   block.Device
	mem   *memory
	share account
	name  string // the file's
	ro    bool
	limit int32 // of readers

	idle     atomic.Int32
	readers  atomic.Int32
	stopping atomic.Bool
	ended    chan struct{} // closed when the last reader left

	ready    chan struct{} // closed when INIT was answered
	initOnce sync.Once
	proto    protocol // valid once ready is closed
	initErr  error

	released func() // called when the kernel closed the file
	mu       sync.Mutex
	err      error // the first thing that went wrong
}

func newServer(fuse *os.File, dev block.Device, mem *memory, name string, ro bool, limit int) *server {
	return &server{fuse: fuse, dev: dev, mem: mem, name: name, ro: ro, limit: int32(limit), ended: make(chan struct{}), ready: make(chan struct{}),
		released: func() {}}
}

// start serves a new mount: INIT comes first.
func (s *server) start() error { return s.spawn() }

// resume serves a mount that a dead process served: everything it had read and not answered is asked for again, before anything new is read.
func (s *server) resume(p protocol) error {
	s.proto = p
	s.initOnce.Do(func() { close(s.ready) })
	if p.Caps&capResend != 0 {
		if _, err := unix.Write(int(s.fuse.Fd()), notification(notifyResend, nil)); err != nil {
			return fmt.Errorf("ask for the dead process's requests again: %w", err)
		}
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

// poke wakes one waiting reader: it makes the kernel queue a message for which nobody waits. Nothing interrupts a read(2) otherwise, short of a signal,
// and polling before each read would cost a system call for each request. A message left over is ignored by the next server.
func (s *server) poke() {
	body := make([]byte, 32)            // notify_unique, nodeid, offset, size
	order.PutUint64(body[8:], fileNode) // kernels refuse to answer for a folder
	// It fails only where the connection is gone, and then the readers know.
	_, _ = unix.Write(int(s.fuse.Fd()), notification(notifyRetrieve, body))
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
	fd := int(s.fuse.Fd())
	for !s.stopping.Load() && s.idle.Load() < idleReaders {
		s.idle.Add(1)
		n, err := unix.Read(fd, b.mem[inStart:])
		left := s.idle.Add(-1)
		if err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOENT) {
				continue // ENOENT: the request was withdrawn while it was read
			}
			s.fail(fmt.Errorf("read request: %w (%w)", attach.ErrGone, err)) // ENODEV: aborted, or unmounted for good
			s.stopping.Store(true)
			break
		}
		if left == 0 && s.readers.Load() < s.limit && !s.stopping.Load() {
			if err := s.spawn(); err != nil {
				s.fail(err) // go on with the readers there are
			}
		}
		s.handle(b, n)
	}
	s.mem.put(b)
	if s.readers.Add(-1) == 0 {
		close(s.ended)
		return
	}
	if s.stopping.Load() {
		s.poke()
	}
}
