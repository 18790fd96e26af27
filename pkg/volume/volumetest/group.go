package volumetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// groups tests the life of a group: cut, looked at, copied from, deleted as one.
func groups(t *testing.T, s service) {
	a, b := must(t, s, volume.CreateRequest{Name: "a", FSType: volume.FSExt4}), must(t, s, volume.CreateRequest{Name: "b"})
	other := mustCut(t, s, volume.SnapshotRequest{Name: "by itself", Source: a.ID})
	r := volume.GroupRequest{Name: strings.Repeat("G", volume.MaxNameLen), Sources: []volume.VolumeID{b.ID, a.ID}}
	g, err := s.CreateGroup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Satisfies(r); err != nil || g.ID != r.ID() || g.CreatedAt.IsZero() || len(g.Snapshots) != 2 {
		t.Fatalf("cut %+v: %v", g, err)
	}
	for i, m := range r.Members() {
		want := volume.Snapshot{
			ID: m.ID(), Name: m.Name, Source: m.Source, Sizing: a.Sizing, Node: Node, Pool: Pool, CreatedAt: g.CreatedAt, Group: g.ID,
		}
		if m.Source == a.ID {
			want.FSType = a.FSType
		}
		if got := g.Snapshots[i]; got != want {
			t.Errorf("snapshot %+v, want %+v", got, want)
		}
		if got, err := s.GetSnapshot(t.Context(), m.ID()); err != nil || got != want {
			t.Errorf("by itself %+v, %v, want %+v", got, err, want)
		}
		if _, err := s.CreateSnapshot(t.Context(), m); !errors.Is(err, volume.ErrExists) {
			t.Errorf("a snapshot under the name of a group's: %v", err)
		}
		err := s.DeleteSnapshot(t.Context(), m.ID())
		if !errors.Is(err, volume.ErrGrouped) || !strings.Contains(err.Error(), g.ID.String()) {
			t.Errorf("delete one of a group's: %v", err)
		}
	}
	if got, err := s.GetGroup(t.Context(), g.ID); err != nil || got.ID != g.ID || got.CreatedAt != g.CreatedAt || !slices.Equal(got.Snapshots, g.Snapshots) {
		t.Errorf("looked at: %+v, %v, want %+v", got, err, g)
	}
	if all, _, err := s.ListSnapshots(t.Context(), volume.SnapshotFilter{}, volume.Page[volume.SnapshotID]{}); err != nil || len(all) != 3 {
		t.Errorf("listed %+v, %v", all, err)
	}
	groupRefusals(t, s, g, a, other)

	// Copies, and the group outlives its sources.
	for i, snap := range g.Snapshots {
		c := must(t, s, volume.CreateRequest{Name: fmt.Sprint("copy", i), FSType: snap.FSType, Source: volume.Source{Snapshot: snap.ID}})
		if c.Sizing != snap.Sizing || !c.HasParent {
			t.Errorf("a copy of %+v: %+v", snap, c)
		}
		if err := s.Delete(t.Context(), snap.Source); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.GetGroup(t.Context(), g.ID); err != nil || !slices.Equal(got.Snapshots, g.Snapshots) {
		t.Errorf("without its sources: %+v, %v", got, err)
	}
	if err := s.DeleteGroup(t.Context(), g.ID, []volume.SnapshotID{g.Snapshots[1].ID, g.Snapshots[0].ID}); err != nil {
		t.Fatal(err)
	}
	if all, _, err := s.ListSnapshots(t.Context(), volume.SnapshotFilter{}, volume.Page[volume.SnapshotID]{}); err != nil || len(all) != 1 || all[0] != other {
		t.Errorf("left: %+v, %v, want %+v", all, err, other)
	}
	if _, err := s.GetGroup(t.Context(), g.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("look at what is gone: %v", err)
	}
	if err := s.DeleteGroup(t.Context(), g.ID, g.Handles()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("delete it again: %v", err)
	}
	again := volume.GroupRequest{Name: r.Name, Sources: []volume.VolumeID{volume.VolumeIDOf("copy0")}}
	if g, err = s.CreateGroup(t.Context(), again); err != nil || g.Satisfies(again) != nil {
		t.Errorf("the name again: %+v, %v", g, err)
	}
	if err := s.DeleteGroup(t.Context(), g.ID, nil); err != nil {
		t.Errorf("delete without naming its snapshots: %v", err)
	}
}

// groupRefusals is what cannot be done while the group is there. a is one of its sources, other a snapshot that is not of it.
func groupRefusals(t *testing.T, s service, g volume.Group, a volume.Volume, other volume.Snapshot) {
	name := strings.Repeat("G", volume.MaxNameLen)
	for _, r := range []volume.GroupRequest{
		{Name: name, Sources: []volume.VolumeID{a.ID}},
		{Name: name, Sources: []volume.VolumeID{g.Snapshots[0].Source, g.Snapshots[1].Source}},
	} {
		if _, err := s.CreateGroup(t.Context(), r); !errors.Is(err, volume.ErrExists) {
			t.Errorf("name taken: %v", err)
		}
	}
	none := volume.GroupRequest{Name: "of nothing", Sources: []volume.VolumeID{a.ID, volume.VolumeIDOf("x")}}
	if _, err := s.CreateGroup(t.Context(), none); !errors.Is(err, volume.ErrSourceNotFound) {
		t.Errorf("of a volume that is not there: %v", err)
	}
	if _, err := s.GetGroup(t.Context(), none.ID()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("something came of it: %v", err)
	}
	for _, said := range [][]volume.SnapshotID{
		{g.Snapshots[0].ID},
		{g.Snapshots[0].ID, g.Snapshots[1].ID, other.ID},
		{g.Snapshots[0].ID, other.ID},
		{other.ID},
	} {
		if err := s.DeleteGroup(t.Context(), g.ID, said); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("delete as a group of others (%v): %v", said, err)
		}
	}
	if got, err := s.GetGroup(t.Context(), g.ID); err != nil || len(got.Snapshots) != 2 {
		t.Errorf("after that: %+v, %v", got, err)
	}
}
