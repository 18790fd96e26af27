package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

type testObserver struct{ t *testing.T }

func (o testObserver) Event(pool, message string, kv ...any) {
	o.t.Logf("event: %s: %s %v", pool, message, kv)
}

func (testObserver) Figures(string) *Figures { return &Figures{} }

func testOptions(t *testing.T) Options {
	return Options{RingDir: t.TempDir(), MountDir: t.TempDir(), anyRingFS: true, ringBytes: 64 << 10, flushSlots: 16, MapCache: 1, Observer: testObserver{t},
		ChecksumRate: 1 << 40, ChecksumDelay: -1, pinPatience: time.Minute} // what COW does must not hang on how busy the machine is
}

// newPool makes a pool in a folder of the test's. When the test ends it is checked and closed.
func newPool(t *testing.T, o Options, size int64) *testPool {
	t.Helper()
	dir := t.TempDir()
	NeedFileSystem(t, dir)
	return createPool(t, PoolSpec{Name: "p", Directory: dir, Size: size}, o)
}

// createPool makes a pool that is checked and closed when the test ends.
func createPool(t *testing.T, spec PoolSpec, o Options) *testPool {
	t.Helper()
	p, err := CreatePool(t.Context(), spec, o)
	if err != nil {
		t.Fatal(err)
	}
	tp := &testPool{t, p, o, spec.Directory}
	t.Cleanup(func() {
		if t.Failed() {
			_ = tp.kill()
			return
		}
		tp.check()
		if err := tp.Close(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return tp
}

type testPool struct {
	t *testing.T
	*Pool
	o   Options
	dir string
}

// check runs Check, which must find nothing.
func (tp *testPool) check() {
	tp.t.Helper()
	if tp.closed.Load() {
		return
	}
	report, err := tp.Check(context.Background())
	if err != nil {
		tp.t.Fatal(err)
	}
	for _, problem := range report.Problems {
		tp.t.Errorf("check: %s", problem)
	}
	if err := tp.scrubbed(); err != nil {
		tp.t.Errorf("%v", err)
	}
	if tp.t.Failed() {
		tp.t.FailNow()
	}
}

// scrubbed compares all frozen blocks that have a checksum with it.
func (tp *testPool) scrubbed() error {
	var problems []ScrubProblem
	r, err := tp.Scrub(context.Background(), ScrubSpec{Found: func(p ScrubProblem) { problems = append(problems, p) }})
	if err == nil && r.Problems > 0 {
		err = fmt.Errorf("scrub: %+v", problems)
	}
	if errors.Is(err, ErrBusy) {
		return nil
	}
	return err
}

// kill lets the pool go as the death of the process would: nothing is flushed and nothing said.
func (tp *testPool) kill() error {
	p := tp.Pool
	if !p.closed.CompareAndSwap(false, true) {
		return nil
	}
	close(p.stop)
	p.wg.Wait()
	err := p.store.close()
	if l := p.flushes.log; l != nil { // whoever has the rounds' turn has it still
		err = errors.Join(err, l.Close())
	}
	return errors.Join(err, p.pages.close(), p.ring.Close(), p.members.close())
}

func (tp *testPool) reopen() {
	tp.t.Helper()
	p, err := OpenPool(context.Background(), tp.dir, tp.o)
	if err != nil {
		tp.t.Fatal(err)
	}
	tp.Pool = p
}

func (tp *testPool) volume(name string, size int64) *Volume {
	tp.t.Helper()
	if _, err := tp.CreateVolume(tp.t.Context(), VolumeSpec{Name: name, Size: size}); err != nil {
		tp.t.Fatal(err)
	}
	return tp.open(name)
}

func (tp *testPool) open(name string) *Volume {
	tp.t.Helper()
	v, err := tp.OpenVolume(tp.t.Context(), name)
	if err != nil {
		tp.t.Fatal(err)
	}
	return v
}

func (tp *testPool) jobsDone() {
	tp.t.Helper()
	if err := tp.WaitJobs(tp.t.Context()); err != nil {
		tp.t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
