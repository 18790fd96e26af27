package engine

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// The pool is closed while a page is being tidied: what is under way ends first.
func TestCloseWaitsForTidy(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 1<<20)
	for i := range int64(128) {
		p.writeStamp(v, i*37%128, 1, 1)
	}
	want := readAll(t, v)
	must(t, v.Close(t.Context()))
	p.quiet()
	var reading, came atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	disk.Add(fsys.Rule{Op: fsys.OpRead, Glob: "*.seg", When: func(fsys.Call) bool { reading.Store(true); return false }})
	disk.Add(fsys.Rule{Op: fsys.OpSync, When: func(fsys.Call) bool {
		if reading.Load() && came.CompareAndSwap(false, true) {
			close(held)
			<-release
		}
		return false
	}})
	tidied, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := p.Tidy(context.Background(), TidySpec{Volume: "v", Rate: -1})
		tidied <- err
	}()
	<-held // its copies are written, and it holds no pin
	go func() { closed <- p.Close(context.Background()) }()
	early := time.NewTimer(300 * time.Millisecond)
	defer early.Stop()
	select {
	case err := <-closed:
		t.Errorf("the pool is closed, and a page of it is being tidied: %v", err)
		closed <- err
	case <-early.C:
	}
	close(release)
	if err := <-tidied; err != nil && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	must(t, <-closed)
	if _, err := p.Tidy(t.Context(), TidySpec{Volume: "v"}); !errors.Is(err, ErrClosed) {
		t.Errorf("tidying in a closed pool: %v", err)
	}
	disk.Clear()
	p.reopen()
	expect(t, p.open("v"), want)
	p.check()
}
