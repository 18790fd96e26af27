package volume_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
)

func TestGroupRequest(t *testing.T) {
	a, b := volume.VolumeIDOf("a"), volume.VolumeIDOf("b")
	r := volume.GroupRequest{Name: strings.Repeat("x", volume.MaxNameLen), Sources: []volume.VolumeID{a, b}}
	swapped := volume.GroupRequest{Name: r.Name, Sources: []volume.VolumeID{b, a}}
	other := volume.GroupRequest{Name: "other", Sources: r.Sources}
	for i, m := range r.Members() {
		if err := m.Check(); err != nil {
			t.Errorf("member %+v: %v", m, err)
		}
		if m != swapped.Members()[i] || m.ID() == other.Members()[i].ID() {
			t.Errorf("member %+v, the other way round %+v, of another group %+v", m, swapped.Members()[i], other.Members()[i])
		}
	}
	most := volume.GroupRequest{Name: "most"}
	for i := range volume.MaxGroup {
		most.Sources = append(most.Sources, volume.VolumeIDOf(fmt.Sprint(i)))
	}
	if err := most.Check(); err != nil {
		t.Error(err)
	}
	for what, r := range map[string]volume.GroupRequest{
		"no name":    {Sources: r.Sources},
		"no volumes": {Name: "x"},
		"twice":      {Name: "x", Sources: []volume.VolumeID{a, b, a}},
		"too many":   {Name: "x", Sources: append([]volume.VolumeID{a}, most.Sources...)},
	} {
		if err := r.Check(); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCheckTogether(t *testing.T) {
	one := []volume.Place{{Volume: "a", Pool: "p", Node: "n"}, {Volume: "b", Pool: "p", Node: "n"}}
	if err := volume.CheckTogether(one); err != nil {
		t.Error(err)
	}
	var many []volume.Place
	for i := range 10 {
		many = append(many, volume.Place{Volume: fmt.Sprint("v", i), Pool: fmt.Sprint("p", i%2), Node: fmt.Sprint("n", i%2)})
	}
	err := volume.CheckTogether(many)
	if !errors.Is(err, volume.ErrApart) {
		t.Fatal(err)
	}
	for _, words := range []string{"v0, v2, v4, v6, 1 more in pool p0 on node n0", "v1, v3, v5, v7, 1 more in pool p1 on node n1"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q does not say %q", err, words)
		}
	}
}

func TestIdempotentGroup(t *testing.T) {
	s := volume.Open(memory.New(memory.Config{}))
	r := volume.GroupRequest{Name: "g"}
	for _, name := range []string{"a", "b"} {
		v, err := s.Create(t.Context(), volume.CreateRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		r.Sources = append(r.Sources, v.ID)
	}
	first, err := s.CreateGroup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range r.Sources {
		if again, err := s.CreateGroup(t.Context(), r); err != nil || again.CreatedAt != first.CreatedAt || len(again.Snapshots) != 2 {
			t.Errorf("again: %+v, %v, want the first cut %+v", again, err, first)
		}
		if err := s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateGroup(t.Context(), volume.GroupRequest{Name: "g", Sources: r.Sources[:1]}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("other volumes: %v", err)
	}
	if _, err := s.CreateGroup(t.Context(), volume.GroupRequest{Name: "g"}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no volumes: %v", err)
	}
	for range 2 {
		if err := s.DeleteGroup(t.Context(), first.ID, first.Handles()); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
}
