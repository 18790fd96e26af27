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

	mu      sync.Mutex // held for the whole of a handover, so that nothing changes meanwhile
	records map[string]*record
	over    bool // handed over
}

// Serve is the keeper of socket until ctx is done (it returns ctx's error and the descriptors are closed) or a successor took over (ErrHandedOver).
// Where a keeper runs already, Serve takes over from it. ready, if not nil, is called once it answers.
func Serve(ctx context.Context, socket string, ready func()) error {
	s := &server{uid: uint32(os.Geteuid()), records: make(map[string]*record)}
	if err := s.start(ctx, socket); err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	return s.serve(ctx)
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil && (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) {
				waitABit(ctx) // out of descriptors: what is kept must not be dropped for that
				continue
			}
			cancel(fmt.Errorf("accept: %w", err)) // no-op when it ended for another reason
			break
		}
		wg.Go(func() {
			unhook := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer unhook()
			defer func() { _ = c.Close() }()
			if s.answer(ctx, conn{c}) {
				cancel(ErrHandedOver)
			}
		})
	}
	wg.Wait()
	for _, r := range s.records {
		closeAll(r.files)
	}
	return errors.Join(context.Cause(ctx), ignoreClosed(s.listener.Close()), s.lock.Close())
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

// answer does the one request of a connection; it returns true when everything was handed over.
func (s *server) answer(ctx context.Context, c conn) bool {
	m, files, err := c.receive(exchange)
	if err == nil { // asked after reading: a connection closed with unread bytes loses the answer, too
		err = c.checkPeer(s.uid)
	}
	if err != nil {
		closeAll(files)
		_ = c.send(errorMessage(err))
		return false
	}
	switch m.op {
	case opHandover:
		closeAll(files)
		return s.handOver(c) == nil
	case opWatch:
		closeAll(files)
		if c.send(message{op: opDone}) == nil {
			_, more, _ := c.receive(0) // until the client, or this keeper, goes
			closeAll(more)
		}
		return false
	}
	s.mu.Lock()
	answers, fds, err := s.change(m, files)
	s.mu.Unlock()
	defer closeAll(fds)
	if err != nil {
		_ = c.send(errorMessage(err))
		return false
	}
	for _, a := range answers {
		if c.send(a, numbers(fds)...) != nil {
			return false
		}
	}
	return false
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
