package engine

import (
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// holdLog keeps the next write of the metadata's log from beginning until release is called; held is closed when it has come.
func holdLog(disk *fsys.FaultFS) (held <-chan struct{}, release func()) {
	came, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	disk.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", When: func(fsys.Call) bool {
		once.Do(func() { close(came) })
		<-let
		return false
	}})
	return came, sync.OnceFunc(func() { close(let) })
}

// A round begins, flushes and composes while the one before it waits for its sync; maps show the newest runs of all rounds; and a FLUSH with nothing
// pending waits for what is on its way.
func TestRoundsOverlap(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", pageBytes)
	want := fill(t, v, 1)
	must(t, v.Flush())
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	put := func(b byte) {
		t.Helper()
		for i := range 3 * BlockSize {
			want[i] = b
		}
		must(t, v.Discard(0, 3*BlockSize)) // so that each round has runs of its own
		_, err := v.WriteAt(want[:3*BlockSize], 0)
		must(t, err)
		expect(t, v, want)
	}
	p.quiet() // nobody else commits
	held, release := holdLog(disk)
	defer release()
	put(2)
	flushed := make(chan error, 3)
	flush := func() { flushed <- p.flush() }
	go flush()
	<-held
	put(3)
	p.flushHanded()
	put(4)
	for range 2 {
		go flush()
	}
	// Two are under way; the third waits for its beginning. None may answer.
	p.rounds.mu.Lock()
	under := p.rounds.under
	p.rounds.mu.Unlock()
	if under.before == nil || len(flushed) > 0 {
		t.Errorf("%d flushes are answered, before any sync", len(flushed))
	}
	expect(t, v, want)
	release()
	for range 3 {
		must(t, <-flushed)
	}
	expect(t, v, want)
	must(t, p.kill())
	p.reopen()
	expect(t, p.open("v"), want)
	p.check()
}

// A FLUSH that finds nothing pending waits for the commit of what was.
func TestEmptyRoundWaitsForTheOneBefore(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", pageBytes)
	p.quiet() // nobody else commits
	held, release := holdLog(disk)
	defer release()
	_, err := v.WriteAt(make([]byte, BlockSize), 0)
	must(t, err)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- p.flush() }()
	<-held
	r, lead := p.joinRound(true)
	if lead {
		go p.runRounds()
	}
	go func() { second <- p.flush() }()
	<-r.handed // nothing was pending: all it does is done
	select {
	case <-r.done:
		t.Error("a round with nothing to commit is done before the one that is on its way")
	case <-second:
		t.Error("a flush is answered before the write it covers is durable")
	default:
	}
	release()
	must(t, <-first)
	must(t, <-second)
}

// What is pending weighs by runs and by what the device will have to write out for the flush.
func TestWeigh(t *testing.T) {
	for _, c := range []struct {
		name string
		list []runs.Entry
		want int64
	}{
		{"nothing", nil, 0},
		{"a block", []runs.Entry{runs.Data(0, 1, 7, 1)}, 1},
		{"64 KiB", []runs.Entry{runs.Data(0, 16, 7, 1)}, 1},
		{"1 MiB in one piece", []runs.Entry{runs.Data(0, 256, 7, 1)}, 9},
		{"1 MiB of zeroes, which are not written", []runs.Entry{runs.Zero(0, 256, 1)}, 1},
		{"three", []runs.Entry{runs.Data(0, 1, 7, 1), runs.Zero(1, 500, 1), runs.Data(501, 64, 9, 1)}, 5},
	} {
		if got := weigh(c.list); got != c.want {
			t.Errorf("%s weighs %d, want %d", c.name, got, c.want)
		}
	}
}
