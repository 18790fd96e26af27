// Package epoch tells when nobody can still touch a pool block: pins.
//
// Every read, write and copy pins before it looks a block up and unpins when its last I/O has ended. What is deferred runs once every pin that existed
// when it was deferred has ended. A pin costs one atomic add on a counter of its own cache line; deferred work runs on the goroutine that ends the last
// pin or that defers, so it must be short.
package epoch

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const (
	shards = 16
	// ring is the number of epochs whose pins are counted apart. Pins exist in the current epoch and the one before it alone, because the epoch moves
	// on only when the one before is empty; the third slot is the one being entered.
	ring = 3
)

type counter struct {
	n atomic.Int64
	_ [56]byte
}

// Domain is a set of pins and of work deferred until they end.
type Domain struct {
	now    atomic.Uint64
	counts [ring][shards]counter

	mu       sync.Mutex
	waiting  atomic.Bool
	deferred []deferred // in order of epoch
}

type deferred struct {
	epoch uint64
	run   func()
}

// Pin is one pin. The zero Pin is not valid.
type Pin struct {
	slot *counter
}

// Pin pins the present epoch.
func (d *Domain) Pin() Pin {
	shard := rand.Uint32() % shards
	for {
		e := d.now.Load()
		c := &d.counts[e%ring][shard]
		c.n.Add(1)
		// The epoch may have moved between the load and the add; then this slot may be taken for empty.
		if d.now.Load() == e {
			return Pin{c}
		}
		d.Unpin(Pin{c})
	}
}

// Unpin ends a pin.
func (d *Domain) Unpin(p Pin) {
	if p.slot.n.Add(-1) == 0 && d.waiting.Load() {
		d.advance()
	}
}

// Defer runs f once every pin that exists now has ended, at once if there is none.
func (d *Domain) Defer(f func()) {
	d.mu.Lock()
	d.deferred = append(d.deferred, deferred{d.now.Load(), f})
	d.waiting.Store(true)
	d.mu.Unlock()
	d.advance()
}

// advance moves the epoch on as far as pins allow and runs what has become due: work deferred in epoch e is due when the epoch is e+2, for then the
// pins of e and of all before it have ended.
func (d *Domain) advance() {
	var due []func()
	d.mu.Lock()
	for len(d.deferred) > 0 {
		now := d.now.Load()
		if d.deferred[0].epoch+2 <= now {
			due = append(due, d.deferred[0].run)
			d.deferred = d.deferred[1:]
			continue
		}
		if now > 0 && !d.empty(now-1) {
			break
		}
		d.now.Store(now + 1)
	}
	d.waiting.Store(len(d.deferred) > 0)
	d.mu.Unlock()
	for _, f := range due {
		f()
	}
}

func (d *Domain) empty(e uint64) bool {
	for i := range d.counts[e%ring] {
		if d.counts[e%ring][i].n.Load() != 0 {
			return false
		}
	}
	return true
}

// Wait returns when every pin that exists now has ended.
func (d *Domain) Wait() {
	done := make(chan struct{})
	d.Defer(func() { close(done) })
	<-done
}
