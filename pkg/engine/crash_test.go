package engine

import (
	"context"
	"encoding/gob"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	crashCuts  = flag.Int("crash.cuts", 2000, "cuts that the crash test makes")
	crashEach  = flag.Int("crash.each", 250, "of them, in each recording")
	crashSeed  = flag.Uint64("crash.seed", 0, "first workload's seed; 0: the time")
	crashTape  = flag.String("crash.tape", "", "cut this saved recording and make none")
	crashAt    = flag.Int("crash.at", 0, "with -crash.tape: cut at this step only")
	crashKind  = flag.Int("crash.kind", 0, "with -crash.at: what kind of cut")
	crashPick  = flag.Uint64("crash.choice", 0, "with -crash.at: the seed of its choices")
	crashTries = flag.Int("crash.tries", 12, "recordings in which a mutation must be caught")
)

func crashOptions(t *testing.T) Options {
	o := testOptions(t)
	o.Observer, o.ringBytes, o.logBytes, o.patience = nil, crashRing, 64<<10, 300*time.Millisecond
	o.flushSlots = 4 // so few that flushes commit as well
	o.SpaceWait, o.RefuseAt, o.smallest, o.pinPatience = 300*time.Millisecond, 2, SizeUnit, 0
	return o
}

// ringFolder is in memory where that is possible.
func ringFolder(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestCrash records workloads, cuts each in many places, and checks DESIGN's promises sector by sector on what is left.
func TestCrash(t *testing.T) {
	if *crashTape != "" {
		replayTape(t)
		return
	}
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("first seed %d", seed)
	told := time.Now()
	for done := 0; done < *crashCuts; done += *crashEach {
		if time.Since(told) > time.Minute {
			told = time.Now()
			t.Logf("%d of %d cuts, next seed %d", done, *crashCuts, seed)
		}
		r := mustRecord(t, seed)
		if c, err := crashAll(t, r, r.cuts(*crashEach, rand.New(rand.NewPCG(seed, 1))), crashOptions(t)); err != nil {
			t.Fatalf("seed %d, %v: %v\n%s", seed, c, err, save(t, r, c))
		}
		seed++
	}
}

func mustRecord(t *testing.T, seed uint64) *recording {
	o := crashOptions(t)
	o.RingDir = ringFolder(t)
	r, err := record(seed, o)
	if err != nil {
		t.Fatalf("seed %d, the run itself: %v\n%s", seed, err, save(t, r, cut{at: len(r.Tape.Steps)}))
	}
	return r
}

// crashAll judges cuts, which are in order, on all processors. It returns the first that broke a promise.
func crashAll(t *testing.T, r *recording, cuts []cut, o Options) (cut, error) {
	var wg sync.WaitGroup
	var failed atomic.Pointer[struct {
		cut
		err error
	}]
	states := make(chan *state)
	for range runtime.GOMAXPROCS(0) {
		dir := ringFolder(t)
		wg.Go(func() {
			for st := range states {
				if err := st.judge(o, dir); err != nil {
					failed.CompareAndSwap(nil, &struct {
						cut
						err error
					}{st.cut, err})
				}
			}
		})
	}
	err := r.play(cuts, func(st *state) error {
		if failed.Load() != nil {
			return context.Canceled
		}
		states <- st
		return nil
	})
	close(states)
	wg.Wait()
	if f := failed.Load(); f != nil {
		return f.cut, f.err
	}
	return cut{}, err
}

// save keeps a recording and says how to cut it there again.
func save(t *testing.T, r *recording, c cut) string {
	name := filepath.Join(t.ArtifactDir(), fmt.Sprintf("crash-%d.tape", r.Seed))
	f, err := os.Create(name)
	if err == nil {
		err = gob.NewEncoder(f).Encode(r)
	}
	if err != nil {
		return fmt.Sprintf("the recording could not be saved: %v", err)
	}
	return fmt.Sprintf("again: go test ./pkg/engine -run 'TestCrash$' -args -crash.tape %s -crash.at %d -crash.kind %d -crash.choice %d (with go test "+
		"-artifacts, else the file is gone)", name, c.at, c.kind, c.choice)
}

func replayTape(t *testing.T) {
	r := loadTape(t, *crashTape)
	cuts := []cut{{at: *crashAt, kind: cutKind(*crashKind), choice: *crashPick}}
	if *crashAt == 0 {
		cuts = r.cuts(*crashCuts, rand.New(rand.NewPCG(r.Seed, 1)))
	}
	if c, err := crashAll(t, r, cuts, crashOptions(t)); err != nil {
		t.Fatalf("%v: %v", c, err)
	}
}

// A saved recording can be cut again as it was.
func TestSavedRecording(t *testing.T) {
	r := mustRecord(t, 1)
	name := filepath.Join(t.TempDir(), "tape")
	f, err := os.Create(name)
	must(t, err)
	must(t, gob.NewEncoder(f).Encode(r))
	must(t, f.Close())
	again := loadTape(t, name)
	c, err := crashAll(t, again, again.cuts(20, rand.New(rand.NewPCG(1, 1))), crashOptions(t))
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	if len(again.Tape.Steps) != len(r.Tape.Steps) || len(again.Marks) != len(r.Marks) {
		t.Fatalf("%d steps and %d marks were saved, %d and %d loaded", len(r.Tape.Steps), len(r.Marks), len(again.Tape.Steps), len(again.Marks))
	}
}

func loadTape(t *testing.T, name string) *recording {
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	r := &recording{}
	must(t, gob.NewDecoder(f).Decode(r))
	return r
}
