package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// damagedPool is a closed pool with two volumes, a snapshot of each and checksums, in a folder on a real file system. damage spoils its store.
func damagedPool(t *testing.T, damage func(p *testPool, db rawStore)) *testPool {
	t.Helper()
	p := newPool(t, testOptions(t), MinPoolSize)
	for i, name := range []string{"v", "w"} {
		v := p.volume(name, 16<<20)
		p.write(v, 0, 40, byte(i+1))
		p.write(v, 2000, 10, 7)
		p.snapshot("s"+name, name)
		p.write(v, 20, 40, 9)
		must(t, v.Flush())
		must(t, v.Close(t.Context()))
	}
	must(t, p.WaitChecksums(t.Context()))
	p.check()
	must(t, p.Close(t.Context()))
	editStore(t, p, func(db rawStore) { damage(p, db) })
	return p
}

func (tp *testPool) gens(snapshot, volume string) (frozen, head uint64) {
	c := tp.catalogue
	return c.layers[c.snapshots[snapshot].rec.Layer].rec.Gens[0], c.layers[c.volumes[volume].rec.Layer].rec.Gens[0]
}

func set(t *testing.T, db rawStore, key, value []byte) {
	t.Helper()
	must(t, db.Set(key, value, pebble.Sync))
}

// stored is a record's value.
func stored(t *testing.T, db rawStore, key []byte) []byte {
	t.Helper()
	v, closer, err := db.Get(key)
	must(t, err)
	v = bytes.Clone(v)
	must(t, closer.Close())
	return v
}

// chunkInUse is the first chunk with blocks in use.
func chunkInUse(t *testing.T, db rawStore) (chunk uint32) {
	t.Helper()
	found := false
	lower, upper := format.Kind(format.BitmapKey(0))
	must(t, scan(db, lower, upper, func(key, val []byte) error {
		bits, err := decodeBitmap(val)
		if err == nil && !found && bits.Count() > 0 {
			found = true
			chunk, err = format.ParseNumber(key)
		}
		return err
	}))
	if !found {
		t.Fatal("no block is in use")
	}
	return chunk
}

