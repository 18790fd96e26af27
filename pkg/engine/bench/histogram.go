package bench

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets a sixteenth wide of their power of two, so that a quantile is at most 6 % too high. The maximum is exact. It may
// be added to from many goroutines.
type histogram struct {
	buckets [64 * 16]atomic.Uint64
	max     atomic.Int64
}

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 1))
	shift := max(bits.Len64(n)-5, 0)
	return shift*16 + int(n>>shift)
}

// bucketEnd is the longest duration that falls into a bucket.
func bucketEnd(b int) time.Duration {
	if b < 32 {
		return time.Duration(b)
	}
	shift := b/16 - 1
	return time.Duration((uint64(b-shift*16)+1)<<shift - 1)
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)].Add(1)
	for old := h.max.Load(); int64(d) > old && !h.max.CompareAndSwap(old, int64(d)); old = h.max.Load() {
	}
}

func (h *histogram) count() (n uint64) {
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// quantile is a duration that at least the fraction q of those added do not pass.
func (h *histogram) quantile(q float64) time.Duration {
	total := h.count()
	want := uint64(q*float64(total) + 0.999999)
	for i, seen := 0, uint64(0); i < len(h.buckets); i++ {
		if seen += h.buckets[i].Load(); seen >= want && seen > 0 {
			return min(bucketEnd(i), time.Duration(h.max.Load()))
		}
	}
	return 0
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
