package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// promises verifies that the promise of every thick volume is what its head may yet need. Nobody may write meanwhile.
func (tp *testPool) promises() {
	tp.t.Helper()
	must(tp.t, tp.flush())
	tp.ops.Lock()
	defer tp.ops.Unlock()
	total := int64(0)
	for name, v := range tp.catalogue.volumes {
		got, ok := tp.alloc.PromiseOf(v.id)
		want := blocksOf(v.rec.Size) - tp.catalogue.layers[v.rec.Layer].owned.Load() + v.gain
		if ok != v.rec.Thick || (ok && got != want) {
			tp.t.Fatalf("volume %q: promised %d blocks (thick: %v), needs %d", name, got, ok, want)
		}
		total += max(got, 0)
	}
	if got := tp.alloc.Promised(); got != total {
		tp.t.Fatalf("%d blocks promised in all, want %d", got, total)
	}
}

func (tp *testPool) thick(name string, size int64, mode Mode) *Volume {
	tp.t.Helper()
	_, err := tp.CreateVolume(tp.t.Context(), VolumeSpec{Name: name, Size: size, Provisioning: ProvisionThick, Mode: mode})
	must(tp.t, err)
	return tp.open(name)
}

// A thick volume is rewritten in full, by small writes at random and with discards in between, on a pool that is otherwise full, again after a snapshot
// and after its deletion, and after a reopening.
func TestThickVolumeNeverLacksSpace(t *testing.T) {
	for _, mode := range []Mode{RedirectOnWrite, CopyOnWrite} {
		t.Run(mode.String(), func(t *testing.T) { neverLacksSpace(t, mode) })
	}
}

func neverLacksSpace(t *testing.T, mode Mode) {
	o := testOptions(t)
	o.SpaceWait, o.RefuseAt = 200*time.Millisecond, 2
	p := newPool(t, o, MinPoolSize)
	v := p.thick("thick", 16<<20, mode)
	if info, i := p.Info(), v.Info(); info.Reserved != 16<<20 || info.Thick != 16<<20 || i.Reserved != 16<<20 || i.Provisioning != ProvisionThick {
		t.Fatalf("%+v, %+v", info, i)
	}
	thin := p.volume("thin", 512<<20)
	next := int64(0)
	fillUp := func() { next = p.fillTo(thin, next, 0) }
	fillUp()
	full := func() {
		t.Helper()
		if _, err := thin.WriteAt(make([]byte, BlockSize), 500<<20); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("a thin volume takes what is a thick one's: %v", err)
		}
	}
	full()
	if err := p.noSpace(); !strings.Contains(err.Error(), "16 MiB are set aside") {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	rewrite := func(b byte) {
		t.Helper()
		data := bytes.Repeat([]byte{b}, 1<<20)
		for _, i := range r.Perm(16 * 256) {
			off := int64(i) * BlockSize
			if i%16 == 0 {
				must(t, v.Discard(off, BlockSize))
			}
			_, err := v.WriteAt(data[:BlockSize], off)
			must(t, err)
		}
		must(t, v.Discard(3<<20, 5<<20))
		for off := int64(0); off < v.Size(); off += 1 << 20 {
			_, err := v.WriteAt(data, off)
			must(t, err)
		}
		expect(t, v, bytes.Repeat([]byte{b}, 16<<20))
		p.promises()
		full()
	}
	rewrite(1)
	if _, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "thick"}); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "is thick") {
		t.Fatalf("a snapshot that the pool cannot keep its word after: %v", err)
	}
	p.promises()
	rewrite(2)
	must(t, thin.Discard(0, 28<<20))
	must(t, p.flush())
	next = 0
	until(t, "there is space", func() bool { return p.Info().Available >= 28<<20 })
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "thick"})
	must(t, err)
	p.promises()
	if mode == CopyOnWrite {
		for i := range int64(256) { // there is space for the copies
			_, err := v.WriteAt(make([]byte, BlockSize), 16*i*BlockSize)
			must(t, err)
		}
		if n := v.Info().Counters.Copies; n == 0 {
			t.Fatal("nothing was copied")
		}
		p.promises()
	}
	fillUp()
	full()
	rewrite(3)
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	p.jobsDone()
	p.promises()
	p.check()
	fillUp()
	rewrite(4)
	must(t, p.kill())
	p.reopen()
	v, thin = p.open("thick"), p.open("thin")
	p.promises()
	full()
	rewrite(5)
}

