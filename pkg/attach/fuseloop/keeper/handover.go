package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// handOver gives everything to the successor at the other end: the listening socket and the lock, each record, Done; then waits for its Confirm.
// Until that came, this keeper has lost nothing and goes on.
//
// Works under way are waited for, but not for long: one whose server is away may take until that server is back, and it is to find the new keeper.
// Such a work stays with this process, which answers it if somebody still waits. The new keeper's works of that id do not wait for it. That can do
// little: a Show or Clear of a dead client that has come to its system call meanwhile may make a second device, which Detach takes away, too, or
// clear the one that the next engine goes on with, which that engine sees.
func (s *server) handOver(c conn) error {
	s.works.settle(quiet)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return fmt.Errorf("hand over: %w", ErrHandedOver)
	}
	listener, err := s.listener.File() // a copy
	if err != nil {
		return fmt.Errorf("copy the listening socket: %w", err)
	}
	defer func() { _ = listener.Close() }()
	if err := c.send(message{op: opListener}, int(listener.Fd()), int(s.lock.Fd())); err != nil {
		return err
	}
	for _, id := range s.ids() {
		r := s.records[id]
		if err := c.send(message{op: opRecord, id: id, data: r.data}, numbers(r.files)...); err != nil {
			return err
		}
	}
	if err := c.send(message{op: opDone}); err != nil {
		return err
	}
	m, files, err := c.receive(exchange)
	closeAll(files)
	if err == nil && m.op != opConfirm {
		err = fmt.Errorf("successor sent %d where a confirmation was due: %w", m.op, ErrProtocol)
	}
	if err != nil {
		_ = c.send(errorMessage(err)) // a late confirmation must not leave two keepers
		return err
	}
	s.over = true
	_ = c.send(message{op: opDone}) // the successor has it all, whether or not it hears this
	return nil
}

// takeOver asks the keeper of socket for everything it has.
func (s *server) takeOver(ctx context.Context, socket string) error {
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.send(message{op: opHandover}); err != nil {
		return err
	}
	next := newServer(s.uid)
	if err := next.collect(c); err != nil {
		next.drop()
		return fmt.Errorf("take over from the keeper of %s: %w", socket, err)
	}
	if err := c.send(message{op: opConfirm}); err != nil {
		next.drop()
		return fmt.Errorf("confirm takeover: %w", err)
	}
	// Only the old keeper's word makes this one step back: if it died, or hangs, by now, nobody else has the descriptors.
	if m, files, err := c.receive(exchange); err == nil && m.asError() != nil {
		closeAll(files)
		next.drop()
		return fmt.Errorf("old keeper goes on: %w", m.asError())
	}
	s.listener, s.lock, s.records = next.listener, next.lock, next.records
	return nil
}

// collect receives what handOver sends.
func (s *server) collect(c conn) error {
	for {
		m, files, err := c.receive(exchange)
		if err != nil {
			return err
		}
		if err := m.asError(); err != nil {
			closeAll(files)
			return err
		}
		switch {
		case m.op == opListener && len(files) == 2 && s.listener == nil:
			l, err := net.FileListener(files[0]) // a copy
			_ = files[0].Close()
			s.lock = files[1]
			if err != nil {
				return fmt.Errorf("use the listening socket: %w", err)
			}
			ul, ok := l.(*net.UnixListener)
			if !ok {
				return errors.Join(fmt.Errorf("listening socket is a %T: %w", l, ErrProtocol), l.Close())
			}
			ul.SetUnlinkOnClose(false)
			s.listener = ul
		case m.op == opRecord && len(files) > 0 && s.records[m.id] == nil:
			s.records[m.id] = &record{data: m.data, files: files}
		case m.op == opDone && s.listener != nil:
			closeAll(files)
			return nil
		default:
			closeAll(files)
			return fmt.Errorf("message %d with %d descriptors: %w", m.op, len(files), ErrProtocol)
		}
	}
}

// drop closes what a failed takeover collected; the old keeper has it all.
func (s *server) drop() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
	for _, r := range s.records {
		closeAll(r.files)
	}
}
