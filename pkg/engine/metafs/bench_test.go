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
