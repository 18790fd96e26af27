package epoch

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestDeferWaitsForOlderPins(t *testing.T) {
	var d Domain
	a := d.Pin()
	ran := make(chan struct{})
	d.Defer(func() { close(ran) })
	b := d.Pin() // younger than the deferred work
	select {
	case <-ran:
		t.Fatal("ran while an older pin was held")
	default:
	}
	d.Unpin(a)
	select {
	case <-ran:
	default:
		// A younger pin may hold it back by one epoch, never for ever.
		d.Unpin(b)
		<-ran
		return
	}
	d.Unpin(b)
}

func TestDeferRunsAtOnceWithoutPins(t *testing.T) {
	var d Domain
	n := 0
	for range 5 {
		d.Defer(func() { n++ })
	}
	if n != 5 {
		t.Fatalf("%d of 5 ran", n)
	}
}

// Each worker pins, reads the current object and checks that it was not retired before the pin ended.
func TestNothingRetiredUnderAPin(t *testing.T) {
	var d Domain
	type object struct{ retired atomic.Bool }
	var current atomic.Pointer[object]
	current.Store(&object{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20000 {
				p := d.Pin()
				o := current.Load()
				for range 3 {
					if o.retired.Load() {
						t.Error("object retired under a pin")
					}
				}
				d.Unpin(p)
			}
		})
	}
	wg.Go(func() {
		for range 20000 {
			old := current.Swap(&object{})
			d.Defer(func() { old.retired.Store(true) })
		}
	})
	wg.Wait()
	d.Wait()
}

func BenchmarkPin(b *testing.B) {
	var d Domain
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d.Unpin(d.Pin())
		}
	})
}
