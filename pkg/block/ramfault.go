package block

import "context"

// FailNext makes the next request of that kind return err; calls queue up.
func (r *RAM) FailNext(op Op, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails[op] = append(r.fails[op], err)
	r.knobs.Store(true)
}

// SetLimit bounds the memory that written chunks may take, in bytes: a write that needs more returns ErrNoSpace. 0 takes the bound away.
func (r *RAM) SetLimit(bytes int64) { r.limit.Store(bytes) }

// SetReadOnly makes writes, discards and write-zeroes return ErrReadOnly.
func (r *RAM) SetReadOnly(ro bool) { r.ro.Store(ro) }

// Close makes every later request return ErrClosed.
func (r *RAM) Close() error {
	r.closed.Store(true)
	return nil
}

// Count is how many requests of that kind arrived; Bytes is the sum of their lengths.
func (r *RAM) Count(op Op) int64 { return r.counts[op].Load() }

// Bytes is the sum of the lengths of the requests of that kind.
func (r *RAM) Bytes(op Op) int64 { return r.bytes[op].Load() }

// Hold makes requests of that kind wait until release is called. A second Hold of a kind replaces nothing: it panics.
func (r *RAM) Hold(op Op) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gates[op] != nil {
		panic("RAM.Hold: " + op.String() + " is held already")
	}
	gate := make(chan struct{})
	r.gates[op] = gate
	r.knobs.Store(true)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.gates[op] == gate {
			r.gates[op] = nil
			close(gate)
		}
	}
}

// WaitHeld returns when n requests of that kind wait at the gate, or with ctx's error.
func (r *RAM) WaitHeld(ctx context.Context, op Op, n int) error {
	for {
		r.mu.Lock()
		stuck, moved := r.stuck[op], r.moved
		r.mu.Unlock()
		if stuck >= n {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fault waits at the gate, if there is one, and then takes the next planned failure.
func (r *RAM) fault(op Op) error {
	r.mu.Lock()
	if gate := r.gates[op]; gate != nil {
		r.stuck[op]++
		r.signal()
		r.mu.Unlock()
		<-gate
		r.mu.Lock()
		r.stuck[op]--
		r.signal()
	}
	defer r.mu.Unlock()
	if q := r.fails[op]; len(q) > 0 {
		r.fails[op] = q[1:]
		return q[0]
	}
	return nil
}

func (r *RAM) signal() {
	close(r.moved)
	r.moved = make(chan struct{})
}
