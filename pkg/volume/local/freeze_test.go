package local_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// still plays package freeze.
type still struct {
	devices   []string
	meanwhile func() // while all are frozen
	thawErr   error
}

func (s *still) freeze(_ context.Context, devices []string) (time.Time, func() error, error) {
	s.devices = slices.Sorted(slices.Values(devices))
	if s.meanwhile != nil {
		s.meanwhile()
	}
	return time.Now().Add(time.Minute), func() error { return s.thawErr }, nil
}

// TestFrozenGroup: all that is mounted is frozen at once; a cut that is not what was asked for is taken back, whole.
func TestFrozenGroup(t *testing.T) {
	f, z := newFake(ready(volumetest.Pool)), &still{}
	s := local.New(f, local.Config{Node: volumetest.Node, Pool: volumetest.Pool, Admission: volume.DefaultAdmission, Freeze: z.freeze})
	r := volume.GroupRequest{Name: "g", Consistency: volume.ConsistencyFreeze}
	for _, name := range []string{"a", "b", "c"} {
		v, err := s.Create(t.Context(), volume.CreateRequest{Name: name, FSType: "xfs"})
		if err != nil {
			t.Fatal(err)
		}
		r.Sources = append(r.Sources, v.ID)
	}
	attach := func(ids ...volume.VolumeID) {
		for _, id := range ids {
			if _, err := s.Attach(t.Context(), id, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	attach(r.Sources[:2]...)
	refuse := func(what, word string) {
		t.Helper()
		_, err := s.CreateGroup(t.Context(), r)
		if !errors.Is(err, volume.ErrPending) || !strings.Contains(err.Error(), word) || len(f.snapshots) != 0 {
			t.Errorf("%s: %v, %d snapshots are left", what, err, len(f.snapshots))
		}
	}
	z.thawErr = errors.New("thawed before")
	refuse("one was thawed", "thawed before")
	z.thawErr, z.meanwhile = nil, func() { attach(r.Sources[2]) }
	refuse("one came into use meanwhile", "in use changed")
	z.meanwhile = nil
	if _, err := s.CreateGroup(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if len(z.devices) != 3 || len(f.snapshots) != 3 {
		t.Errorf("frozen %v, cut %v", z.devices, f.snapshots)
	}

	block, err := s.Create(t.Context(), volume.CreateRequest{Name: "block"})
	if err != nil {
		t.Fatal(err)
	}
	r.Name, r.Sources = "with a block volume", append(r.Sources, block.ID)
	if _, err := s.CreateGroup(t.Context(), r); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "volume block") {
		t.Errorf("with a block volume: %v", err)
	}
	r.Name, r.Sources = "by a driver that cannot", r.Sources[:3]
	if _, err := newLocal(f).CreateGroup(t.Context(), r); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("by a driver that cannot: %v", err)
	}
}
