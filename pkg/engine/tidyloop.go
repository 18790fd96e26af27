package engine

import (
	"cmp"
	"context"
	"errors"
	"time"
)

const (
	// tidyTick is how often volumes whose option says so are looked at, and tidyPatience after how many looks one is tidied although it does not rest.
	tidyTick     = 10 * time.Second
	tidyPatience = 60
	// tidyBehind is how much is copied a second behind the scenes, in bytes.
	tidyBehind = 32 << 20
)

// tidyState is what a look at a volume saw. While it stays the same, nothing new was scattered.
type tidyState struct {
	head  uint64 // layer
	owned int64  // blocks
	gens  int    // in it
}

// tidyWatch is what is known of a volume from earlier looks.
type tidyWatch struct {
	done, last tidyState
	skipped    tidyState // a pass found no room for some pages: it is tried again when something changes, or after a while
	waited     int
}

// due tells whether a volume should be tidied now: something was scattered since it last was, and no more has come since the look before.
func (w *tidyWatch) due(now tidyState) bool {
	rests := now == w.last && now != w.skipped
	w.last = now
	if now == w.done {
		w.waited = 0
		return false
	}
	w.waited++
	return rests || w.waited > tidyPatience
}

// runTidy tidies the volumes whose option says so, one at a time, when they rest. What it knows of them is forgotten with the process: the first pass after
// that finds out anew, from metadata alone, where there is nothing to do.
func (p *Pool) runTidy() {
	tick := time.NewTicker(cmp.Or(p.options.tidyTick, tidyTick))
	defer tick.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	known := map[uint64]*tidyWatch{}
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		seen := map[uint64]*tidyWatch{}
		for name, now := range p.tidyVolumes() {
			w := known[now.id]
			if w == nil {
				w = &tidyWatch{}
			}
			seen[now.id] = w
			if !w.due(now.tidyState) {
				continue
			}
			skipped, err := p.tidyWhole(ctx, name)
			if err != nil {
				if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrClosed) {
					p.event("tidying in the background went wrong; it is tried again", "volume", name, "error", err)
				}
				continue
			}
			if w.waited = 0; skipped {
				w.skipped = now.tidyState
			} else {
				w.done = now.tidyState
			}
		}
		known = seen
	}
}

type tidyVolume struct {
	id uint64
	tidyState
}

// tidyVolumes are those whose option says so, by name. Pools that take no writes have none.
func (p *Pool) tidyVolumes() map[string]tidyVolume {
	list := map[string]tidyVolume{}
	if p.failure() != nil {
		return list
	}
	p.catalogue.mu.RLock()
	defer p.catalogue.mu.RUnlock()
	for name, v := range p.catalogue.volumes {
		if l := p.catalogue.layers[v.rec.Layer]; v.rec.Tidy && l != nil {
			list[name] = tidyVolume{v.id, tidyState{l.id, l.owned.Load(), len(l.rec.Gens)}}
		}
	}
	return list
}

// tidyWhole tidies a volume to its end. skipped: there was no room for some of its pages.
func (p *Pool) tidyWhole(ctx context.Context, name string) (skipped bool, err error) {
	for start := int64(0); ; {
		step, err := p.Tidy(ctx, TidySpec{Volume: name, Start: start, Rate: tidyBehind})
		skipped = skipped || step.Skipped > 0
		if start = step.Next; err != nil || start == 0 {
			return skipped, err
		}
	}
}
