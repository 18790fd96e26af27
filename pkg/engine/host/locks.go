package host

import (
	"context"
	"fmt"
	"sync"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// locks is a table of read-write locks by key, first come, first served, so that neither side starves. sync.RWMutex is not used because a waiter must
// be able to give up when its caller does.
//
// Order: a pool's key, then a volume's.
type locks struct {
	mu    sync.Mutex
	table map[string]*keyLock
}

type keyLock struct {
	readers int
	writer  bool
	queue   []*waiter
}

type waiter struct {
	exclusive bool
	granted   chan struct{}
}

func poolKey(pool string) string           { return "pool " + pool }
func volumeKey(pool, volume string) string { return "volume " + ID(pool, volume) }

// shared and exclusive take the lock and return what gives it back.
func (l *locks) shared(ctx context.Context, key string) (func(), error) {
	return l.take(ctx, key, false)
}
func (l *locks) exclusive(ctx context.Context, key string) (func(), error) {
	return l.take(ctx, key, true)
}

func (l *locks) take(ctx context.Context, key string, exclusive bool) (func(), error) {
	w := &waiter{exclusive: exclusive, granted: make(chan struct{})}
	l.mu.Lock()
	if l.table == nil {
		l.table = map[string]*keyLock{}
	}
	k := l.table[key]
	if k == nil {
		k = &keyLock{}
		l.table[key] = k
	}
	k.queue = append(k.queue, w)
	k.grant()
	l.mu.Unlock()

	release := func() { l.release(key, k, exclusive) }
	select {
	case <-w.granted:
		return release, nil
	default:
	}
	select {
	case <-w.granted:
		return release, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.granted: // it came at the same moment
		l.releaseLocked(key, k, exclusive)
	default:
		k.forget(w)
		k.grant() // what queued behind it may go now
		l.drop(key, k)
	}
	return nil, fmt.Errorf("wait for another operation on %s: %w: %w", key, engine.ErrBusy, context.Cause(ctx))
}

func (l *locks) release(key string, k *keyLock, exclusive bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked(key, k, exclusive)
}

func (l *locks) releaseLocked(key string, k *keyLock, exclusive bool) {
	if exclusive {
		k.writer = false
	} else {
		k.readers--
	}
	k.grant()
	l.drop(key, k)
}

// drop forgets a key that nobody uses, so that the table is bounded by what is under way.
func (l *locks) drop(key string, k *keyLock) {
	if k.readers == 0 && !k.writer && len(k.queue) == 0 && l.table[key] == k {
		delete(l.table, key)
	}
}

func (k *keyLock) grant() {
	for len(k.queue) > 0 {
		w := k.queue[0]
		if k.writer || w.exclusive && k.readers > 0 {
			return
		}
		if w.exclusive {
			k.writer = true
		} else {
			k.readers++
		}
		k.queue = k.queue[1:]
		close(w.granted)
	}
}

func (k *keyLock) forget(w *waiter) {
	for i, q := range k.queue {
		if q == w {
			k.queue = append(k.queue[:i:i], k.queue[i+1:]...)
			return
		}
	}
}
