package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHandedOver is what Serve returns after a successor took everything: the process should end, successfully.
var ErrHandedOver = errors.New("handed over to a successor")

// takeoverTime bounds how long Serve tries to become the keeper of a socket.
const takeoverTime = 30 * time.Second

type record struct {
	data  []byte
	files []*os.File
}

type server struct {
	uid      uint32
	listener *net.UnixListener
	lock     *os.File // flock of socket + ".lock": one keeper at a time

	works *works
	event func(message string, keysAndValues ...any)

	mu      sync.Mutex // held for the whole of a handover, so that nothing changes meanwhile
	records map[string]*record
	over    bool // handed over
}

// Serve is the keeper of socket until ctx is done (it returns ctx's error and the descriptors are closed) or a successor took over (ErrHandedOver).
// Where a keeper runs already, Serve takes over from it. ready, if not nil, is called once it answers; event, if not nil, is told what no call can
// return.
//
// After a handover it returns when the works are done that it had begun; when ctx is done, at once. Then the process must end: a goroutine may be
// left that waits in the kernel, and holds nothing but copies of a file's descriptor.
func Serve(ctx context.Context, socket string, ready func(), event func(message string, keysAndValues ...any)) error {
	s := newServer(uint32(os.Geteuid()))
	if event != nil {
		s.event = event
	}
	if err := s.start(ctx, socket); err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	return s.serve(ctx)
}

func newServer(uid uint32) *server {
	return &server{uid: uid, records: make(map[string]*record), works: newWorks(), event: func(string, ...any) {}}
}

// start binds the socket, or takes it over from the keeper that has it.
func (s *server) start(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return fmt.Errorf("make the keeper's folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, takeoverTime)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.bind(socket)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = s.takeOver(ctx, socket)
		}
		if err == nil {
			return nil
		}
		// The other keeper may be ending, or starting and not listening yet.
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("become the keeper of %s: %w (%w)", socket, err, ctx.Err())
		}
	}
}

// bind takes the lock and listens. A socket file that is there while nobody has the lock is a dead keeper's.
func (s *server) bind(socket string) error {
	lock, err := os.OpenFile(socket+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the keeper's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("remove a dead keeper's socket: %w", err), lock.Close())
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return errors.Join(fmt.Errorf("listen: %w", err), lock.Close())
	}
	listener.SetUnlinkOnClose(false) // it may be the successor's by then
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("close the socket to others: %w", err), listener.Close(), lock.Close())
	}
	s.listener, s.lock = listener, lock
	return nil
}

func (s *server) serve(ctx context.Context) error {
	accepting, stop := context.WithCancelCause(ctx) // until a handover, too
	defer stop(nil)
	unhook := context.AfterFunc(accepting, func() { _ = s.listener.Close() })
	defer unhook()
	var wg sync.WaitGroup
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if accepting.Err() == nil && (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) {
				waitABit(accepting) // out of descriptors: what is kept must not be dropped for that
				continue
			}
			stop(fmt.Errorf("accept: %w", err)) // no-op when it ended for another reason
			break
		}
		wg.Go(func() {
			unhook := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer unhook()
			defer func() { _ = c.Close() }()
			over, err := s.answer(ctx, accepting, conn{c})
			if over {
				stop(ErrHandedOver)
			}
			if err != nil && ctx.Err() == nil {
				s.event("a client did not get its answer", "error", err)
			}
		})
	}
	return s.end(ctx, context.Cause(accepting), &wg)
}

