package engine

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// ringCopy reads the ring as a process that dies now leaves it: until two readings agree, for a copy is not taken in one moment.
func ringCopy(dir string) (name string, content []byte) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.ring"))
	if len(files) != 1 {
		return "", nil
	}
	for {
		content, err := os.ReadFile(files[0])
		again, err2 := os.ReadFile(files[0])
		if err != nil || err2 != nil {
			return "", nil
		}
		if bytes.Equal(content, again) {
			return filepath.Base(files[0]), content
		}
	}
}

// killPoint is a death of the process: the ring, then the disk. What happens between the two copies was not acknowledged to anyone.
type killPoint struct {
	cutPoint
	name string
	ring []byte
}

func takeKill(w *cutWorld, disk *fsys.Mem, ringDir string) *killPoint {
	k := &killPoint{}
	k.snapshots = map[string]cutSnapshot{}
	for _, v := range w.volumes {
		k.lo, k.hi = append(k.lo, bytesOf(v.acked)), append(k.hi, bytesOf(v.issued))
	}
	for name, s := range w.snapshots {
		k.snapshots[name] = *s
	}
	k.name, k.ring = ringCopy(ringDir)
	k.disk = disk.KillClone(nil)
	return k
}

func (k *killPoint) options(t *testing.T) Options {
	o := testOptions(t)
	o.fs, o.bootID = k.disk, &[16]byte{1}
	if k.name != "" {
		must(t, os.WriteFile(filepath.Join(o.RingDir, k.name), k.ring, 0o600))
	}
	return o
}

// The process dies with large writes in the ring that no flush covered, and the power fails while the pool is opened again, anywhere, or just after: where
// the metadata has the runs, their data is there. The first flush of the new process syncs segments that it has not written to itself.
func TestKillThenPowerCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	disk := fsys.NewMem()
	o := testOptions(t)
	o.fs, o.bootID = disk, &[16]byte{1}
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	tp := &testPool{t, p, o, "/pool"}
	v := newCutModel("v", tp.volume("v", 1<<20))
	tp.quiet() // there are reserved chunks to write to
	var mu sync.Mutex
	b := v.begin(&mu, 0, cutBlocks, opWhole)
	tp.rounds.turn.Lock() // no round commits it
	_, err = v.dev.WriteAt(b, 0)
	must(t, err)
	v.ended(&mu, 0, cutBlocks)
	k := takeKill(&cutWorld{volumes: []*cutModel{v}}, disk, o.RingDir)
	tp.rounds.turn.Unlock()
	must(t, tp.kill())

	var left []*fsys.Mem
	k.disk.During(func(fsys.Op, string) {
		mu.Lock()
		defer mu.Unlock()
		if len(left) < 100 {
			left = append(left, k.disk.CrashClone(r))
		}
	})
	o = k.options(t)
	p, err = OpenPool(t.Context(), "/pool", o)
	must(t, err)
	k.disk.During(nil)
	left = append(left, k.disk.CrashClone(r))
	must(t, (&testPool{t, p, o, "/pool"}).kill())
	committed := 0
	for i, disk := range left {
		o := testOptions(t)
		o.fs, o.bootID = disk, &[16]byte{2}
		pool, err := OpenPool(t.Context(), "/pool", o)
		must(t, err)
		tp := &testPool{t, pool, o, "/pool"}
		tp.check()
		dev := tp.open("v")
		if dev.Info().Mapped > 0 {
			committed++
			if err := v.verify(dev, v.acked, v.acked); err != nil {
				t.Fatalf("power cut %d of %d: %v", i, len(left), err)
			}
		}
		must(t, tp.kill())
	}
	if committed == 0 {
		t.Fatal("no power cut left what the ring held")
	}
}
