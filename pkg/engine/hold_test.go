package engine

import (
	"errors"
	"strings"
	"testing"
)

// A held volume is opened by nobody, also after the pool was opened again; its holder rolls it back once.
func TestHold(t *testing.T) {
	o := testOptions(t)
	p := newPool(t, o, MinPoolSize)
	ctx := t.Context()
	v := p.volume("v", 4<<20)
	old := fill(t, v, 1)
	_, err := p.CreateSnapshot(ctx, SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	wreck := fill(t, v, 2)
	if _, err := p.HoldVolume(ctx, "v", "a"); !errors.Is(err, ErrInUse) {
		t.Errorf("hold what is open: %v", err)
	}
	must(t, v.Close(ctx))
	for _, holder := range []string{"", strings.Repeat("x", maxHolder+1)} {
		if _, err := p.HoldVolume(ctx, "v", holder); !errors.Is(err, ErrInvalid) {
			t.Errorf("holder %q: %v", holder, err)
		}
	}
	first, err := p.HoldVolume(ctx, "v", "a")
	must(t, err)
	if again, err := p.HoldVolume(ctx, "v", "a"); err != nil || again.Hold() != first.Hold() || again.Hold().By != "a" || again.Hold().Since.IsZero() {
		t.Errorf("%+v, %v, before %+v", again.Hold(), err, first.Hold())
	}
	for what, err := range map[string]error{
		"open":                 second(p.OpenVolume(ctx, "v")),
		"hold by another":      second(p.HoldVolume(ctx, "v", "b")),
		"let go by another":    second(p.ReleaseVolume(ctx, "v", "b")),
		"roll back by nobody":  second(p.RollbackVolume(ctx, "v", "s", "")),
		"roll back by another": second(p.RollbackVolume(ctx, "v", "s", "b")),
	} {
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "held by a") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, p.kill())
	p.reopen()
	if _, err := p.OpenVolume(ctx, "v"); !errors.Is(err, ErrBusy) {
		t.Errorf("after the pool was opened again: %v", err)
	}
	// A safety snapshot of what is held.
	_, err = p.CreateSnapshot(ctx, SnapshotSpec{Name: "safety", Volume: "v"})
	must(t, err)
	done, err := p.RollbackVolume(ctx, "v", "s", "a")
	must(t, err)
	if r := done.RolledBack(); r.By != "a" || r.To != "s" || r.At.IsZero() || done.Hold().By != "" {
		t.Errorf("%+v", done.Labels)
	}

	// Newer data is not taken back, whoever asks again, open or not; and the holder gets no second hold.
	v, err = p.OpenVolume(ctx, "v")
	must(t, err)
	expect(t, v, old)
	newer := fill(t, v, 3)
	must(t, second(p.RollbackVolume(ctx, "v", "s", "a")))
	must(t, v.Close(ctx))
	must(t, second(p.RollbackVolume(ctx, "v", "s", "a")))
	if i, err := p.HoldVolume(ctx, "v", "a"); err != nil || i.Hold().By != "" {
		t.Errorf("%+v, %v", i.Hold(), err)
	}
	must(t, p.kill())
	p.reopen()
	must(t, second(p.RollbackVolume(ctx, "v", "s", "a")))
	v, err = p.OpenVolume(ctx, "v")
	must(t, err)
	expect(t, v, newer)
	must(t, v.Close(ctx))

	// Undone by another; a hold that was let go rolls nothing back.
	must(t, second(p.HoldVolume(ctx, "v", "b")))
	must(t, second(p.ReleaseVolume(ctx, "v", "b")))
	must(t, second(p.ReleaseVolume(ctx, "v", "b")))
	if _, err := p.RollbackVolume(ctx, "v", "safety", "b"); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "does not hold it") {
		t.Errorf("after it was let go: %v", err)
	}
	must(t, second(p.HoldVolume(ctx, "v", "b")))
	must(t, second(p.RollbackVolume(ctx, "v", "safety", "b")))
	v, err = p.OpenVolume(ctx, "v")
	must(t, err)
	expect(t, v, wreck)
	must(t, v.Close(ctx))
}

// What lies beyond the end of a smaller snapshot is zero after a rollback, not what was written there since.
func TestRollbackKeepsTheSize(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	ctx := t.Context()
	v := p.volume("v", 2<<20)
	old := fill(t, v, 1)
	_, err := p.CreateSnapshot(ctx, SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	_, err = p.GrowVolume(ctx, "v", 4<<20)
	must(t, err)
	fill(t, v, 2)
	must(t, v.Close(ctx))
	must(t, second(p.HoldVolume(ctx, "v", "a")))
	info, err := p.RollbackVolume(ctx, "v", "s", "a")
	must(t, err)
	if info.Size != 4<<20 {
		t.Errorf("%d bytes", info.Size)
	}
	v, err = p.OpenVolume(ctx, "v")
	must(t, err)
	expect(t, v, append(old, make([]byte, 2<<20)...))
	must(t, v.Close(ctx))
}

// A held volume can be deleted: whoever deletes it has given it up.
func TestDeleteHeld(t *testing.T) {
	p := newPool(t, testOptions(t), MinPoolSize)
	v := p.volume("v", 1<<20)
	must(t, v.Close(t.Context()))
	must(t, second(p.HoldVolume(t.Context(), "v", "a")))
	must(t, p.DeleteVolume(t.Context(), "v"))
}
