package engine

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/member"
)

func TestCheckOffline(t *testing.T) {
	p, _ := memPool(t)
	v := p.volume("v", 1<<20)
	_, err := v.WriteAt(bytes.Repeat([]byte{1}, 3*BlockSize), 0)
	must(t, err)
	must(t, p.flush())
	_, err = v.WriteAt(bytes.Repeat([]byte{1}, BlockSize), 512<<10)
	must(t, err)

	o := p.o
	o.patience = time.Millisecond
	if _, err := CheckOffline(t.Context(), p.dir, o); !errors.Is(err, ErrLocked) {
		t.Fatalf("a pool that is open: %v", err)
	}
	must(t, p.kill())
	r, err := CheckOffline(t.Context(), p.dir, o)
	must(t, err)
	if len(r.Problems) > 0 || r.Pool != "p" || r.Clean || r.Volumes != 1 || r.Blocks < 3 {
		t.Fatalf("after the engine's death: %+v", r)
	}
	// It took nothing away: what is in the ring alone is still replayed.
	p.reopen()
	b := make([]byte, BlockSize)
	v = p.open("v")
	_, err = v.ReadAt(b, 512<<10)
	must(t, err)
	if b[0] != 1 {
		t.Fatal("a write that was acknowledged is gone")
	}
	p.check()
	must(t, p.Close(t.Context()))
	if r, err = CheckOffline(t.Context(), p.dir, o); err != nil || len(r.Problems) > 0 || !r.Clean || r.Blocks != 4 {
		t.Fatalf("after it was closed: %+v, %v", r, err)
	}
	if _, err := CheckOffline(t.Context(), "/nowhere", o); !errors.Is(err, ErrNotFound) {
		t.Fatalf("no pool: %v", err)
	}
}

// Damage is a problem that is listed, where the pool does not even open.
func TestCheckOfflineDamage(t *testing.T) {
	p, _ := memPool(t)
	must(t, p.volume("v", 1<<20).Close(t.Context()))
	id := p.catalogue.volumes["v"].rec.Layer
	must(t, p.kill())
	editStore(t, p, func(db rawStore) {
		must(t, db.Delete(format.LayerKey(id), pebble.Sync))
		must(t, db.Delete(format.PoolKey(), pebble.Sync))
	})
	if _, err := OpenPool(t.Context(), p.dir, p.o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a damaged pool opens: %v", err)
	}
	r, err := CheckOffline(t.Context(), p.dir, p.o)
	must(t, err)
	if text := strings.Join(r.Problems, "\n"); !strings.Contains(text, "pool record") || !strings.Contains(text, `"v"`) {
		t.Fatalf("problems: %q", r.Problems)
	}
}

// rawStore is a store that tests write to past the committer.
type rawStore struct {
	*pebble.DB
	m *metadata
}

func (s rawStore) Get(key []byte) ([]byte, io.Closer, error)        { return s.m.Get(key) }
func (s rawStore) NewIter(o *pebble.IterOptions) (*iterator, error) { return s.m.NewIter(o) }
func (s rawStore) NewSnapshot() *moment                             { return s.m.NewSnapshot() }

// editStore changes the metadata of a pool that nobody has open: with the pool open, its committer writes the pool's record again at any time.
func editStore(t *testing.T, p *testPool, edit func(db rawStore)) {
	t.Helper()
	o := p.o.withDefaults()
	m, err := member.Open(o.fs, p.dir, member.Options{LockTimeout: o.patience})
	must(t, err)
	q := &Pool{options: o, fs: o.fs, identity: m.Superblock(), preparing: newPreparer(), members: &members{}}
	db, err := q.openMetadata(m, false)
	must(t, err)
	edit(rawStore{db.at.db, db})
	must(t, db.close())
	must(t, m.Close())
}
