package v1alpha1

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	structuraldefaulting "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	servervalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// crd is a definition as the API server sees it.
func crd(t *testing.T, plural string) *apiextensions.CustomResourceDefinition {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("crds", "rowan.storage_"+plural+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var v1 apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(b, &v1); err != nil {
		t.Fatal(err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
	var internal apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &internal, nil); err != nil {
		t.Fatal(err)
	}
	return &internal
}

// The API server accepts every definition, the cost of its rules included.
func TestDefinitions(t *testing.T) {
	files, err := filepath.Glob("crds/*.yaml")
	if err != nil || len(files) != 8 {
		t.Fatalf("%d definitions, %v; want one for each of 8 kinds", len(files), err)
	}
	for _, f := range files {
		plural := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "rowan.storage_"), ".yaml")
		t.Run(plural, func(t *testing.T) {
			c := crd(t, plural)
			c.Status.StoredVersions = []string{"v1alpha1"}
			if errs := validation.ValidateCustomResourceDefinition(t.Context(), c); len(errs) > 0 {
				t.Error(errs.ToAggregate())
			}
		})
	}
}

// judge is what the API server says of an object that is made (before == "") or changed.
func judge(t *testing.T, plural, before, after string) string {
	t.Helper()
	c := crd(t, plural)
	props, err := apiextensions.GetSchemaForVersion(c, "v1alpha1")
	if err != nil {
		t.Fatal(err)
	}
	structural, err := structuralschema.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	parse := func(s string) map[string]any {
		if s == "" {
			return nil
		}
		text, err := yaml.YAMLToJSON([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		var o map[string]any
		if err := utiljson.Unmarshal(text, &o); err != nil { // whole numbers are int64, as the API server has them
			t.Fatal(err)
		}
		structuraldefaulting.Default(o, structural)
		return o
	}
	o, old := parse(after), parse(before)
	validator, _, err := servervalidation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	errs := servervalidation.ValidateCustomResource(nil, o, validator)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, structural, o)...)
	var oldObject any
	if old != nil {
		oldObject = old
	}
	rules, _ := cel.NewValidator(structural, true, celconfig.PerCallLimit).Validate(context.Background(), field.NewPath(""), structural, o, oldObject,
		celconfig.RuntimeCELCostBudget)
	errs = append(errs, rules...)
	if len(errs) == 0 {
		return ""
	}
	return errs.ToAggregate().Error()
}

const (
	poolSet = `
metadata: {name: default}
spec:
  template:
    members: [{directory: {path: /var/lib/rowan/pool}}]
`
	localVolume = `
metadata: {name: vol-1}
spec: {nodeName: a, pool: p, poolUUID: u, csiName: pvc-1, size: 1Gi, requested: 1G, fsType: xfs, source: {snapshot: snap-1}, desiredState: Present}
`
	localSnapshot = `
metadata: {name: snap-1}
spec: {nodeName: a, pool: p, poolUUID: u, csiName: snapshot-1, volume: vol-1, notAfter: "2026-01-01T00:00:00.000000Z"}
`
	localSnapshotGroup = `
metadata: {name: group-1}
spec:
  {nodeName: a, pool: p, poolUUID: u, csiName: g, notAfter: "2026-01-01T00:00:00.000000Z", members: [{volume: vol-1, snapshot: snap-1, csiName: s}]}
`
	volumeRollback = `
metadata: {namespace: shop, name: before-upgrade}
spec: {persistentVolumeClaimName: db, volumeSnapshotName: monday, whenInUse: Wait, safetySnapshot: {ttl: 24h, volumeSnapshotClassName: rowan}}
`
	pool = `
metadata: {name: default-a}
spec: {nodeName: a, poolSet: default, members: [{device: {path: /dev/sdb}}]}
`
)

