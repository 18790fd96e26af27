package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// observer writes the engine's events to the log, and keeps the pools' figures.
type observer struct {
	mu    sync.Mutex
	pools map[string]*engine.Figures
}

var _ engine.Observer = (*observer)(nil)

func (*observer) Event(pool, message string, keysAndValues ...any) {
	klog.InfoS(message, append([]any{"pool", pool}, keysAndValues...)...)
}

// Figures goes on counting where a pool is opened again.
func (o *observer) Figures(pool string) *engine.Figures {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pools == nil {
		o.pools = map[string]*engine.Figures{}
	}
	if o.pools[pool] == nil {
		o.pools[pool] = &engine.Figures{}
	}
	return o.pools[pool]
}

// ServeHTTP shows all figures as text, a line each.
func (o *observer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	o.mu.Lock()
	pools := maps.Clone(o.pools)
	o.mu.Unlock()
	for _, pool := range slices.Sorted(maps.Keys(pools)) {
		f := pools[pool]
		for _, c := range []struct {
			name  string
			value *engine.Counter
		}{
			{"commit_bytes", &f.CommitBytes}, {"gates_given_up", &f.GatesGivenUp}, {"pass_pages", &f.JoinPages}, {"pass_freed_blocks", &f.FreedBlocks},
			{"ring_waits", &f.RingWaits}, {"space_waits", &f.SpaceWaits}, {"level_changes", &f.LevelChanges}, {"map_cache_hits", &f.CacheHits},
			{"map_cache_misses", &f.CacheMisses}, {"checksum_errors", &f.ChecksumErrors}, {"events", &f.Events},
		} {
			fmt.Fprintf(w, "%s %s %d\n", pool, c.name, c.value.Value())
		}
		for _, h := range []struct {
			name  string
			value *engine.Histogram
		}{
			{"round_ns", &f.RoundTime}, {"round_pages", &f.RoundRuns}, {"member_flush_ns", &f.MemberFlush}, {"flush_log_ns", &f.LogTime}, {"commit_ns", &f.CommitTime},
			{"gates_shut_ns", &f.GatesShut},
		} {
			writeHistogram(w, pool+" "+h.name, h.value)
		}
		volumes := f.Volumes()
		for _, name := range slices.Sorted(maps.Keys(volumes)) {
			v := volumes[name]
			writeHistogram(w, pool+"/"+name+" read_ns", &v.Read)
			writeHistogram(w, pool+"/"+name+" write_ns", &v.Write)
			writeHistogram(w, pool+"/"+name+" zero_ns", &v.Zero)
			writeHistogram(w, pool+"/"+name+" flush_ns", &v.Flush)
		}
	}
}

func writeHistogram(w http.ResponseWriter, name string, h *engine.Histogram) {
	v := h.Value()
	fmt.Fprintf(w, "%s count %d sum %d p50 %d p99 %d\n", name, v.Count, v.Sum, v.Quantile(0.5), v.Quantile(0.99))
}
