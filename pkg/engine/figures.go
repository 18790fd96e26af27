package engine

import (
	"maps"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Figures are what an Observer has a pool count, in memory, for whoever exports them: counters that only grow, and histograms. All may be read at any time
// from anywhere. They are the observer's, so they outlive the pool: one that gives the same Figures at the next opening goes on counting.
//
// Cost: with them a guest's request takes two looks at the clock and three atomic additions; without them one comparison with nil.
type Figures struct {
	RoundTime      Histogram // a round, from its seal to its commit's sync; cuts too
	RoundRuns      Histogram // pages with pending runs that a round commits, not a time
	MemberFlush    Histogram // one flush of the members
	LogTime        Histogram // a round without a commit: a flush of the members, and a record in the flush log if there was anything to record
	CommitTime     Histogram // from a batch's turn at the committer to its sync
	CommitBytes    Counter   // of batches
	GatesShut      Histogram // how long a cut kept writers out
	GatesGivenUp   Counter   // cuts that writers under way made give up
	JoinPages      Counter   // pages looked at by background passes
	FreedBlocks    Counter   // blocks that these passes freed
	RingWaits      Counter   // writes that waited for room in the ring
	SpaceWaits     Counter   // writes that waited for space
	LevelChanges   Counter   // steps on the ladder of a filling pool, up and down
	CacheHits      Counter   // look-ups in the flattened map that found their page
	CacheMisses    Counter   // and those that had to load it
	ChecksumErrors Counter   // frozen blocks that are not what was written
	Events         Counter   // what Event was told

	mu      sync.Mutex
	volumes map[string]*VolumeFigures
}

// VolumeFigures are an open volume's. They go when it is closed.
type VolumeFigures struct {
	Read, Write, Zero, Flush Histogram // how long guests' requests took; Zero: discards and writes of zeroes
}

// Volumes are the figures of the volumes that are open, by name.
func (f *Figures) Volumes() map[string]*VolumeFigures {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.volumes)
}

func (f *Figures) opened(name string) *VolumeFigures {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.volumes == nil {
		f.volumes = map[string]*VolumeFigures{}
	}
	f.volumes[name] = &VolumeFigures{}
	return f.volumes[name]
}

func (f *Figures) closed(name string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, name)
}

// Counter only grows.
type Counter struct{ n atomic.Uint64 }

// Add adds.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value is the sum.
func (c *Counter) Value() uint64 { return c.n.Load() }

// histogramBuckets is how many buckets a histogram has: the last takes what is over 2^38, four and a half minutes in nanoseconds.
const histogramBuckets = 40

// Histogram counts values in buckets, each twice as wide as the one before: bucket i has those up to 2^i - 1. Times are in nanoseconds.
type Histogram struct {
	buckets [histogramBuckets]atomic.Uint64
	sum     atomic.Uint64
}

// Observe counts a value; less than 0 counts as 0.
func (h *Histogram) Observe(v int64) {
	v = max(v, 0)
	h.buckets[min(bits.Len64(uint64(v)), histogramBuckets-1)].Add(1)
	h.sum.Add(uint64(v))
}

// since counts the time from a moment on.
func (h *Histogram) since(began time.Time) { h.Observe(int64(time.Since(began))) }

// HistogramValue is a histogram as it was at about one moment.
type HistogramValue struct {
	Count, Sum uint64
	Buckets    [histogramBuckets]uint64 // each its own, not those below it
}

// Value reads the histogram.
func (h *Histogram) Value() (v HistogramValue) {
	for i := range h.buckets {
		v.Buckets[i] = h.buckets[i].Load()
		v.Count += v.Buckets[i]
	}
	v.Sum = h.sum.Load()
	return v
}

// Quantile is a value that a part of all values is not above: the upper end of a bucket, so at most twice too large. 0 with no values.
func (v HistogramValue) Quantile(part float64) uint64 {
	want, below := part*float64(v.Count), uint64(0)
	for i, n := range v.Buckets {
		if below += n; n > 0 && float64(below) >= want {
			return 1<<i - 1
		}
	}
	return 0
}
