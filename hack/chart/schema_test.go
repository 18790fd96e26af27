package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSchemaRefuses: wrong values are refused before anything is installed, and the error names them.
func TestSchemaRefuses(t *testing.T) {
	c := load(t)
	for _, tc := range []struct{ values, names string }{
		{"kubeletdir: /x", "kubeletdir"},
		{"kubeletDir: var/lib/kubelet", "kubeletDir"},
		{"kubeletDir: /var/lib/kubelet/", "kubeletDir"},
		{"logLevel: high", "logLevel"},
		{"logLevel: 11", "logLevel"},
		{"image: {pullPolicy: Sometimes}", "pullPolicy"},
		{"image: {digest: abc}", "digest"},
		{"imagePullSecrets: [mirror]", "imagePullSecrets"},
		{"nodes: {controlPlane: maybe}", "controlPlane"},
		{"poolSets: [{name: Default, spec: {template: {}}}]", "poolSets"},
		{"poolSets: [{name: a}]", "poolSets"},
		{"storageClasses: [{name: a, mode: fast}]", "mode"},
		{"storageClasses: [{name: a, fsType: btrfs}]", "fsType"},
		{"storageClasses: [{name: a, fstype: xfs}]", "fstype"},
		{"volumeSnapshotClass: {deletionPolicy: Keep}", "deletionPolicy"},
		{"volumeSnapshotClass: {create: perhaps}", "create"},
		{"cdi: {cloneStrategy: fast}", "cloneStrategy"},
		{"csiController: {replicas: 0}", "replicas"},
		{"controller: {nodeLostAfter: ten}", "nodeLostAfter"},
		{"engine: {mapCache: 128MB}", "mapCache"},
		{"engine: {extraDirectories: [data]}", "extraDirectories"},
		{"engine: {terminationGracePeriodSeconds: 5}", "terminationGracePeriodSeconds"},
		{"sidecars: {attacher: {}}", "attacher"},
	} {
		_, err := Render(c, Options{Values: parse(t, tc.values)})
		if err == nil || !strings.Contains(err.Error(), tc.names) {
			t.Errorf("%s: %v", tc.values, err)
		}
	}
}

func TestValuesNeedComments(t *testing.T) {
	_, err := ParseValues([]byte("# Says what it is.\na: 1\nb:\n  c: 2\n"))
	if err == nil || !strings.Contains(err.Error(), "b: it has no comment") {
		t.Error(err)
	}
	_, err = ParseValues([]byte("# Words.\n# @schema {\na: 1\n"))
	if err == nil || !strings.Contains(err.Error(), "@schema {") {
		t.Error(err)
	}
}

func TestParseValues(t *testing.T) {
	got, err := ParseValues([]byte("# Of the file.\n\n# Of a,\n# in two lines.\n# @schema {\"minimum\": 1}\na: 1\n# Of b.\nb:\n  # Of c.\n  c: [x]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Comment != "Of a, in two lines." || got[0].Schema["minimum"] != 1.0 || got[1].Children[0].Comment != "Of c." {
		t.Errorf("%+v", got)
	}
}

// TestGenerated: the copies are copies. (That the README and the schema are what gen makes is seen by make verify-generate.)
func TestGenerated(t *testing.T) {
	names, err := filepath.Glob("../../pkg/apis/v1alpha1/crds/*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(chartDir, "files/crds", filepath.Base(name)))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: not what the chart has: make generate (%v)", name, err)
		}
	}
}
