package local_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// cutTwo cuts a group of two volumes of the default pool.
func cutTwo(t *testing.T, s *local.Service) (volume.GroupRequest, volume.Group) {
	t.Helper()
	r := volume.GroupRequest{Name: "g"}
	for _, name := range []string{"a", "b"} {
		v, err := s.Create(t.Context(), volume.CreateRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		r.Sources = append(r.Sources, v.ID)
	}
	g, err := s.CreateGroup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r, g
}

// TestGroupApart: the error says which volume is where.
func TestGroupApart(t *testing.T) {
	f := newFake(ready("other"), ready(volumetest.Pool))
	s := newLocal(f)
	r, _ := cutTwo(t, s)
	c, err := s.Create(t.Context(), volume.CreateRequest{Name: "c", Parameters: volume.Parameters{Pool: "other"}})
	if err != nil {
		t.Fatal(err)
	}
	r.Name, r.Sources = "apart", append(r.Sources, c.ID)
	_, err = s.CreateGroup(t.Context(), r)
	if !errors.Is(err, volume.ErrApart) {
		t.Fatalf("cut: %v", err)
	}
	for _, words := range []string{"c in pool other", "a, b in pool " + volumetest.Pool, string(volumetest.Node)} {
		if !strings.Contains(err.Error(), words) && !strings.Contains(err.Error(), strings.Replace(words, "a, b", "b, a", 1)) {
			t.Errorf("%q does not say %q", err, words)
		}
	}
	if len(f.snapshots) != 2 {
		t.Errorf("%d snapshots, want the two of before", len(f.snapshots))
	}
}

// TestGroupDeletedHalfway: the process dies between two snapshots, and the repeated call finishes, whatever it is told that the group consists of.
func TestGroupDeletedHalfway(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	r, g := cutTwo(t, s)
	deletes := 0
	f.before = func(call string) {
		if call == "DeleteSnapshot" {
			if deletes++; deletes == 2 {
				f.mu.Lock()
				f.fail[call] = fmt.Errorf("call: %w", rpc.ErrUnreachable)
				f.mu.Unlock()
			}
		}
	}
	if err := s.DeleteGroup(t.Context(), g.ID, g.Handles()); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("delete: %v", err)
	}
	delete(f.fail, "DeleteSnapshot")
	if len(f.snapshots) != 1 {
		t.Fatalf("%d snapshots, want 1", len(f.snapshots))
	}
	if _, err := volume.Open(s).CreateGroup(t.Context(), r); !errors.Is(err, volume.ErrExists) {
		t.Errorf("ask for it again meanwhile: %v", err)
	}
	if err := s.DeleteGroup(t.Context(), g.ID, []volume.SnapshotID{volume.SnapshotIDOf("nonsense")}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("delete as a group of what never was: %v", err)
	}
	if err := s.DeleteGroup(t.Context(), g.ID, g.Handles()); err != nil || len(f.snapshots) != 0 {
		t.Errorf("delete again: %v, %d snapshots are left", err, len(f.snapshots))
	}
}

// TestGroupOfClosedPool: what is in a pool that is not open is not taken for gone.
func TestGroupOfClosedPool(t *testing.T) {
	f := newFake(ready(volumetest.Pool), engine.PoolInfo{Name: "broken", State: "Unavailable", Reason: "disk is away"})
	s := newLocal(f)
	id := volume.GroupIDOf("may be in there")
	if err := volume.Open(s).DeleteGroup(t.Context(), id, nil); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("delete: %v", err)
	}
	if _, err := s.GetGroup(t.Context(), id); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("get: %v", err)
	}
}

// TestGroupByHand: one that was cut with rowanctl has another kind of name, and its snapshots are deleted as others are.
func TestGroupByHand(t *testing.T) {
	f := newFake(ready(volumetest.Pool))
	s := newLocal(f)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	id := volume.SnapshotIDOf("s")
	if _, err := f.CreateSnapshotGroup(t.Context(), volumetest.Pool, engine.SnapshotGroupSpec{
		Name: "by-hand", Snapshots: []engine.SnapshotSpec{{Name: id.String(), Volume: v.ID.String()}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSnapshot(t.Context(), id); err != nil {
		t.Error(err)
	}
}
