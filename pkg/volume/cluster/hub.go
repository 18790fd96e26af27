package cluster

import (
	"reflect"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// hub wakes whoever waits for an object. The zero value is ready.
type hub struct {
	mu      sync.Mutex
	waiting map[hubKey]map[chan struct{}]struct{} // guarded by mu
}

// hubKey is an object: objects of ours have no namespace.
type hubKey struct {
	kind reflect.Type
	name string
}

func keyOf(obj client.Object) hubKey { return hubKey{reflect.TypeOf(obj), obj.GetName()} }

// subscribe answers a channel that has a value after each change of the object; changes that nobody took become one. The caller calls cancel once.
func (h *hub) subscribe(obj client.Object) (changes <-chan struct{}, cancel func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k, c := keyOf(obj), make(chan struct{}, 1)
	if h.waiting == nil {
		h.waiting = make(map[hubKey]map[chan struct{}]struct{})
	}
	if h.waiting[k] == nil {
		h.waiting[k] = make(map[chan struct{}]struct{})
	}
	h.waiting[k][c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiting[k], c)
		if len(h.waiting[k]) == 0 {
			delete(h.waiting, k)
		}
	}
}

// changed is told of every change.
func (h *hub) changed(obj client.Object) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.waiting[keyOf(obj)] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
