package crash

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// Cut is what a device may hold in a snapshot.
type Cut struct {
	load       *Load
	begin, end time.Duration // the request and the answer
	records    []*record
}

// record is one worker's part.
type record struct {
	w    *worker
	base []uint64 // state of the range when it began
	ops  []*op    // sent until it ended, the one under way at the beginning first
}

// BeginCut is called before the snapshot is asked for.
func (l *Load) BeginCut() *Cut {
	c := &Cut{load: l, begin: l.now()}
	for _, w := range l.workers {
		r := &record{w: w}
		w.mu.Lock()
		r.base = slices.Clone(w.state)
		if w.current != nil {
			r.ops = append(r.ops, w.current)
		}
		w.records[r] = true
		w.mu.Unlock()
		c.records = append(c.records, r)
	}
	return c
}

// End is called after the snapshot was answered.
func (c *Cut) End() {
	for _, r := range c.records {
		r.w.mu.Lock()
		delete(r.w.records, r)
		for i, o := range r.ops {
			copied := *o // the one under way would change
			r.ops[i] = &copied
		}
		r.w.mu.Unlock()
	}
	c.end = c.load.now()
}

// Check reads what the snapshot holds.
func (c *Cut) Check(dev block.Device) error {
	var errs []error
	var all [][]span
	for _, r := range c.records {
		spans, err := r.check(dev)
		if err != nil {
			errs = append(errs, fmt.Errorf("snapshot of volume %d, worker %d: %w", c.load.options.Volume, r.w.number, err))
		}
		all = append(all, spans)
	}
	if len(errs) == 0 && !c.common(all) {
		c.load.wrong.Add(1)
		errs = append(errs, fmt.Errorf("snapshot of volume %d: every worker's sectors are as they were at some moment, but not at the same: %v",
			c.load.options.Volume, all))
	}
	return errors.Join(errs...)
}

// span is the moments at which the device can have been cut, both ends included.
type span struct{ from, to time.Duration }

const never = time.Duration(math.MaxInt64)

// common says whether one moment between request and answer is in a span of every worker. If there is one, the beginning of some span is.
func (c *Cut) common(all [][]span) bool {
	moments := []time.Duration{c.begin}
	for _, spans := range all {
		for _, s := range spans {
			moments = append(moments, s.from)
		}
	}
	return slices.ContainsFunc(moments, func(m time.Duration) bool {
		return m >= c.begin && m <= c.end && !slices.ContainsFunc(all, func(spans []span) bool {
			return !slices.ContainsFunc(spans, func(s span) bool { return s.from <= m && m <= s.to })
		})
	})
}

// check reads the worker's range and finds when it was so.
func (r *record) check(dev block.Device) ([]span, error) {
	got, err := r.read(dev)
	if err != nil {
		return nil, err
	}
	spans, least, where := r.fits(got)
	if len(spans) > 0 {
		return spans, nil
	}
	r.w.load.wrong.Add(least)
	return nil, fmt.Errorf("%d wrong sectors, however many of the %d requests under way are counted in; the first: sector %d holds %v",
		least, len(r.ops), r.w.first+where, r.w.stamp(where, got[where]))
}

// read answers the version that each sector holds.
func (r *record) read(dev block.Device) ([]uint64, error) {
	p := blocktest.Aligned(maxIO * sectorSize)
	got := make([]uint64, len(r.base))
	var bad int64
	var first error
	for at := int64(0); at < int64(len(got)); at += maxIO {
		n := min(maxIO, int64(len(got))-at)
		if _, err := dev.ReadAt(p[:n*sectorSize], r.w.offset(at)); err != nil {
			r.w.load.ioErrors.Add(1)
			return nil, fmt.Errorf("read: %w", err)
		}
		for i := range n {
			s, ok := decode(p[i*sectorSize:])
			if got[at+i] = s.Version; ok && s == r.w.stamp(at+i, s.Version) {
				continue
			}
			if bad++; first == nil {
				first = fmt.Errorf("sector %d holds %v (whole: %t)", r.w.first+at+i, s, ok)
			}
		}
	}
	if bad > 0 {
		r.w.load.wrong.Add(bad)
		return nil, fmt.Errorf("%d sectors never held what they hold; the first: %w", bad, first)
	}
	return got, nil
}

// fits tries how many of the requests the snapshot has. Without a fit, least is the fewest sectors that are wrong, and where one of them.
func (r *record) fits(got []uint64) (spans []span, least int64, where int64) {
	state := slices.Clone(r.base)
	var bad int64
	for i := range state {
		if state[i] != got[i] {
			bad++
			where = int64(i)
		}
	}
	least = bad
	from := time.Duration(0)
	for k := 0; ; k++ {
		if least = min(least, bad); bad == 0 { // the first k, and nothing of the rest
			to := never
			if k < len(r.ops) && r.ops[k].done != 0 {
				to = r.ops[k].done
			}
			spans = append(spans, span{from, to})
		}
		if k == len(r.ops) {
			return spans, least, where
		}
		o := r.ops[k]
		var inside int64
		part := true // what is not as before the request is as after it
		for i := o.at; i < o.at+o.n; i++ {
			if state[i] != got[i] {
				inside++
				part = part && got[i] == o.version
			}
			state[i] = o.version
		}
		if part && inside > 0 && inside == bad {
			to := never
			if o.done != 0 {
				to = o.done
			}
			spans = append(spans, span{o.sent, to})
		}
		bad -= inside
		for i := o.at; i < o.at+o.n; i++ {
			if state[i] != got[i] {
				bad++
				where = i
			}
		}
		from = o.sent
	}
}
