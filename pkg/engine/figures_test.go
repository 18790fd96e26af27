package engine

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// Everything that happens is counted where it belongs, and a volume's figures go when it is closed.
func TestFigures(t *testing.T) {
	f := &Figures{}
	o := testOptions(t)
	o.Observer = observed{f}
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 1<<20)
	b := bytes.Repeat([]byte{1}, 16*BlockSize)
	for range 3 {
		_, err := v.WriteAt(b, 0)
		must(t, err)
		must(t, v.Flush())
	}
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	_, err = v.WriteAt(b[:4*BlockSize], 0)
	must(t, err)
	_, err = v.ReadAt(b, 0)
	must(t, err)
	must(t, v.Discard(8*BlockSize, BlockSize))
	must(t, v.Flush())
	must(t, p.flush())
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
	vf := f.Volumes()["v"]
	if vf == nil {
		t.Fatal("no figures of an open volume")
	}
	for name, got := range map[string][2]uint64{
		"writes": {vf.Write.Value().Count, 4}, "reads": {vf.Read.Value().Count, 1}, "flushes": {vf.Flush.Value().Count, 4},
		"zeroes": {vf.Zero.Value().Count, 1}, "cuts": {f.GatesShut.Value().Count, 1},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d counted, want %d", name, got[0], got[1])
		}
	}
	for name, n := range map[string]uint64{
		"rounds": f.RoundTime.Value().Count, "flushes logged": f.LogTime.Value().Count, "member flushes": f.MemberFlush.Value().Count, "commits": f.CommitTime.Value().Count,
		"committed bytes": f.CommitBytes.Value(), "pages of passes": f.JoinPages.Value(), "blocks freed by passes": f.FreedBlocks.Value(),
		"cache hits": f.CacheHits.Value(), "cache misses": f.CacheMisses.Value(),
	} {
		if n == 0 {
			t.Errorf("no %s counted", name)
		}
	}
	if f.FreedBlocks.Value() != 5 { // four overwritten, one discarded
		t.Errorf("%d blocks freed, want 5", f.FreedBlocks.Value())
	}
	if used, entries := p.RingUse(); entries == 0 || used > entries {
		t.Errorf("%d of %d entries of the ring", used, entries)
	}
	must(t, v.Close(context.Background()))
	if len(f.Volumes()) != 0 {
		t.Error("a closed volume's figures are there still")
	}
}

type observed struct{ f *Figures }

func (observed) Event(string, string, ...any) {}
func (o observed) Figures(string) *Figures    { return o.f }

func TestHistogram(t *testing.T) {
	var h Histogram
	for _, v := range []int64{-1, 0, 1, 1000, 1000, 1 << 62} {
		h.Observe(v)
	}
	h.since(time.Now().Add(-time.Millisecond))
	v := h.Value()
	if v.Count != 7 || v.Buckets[0] != 2 || v.Buckets[1] != 1 || v.Buckets[10] != 2 || v.Buckets[histogramBuckets-1] != 1 {
		t.Fatalf("%+v", v)
	}
	if q := v.Quantile(0.5); q != 1023 {
		t.Fatalf("the median is %d, at most", q)
	}
	if (HistogramValue{}).Quantile(0.5) != 0 {
		t.Fatal("a quantile of nothing")
	}
}

// BenchmarkOverwrite is the data path's CPU cost in memory, with and without figures.
func BenchmarkOverwrite(b *testing.B) {
	for name, f := range map[string]*Figures{"without": nil, "with": {}} {
		b.Run(name, func(b *testing.B) {
			v := benchVolume(b, f)
			p := bytes.Repeat([]byte{1}, BlockSize)
			b.ResetTimer()
			for i := range b.N {
				if _, err := v.WriteAt(p, int64(i%256)*BlockSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRead is the same for reads.
func BenchmarkRead(b *testing.B) {
	for name, f := range map[string]*Figures{"without": nil, "with": {}} {
		b.Run(name, func(b *testing.B) {
			v := benchVolume(b, f)
			p := make([]byte, BlockSize)
			b.ResetTimer()
			for i := range b.N {
				if _, err := v.ReadAt(p, int64(i%256)*BlockSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchVolume(b *testing.B, f *Figures) *Volume {
	o := Options{RingDir: b.TempDir(), anyRingFS: true, ringBytes: 64 << 10, fs: fsys.NewMem(), bootID: &[16]byte{1}, ChecksumRate: -1, Observer: observed{f}}
	p, err := CreatePool(b.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = (&testPool{Pool: p}).kill() })
	if _, err = p.CreateVolume(b.Context(), VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		b.Fatal(err)
	}
	v, err := p.OpenVolume(b.Context(), "v")
	if err == nil {
		_, err = v.WriteAt(make([]byte, 1<<20), 0)
	}
	if err != nil {
		b.Fatal(err)
	}
	return v
}
