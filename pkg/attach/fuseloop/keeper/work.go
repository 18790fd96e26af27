package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
)

// quiet is how long a handover waits for works under way. Those that take longer wait for a server that is away; see handOver.
const quiet = 2 * time.Second

// works are the operations under way. One id's are carried out one after the other, in the order in which they came.
type works struct {
	group sync.WaitGroup

	mu    sync.Mutex
	last  map[string]chan struct{} // closed at the end of the id's last work
	count int
	idle  chan struct{} // closed when count is 0
}

func newWorks() *works {
	w := &works{last: make(map[string]chan struct{}), idle: make(chan struct{})}
	close(w.idle)
	return w
}

// enter takes the next turn of an id. before is closed when it has come; leave must be called after it was.
func (w *works) enter(id string) (before <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.group.Add(1)
	if w.count == 0 {
		w.idle = make(chan struct{})
	}
	w.count++
	mine, previous := make(chan struct{}), w.last[id]
	if previous == nil {
		previous = make(chan struct{})
		close(previous)
	}
	w.last[id] = mine
	return previous, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(mine)
		if w.last[id] == mine {
			delete(w.last, id)
		}
		if w.count--; w.count == 0 {
			close(w.idle)
		}
		w.group.Done()
	}
}

// settle waits until no work is under way, or long enough.
func (w *works) settle(patience time.Duration) {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

// result is what a work came to.
type result struct {
	loopdev.Result
	file *os.File
	err  error
}

// work has a Work carried out in a goroutine of its own, which may come to wait in the kernel until somebody serves the file again: nothing else
// waits for it but the answer, and later works of the same id. It returns once it is answered, or the client is gone. Then nothing needs to be
// undone: a Show that has not made its device by then makes none, and one that has leaves it to the record of its id, by which the next engine finds
// it.
func (s *server) work(ctx context.Context, c conn, m message, files []*os.File) error {
	var w loopdev.Work
	err := json.Unmarshal(m.data, &w)
	if err != nil || len(files) > 1 || m.id == "" {
		err = fmt.Errorf("work for %q with %d descriptors: %w (%w)", m.id, len(files), ErrProtocol, err)
	}
	s.mu.Lock()
	if s.over {
		err = ErrHandedOver
	}
	if err != nil {
		s.mu.Unlock()
		closeAll(files)
		return c.send(errorMessage(err))
	}
	turn, leave := s.works.enter(m.id) // under mu: none begins after a handover
	s.mu.Unlock()

	ctx, gone := context.WithCancel(ctx)
	defer gone()
	go func() { // the client says nothing more: when the connection ends it is gone
		_, more, _ := c.receive(0)
		closeAll(more)
		gone()
	}()
	done := make(chan result, 1)
	go func() {
		defer leave()
		<-turn
		done <- carryOut(ctx, w, files)
	}()
	select {
	case r := <-done:
		return answerWork(c, r)
	case <-ctx.Done():
		go func() { // whoever asked does not get it
			if r := <-done; r.file != nil {
				_ = r.file.Close()
			}
		}()
		return nil
	}
}

// carryOut does a work whose turn has come. One whose client is gone by then was for nobody.
func carryOut(ctx context.Context, w loopdev.Work, files []*os.File) (r result) {
	defer closeAll(files)
	if ctx.Err() != nil {
		return result{err: ctx.Err()}
	}
	var file *os.File
	if len(files) > 0 {
		file = files[0]
	}
	r.Result, r.file, r.err = w.Do(ctx, file)
	return r
}

func answerWork(c conn, r result) error {
	if r.file != nil {
		defer func() { _ = r.file.Close() }()
	}
	if r.err != nil {
		return c.send(errorMessage(r.err))
	}
	data, err := json.Marshal(r.Result)
	if err != nil {
		return c.send(errorMessage(err))
	}
	if r.file != nil {
		return c.send(message{op: opDone, data: data}, int(r.file.Fd()))
	}
	return c.send(message{op: opDone, data: data})
}

// Do has the keeper carry out a work of an attachment, after earlier ones of the same id. It may wait for as long as nobody serves the attachment, or
// until ctx is done; the keeper goes on with what it has begun. The file it returns is the caller's.
func (k *Client) Do(ctx context.Context, id string, w loopdev.Work, file *os.File) (loopdev.Result, *os.File, error) {
	var r loopdev.Result
	var answered *os.File
	data, err := json.Marshal(w)
	if err != nil {
		return r, nil, fmt.Errorf("encode work: %w", err)
	}
	var files []*os.File
	if file != nil {
		files = []*os.File{file}
	}
	err = k.exchange(ctx, message{op: opWork, id: id, data: data}, files, func(m message, got []*os.File) error {
		if m.op != opDone {
			return fmt.Errorf("answer %d: %w", m.op, ErrProtocol)
		}
		if err := json.Unmarshal(m.data, &r); err != nil {
			return fmt.Errorf("decode the result: %w (%w)", ErrProtocol, err)
		}
		if len(got) == 1 {
			answered, got[0] = got[0], nil
		}
		return errLast
	})
	switch {
	case err == nil:
		return r, answered, nil
	case errors.Is(err, ErrNotFound) || errors.Is(err, ErrProtocol):
		err = fmt.Errorf("%w (a keeper older than this engine does not know this: start a new one, which takes over from it)", err)
	}
	return r, nil, fmt.Errorf("have the keeper %s the device of %q: %w", w.Kind, id, err)
}
