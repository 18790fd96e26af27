package chart

import (
	"slices"
	"strings"
	"testing"
)

// TestGroupSnapshotClass: there is one where the cluster can have it, or where it is asked for; where the definitions come with the release, the Job makes it.
func TestGroupSnapshotClass(t *testing.T) {
	for name, c := range map[string]struct {
		apis   []string
		values string
		object bool // the class is an object of the release
		setup  bool // the class is made by the Job
	}{
		"no definitions":             {},
		"those of snapshots alone":   {apis: []string{SnapshotAPI}},
		"those of groups":            {apis: []string{SnapshotAPI, GroupSnapshotAPI}, object: true},
		"asked for":                  {values: "volumeGroupSnapshotClass: {create: true}", object: true},
		"unwanted":                   {apis: []string{SnapshotAPI, GroupSnapshotAPI}, values: "volumeGroupSnapshotClass: {create: false}"},
		"definitions of the release": {values: "snapshotController: {install: true}", setup: true},
	} {
		r, err := Render(load(t), Options{Values: parse(t, c.values), APIs: c.apis})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		docs := documents(r.Objects + r.Hooks)
		has := func(start string) bool {
			return slices.ContainsFunc(docs, func(d string) bool {
				return strings.Contains(d, start) && strings.Contains(d, "groupsnapshot.storage.kubernetes.io/is-default-class: \"true\"")
			})
		}
		if got := has("\nkind: VolumeGroupSnapshotClass\n"); got != c.object {
			t.Errorf("%s: the class is an object: %t, want %t", name, got, c.object)
		}
		if got := has("\n  volumegroupsnapshotclass.yaml: |\n"); got != c.setup {
			t.Errorf("%s: the class is the Job's: %t, want %t", name, got, c.setup)
		}
	}
}