func TestRepair(t *testing.T) {
	// Everything that can be derived, one at a time, and what names it.
	for _, c := range []struct {
		name, names string
		damage      func(p *testPool, db rawStore)
	}{
		{"bitmap lost", "is in use and has no bitmap", func(p *testPool, db rawStore) { must(t, db.Delete(format.BitmapKey(chunkInUse(t, db)), pebble.Sync)) }},
		{"bitmap of other blocks", "shows 1024 blocks in use", func(p *testPool, db rawStore) {
			set(t, db, format.BitmapKey(chunkInUse(t, db)), bytes.Repeat([]byte{255}, format.BitmapLen))
		}},
		{"bitmap cut off", "bitmap of chunk", func(p *testPool, db rawStore) {
			set(t, db, format.BitmapKey(chunkInUse(t, db)), []byte{1})
		}},
		{"segment's count", "blocks are counted in use", func(p *testPool, db rawStore) {
			set(t, db, format.SegmentUseKey(0), binary.AppendUvarint(nil, 7))
		}},
		{"segment's count too large", "use of segment 0", func(p *testPool, db rawStore) {
			set(t, db, format.SegmentUseKey(0), binary.AppendUvarint(nil, alloc.SegmentBlocks+1))
		}},
		{"segment's record lost", "has 180 blocks in use, and space for 0", func(p *testPool, db rawStore) {
			must(t, db.Delete(format.SegmentKey(0), pebble.Sync))
		}},
		{"page missing in the index", "the index lists", func(p *testPool, db rawStore) {
			gen, _ := p.gens("sv", "v")
			must(t, db.Delete(format.TouchedKey(gen, 1), pebble.Sync))
		}},
		{"page too many in the index", "where it has no run", func(p *testPool, db rawStore) {
			gen, _ := p.gens("sv", "v")
			set(t, db, format.TouchedKey(gen, 3), nil)
		}},
		{"index of no layer", "no layer has it", func(p *testPool, db rawStore) { set(t, db, format.TouchedKey(12345, 3), nil) }},
		{"layer's counts", "is counted to own", func(p *testPool, db rawStore) {
			set(t, db, format.LayerUseKey(p.catalogue.snapshots["sv"].rec.Layer), format.LayerUse{Owned: 3, Pages: 9}.Encode())
		}},
		{"volume's count", "is counted to map", func(p *testPool, db rawStore) {
			set(t, db, format.VolumeUseKey(p.catalogue.volumes["v"].id), format.VolumeUse{Mapped: 1}.Encode())
		}},
		{"job of no layer", "which is not there", func(p *testPool, db rawStore) {
			set(t, db, format.JobKey(77), format.Job{Kind: format.JobFree, Layer: 4711}.Encode())
		}},
		{"hidden runs that nobody removes", "hidden blocks and no queued join", func(p *testPool, db rawStore) {
			gen, head := p.gens("sv", "v")
			c := p.catalogue
			frozen, rec := c.layers[c.snapshots["sv"].rec.Layer], c.layers[c.volumes["v"].rec.Layer].rec
			rec.Gens, rec.Parent = []uint64{gen, head}, 0
			set(t, db, format.LayerKey(c.volumes["v"].rec.Layer), rec.Encode())
			must(t, db.Delete(format.LayerKey(frozen.id), pebble.Sync))
			must(t, db.Delete(format.SnapshotKey(c.snapshots["sv"].id), pebble.Sync))
		}},
		{"checksums of a head", "which is written in place", func(p *testPool, db rawStore) {
			frozen, head := p.gens("sv", "v")
			set(t, db, format.SumsKey(head, 0), stored(t, db, format.SumsKey(frozen, 0)))
		}},
		{"checksums of no run", "it has no run there", func(p *testPool, db rawStore) {
			frozen, _ := p.gens("sv", "v")
			set(t, db, format.SumsKey(frozen, 3), stored(t, db, format.SumsKey(frozen, 0)))
		}},
		{"checksums of no block", "where it has no run", func(p *testPool, db rawStore) {
			frozen, _ := p.gens("sv", "v")
			sums, err := readSums(db, frozen, 0)
			must(t, err)
			sums.Set(700, 1)
			set(t, db, format.SumsKey(frozen, 0), sums.Encode())
		}},
		{"checksums cut off", "checksums", func(p *testPool, db rawStore) {
			frozen, _ := p.gens("sv", "v")
			set(t, db, format.SumsKey(frozen, 0), []byte{1, 0, 1})
		}},
		{"checksums lost", "and has none in page 0", func(p *testPool, db rawStore) {
			frozen, _ := p.gens("sv", "v")
			must(t, db.Delete(format.SumsKey(frozen, 0), pebble.Sync))
		}},
		{"some checksums lost", "lacks those of 1 blocks", func(p *testPool, db rawStore) {
			frozen, _ := p.gens("sv", "v")
			sums, err := readSums(db, frozen, 0)
			must(t, err)
			sums.Remove(3)
			set(t, db, format.SumsKey(frozen, 0), sums.Encode())
		}},
		{"mark of no layer", "is marked to have its checksums", func(p *testPool, db rawStore) { set(t, db, format.SummedKey(12345), nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := damagedPool(t, c.damage)
			o := p.o
			o.patience = time.Millisecond
			r, err := CheckOffline(t.Context(), p.dir, o)
			must(t, err)
			if !slices.ContainsFunc(r.Problems, func(s string) bool { return strings.Contains(s, c.names) }) {
				t.Fatalf("found %q, want %q", r.Problems, c.names)
			}
			if r, err = RepairOffline(t.Context(), p.dir, o); err != nil || len(r.Problems) > 0 || r.Repaired == 0 || len(r.Found) == 0 {
				t.Fatalf("repair: %+v, %v", r, err)
			}
			if r, err = RepairOffline(t.Context(), p.dir, o); err != nil || len(r.Problems) > 0 || r.Repaired != 0 {
				t.Fatalf("repair of what is whole: %+v, %v", r, err)
			}
			// What guests read is what it was; checksums that were lost are made again.
			p.reopen()
			p.jobsDone()
			p.checksums()
			p.verifyRepaired()
		})
	}
}

// verifyRepaired reads what damagedPool wrote.
func (tp *testPool) verifyRepaired() {
	tp.t.Helper()
	for i, name := range []string{"v", "w"} {
		v := tp.open(name)
		for block, want := range map[int]byte{0: byte(i + 1), 19: byte(i + 20), 20: 9, 59: 48, 2009: 16, 2010: 0} {
			b := make([]byte, BlockSize)
			_, err := v.ReadAt(b, int64(block)*BlockSize)
			must(tp.t, err)
			if b[0] != want || b[BlockSize-1] != want {
				tp.t.Errorf("volume %s block %d shows %d, want %d", name, block, b[0], want)
			}
		}
		must(tp.t, v.Close(tp.t.Context()))
	}
}

// A layer that lost its name with nobody to free it is freed when the pool is opened.
func TestForgottenLayerIsQueued(t *testing.T) {
	p := damagedPool(t, func(p *testPool, db rawStore) {
		c := p.catalogue
		s := c.snapshots["sv"]
		rec := c.layers[s.rec.Layer].rec
		rec.Name = 0
		set(t, db, format.LayerKey(s.rec.Layer), rec.Encode())
		must(t, db.Delete(format.SnapshotKey(s.id), pebble.Sync))
		snap := db.NewSnapshot()
		defer snap.Close()
		r, err := checkMetadata(t.Context(), snap, func(uint64) bool { return false })
		if err != nil || !strings.Contains(strings.Join(r.Problems, "\n"), "is not queued for freeing") {
			t.Fatalf("%q, %v", r.Problems, err)
		}
	})
	p.reopen()
	p.jobsDone()
	p.checksums()
	p.verifyRepaired()
}

// Two owners of a block are named with what shows them, and nothing is changed that could not be derived.
func TestTwoOwners(t *testing.T) {
	var place uint64
	p := damagedPool(t, func(p *testPool, db rawStore) {
		c := p.catalogue
		gen, _ := p.gens("sv", "v")
		_, head := p.gens("sw", "w")
		list, err := readGeneration(db, c.layers[c.volumes["v"].rec.Layer].rec.Family, 0, gen)
		must(t, err)
		place = list[0].Place()
		family := c.layers[c.volumes["w"].rec.Layer].rec.Family
		set(t, db, format.RunKey(family, 0, head, 20), format.AppendRun(nil, format.Run{Len: 40, Place: place + 2}))
	})
	o := p.o
	o.patience = time.Millisecond
	for _, check := range []func() (OfflineReport, error){
		func() (OfflineReport, error) { return CheckOffline(t.Context(), p.dir, o) },
		func() (OfflineReport, error) { return RepairOffline(t.Context(), p.dir, o) },
	} {
		r, err := check()
		must(t, err)
		text := strings.Join(r.Problems, "\n")
		want := fmt.Sprintf(`38 pool blocks from %d on have 2 owners: 155648 bytes at 8192 of snapshot "sv" of volume "v", volume "v"; `+
			`and 155648 bytes at 81920 of volume "w"`, place+2)
		if !strings.Contains(text, want) {
			t.Errorf("want %s; found:\n%s", want, text)
		}
	}
}

// Where runs do not decode nothing is marked free: their blocks are unknown.
func TestNoRepairOfUnreadableRuns(t *testing.T) {
	var before []byte
	var chunk uint32
	p := damagedPool(t, func(p *testPool, db rawStore) {
		c := p.catalogue
		gen, _ := p.gens("sv", "v")
		set(t, db, format.RunKey(c.layers[c.volumes["v"].rec.Layer].rec.Family, 0, gen, 0), []byte{0xff})
		chunk = chunkInUse(t, db)
		before = stored(t, db, format.BitmapKey(chunk))
	})
	o := p.o
	o.patience = time.Millisecond
	if _, err := RepairOffline(t.Context(), p.dir, o); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatalf("repair: %v", err)
	}
	r, err := CheckOffline(t.Context(), p.dir, o)
	must(t, err)
	if len(r.Problems) == 0 {
		t.Fatal("the damage is gone")
	}
	editStore(t, p, func(db rawStore) {
		if after := stored(t, db, format.BitmapKey(chunk)); !bytes.Equal(before, after) {
			t.Error("the bitmap has changed")
		}
	})
}

// The message that another engine has the pool comes at once when nobody wants to wait.
func TestCheckOfflineDoesNotWait(t *testing.T) {
	p, _ := memPool(t)
	o := p.o
	o.LockWait = -1
	began := time.Now()
	if _, err := CheckOffline(t.Context(), p.dir, o); !errors.Is(err, ErrLocked) || time.Since(began) > 5*time.Second {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
}
