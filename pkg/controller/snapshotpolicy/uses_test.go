package snapshotpolicy

import "testing"

func TestParseAnnotation(t *testing.T) {
	for text, right := range map[string]bool{"SnapshotPolicy/ns/a": true, "ClusterSnapshotPolicy//a": true, "SnapshotPolicy//a": false,
		"ClusterSnapshotPolicy/ns/a": false, "": false, "SnapshotPolicy/ns/": false, "Other/ns/a": false} {
		if key, ok := parseAnnotation(text); ok != right || ok && key.Name != "a" {
			t.Errorf("%q: %v %v", text, key, ok)
		}
	}
}
