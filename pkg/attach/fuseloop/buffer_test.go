package fuseloop

import (
	"testing"
	"time"
)

func TestMemoryHoldsReadersBack(t *testing.T) {
	m := newMemory(16 * maxIO)
	var a, b account
	for range 4 {
		m.admit(&a, maxIO) // a's quarter
	}
	admitted := make(chan struct{})
	go func() {
		m.admit(&a, maxIO)
		close(admitted)
	}()
	deadline := time.After(10 * time.Second)
	for waiting := 0; waiting == 0; {
		select {
		case <-deadline:
			t.Fatal("the fifth request of an attachment does not wait")
		default:
			m.mu.Lock()
			waiting = m.waiting
			m.mu.Unlock()
		}
	}
	m.admit(&b, 4*maxIO) // another's are let through
	m.settle(&a, maxIO)
	<-admitted
	m.settle(&b, 4*maxIO)

	var others [20]account
	for i := range others {
		m.admit(&others[i], maxIO) // more than fits: each attachment may have one
	}
	if m.used != 24*maxIO {
		t.Errorf("%d bytes are in use; want 24 MiB", m.used)
	}
}

func TestIdleBuffersAreBounded(t *testing.T) {
	m := newMemory(16 * maxIO)
	var all []*buffer
	for range 10 {
		b, err := m.get()
		if err != nil {
			t.Fatal(err)
		}
		b.land()
		m.idle(b)
		all = append(all, b)
	}
	if m.kept != 4*maxIO {
		t.Errorf("%d bytes are kept idle; want 4 MiB", m.kept)
	}
	for _, b := range all {
		m.use(b)
		m.put(b)
	}
	if m.kept != 0 {
		t.Errorf("%d bytes are counted after all buffers went", m.kept)
	}
}
