package engine

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// hold keeps the first call that match tells from being done, until release is called.
func hold(disk *fsys.FaultFS, op fsys.Op, glob string, match func(c fsys.Call) bool) (held <-chan struct{}, release func()) {
	reached, let := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	done := false
	disk.Add(fsys.Rule{Op: op, Glob: glob, When: func(c fsys.Call) bool {
		mu.Lock()
		mine := !done && match(c)
		done = done || mine
		mu.Unlock()
		if mine {
			close(reached)
			<-let
		}
		return mine
	}})
	return reached, sync.OnceFunc(func() { close(let) })
}

// The last step of a COW first write, which is slow, keeps no other first write from overwriting what it has moved: it would be redirected.
func TestCopyOnWriteBesideSlowWriter(t *testing.T) {
	p, disk := memPool(t)
	v := p.cowVolume("v", 1<<20)
	old := p.placesOf(v)[5]
	held, release := hold(disk, fsys.OpWrite, "*.seg", func(c fsys.Call) bool { return c.Len == BlockSize && uint64(c.Off/BlockSize) == old })
	defer release()
	wrote := make(chan struct{})
	go func() { defer close(wrote); p.writeStamp(v, 5, 1, 2) }()
	<-held
	for block := int64(20); block < 30; block++ {
		eventually(t, "a write beside a slow one", func() { p.writeStamp(v, block, 1, 2) })
	}
	if n := v.Info().Counters; n.FirstWrites != 256 || n.Copies != 11 {
		t.Fatalf("%d copies, %d redirected", n.Copies, n.FirstWrites-256)
	}
	release()
	<-wrote
	p.check()
}

// A group of copies is flushed while the one before waits for the sync of its commit; neither write is answered before its own.
func TestMoveGroupsOverlap(t *testing.T) {
	p, disk := memPool(t)
	v := p.cowVolume("v", 1<<20)
	must(t, p.flush())
	synced, release := hold(disk, fsys.OpWriteDurable, "*.log", func(fsys.Call) bool { return true })
	defer release()
	first, second := make(chan struct{}), make(chan struct{})
	go func() { defer close(first); p.writeStamp(v, 5, 1, 2) }()
	<-synced
	flushed := make(chan struct{})
	flush := sync.OnceFunc(func() { close(flushed) })
	disk.Add(fsys.Rule{Op: fsys.OpSync, Glob: "*", When: func(c fsys.Call) bool { // the flush file, or a segment that is reserved
		if name := filepath.Base(c.Name); name == "flush" || filepath.Ext(name) == ".seg" {
			flush()
		}
		return true
	}})
	go func() { defer close(second); p.writeStamp(v, 9, 1, 2) }()
	select {
	case <-flushed:
	case <-time.After(20 * time.Second):
		t.Fatal("the second group waits for the first one's sync before it flushes")
	}
	select {
	case <-first:
		t.Fatal("a write was answered before its group's commit was durable")
	case <-second:
		t.Fatal("a write was answered before the commits were durable")
	default:
	}
	release()
	<-first
	<-second
	p.check()
}

// Runs that continue one another are stored as one, whatever the hints say; and where hints are wrong, as after redirected writes, the store decides.
func TestCopyOnWriteStoredRuns(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.cowVolume("v", 4<<20)
	must(t, p.WaitPrepared(t.Context())) // zeroes that are written between the copies would have the next ones go there
	for block := range int64(64) {
		p.writeStamp(v, block, 1, 2)
	}
	family := v.mapping.lineage.Load().family
	list, err := storedRuns(p.Pool, family, 0)
	must(t, err)
	stored := 0
	for _, e := range list {
		if e.Off() < 64 {
			stored++
		}
	}
	if stored != 2 { // the snapshot's and the volume's
		t.Fatalf("64 copies in order are stored as %d runs: %v", stored, list)
	}
	r := rand.New(rand.NewPCG(3, 3))
	for n := range 12 {
		mode := Mode(n % 2)
		_, err := p.ChangeVolume(t.Context(), "v", VolumeChange{Mode: &mode})
		must(t, err)
		for _, block := range r.Perm(1024)[:60] {
			p.writeStamp(v, int64(block), 1, uint64(n+3))
		}
		p.snapshot(fmt.Sprint("s", n), "v")
		if n > 2 {
			must(t, p.DeleteSnapshot(t.Context(), fmt.Sprint("s", n-2)))
		}
	}
	p.jobsDone()
	p.check()
}
