package enginetest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// Backend is where a run's pool lives.
type Backend interface {
	// Open makes the pool at the first call, and opens it again at later ones.
	Open() (*engine.Pool, error)
	// Kill lets a pool go as the death of its process does.
	Kill(p *engine.Pool) error
	// Move gives what a volume shows in a page other places.
	Move(p *engine.Pool, volume string, page uint32) error
	// Layers counts what is in the pool's tree.
	Layers(p *engine.Pool) int
}

// Limits of a run.
const (
	maxVolumes   = 5
	maxSnapshots = 12
	maxReaders   = 3
	// verifyEvery is after how many operations everything is compared.
	verifyEvery = 20
)

// run is one random run of all operations against the model.
type run struct {
	*rapid.T
	backend   Backend
	pool      *engine.Pool
	ctx       context.Context
	volumes   map[string]*volume
	snapshots map[string]*snapshot
	readers   []reader
	names     int
	stamps    uint64
	events    int
	done      int
}

type volume struct {
	name string
	dev  *engine.Volume
	*image
}

type snapshot struct {
	volume, group string
	*image
}

type reader struct {
	name string
	dev  *engine.SnapshotReader
	*image
}

// Run does a random sequence of operations and compares the engine with the model all the way. The pool is closed when it returns.
func Run(t *rapid.T, b Backend) {
	r := newRun(t, b)
	t.Repeat(map[string]func(*rapid.T){
		"":               func(*rapid.T) { r.step() },
		"write":          r.of((*run).write),
		"write more":     r.of((*run).write),
		"write again":    r.of((*run).write),
		"zero":           r.of((*run).zero),
		"read":           r.of((*run).read),
		"flush":          r.of((*run).flush),
		"snapshot":       r.of((*run).snapshot),
		"group":          r.of((*run).group),
		"delete":         r.of((*run).deleteSnapshot),
		"delete another": r.of((*run).deleteSnapshot),
		"open reader":    r.of((*run).openReader),
		"close reader":   r.of((*run).closeReader),
		"create":         r.of((*run).create),
		"restore":        r.of((*run).restore),
		"clone":          r.of((*run).cloneVolume),
		"roll back":      r.of((*run).rollback),
		"delete volume":  r.of((*run).deleteVolume),
		"grow":           r.of((*run).grow),
		"mode":           r.of((*run).mode),
		"move":           r.of((*run).move),
		"label":          r.of((*run).label),
		"reattach":       r.of((*run).reattach),
		"ranges":         r.of((*run).diffs),
		"refused":        r.of((*run).refused),
		"passes":         r.of((*run).passes),
		"close pool":     r.of(func(r *run) { r.reopen(r.pool.Close(r.ctx)) }),
		"kill":           r.of(func(r *run) { r.reopen(r.backend.Kill(r.pool)) }),
	})
	r.verify()
	r.deleteAll()
	r.must(r.pool.Close(r.ctx))
}

func newRun(t *rapid.T, b Backend) *run {
	r := &run{T: t, backend: b, ctx: t.Context(), volumes: map[string]*volume{}, snapshots: map[string]*snapshot{}}
	var err error
	r.pool, err = b.Open()
	r.must(err)
	t.Cleanup(func() { _ = b.Kill(r.pool) }) // of one that is closed: nothing
	r.create()
	return r
}

func (r *run) of(f func(*run)) func(*rapid.T) { return func(*rapid.T) { f(r) } }

func (r *run) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%v", err)
	}
}

func (r *run) draw(what string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(r.T, what) }

func (r *run) draw64(what string, lo, hi int64) int64 {
	return rapid.Int64Range(lo, hi).Draw(r.T, what)
}

// chance is true once in n; a shorter run has less of it.
func (r *run) chance(what string, n int) bool { return r.draw(what, 1, n) == n }

func (r *run) name(prefix string) string {
	r.names++
	return fmt.Sprintf("%s%d", prefix, r.names)
}

func (r *run) changed(m *image, off, n int64) {
	r.events++
	m.events = append(m.events, event{r.events, off, n})
}

func (r *run) anyVolume() *volume {
	if len(r.volumes) == 0 {
		r.Skip("no volume")
	}
	return r.volumes[rapid.SampledFrom(sortedKeys(r.volumes)).Draw(r.T, "volume")]
}

func (r *run) anySnapshot() (string, *snapshot) {
	if len(r.snapshots) == 0 {
		r.Skip("no snapshot")
	}
	name := rapid.SampledFrom(sortedKeys(r.snapshots)).Draw(r.T, "snapshot")
	return name, r.snapshots[name]
}

// step is between operations.
func (r *run) step() {
	if r.done++; r.done%verifyEvery == 0 {
		r.verify()
	}
}

// check runs Check, which must find nothing.
func (r *run) check() {
	r.Helper()
	report, err := r.pool.Check(r.ctx)
	r.must(err)
	for _, problem := range report.Problems {
		r.Errorf("check: %s", problem)
	}
	if r.Failed() {
		r.FailNow()
	}
}

