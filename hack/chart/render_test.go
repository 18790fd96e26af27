package chart

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files anew")

const chartDir = "../../charts/rowan"

// sets are values that people may give. The last has nearly all.
var sets = []struct {
	name   string
	apis   []string
	values string
}{
	{name: "default"},
	{name: "least", values: `
poolSets: []
storageClasses: []
crds: {install: false}
podDisruptionBudget: {create: false}
networkPolicy: {create: false}
metrics: {services: false}
uninstallCheck: {enabled: false}
nodes: {controlPlane: true}
csiController: {replicas: 1}
controller: {replicas: 1}
`},
	{name: "most", apis: []string{SnapshotAPI}, values: `
imageRegistry: mirror.example.com:5000
imagePullSecrets: [{name: mirror}]
image: {tag: v9.9.9, pullPolicy: Always}
kubeletDir: /var/lib/k0s/kubelet
logLevel: 4
nodes:
  nodeSelector: {disk: fast}
  affinity:
    nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: rowan, operator: Exists}]}]}}
  tolerations: [{key: dedicated, operator: Equal, value: storage, effect: NoSchedule}]
  podLabels: {team: storage}
  podAnnotations: {example.com/note: "yes"}
poolSets:
  - name: fast
    spec: {nodeSelector: {matchLabels: {disk: fast}}, template: {members: [{device: {path: /dev/disk/by-id/nvme-1}}, {directory: {path: /mnt/b/}}]}}
  - {name: slow, spec: {template: {members: [{directory: {path: /mnt/a, size: 100Gi}}]}}}
defaultPoolSet: fast
storageClasses:
  - {name: fast, mode: cow, poolSet: fast, provisioning: thick, fsType: xfs, tidy: true, isDefault: true, reclaimPolicy: Retain,
     mountOptions: [noatime], annotations: {a: b}, labels: {c: d}}
volumeSnapshotClass: {name: fast, isDefault: false, deletionPolicy: Retain}
volumeGroupSnapshotClass: {name: fast-groups, isDefault: false, deletionPolicy: Retain}
cdi: {cloneStrategy: snapshot}
crds: {keep: false}
snapshotController: {install: true}
keeper: {extraArgs: [--one]}
engine: {extraDirectories: [/mnt/c], extraArgs: [--two]}
node: {maxVolumes: 50, extraArgs: [--three]}
csiController: {extraArgs: [--four], tolerations: [{operator: Exists}]}
controller: {extraArgs: [--five], nodeLostAfter: 1h, affinity: {nodeAffinity: {}}}
sidecars:
  provisioner: {extraArgs: [--six]}
  snapshotter: {image: {digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}}
networkPolicy: {metricsFrom: [{podSelector: {matchLabels: {app: prometheus}}}]}
metrics: {serviceMonitor: {create: true, labels: {release: prometheus}}}
resourceQuota: {create: true}
commonLabels: {owner: storage-team}
`},
}

func load(t *testing.T) *helmchart.Chart {
	t.Helper()
	c, err := Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// documents splits what was rendered.
func documents(text string) (docs []string) {
	for _, d := range strings.Split("\n"+text, "\n---\n") {
		if strings.TrimSpace(d) != "" {
			docs = append(docs, strings.TrimSpace(d)+"\n")
		}
	}
	return docs
}

// TestGolden shows in review what a change of a template changes. The definitions are not in it: they are copies.
func TestGolden(t *testing.T) {
	c := load(t)
	for _, set := range sets {
		t.Run(set.name, func(t *testing.T) {
			r, err := Render(c, Options{Values: parse(t, set.values), APIs: set.apis})
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for _, d := range documents(r.Objects + r.Hooks) {
				if !strings.Contains(d, "kind: CustomResourceDefinition\n") {
					got.WriteString("---\n" + d)
				}
			}
			got.WriteString("=== NOTES\n" + strings.TrimSpace(r.Notes) + "\n")
			golden(t, set.name+".golden", got.Bytes())
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		a, b := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Fatalf("%s, line %d:\n%s\nnot\n%s\nif it is to be so: go test ./hack/chart -update", file, i+1, a[i], b[i])
			}
		}
		t.Fatalf("%s has %d lines, not %d; if it is to be so: go test ./hack/chart -update", file, len(b), len(a))
	}
}

// TestStrict: every object is one of its kind, with no field that the kind does not have and none twice.
func TestStrict(t *testing.T) {
	decode := strictDecoder(t)
	c := load(t)
	for _, set := range sets {
		for _, version := range []string{Oldest, Newest} {
			r, err := Render(c, Options{Values: parse(t, set.values), APIs: set.apis, Version: version})
			if err != nil {
				t.Fatal(set.name, err)
			}
			seen := map[string]bool{}
			for _, d := range documents(r.Objects + r.Hooks) {
				if strings.Contains(d, "kind: ServiceMonitor\n") { // whose types are in no module of ours
					continue
				}
				for _, o := range append(embedded(t, d), d) {
					object, kind, err := decode([]byte(o))
					if err != nil {
						t.Errorf("%s: %v\n%s", set.name, err, o)
						continue
					}
					m, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
					meta := m["metadata"].(map[string]any)
					name := kind + " " + meta["name"].(string)
					if seen[name] {
						t.Errorf("%s: %s is there twice", set.name, name)
					}
					seen[name] = true
				}
			}
		}
	}
}

func strictDecoder(t *testing.T) func([]byte) (runtime.Object, string, error) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, snapshotv1.AddToScheme, groupsnapshotv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	codec := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	return func(text []byte) (runtime.Object, string, error) {
		o, kind, err := codec.Decode(text, nil, nil)
		if err != nil {
			return nil, "", err
		}
		return o, kind.Kind, nil
	}
}

// embedded are the objects that the setup hook applies.
func embedded(t *testing.T, document string) (objects []string) {
	t.Helper()
	var m struct {
		Kind string
		Data map[string]string
	}
	if err := yaml.Unmarshal([]byte(document), &m); err != nil {
		t.Fatal(err)
	}
	if m.Kind == "ConfigMap" {
		for _, text := range m.Data {
			objects = append(objects, text)
		}
	}
	return objects
}

func TestLint(t *testing.T) {
	for _, set := range sets {
		if set.name == "least" { // the schema of lint's own values has no say in what it leaves out
			continue
		}
		l := lint.AllWithKubeVersionAndSchemaValidation(chartDir, parse(t, set.values), "rowan", nil, false)
		for _, m := range l.Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", set.name, m)
			}
		}
	}
}

// TestVersions: a cluster that is too old is refused by Helm, by name.
func TestVersions(t *testing.T) {
	if got, want := load(t).Metadata.KubeVersion, ">="+strings.TrimPrefix(Oldest, "v")+"-0"; got != want {
		t.Errorf("Chart.yaml's kubeVersion is %s, not %s", got, want)
	}
}
