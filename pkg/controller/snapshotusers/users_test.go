package snapshotusers

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// What each kind says of the snapshots that it needs, and that it needs none once it is over.
func TestKinds(t *testing.T) {
	for text, want := range map[string][]string{
		"{kind: VolumeRollback, spec: {volumeSnapshotName: s}}":                                                                {"ns/s"},
		`{kind: VolumeRollback, spec: {volumeSnapshotName: s}, status: {conditions: [{type: Complete, status: "False"}]}}`:     {"ns/s"},
		`{kind: VolumeRollback, spec: {volumeSnapshotName: s}, status: {conditions: [{type: Complete, status: "True"}]}}`:      nil,
		`{kind: VolumeRollback, spec: {volumeSnapshotName: s}, status: {conditions: [{type: Failed, status: "True"}]}}`:        nil,
		"{kind: DataVolume, spec: {source: {snapshot: {name: s, namespace: other}}}}":                                          {"other/s"},
		"{kind: DataVolume, spec: {source: {snapshot: {name: s}}}, status: {phase: CloneInProgress}}":                          {"ns/s"},
		"{kind: DataVolume, spec: {source: {snapshot: {name: s}}}, status: {phase: Succeeded}}":                                nil,
		"{kind: DataVolume, spec: {source: {pvc: {name: s}}}}":                                                                 nil,
		"{kind: DataSource, spec: {source: {snapshot: {name: s}}}}":                                                            {"ns/s"},
		"{kind: VirtualMachineSnapshotContent, spec: {volumeBackups: [{volumeSnapshotName: a}, {volumeSnapshotName: b}, {}]}}": {"ns/a", "ns/b"},
		"{kind: VirtualMachineRestore, status: {restores: [{volumeSnapshotName: a}]}}":                                         {"ns/a"},
		"{kind: VirtualMachineRestore, status: {complete: true, restores: [{volumeSnapshotName: a}]}}":                         nil,
		"{kind: DataSource, spec: nonsense}":                                                                                   nil,
	} {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
			t.Fatal(err)
		}
		u.SetNamespace("ns")
		i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Kind == u.GetKind() })
		if i < 0 {
			t.Fatalf("nobody reads %s", u.GetKind())
		}
		if got := Kinds[i].names(u); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