// verify compares everything.
func (r *run) verify() {
	r.Helper()
	r.check()
	for _, name := range sortedKeys(r.volumes) {
		v := r.volumes[name]
		r.must(v.compareAll("volume "+name, v.dev))
	}
	for _, name := range sortedKeys(r.snapshots) {
		dev, err := r.pool.OpenSnapshot(r.ctx, name)
		r.must(err)
		r.must(r.snapshots[name].compareAll("snapshot "+name, dev))
		r.must(dev.Close())
	}
	for _, reader := range r.readers {
		r.must(reader.compareAll("reader of "+reader.name, reader.dev))
	}
	if n := len(r.pool.Volumes()); n != len(r.volumes) {
		r.Fatalf("%d volumes, wanted %d", n, len(r.volumes))
	}
	if n := len(r.pool.Snapshots("")); n != len(r.snapshots) {
		r.Fatalf("%d snapshots, wanted %d", n, len(r.snapshots))
	}
}

// deleteAll removes everything; then nothing may be in use.
func (r *run) deleteAll() {
	for _, reader := range r.readers {
		r.must(reader.dev.Close())
	}
	for _, name := range sortedKeys(r.snapshots) {
		r.must(r.pool.DeleteSnapshot(r.ctx, name))
	}
	for _, name := range sortedKeys(r.volumes) {
		r.must(r.volumes[name].dev.Close(r.ctx))
		r.must(r.pool.DeleteVolume(r.ctx, name))
	}
	r.must(r.pool.WaitJobs(r.ctx))
	r.check()
	if info, layers := r.pool.Info(), r.backend.Layers(r.pool); info.Used != 0 || layers != 0 {
		r.Fatalf("everything is deleted, and %d bytes in %d layers are in use", info.Used, layers)
	}
}

// reopen opens the pool and all its volumes again. Readers went with the process.
func (r *run) reopen(err error) {
	r.must(err)
	r.readers = nil
	r.pool, err = r.backend.Open()
	r.must(err)
	for _, name := range sortedKeys(r.volumes) {
		r.open(r.volumes[name])
	}
	r.check()
}

func (r *run) open(v *volume) {
	dev, err := r.pool.OpenVolume(r.ctx, v.name)
	r.must(err)
	v.dev = dev
}

// refused asks for what cannot be.
func (r *run) refused() {
	v := r.anyVolume()
	_, err := r.pool.CreateVolume(r.ctx, engine.VolumeSpec{Name: v.name, Size: v.size})
	r.wants(err, engine.ErrExists)
	_, err = r.pool.CreateSnapshot(r.ctx, engine.SnapshotSpec{Name: "none", Volume: "none"})
	r.wants(err, engine.ErrNotFound)
	r.wants(r.pool.DeleteSnapshot(r.ctx, "none"), engine.ErrNotFound)
	r.wants(r.pool.DeleteVolume(r.ctx, v.name), engine.ErrInUse)
	_, err = r.pool.OpenVolume(r.ctx, v.name)
	r.wants(err, engine.ErrInUse)
	if len(r.snapshots) > 0 {
		name, s := r.anySnapshot()
		_, err = r.pool.CreateSnapshot(r.ctx, engine.SnapshotSpec{Name: name, Volume: v.name})
		r.wants(err, engine.ErrExists)
		if s.group != "" {
			spec := engine.SnapshotGroupSpec{Name: s.group, Snapshots: []engine.SnapshotSpec{{Name: "another", Volume: v.name}}}
			_, err = r.pool.CreateSnapshotGroup(r.ctx, spec)
			r.wants(err, engine.ErrExists)
		}
		if s.volume != v.name {
			r.must(v.dev.Close(r.ctx))
			_, err = r.pool.RollbackVolume(r.ctx, v.name, name, "")
			r.wants(err, engine.ErrNotDescendant)
			r.open(v)
		}
	}
	if _, err := v.dev.WriteAt(make([]byte, block), v.size); err == nil {
		r.Fatalf("a write beyond the end went through")
	}
	r.check()
}

func (r *run) wants(err, want error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Fatalf("got %v, wanted %v", err, want)
	}
}

// passes waits for the background.
func (r *run) passes() {
	r.must(r.pool.WaitJobs(r.ctx))
	r.check()
}

func (r *run) openReader() {
	if len(r.readers) == maxReaders {
		r.Skip("enough readers")
	}
	name, s := r.anySnapshot()
	dev, err := r.pool.OpenSnapshot(r.ctx, name)
	r.must(err)
	r.readers = append(r.readers, reader{name, dev, s.image})
}

func (r *run) closeReader() {
	if len(r.readers) == 0 {
		r.Skip("no reader")
	}
	i := r.draw("reader", 0, len(r.readers)-1)
	r.must(r.readers[i].compareAll("reader of "+r.readers[i].name, r.readers[i].dev))
	r.must(r.readers[i].dev.Close())
	r.readers = slices.Delete(r.readers, i, i+1)
	r.check()
}
