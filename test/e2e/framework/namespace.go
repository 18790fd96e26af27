package framework

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Flow is one test's part of the cluster: its namespace, and its kill.
type Flow struct {
	testing.TB
	*Cluster
	Namespace string
	kill      *kill
	end       []func(context.Context) error
}

// Flow makes a namespace for a test. It is removed when the test ends, and waited for: what of it cannot be removed is the test's failure.
func (c *Cluster) Flow(t testing.TB) *Flow {
	t.Helper()
	return c.flow(t, c.drawKill(t))
}

// Undisturbed is a flow without a kill: of what is measured, or disturbs a whole node itself.
func (c *Cluster) Undisturbed(t testing.TB) *Flow {
	t.Helper()
	return c.flow(t, nil)
}

func (c *Cluster) flow(t testing.TB, k *kill) *Flow {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{"rowan-e2e": "true"}}}
	must(t, c.Create(t.Context(), ns))
	f := &Flow{TB: t, Cluster: c, Namespace: ns.Name, kill: k}
	t.Cleanup(func() {
		if t.Failed() {
			f.dump()
		}
		f.remove(ns)
	})
	return f
}

// In is the flow as a part of its test sees it; the part's kill is the flow's.
func (f *Flow) In(t testing.TB) *Flow {
	part := *f
	part.TB = t
	return &part
}

// remove removes the namespace. The test's own context has ended by then.
func (f *Flow) remove(ns *corev1.Namespace) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*Wait) // a snapshot that a waiting claim is made from goes late
	defer cancel()
	if err := f.Delete(ctx, ns); err != nil {
		f.Errorf("remove namespace %s: %v", ns.Name, err)
		return
	}
	if err := f.until(ctx, ns, func() error { return errThere }); !errors.Is(err, errGone) {
		f.Errorf("remove namespace %s: %v", ns.Name, err)
	}
	for _, do := range f.end {
		if err := do(ctx); err != nil {
			f.Errorf("clean up: %v", err)
		}
	}
}

// dump writes what there is to the test's artifacts.
func (f *Flow) dump() {
	dir := f.Artifacts
	if dir == "" {
		dir = f.ArtifactDir()
	}
	dir = filepath.Join(dir, strings.ReplaceAll(f.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.Logf("write artifacts: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	in := client.InNamespace(f.Namespace)
	for name, of := range map[string]struct {
		list client.ObjectList
		in   []client.ListOption
	}{
		"pods":                         {&corev1.PodList{}, []client.ListOption{in}},
		"events":                       {&corev1.EventList{}, []client.ListOption{in}},
		"persistentvolumeclaims":       {&corev1.PersistentVolumeClaimList{}, []client.ListOption{in}},
		"persistentvolumes":            {&corev1.PersistentVolumeList{}, nil},
		"volumesnapshots":              {&snapshotv1.VolumeSnapshotList{}, []client.ListOption{in}},
		"volumesnapshotcontents":       {&snapshotv1.VolumeSnapshotContentList{}, nil},
		"pools.rowan.storage":          {&rowanv1alpha1.PoolList{}, nil},
		"localvolumes.rowan.storage":   {&rowanv1alpha1.LocalVolumeList{}, nil},
		"localsnapshots.rowan.storage": {&rowanv1alpha1.LocalSnapshotList{}, nil},
		"localsnapshotgroups":          {&rowanv1alpha1.LocalSnapshotGroupList{}, nil},
		"volumegroupsnapshots":         {&groupsnapshotv1.VolumeGroupSnapshotList{}, []client.ListOption{in}},
		"volumegroupsnapshotcontents":  {&groupsnapshotv1.VolumeGroupSnapshotContentList{}, nil},
		"volumerollbacks":              {&rowanv1alpha1.VolumeRollbackList{}, []client.ListOption{in}},
	} {
		err := f.List(ctx, of.list, of.in...)
		var b []byte
		if err == nil {
			b, err = yaml.Marshal(of.list)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".yaml"), b, 0o644)
		}
		if err != nil {
			f.Logf("write artifacts: %s: %v", name, err)
		}
	}
	f.Logf("what was there is in %s", dir)
}

// OnEnd removes an object outside the namespace when the test ends, after the namespace.
func (f *Flow) OnEnd(o client.Object) {
	f.OnEndDo(func(ctx context.Context) error {
		if err := client.IgnoreNotFound(f.Delete(ctx, o)); err != nil {
			return fmt.Errorf("remove %s: %w", describe(f.Cluster, o), err)
		}
		return nil
	})
}

// OnEndDo does something when the test ends, after its namespace is gone, in the order asked for. What it answers is the test's failure.
func (f *Flow) OnEndDo(do func(context.Context) error) { f.end = append(f.end, do) }
