package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
)

// Record is what the keeper keeps for one attachment.
type Record struct {
	ID   string
	Data []byte
}

// Client speaks to the keeper of a socket, on a connection for each call: it has no state that a keeper's end or handover could spoil.
type Client struct{ socket string }

// NewClient makes a client; it does not connect.
func NewClient(socket string) *Client { return &Client{socket: socket} }

func dial(ctx context.Context, socket string) (conn, error) {
	ctx, cancel := context.WithTimeout(ctx, exchange)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return conn{}, fmt.Errorf("reach the keeper (is it running?): %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return conn{}, fmt.Errorf("connection to %s is a %T", socket, c)
	}
	return conn{uc}, nil
}

// Put stores a record with descriptors, which stay the caller's; exclusive fails with ErrExists where the id is taken, otherwise Put replaces.
func (k *Client) Put(ctx context.Context, r Record, exclusive bool, files ...*os.File) error {
	m := message{op: opPut, id: r.ID, data: r.Data}
	if exclusive {
		m.flags = flagExclusive
	}
	return k.simple(ctx, m, files...)
}

// Update stores new data and leaves the descriptors as they are.
func (k *Client) Update(ctx context.Context, r Record) error {
	return k.simple(ctx, message{op: opUpdate, id: r.ID, data: r.Data})
}

// Delete forgets a record; ErrNotFound where there is none.
func (k *Client) Delete(ctx context.Context, id string) error {
	return k.simple(ctx, message{op: opDelete, id: id})
}

// Get returns a record and copies of its descriptors.
func (k *Client) Get(ctx context.Context, id string) (Record, []*os.File, error) {
	var r Record
	var files []*os.File
	err := k.exchange(ctx, message{op: opGet, id: id}, nil, func(m message, got []*os.File) error {
		if m.op != opRecord || m.id != id {
			return fmt.Errorf("answer %d for %q: %w", m.op, m.id, ErrProtocol)
		}
		r, files = Record{m.id, m.data}, slices.Clone(got)
		clear(got) // kept: the caller closes the others
		return errLast
	})
	if err != nil {
		closeAll(files)
		return Record{}, nil, fmt.Errorf("get %q from the keeper: %w", id, err)
	}
	return r, files, nil
}

// List returns all records, in order of their ids.
func (k *Client) List(ctx context.Context) ([]Record, error) {
	var all []Record
	err := k.exchange(ctx, message{op: opList}, nil, func(m message, _ []*os.File) error {
		switch m.op {
		case opDone:
			return errLast
		case opRecord:
			all = append(all, Record{m.id, m.data})
			return nil
		}
		return fmt.Errorf("answer %d: %w", m.op, ErrProtocol)
	})
	if err != nil {
		return nil, fmt.Errorf("list the keeper's records: %w", err)
	}
	return all, nil
}

// Watch calls connected once it has reached the keeper, and returns when that keeper has ended or ctx is done; an error says that it was not reached.
// After it returned, a client that serves attachments Puts them again: the next keeper may be a successor, or one that starts with nothing.
func (k *Client) Watch(ctx context.Context, connected func()) error {
	c, err := dial(ctx, k.socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := c.send(message{op: opWatch}); err != nil {
		return err
	}
	m, files, err := c.receive(exchange)
	closeAll(files)
	if err != nil {
		return err
	}
	if err := m.asError(); err != nil {
		return err
	}
	connected()
	_, files, _ = c.receive(0)
	closeAll(files)
	return ctx.Err()
}

// errLast ends an exchange.
var errLast = errors.New("last answer")

func (k *Client) simple(ctx context.Context, m message, files ...*os.File) error {
	err := k.exchange(ctx, m, files, func(answer message, _ []*os.File) error {
		if answer.op != opDone {
			return fmt.Errorf("answer %d: %w", answer.op, ErrProtocol)
		}
		return errLast
	})
	if err != nil {
		return fmt.Errorf("store %q at the keeper: %w", m.id, err)
	}
	return nil
}

// exchange is once, again while the keeper that answers has just handed over: it has done nothing, and its successor has the socket.
func (k *Client) exchange(ctx context.Context, m message, files []*os.File, each func(message, []*os.File) error) error {
	for {
		if err := k.once(ctx, m, files, each); !errors.Is(err, ErrHandedOver) || ctx.Err() != nil {
			return err
		}
	}
}

// once sends m and calls each for every answer until it returns an error; errLast is the good end. Files that each leaves in the slice are
// closed.
func (k *Client) once(ctx context.Context, m message, files []*os.File, each func(message, []*os.File) error) error {
	c, err := dial(ctx, k.socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := c.send(m, numbers(files)...); err != nil {
		return err
	}
	patience := exchange
	if m.op == opWork {
		patience = 0
	}
	for {
		answer, got, err := c.receive(patience)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("wait for the keeper: %w", ctx.Err())
		}
		if err != nil {
			return err
		}
		err = answer.asError()
		if err == nil {
			err = each(answer, got)
		}
		for _, f := range got {
			if f != nil {
				_ = f.Close()
			}
		}
		if errors.Is(err, errLast) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
