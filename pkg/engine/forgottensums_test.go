package engine

import (
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// A generation loses its last run and is forgotten while its checksums, which were read before, wait to be stored: no mark may be left of it.
func TestNoMarkForForgottenGeneration(t *testing.T) {
	o := testOptions(t)
	o.ChecksumRate = -1 // none in the background
	p := newPool(t, o, MinPoolSize)
	v := p.volume("v", 1<<20)
	for i, name := range []string{"a", "b"} {
		p.writeStamp(v, 0, 4, uint64(i))
		p.snapshot(name, "v")
	}
	gen := p.catalogue.layers[p.catalogue.snapshots["a"].rec.Layer].rec.Gens[0]
	family, ok := p.beginSums(gen)
	if !ok {
		t.Fatal("the snapshot's generation is not frozen")
	}
	w := sumWriter{p: p.Pool, gen: gen, family: family, limit: newLimiter(0), buf: fsys.AlignedBuffer(sumRead * BlockSize)}
	must(t, w.page(0))
	p.deleteSnapshot("a")
	p.jobsDone()
	must(t, w.finish())
	p.summing.end()
	p.check()
}
