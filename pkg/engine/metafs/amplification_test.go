package metafs

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable/block"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	ampRuns = flag.Int("metafs.runs", 4_000_000, "runs of BenchmarkAmplification")
	ampAll  = flag.Bool("metafs.variants", false, "measure all variants of the options, not only the ones in use")
)

// variants are what docs/design/metadata-store.md compares.
var variants = []struct {
	name   string
	change func(*pebble.Options)
}{
	{"in use", func(*pebble.Options) {}},
	{"snappy L0=4", tune(block.SnappyCompression, 4, 64, 4)},
	{"snappy L0=4 32K", tune(block.SnappyCompression, 4, 64, 32)},
	{"minlz L0=4", tune(block.MinLZCompression, 4, 64, 4)},
	{"zstd L0=4", tune(block.ZstdCompression, 4, 64, 4)},
	{"zstd L0=4 16K", tune(block.ZstdCompression, 4, 64, 16)},
	{"zstd L0=4 32K", tune(block.ZstdCompression, 4, 64, 32)},
	{"zstd L0=6", tune(block.ZstdCompression, 6, 64, 4)},
	{"minlz L0=8", tune(block.MinLZCompression, 8, 64, 4)},
	{"balanced L0=8", func(o *pebble.Options) {
		tune(nil, 8, 64, 4)(o)
		o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionBalanced })
	}},
	{"zstd L0=8", tune(block.ZstdCompression, 8, 64, 4)},
	{"zstd L0=8 32K", tune(block.ZstdCompression, 8, 64, 32)},
	{"zstd L0=8 files 8M", func(o *pebble.Options) {
		tune(block.ZstdCompression, 8, 64, 4)(o)
		o.TargetFileSizes[0] = 8 << 20
	}},
	{"zstd L0=12", tune(block.ZstdCompression, 12, 64, 4)},
}

// tune sets the compression, at how many sublevels L0 counts as full, the size of the base level in MiB and the size of blocks in KiB.
func tune(p *block.CompressionProfile, l0, baseMiB, blockKiB int) func(*pebble.Options) {
	return func(o *pebble.Options) {
		o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.UniformDBCompressionSettings(p) })
		o.L0CompactionThreshold, o.L0StopWritesThreshold = l0, 3*l0
		o.LBaseMaxBytes = int64(baseMiB) << 20
		for i := range o.Levels {
			o.Levels[i].BlockSize = blockKiB << 10
		}
	}
}

// BenchmarkAmplification writes what the engine writes for first writes to random blocks: commits of 32 runs, a record for the first touch of a page,
// and the bitmap values the blocks came from. It tells the bytes of metadata per run. Run it with -benchtime 1x.
func BenchmarkAmplification(b *testing.B) {
	for _, v := range variants {
		if v.name != "in use" && !*ampAll {
			continue
		}
		b.Run(v.name, func(b *testing.B) {
			for b.Loop() {
				measureAmplification(b, v.change)
			}
		})
	}
}

func measureAmplification(b *testing.B, change func(*pebble.Options)) {
	fs := New(fsys.OS(), Config{OnFatal: func(err error) { panic(err) }})
	o := Options(fs, 8<<20)
	change(o)
	stalls := 0
	o.EventListener.WriteStallBegin = func(pebble.WriteStallBeginInfo) { stalls++ }
	db, err := pebble.Open(filepath.Join(benchFolder(b), "db"), o)
	must(b, err)
	start, runs := time.Now(), *ampRuns
	peak := writeRuns(b, db, runs)
	elapsed := time.Since(start)
	must(b, db.Flush())
	for quiet := time.Now().Add(time.Minute); db.Metrics().Compact.NumInProgress > 0 && time.Now().Before(quiet); {
		runtime.Gosched()
	}
	c := fs.Stats().Counts()
	var tables int64
	for _, l := range db.Metrics().Levels {
		tables += l.TablesSize
	}
	must(b, db.Close())
	fs.Close()
	per := func(n uint64) float64 { return float64(n) / float64(runs) }
	b.ReportMetric(per(c.Bytes()), "B/run")
	b.ReportMetric(per(c.LogPayload), "log")
	b.ReportMetric(per(c.Flush), "flush")
	b.ReportMetric(per(c.Compaction), "compaction")
	b.ReportMetric(per(c.Manifest+c.Other), "other")
	b.ReportMetric(per(c.LogPadding), "padding")
	b.ReportMetric(per(uint64(tables)), "stored")
	b.ReportMetric(float64(runs)/elapsed.Seconds()/1000, "kruns/s")
	b.ReportMetric(float64(stalls), "stalls")
	b.ReportMetric(float64(peak>>20), "heapMiB")
}

// writeRuns commits runs in random order, each commit synced, a few in flight, and returns the largest heap seen.
func writeRuns(b *testing.B, db *pebble.DB, runs int) (peak uint64) {
	const perCommit, pages, inFlight = 32, 1 << 18, 4
	rng := rand.New(rand.NewPCG(1, 2))
	touched := make([]bool, pages)
	var window []*pebble.Batch
	finish := func() {
		must(b, window[0].SyncWait())
		must(b, window[0].Close())
		window = window[1:]
	}
	for place := 0; place < runs; place += perCommit {
		batch := db.NewBatch()
		for i := range perCommit {
			page := rng.Uint32N(pages)
			var key [17]byte
			runKey(&key, page, rng.Uint32N(1024))
			var value [8]byte
			binary.BigEndian.PutUint64(value[:], uint64(place+i))
			must(b, batch.Set(key[:], value[2:], nil))
			if !touched[page] {
				touched[page] = true
				touch := append([]byte{'t', 0, 0, 0, 0, 0, 1}, key[5:9]...)
				must(b, batch.Set(touch, nil, nil))
			}
		}
		var bitmap [130]byte
		bits := place%1024 + perCommit
		for i := range bits / 8 {
			bitmap[2+i] = 0xff
		}
		key := binary.BigEndian.AppendUint64([]byte{'b'}, uint64(place/1024))
		must(b, batch.Set(key, bitmap[:], nil))
		must(b, db.ApplyNoSyncWait(batch, pebble.Sync))
		if window = append(window, batch); len(window) == inFlight {
			finish()
		}
		if place%(perCommit*4096) == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}
	for len(window) > 0 {
		finish()
	}
	return peak
}
