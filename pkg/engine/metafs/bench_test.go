package metafs

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	benchDir    = flag.String("metafs.dir", "", "folder to measure in, instead of the one for temporary files")
	benchRounds = flag.Int("metafs.rounds", 5, "rounds, of each contestant in turn")
	benchRound  = flag.Duration("metafs.round", 500*time.Millisecond, "length of a round")
)

func benchFolder(b testing.TB) string {
	dir, err := os.MkdirTemp(*benchDir, "metafs-bench-")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkCommit compares synced commits of one run on Pebble's own file system, on this one, and rounds of a 4 KiB write and fdatasync of a plain
// prewritten file, in turn on the same file system; the medians of the rounds are told. Run it with -benchtime 1x.
func BenchmarkCommit(b *testing.B) {
	for _, committers := range []int{1, 32} {
		b.Run(fmt.Sprintf("committers=%d", committers), func(b *testing.B) {
			dir := benchFolder(b)
			stock := openStock(b, filepath.Join(dir, "stock"))
			ours, _ := openOurs(b, filepath.Join(dir, "ours"))
			plain := openPlain(b, filepath.Join(dir, "plain"))
			contestants := []struct {
				name string
				run  func(time.Duration) int
			}{
				{"plain", func(d time.Duration) int { return runPlain(b, plain, d) }},
				{"stock", func(d time.Duration) int { return runCommits(b, stock, committers, d) }},
				{"metafs", func(d time.Duration) int { return runCommits(b, ours, committers, d) }},
			}
			rates := map[string][]float64{}
			for b.Loop() {
				for range *benchRounds {
					for _, c := range contestants {
						start := time.Now()
						n := c.run(*benchRound)
						rates[c.name] = append(rates[c.name], float64(n)/time.Since(start).Seconds())
					}
				}
			}
			median := func(name string) float64 { return slices.Sorted(slices.Values(rates[name]))[len(rates[name])/2] }
			for _, c := range contestants {
				b.ReportMetric(median(c.name), c.name+"/s")
			}
			b.ReportMetric(median("stock")/median("plain"), "stock:plain")
			b.ReportMetric(median("metafs")/median("plain"), "metafs:plain")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func openStock(b testing.TB, dir string) *pebble.DB {
	o := Options(New(fsys.OS(), Config{}), 8<<20)
	o.FS = vfs.Default
	db, err := pebble.Open(dir, o)
	must(b, err)
	b.Cleanup(func() { must(b, db.Close()) })
	return db
}

func openOurs(b testing.TB, dir string) (*pebble.DB, *FS) {
	fs := New(fsys.OS(), Config{OnFatal: func(err error) { panic(err) }})
	db, err := pebble.Open(dir, Options(fs, 8<<20))
	must(b, err)
	b.Cleanup(func() {
		must(b, db.Close())
		fs.Close()
	})
	return db, fs
}

func openPlain(b testing.TB, name string) fsys.File {
	f, err := fsys.OS().Open(name, fsys.Create|fsys.Write|fsys.Direct)
	must(b, err)
	b.Cleanup(func() { must(b, f.Close()) })
	_, err = f.WriteAt(fsys.AlignedBuffer(4<<20), 0)
	must(b, err)
	must(b, f.Sync())
	return f
}

func runPlain(b testing.TB, f fsys.File, d time.Duration) int {
	p := fsys.AlignedBuffer(4096)
	n := 0
	for end := time.Now().Add(d); time.Now().Before(end); n++ {
		_, err := f.WriteAt(p, int64(n%1024)*4096)
		must(b, err)
		must(b, f.Sync())
	}
	return n
}

func runCommits(b testing.TB, db *pebble.DB, committers int, d time.Duration) int {
	end := time.Now().Add(d)
	counts := make([]int, committers)
	var wg sync.WaitGroup
	for c := range committers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(c)))
			for time.Now().Before(end) {
				batch := db.NewBatch()
				var key [17]byte
				runKey(&key, rng.Uint32N(1<<18), rng.Uint32N(1024))
				if err := batch.Set(key[:], []byte("123456"), nil); err != nil {
					b.Error(err)
				}
				if err := db.ApplyNoSyncWait(batch, pebble.Sync); err != nil {
					b.Error(err)
				}
				if err := batch.SyncWait(); err != nil {
					b.Error(err)
				}
				if err := batch.Close(); err != nil {
					b.Error(err)
				}
				counts[c]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return total
}

// runKey is shaped as the engine's: tag, family, page, ^generation, block.
func runKey(key *[17]byte, page, block uint32) {
	key[0] = 'r'
	binary.BigEndian.PutUint32(key[1:], 7)
	binary.BigEndian.PutUint32(key[5:], page)
	copy(key[9:15], "\xff\xff\xff\xff\xff\xfe")
	binary.BigEndian.PutUint16(key[15:], uint16(block))
}

// BenchmarkRotation tells how long a commit takes over which Pebble begins another log, and any other, beside a writer of 4 KiB to random places of
// an allocated file, whose extents the journal has to note. "apply" is the time in ApplyNoSyncWait, which the engine's committer stands still for;
// "commit" ends with the sync. Run it with -benchtime 1x.
func BenchmarkRotation(b *testing.B) {
	dir := benchFolder(b)
	stop := randomWriter(b, filepath.Join(dir, "random"))
	defer stop()
	fs := New(fsys.OS(), Config{OnFatal: func(err error) { panic(err) }, LogBytes: 1 << 20})
	o := Options(fs, 8<<20)
	o.MemTableSize = 512 << 10
	logs := 0
	o.AddEventListener(pebble.EventListener{WALCreated: func(pebble.WALCreateInfo) { logs++ }}) // within the commit
	db, err := pebble.Open(filepath.Join(dir, "db"), o)
	must(b, err)
	var apply, commit, plainApply, plainCommit []time.Duration
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		for end := time.Now().Add(time.Duration(*benchRounds) * 4 * *benchRound); time.Now().Before(end); {
			batch := db.NewBatch()
			for range 64 {
				var key [17]byte
				runKey(&key, rng.Uint32N(1<<18), rng.Uint32N(1024))
				must(b, batch.Set(key[:], []byte("123456"), nil))
			}
			before, start := logs, time.Now()
			must(b, db.ApplyNoSyncWait(batch, pebble.Sync))
			applied := time.Since(start)
			must(b, batch.SyncWait())
			committed := time.Since(start)
			must(b, batch.Close())
			switch {
			case logs < 16: // before Pebble has logs to recycle
			case logs != before:
				apply, commit = append(apply, applied), append(commit, committed)
			default:
				plainApply, plainCommit = append(plainApply, applied), append(plainCommit, committed)
			}
		}
	}
	report := func(name string, times []time.Duration) {
		slices.Sort(times)
		if n := len(times); n > 0 {
			b.ReportMetric(float64(times[n/2].Microseconds())/1000, name+"-p50-ms")
			b.ReportMetric(float64(times[n*99/100].Microseconds())/1000, name+"-p99-ms")
			b.ReportMetric(float64(times[n-1].Microseconds())/1000, name+"-max-ms")
		}
	}
	report("rotating-apply", apply)
	report("rotating-commit", commit)
	report("other-apply", plainApply)
	report("other-commit", plainCommit)
	b.ReportMetric(float64(len(apply)), "rotations")
	b.ReportMetric(0, "ns/op")
	must(b, db.Close())
	fs.Close()
}

// randomWriter writes until it is stopped.
func randomWriter(b testing.TB, name string) (stop func()) {
	const size = 1 << 30
	f, err := fsys.OS().Open(name, fsys.Create|fsys.Write|fsys.Direct)
	must(b, err)
	must(b, f.Allocate(0, size))
	must(b, f.Sync())
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			rng, p := rand.New(rand.NewPCG(2, uint64(w))), fsys.AlignedBuffer(4096)
			p[0] = 1
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := f.WriteAt(p, rng.Int64N(size/4096)*4096); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	return func() {
		close(done)
		wg.Wait()
		must(b, f.Close())
	}
}
