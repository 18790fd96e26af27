package engine

import (
	"context"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// ModelBackend is a pool for the reference model, in memory or, with a folder, on a disk.
type ModelBackend struct {
	dir  string
	o    Options
	made bool
}

// NewModelBackend makes one in memory, of two members; with a folder, of one there.
func NewModelBackend(t *testing.T, dir string) *ModelBackend {
	b := &ModelBackend{dir: dir, o: testOptions(t)}
	b.o.Observer, b.o.RingDir = nil, ringFolder(t)
	if dir == "" {
		b.dir, b.o.fs, b.o.bootID = "/pool", crashDisk(), &[16]byte{1}
	}
	return b
}

// Open makes the pool, or opens it again.
func (b *ModelBackend) Open() (*Pool, error) {
	if b.made {
		return OpenPool(context.Background(), b.dir, b.o)
	}
	b.made = true
	spec := PoolSpec{Name: "p", Directory: b.dir, Size: MinPoolSize}
	if b.o.fs != nil {
		spec.More = []MemberSpec{{Directory: "/second/pool", Size: MinPoolSize}}
	}
	return CreatePool(context.Background(), spec, b.o)
}

// Kill lets a pool go as the death of its process does.
func (b *ModelBackend) Kill(p *Pool) error { return (&testPool{Pool: p}).kill() }

// Move gives other places to what the store has in a page of a volume's family.
func (b *ModelBackend) Move(p *Pool, volume string, page uint32) error {
	v, err := p.catalogue.volume(volume)
	if err != nil {
		return err
	}
	family := p.catalogue.layers[v.rec.Layer].rec.Family
	list, err := storedRuns(p, family, page)
	if err != nil {
		return err
	}
	var count volumeCounters
	_, err = p.relocate(relocation{family, page, list, func(n int) (uint64, int, error) { return p.alloc.Alloc(1<<62, n, alloc.Reserved) }, &count})
	return err
}

// Layers counts what is in the pool's tree.
func (b *ModelBackend) Layers(p *Pool) int { return len(p.catalogue.layers) }

// NeedFileSystem skips a test whose folder is on a file system that pools do not use.
func NeedFileSystem(t *testing.T, dir string) {
	t.Helper()
	usage, err := fsys.OS().Usage(dir)
	must(t, err)
	if usage.Type != "ext4" && usage.Type != "xfs" {
		t.Skipf("needs xfs or ext4: the folder for temporary files is on %s; set TMPDIR", usage.Type)
	}
}
