package volume

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestIDRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, -1, MaxNameLen).Draw(t, "name")
		v := VolumeIDOf(name)
		if got, err := ParseVolumeID(v.String()); err != nil || got != v {
			t.Fatalf("%s: %v, %v", v, got, err)
		}
		s := SnapshotIDOf(name)
		if got, err := ParseSnapshotID(s.String()); err != nil || got != s {
			t.Fatalf("%s: %v, %v", s, got, err)
		}
		g := GroupIDOf(name)
		if got, err := ParseGroupID(g.String()); err != nil || got != g {
			t.Fatalf("%s: %v, %v", g, got, err)
		}
		if v != VolumeIDOf(name) || v == VolumeIDOf(name+"x") {
			t.Fatalf("%s is not a function of %q", v, name)
		}
	})
}

func TestHandlesStayAsTheyAre(t *testing.T) {
	// Handles are stored by orchestrators: this is the format of all versions.
	if got, want := VolumeIDOf("pvc-1").String(), "vol-f2868e1aa7cab669517cd9f5ab1b7957c0b92df3"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := SnapshotIDOf("pvc-1").String(), "snap-f2868e1aa7cab669517cd9f5ab1b7957c0b92df3"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := GroupIDOf("pvc-1").String(), "group-f2868e1aa7cab669517cd9f5ab1b7957c0b92df3"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	r := GroupRequest{Name: "pvc-1", Sources: []VolumeID{VolumeIDOf("pvc-1")}}
	if got, want := r.Members()[0].Name, GroupIDOf("pvc-1").String()+"/"+VolumeIDOf("pvc-1").String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	good := strings.Repeat("0123456789", 4)
	for _, s := range []string{"", "vol-", "snap-", good, "vol-" + good[1:], "vol-" + good + "0", "vol-" + strings.ToUpper(good[:39]) + "A",
		"vol-" + good[:39] + "g", "VOL-" + good, "snap-vol-" + good, "vol-" + good + "\n", "../" + good} {
		if id, err := ParseVolumeID(s); !errors.Is(err, ErrMalformedID) || !id.IsZero() {
			t.Errorf("volume %q: %v, %v", s, id, err)
		}
		if id, err := ParseSnapshotID(s); !errors.Is(err, ErrMalformedID) || !id.IsZero() {
			t.Errorf("snapshot %q: %v, %v", s, id, err)
		}
		if id, err := ParseGroupID(s); !errors.Is(err, ErrMalformedID) || !id.IsZero() {
			t.Errorf("group %q: %v, %v", s, id, err)
		}
	}
	if _, err := ParseVolumeID("snap-" + good); err == nil {
		t.Error("a snapshot's handle is no volume's")
	}
}
