package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// The chart's definitions, by their label.
const ourDefinitions = "app.kubernetes.io/name=rowan"

// kubectl delete of a volume in use, of the PoolSet and of all definitions, and then of every finalizer in their way: no block is freed, pods go on, and
// start again. An upgrade brings the definitions back, and with them the pools, which know what is theirs.
func TestDisruptDefinitionsDeleted(t *testing.T) {
	f := disturb(t)
	pvc, p, want := written(f)
	node := p.Spec.NodeName
	f.Claim(framework.Claim{Name: "disk", Block: true})
	w := f.Pod(framework.Pod{Name: "w", Blocks: []string{"disk"}, Node: node})
	f.StartWriter(w, "disk")
	f.Snapshot("s", "data")
	v := handle(t, f, pvc)
	had := inEngine(t, f, node)
	if !strings.Contains(had, v.Name) {
		t.Fatalf("the engine of node %s has no volume %s: %s", node, v.Name, had)
	}

	f.OnMachine("kubectl", "delete", "localvolumes.rowan.storage", v.Name, "--wait=false")
	f.OnMachine("kubectl", "delete", "poolsets.rowan.storage", "--all", "--wait=false")
	f.OnMachine("kubectl", "delete", "crd", "--selector", ourDefinitions, "--wait=false")
	framework.Until(t, f.Cluster, v, framework.Wait, func(v *rowanv1alpha1.LocalVolume) error {
		if !meta.IsStatusConditionTrue(v.Status.Conditions, rowanv1alpha1.DeletionNotConfirmed) {
			return fmt.Errorf("conditions %v", v.Status.Conditions)
		}
		return nil
	})
	f.WriterGoesOn(w)
	f.Remove(p)
	p = again(t, f, "q", want)

	forget(t, f)
	f.OnMachine("kubectl", "wait", "crd", "--selector", ourDefinitions, "--for=delete", "--timeout=60s")
	f.WriterGoesOn(w)
	if err := f.Kill("rowan-driver --node"); err != nil {
		t.Fatal(err)
	}
	if err := f.Kill("rowan-engine --"); err != nil {
		t.Fatal(err)
	}
	f.WriterGoesOn(w)
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
	if have := inEngine(t, f, node); have != had {
		t.Errorf("the engine has\n%s\nand had\n%s", have, had)
	}

	f.OnEndDo(func(ctx context.Context) error { return deleteOrphans(ctx, f) })
	f.OnMachine("helm", "upgrade", "rowan", *chart, "--namespace", f.Options.Namespace, "--reset-then-reuse-values", "--wait", "--timeout", "5m")
	set := &rowanv1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	framework.Until(t, f.Cluster, set, framework.Wait, func(s *rowanv1alpha1.PoolSet) error {
		if !meta.IsStatusConditionTrue(s.Status.Conditions, rowanv1alpha1.Ready) {
			return fmt.Errorf("conditions %v", s.Status.Conditions)
		}
		return nil
	})
	pool := &rowanv1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: v.Spec.Pool}}
	framework.Until(t, f.Cluster, pool, framework.Wait, func(p *rowanv1alpha1.Pool) error {
		if !strings.Contains(fmt.Sprint(p.Status.Orphans), v.Name) {
			return fmt.Errorf("orphans %v, want volume %s among them", p.Status.Orphans, v.Name)
		}
		return nil
	})
	f.Remove(p)
	again(t, f, "r", want)
	f.StopWriter(w)
	f.Claim(framework.Claim{Name: "new"})
	f.Pod(framework.Pod{Name: "new", Claims: []string{"new"}})
	if have := inEngine(t, f, node); !strings.Contains(have, v.Name) {
		t.Errorf("the engine has no volume %s: %s", v.Name, have)
	}
}

// inEngine are the names of what a node's engine has.
func inEngine(t *testing.T, f *framework.Flow, node string) string {
	t.Helper()
	var names []string
	for _, kind := range []string{"volume", "snapshot"} {
		out, err := f.Rowanctl(t.Context(), node, kind, "list", "--output", "json")
		if err != nil {
			t.Fatal(err)
		}
		var all []struct{ Name string }
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("%v in: %s", err, out)
		}
		for _, one := range all {
			names = append(names, one.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// forget takes the finalizers of all our objects away, as somebody does who is tired of definitions that do not go.
func forget(t *testing.T, f *framework.Flow) {
	t.Helper()
	for _, list := range []client.ObjectList{&rowanv1alpha1.PoolList{}, &rowanv1alpha1.PoolSetList{}, &rowanv1alpha1.LocalVolumeList{},
		&rowanv1alpha1.LocalSnapshotList{}, &rowanv1alpha1.LocalSnapshotGroupList{}} {
		if err := f.List(t.Context(), list); meta.IsNoMatchError(err) || client.IgnoreNotFound(err) == nil && err != nil {
			continue // the definition is gone already
		} else if err != nil {
			t.Fatal(err)
		}
		objects, err := meta.ExtractList(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			o := o.(client.Object)
			if err := client.IgnoreNotFound(f.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// deleteOrphans deletes what no object stands for any more, as an administrator does.
func deleteOrphans(ctx context.Context, f *framework.Flow) (err error) {
	var pools rowanv1alpha1.PoolList
	if err := f.List(ctx, &pools); err != nil {
		return fmt.Errorf("delete orphans: %w", err)
	}
	for _, p := range pools.Items {
		for _, o := range p.Status.Orphans {
			for kind, name := range map[string]string{"LocalSnapshot": "snapshot", "LocalVolume": "volume"} {
				if o.Kind != kind {
					continue
				}
				_, derr := f.Rowanctl(ctx, p.Spec.NodeName, name, "delete", o.Name)
				err = errors.Join(err, derr)
			}
		}
	}
	return err
}