// Who inherits, who is refused, and that growing, rolling back, cloning and deleting keep the promises.
func TestThickVolumesAreAdmitted(t *testing.T) {
	o := testOptions(t)
	o.RefuseAt = 2
	p := newPool(t, o, MinPoolSize)
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("%s: %v", what, err)
		}
		p.promises()
	}
	ctx := t.Context()
	_, err := p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 1 << 20, Provisioning: "fat"})
	if !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	_, err = p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 300 << 20, Provisioning: ProvisionThick})
	refused("larger than the pool", err)
	v := p.thick("v", 48<<20, RedirectOnWrite)
	fill(t, v, 1)
	_, err = p.GrowVolume(ctx, "v", 400<<20)
	refused("grow beyond the pool", err)
	_, err = p.GrowVolume(ctx, "v", 64<<20)
	must(t, err)
	p.promises()
	_, err = p.CreateSnapshot(ctx, SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	p.promises()
	kinds := map[string]Provisioning{"clone": ProvisionThick, "thin": ProvisionThin, "restored": ProvisionThick}
	_, err = p.CreateVolume(ctx, VolumeSpec{Name: "clone", FromVolume: "v"})
	must(t, err)
	_, err = p.CreateVolume(ctx, VolumeSpec{Name: "thin", FromVolume: "v", Provisioning: ProvisionThin})
	must(t, err)
	_, err = p.CreateVolume(ctx, VolumeSpec{Name: "restored", FromSnapshot: "s"})
	must(t, err)
	for name, kind := range kinds {
		if info, err := p.Volume(name); err != nil || info.Provisioning != kind {
			t.Errorf("%s is %s, want %s (%v)", name, info.Provisioning, kind, err)
		}
	}
	if info, err := p.Pool.Snapshot("s"); err != nil || info.Provisioning != ProvisionThick {
		t.Errorf("the snapshot is %s (%v)", info.Provisioning, err)
	}
	p.promises()
	_, err = p.CreateVolume(ctx, VolumeSpec{Name: "more", FromVolume: "v"})
	refused("one clone too many", err)
	fill(t, v, 2)
	must(t, v.Close(ctx))
	_, err = p.RollbackVolume(ctx, "v", "s", "")
	must(t, err)
	p.jobsDone()
	p.promises()
	for _, name := range []string{"clone", "thin", "restored"} {
		must(t, p.DeleteVolume(ctx, name))
	}
	p.jobsDone()
	p.promises()
	v = p.open("v")
	fill(t, v, 3)
	must(t, p.DeleteSnapshot(ctx, "s"))
	p.jobsDone()
	p.promises()
	if info := p.Info(); info.Used+info.Reserved != 64<<20 {
		t.Fatalf("%+v", info)
	}
}

// What thick volumes were promised on a member that is drained they have on the others, or it is not drained.
func TestThickVolumeOnDrainedMember(t *testing.T) {
	o := testOptions(t)
	o.SpaceWait, o.RefuseAt = 200*time.Millisecond, 2
	p := newPoolOf(t, o, 2, "")
	p.quiet()
	data := bytes.Repeat([]byte{1}, 1<<20)
	write := func(v *Volume, size int64) {
		t.Helper()
		for off := int64(0); off < size; off += int64(len(data)) {
			_, err := v.WriteAt(data, off)
			must(t, err)
		}
	}
	large := p.thick("large", MinPoolSize+32<<20, RedirectOnWrite)
	write(large, 16<<20)
	if _, err := p.DrainMember(t.Context(), "1", false); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("the other has no room for what is promised: %v", err)
	}
	p.promises()
	write(large, MinPoolSize+32<<20)
	must(t, large.Close(t.Context()))
	must(t, p.DeleteVolume(t.Context(), "large"))
	p.jobsDone()
	until(t, "the blocks are free", func() bool { return p.Info().Used == 0 })

	v := p.thick("thick", 128<<20, RedirectOnWrite)
	write(v, 32<<20)
	must(t, p.flush())
	_, err := p.DrainMember(t.Context(), "1", false)
	must(t, err)
	if n := p.alloc.Unpromised(); n < 0 {
		t.Fatalf("%d promised blocks have no space", -n)
	}
	thin := p.volume("thin", 1<<30)
	p.drained(1)
	p.fillTo(thin, 0, 0)
	if _, err := thin.WriteAt(data, 1<<29); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a thin volume takes what is a thick one's: %v", err)
	}
	write(v, v.Size())
	p.promises()
}
