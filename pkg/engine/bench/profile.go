package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"
)

// profile writes a CPU profile of a contest's first round, if profiles are asked for.
func (r *runner) profile(name string, round int) (stop func(), err error) {
	if r.Profiles == "" || round > 0 {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(r.Profiles, name+".cpu"))
	if err != nil {
		return nil, fmt.Errorf("write profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("write profile: %w", errors.Join(err, f.Close()))
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

// longStall is how long no write may end before watchStalls wants to know why.
const longStall = 300 * time.Millisecond

// watchStalls writes all goroutines' stacks to the folder of profiles, once, where no write has ended for long.
func (r *runner) watchStalls(ctx context.Context, name string, writes *histogram) {
	if r.Profiles == "" {
		return
	}
	tick := time.NewTicker(longStall)
	defer tick.Stop()
	for last := uint64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := writes.count()
		if now > 0 && now == last {
			r.tellStall(name)
			return
		}
		last = now
	}
}

func (r *runner) tellStall(name string) {
	f, err := os.Create(filepath.Join(r.Profiles, "stall-"+name+".txt"))
	if err == nil {
		err = errors.Join(pprof.Lookup("goroutine").WriteTo(f, 2), f.Close())
	}
	r.say("%s: no write has ended for %v; stacks in %s (%v)", name, longStall, r.Profiles, err)
}