// end lets go of everything, once the connections have ended and, after a handover, the works.
func (s *server) end(ctx context.Context, cause error, connections *sync.WaitGroup) error {
	if !errors.Is(cause, ErrHandedOver) {
		connections.Wait()
	}
	s.mu.Lock()
	for _, r := range s.records {
		closeAll(r.files)
	}
	clear(s.records)
	err := errors.Join(ignoreClosed(s.listener.Close()), s.lock.Close())
	s.mu.Unlock()
	if errors.Is(cause, ErrHandedOver) {
		done := make(chan struct{})
		go func() {
			s.works.group.Wait()
			connections.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return errors.Join(cause, err)
}

// waitABit lets others close descriptors; there is nothing to wait for.
func waitABit(ctx context.Context) {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// answer does the one request of a connection; over is true when everything was handed over. The error is that of an answer that could not be sent.
func (s *server) answer(ctx, accepting context.Context, c conn) (over bool, err error) {
	m, files, err := c.receive(exchange)
	if err == nil { // asked after reading: a connection closed with unread bytes loses the answer, too
		err = c.checkPeer(s.uid)
	}
	if err != nil {
		closeAll(files)
		return false, c.send(errorMessage(err))
	}
	switch m.op {
	case opHandover:
		closeAll(files)
		err := s.handOver(c)
		return err == nil, err
	case opWatch:
		closeAll(files)
		if c.send(message{op: opDone}) == nil {
			unhook := context.AfterFunc(accepting, func() { _ = c.Close() })
			defer unhook()
			_, more, _ := c.receive(0) // until the client, or this keeper, goes
			closeAll(more)
		}
		return false, nil
	case opWork:
		return false, s.work(ctx, c, m, files)
	}
	s.mu.Lock()
	answers, fds, err := s.change(m, files)
	s.mu.Unlock()
	defer closeAll(fds)
	if err != nil {
		answers = []message{errorMessage(err)}
	}
	for _, a := range answers {
		if err := c.send(a, numbers(fds)...); err != nil {
			return false, fmt.Errorf("answer request %d for %q: %w", m.op, m.id, err)
		}
	}
	return false, nil
}

// change carries out a request under the lock. The files it returns are copies, the caller's to close.
func (s *server) change(m message, files []*os.File) (answers []message, fds []*os.File, err error) {
	if s.over {
		closeAll(files)
		return nil, nil, ErrHandedOver
	}
	old := s.records[m.id]
	if m.op != opPut {
		closeAll(files)
		if old == nil && m.op != opList {
			return nil, nil, fmt.Errorf("record %q: %w", m.id, ErrNotFound)
		}
	}
	done := []message{{op: opDone}}
	switch m.op {
	case opPut:
		return done, nil, s.put(m, old, files)
	case opUpdate:
		old.data = m.data
		return done, nil, nil
	case opDelete:
		delete(s.records, m.id)
		closeAll(old.files)
		return done, nil, nil
	case opGet:
		for _, f := range old.files {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // the record may be deleted while the answer is on its way
			if err != nil {
				closeAll(fds)
				return nil, nil, fmt.Errorf("copy descriptor: %w", err)
			}
			fds = append(fds, os.NewFile(uintptr(fd), "kept"))
		}
		return []message{{op: opRecord, id: m.id, data: old.data}}, fds, nil
	case opList:
		for _, id := range s.ids() {
			answers = append(answers, message{op: opRecord, id: id, data: s.records[id].data})
		}
		return append(answers, done...), nil, nil
	}
	return nil, nil, fmt.Errorf("operation %d: %w", m.op, ErrProtocol)
}

func (s *server) put(m message, old *record, files []*os.File) error {
	var err error
	switch {
	case len(m.id) == 0 || len(files) == 0 || len(files) > MaxFDs:
		err = fmt.Errorf("record %q with %d descriptors: %w: an id and 1 to %d are needed", m.id, len(files), ErrProtocol, MaxFDs)
	case old != nil && m.flags&flagExclusive != 0:
		err = fmt.Errorf("record %q: %w", m.id, ErrExists)
	case old == nil && len(s.records) >= MaxRecords:
		err = fmt.Errorf("record %q: %w: %d records", m.id, ErrFull, MaxRecords)
	}
	if err != nil {
		closeAll(files)
		return err
	}
	s.records[m.id] = &record{data: m.data, files: files}
	if old != nil {
		closeAll(old.files)
	}
	return nil
}

func (s *server) ids() []string {
	ids := make([]string, 0, len(s.records))
	for id := range s.records {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func numbers(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return fds
}