// What the rules let through and what they refuse, in the user's words.
func TestRules(t *testing.T) {
	change := func(s, from, to string) string {
		if !strings.Contains(s, from) {
			t.Fatalf("%q is not in %s", from, s)
		}
		return strings.Replace(s, from, to, 1)
	}
	const (
		asked = "fsType: xfs, rollback: {token: t, namespace: ns, name: back, snapshot: snap-1}"
		told  = `fsType: xfs, rollback: {token: t, namespace: ns, name: back, snapshot: snap-1, heldSince: "2026-01-01T00:00:00.000000Z"}`
	)
	for _, c := range []struct{ name, plural, before, after, want string }{
		{"a pool set", "poolsets", "", poolSet, ""},
		{"a long name", "poolsets", "", change(poolSet, "name: default", "name: "+strings.Repeat("a", 41)), "at most 40 characters"},
		{"no members", "poolsets", "", change(poolSet, "[{directory: {path: /var/lib/rowan/pool}}]", "[]"), "at least 1 items"},
		{"an empty member", "poolsets", "", change(poolSet, "{directory: {path: /var/lib/rowan/pool}}", "{}"), "either a directory or a device"},
		{"both", "poolsets", "", change(poolSet, "{directory: {path: /var/lib/rowan/pool}}", "{directory: {path: /a}, device: {path: /dev/sdb}}"),
			"either a directory or a device"},
		{"a relative path", "poolsets", "", change(poolSet, "/var/lib", "var/lib"), "path"},
		{"over 100 percent", "poolsets", "", change(poolSet, "/pool}", "/pool, percentOfFree: 101}"), "percentOfFree"},

		{"a pool", "pools", "", pool, ""},
		{"another node", "pools", pool, change(pool, "nodeName: a", "nodeName: b"), ""},
		{"another pool set", "pools", pool, change(pool, "poolSet: default", "poolSet: x"), "stays with its PoolSet"},
		{"a pool is given up", "pools", pool, change(pool, "poolSet: default", "desiredState: Absent, poolSet: default"), ""},

		{"a volume", "localvolumes", "", localVolume, ""},
		{"it grows", "localvolumes", localVolume, change(localVolume, "size: 1Gi", "size: 2Gi"), ""},
		{"it shrinks", "localvolumes", localVolume, change(localVolume, "size: 1Gi", "size: 1Mi"), "cannot shrink"},
		{"it moves with its disks", "localvolumes", localVolume, change(localVolume, "nodeName: a", "nodeName: b"), ""},
		{"another pool", "localvolumes", localVolume, change(localVolume, "pool: p", "pool: q"), "stays in its pool"},
		{"another identity", "localvolumes", localVolume, change(localVolume, "poolUUID: u", "poolUUID: v"), "stays in its pool"},
		{"another name", "localvolumes", localVolume, change(localVolume, "pvc-1", "pvc-2"), "keeps its name"},
		{"another file system", "localvolumes", localVolume, change(localVolume, "xfs", "ext4"), "file system cannot be changed"},
		{"another source", "localvolumes", localVolume, change(localVolume, "snap-1", "snap-2"), "source cannot be changed"},
		{"no source any more", "localvolumes", localVolume, change(localVolume, "source: {snapshot: snap-1},", ""), "source cannot be changed"},
		{"two sources", "localvolumes", "", change(localVolume, "{snapshot: snap-1}", "{snapshot: snap-1, volume: vol-2}"), "either a snapshot or a volume"},
		{"no such mode", "localvolumes", "", change(localVolume, "fsType: xfs", "mode: raw"), "mode"},
		{"a rollback is asked for", "localvolumes", localVolume, change(localVolume, "fsType: xfs", asked), ""},
		{"and told to go on", "localvolumes", change(localVolume, "fsType: xfs", asked), change(localVolume, "fsType: xfs", told), ""},
		{"and given up", "localvolumes", change(localVolume, "fsType: xfs", told), localVolume, ""},
		{"told to stop and wait", "localvolumes", change(localVolume, "fsType: xfs", told),
			change(localVolume, "fsType: xfs", asked), "told otherwise"},
		{"another token", "localvolumes", change(localVolume, "fsType: xfs", told),
			change(localVolume, "fsType: xfs", strings.NewReplacer("snap-1", "snap-2", "token: t", "token: u").Replace(asked)), ""},
		{"another snapshot for a token", "localvolumes", change(localVolume, "fsType: xfs", asked),
			change(localVolume, "fsType: xfs", strings.ReplaceAll(asked, "snap-1", "snap-2")), "keeps its snapshot"},
		{"told to go on with another hold", "localvolumes", change(localVolume, "fsType: xfs", told),
			change(localVolume, "fsType: xfs", strings.ReplaceAll(told, "2026-01-01", "2026-01-02")), "told otherwise"},

		{"a rollback", "volumerollbacks", "", volumeRollback, ""},
		{"a rollback with defaults", "volumerollbacks", "", change(volumeRollback, ", whenInUse: Wait, safetySnapshot: {ttl: 24h, volumeSnapshotClassName: rowan}", ""),
			""},
		{"no safety snapshot", "volumerollbacks", "", change(volumeRollback, "ttl: 24h", "enabled: false"), ""},
		{"a changed rollback", "volumerollbacks", volumeRollback, change(volumeRollback, "monday", "tuesday"), "make another one"},
		{"a rollback of nothing", "volumerollbacks", "", change(volumeRollback, "persistentVolumeClaimName: db, ", ""), "persistentVolumeClaimName"},
		{"a rollback to nothing", "volumerollbacks", "", change(volumeRollback, "monday", `""`), "volumeSnapshotName"},
		{"no such wait", "volumerollbacks", "", change(volumeRollback, "Wait", "Force"), "whenInUse"},
		{"a short time to live", "volumerollbacks", "", change(volumeRollback, "24h", "10s"), "lives a minute at least"},
		{"no time to live", "volumerollbacks", "", change(volumeRollback, "24h", "soon"), "ttl"},
		{"days are no unit", "volumerollbacks", "", change(volumeRollback, "24h", "7d"), "ttl"},

		{"absent", "localvolumes", localVolume, change(localVolume, "Present", "Absent"), ""},
		{"wanted again", "localvolumes", change(localVolume, "Present", "Absent"), localVolume, "cannot be wanted again"},

		{"a snapshot", "localsnapshots", "", localSnapshot, ""},
		{"a later call", "localsnapshots", localSnapshot, change(localSnapshot, "2026-01-01", "2026-01-02"), ""},
		{"another source of a snapshot", "localsnapshots", localSnapshot, change(localSnapshot, "vol-1", "vol-2"), "keeps its source"},
		{"without an end", "localsnapshots", "", change(localSnapshot, `, notAfter: "2026-01-01T00:00:00.000000Z"`, ""), "notAfter"},

		{"a group", "localsnapshotgroups", "", localSnapshotGroup, ""},
		{"other volumes", "localsnapshotgroups", localSnapshotGroup, change(localSnapshotGroup, "vol-1", "vol-2"), "keeps its volumes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := judge(t, c.plural, c.before, c.after)
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Nothing can be stored that the types do not know.
func TestStrict(t *testing.T) {
	for text, o := range map[string]any{poolSet: &PoolSet{}, pool: &Pool{}, localVolume: &LocalVolume{}, localSnapshot: &LocalSnapshot{},
		localSnapshotGroup: &LocalSnapshotGroup{}, volumeRollback: &VolumeRollback{}} {
		if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
			t.Error(err)
		}
	}
}
