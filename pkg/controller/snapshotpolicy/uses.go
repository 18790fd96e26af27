package snapshotpolicy

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
)

// user is a kind whose objects may name snapshots that they need.
type user struct {
	kind  schema.GroupVersionKind
	names func(u *unstructured.Unstructured) []string // namespace/name
}

// users are kinds that may be installed. What is over (a DataVolume that succeeded, a restore that is complete) needs its snapshot no more.
var users = []user{
	{v1alpha1.GroupVersion.WithKind("VolumeRollback"), func(u *unstructured.Unstructured) []string {
		if isTrue(u, "Complete") || isTrue(u, "Failed") {
			return nil
		}
		if name := text(u, "spec", "volumeSnapshotName"); name != "" {
			return []string{u.GetNamespace() + "/" + name}
		}
		return nil
	}},
	{schema.GroupVersionKind{Group: "cdi.kubevirt.io", Version: "v1beta1", Kind: "DataVolume"}, func(u *unstructured.Unstructured) []string {
		if text(u, "status", "phase") == "Succeeded" {
			return nil
		}
		return reference(u, "spec", "source", "snapshot")
	}},
	{schema.GroupVersionKind{Group: "cdi.kubevirt.io", Version: "v1beta1", Kind: "DataSource"}, func(u *unstructured.Unstructured) []string {
		return reference(u, "spec", "source", "snapshot")
	}},
	{schema.GroupVersionKind{Group: "snapshot.kubevirt.io", Version: "v1beta1", Kind: "VirtualMachineSnapshotContent"}, func(u *unstructured.Unstructured) []string {
		return each(u, "volumeSnapshotName", "spec", "volumeBackups")
	}},
	{schema.GroupVersionKind{Group: "snapshot.kubevirt.io", Version: "v1beta1", Kind: "VirtualMachineRestore"}, func(u *unstructured.Unstructured) []string {
		if over, _, _ := unstructured.NestedBool(u.Object, "status", "complete"); over {
			return nil
		}
		return each(u, "volumeSnapshotName", "status", "restores")
	}},
}

func text(u *unstructured.Unstructured, path ...string) string {
	s, _, _ := unstructured.NestedString(u.Object, path...)
	return s
}

// reference to a snapshot, in its own namespace unless it names one.
func reference(u *unstructured.Unstructured, path ...string) []string {
	m, _, _ := unstructured.NestedMap(u.Object, path...)
	name, _ := m["name"].(string)
	if name == "" {
		return nil
	}
	namespace, _ := m["namespace"].(string)
	if namespace == "" {
		namespace = u.GetNamespace()
	}
	return []string{namespace + "/" + name}
}

// isTrue says whether a condition is.
func isTrue(u *unstructured.Unstructured, condition string) bool {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, entry := range list {
		if m, ok := entry.(map[string]any); ok && m["type"] == condition {
			return m["status"] == "True"
		}
	}
	return false
}

// each name in a list's entries.
func each(u *unstructured.Unstructured, field string, path ...string) []string {
	list, _, _ := unstructured.NestedSlice(u.Object, path...)
	var names []string
	for _, entry := range list {
		if m, ok := entry.(map[string]any); ok {
			if name, _ := m[field].(string); name != "" {
				names = append(names, u.GetNamespace()+"/"+name)
			}
		}
	}
	return names
}

// optional kinds, and which of them are installed.
type optional struct {
	reader client.Reader // of a cache that has objects without types, too

	mu     sync.Mutex
	users  []user
	groups schema.GroupVersionKind // of VolumeGroupSnapshots; empty: not installed
}

func (o *optional) installed() ([]user, schema.GroupVersionKind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users, o.groups
}

// watchOptional waits for each of the kinds that may be installed.
func (c *Controller) watchOptional(ctx context.Context, m ctrl.Manager, to controller.Controller) {
	for _, u := range users {
		go c.waitFor(ctx, m, u.kind, func() error {
			c.others.mu.Lock()
			defer c.others.mu.Unlock()
			c.others.users = append(c.others.users, u)
			return nil
		})
	}
	for _, version := range []string{"v1", "v1beta2"} {
		kind := schema.GroupVersionKind{Group: groupGroup, Version: version, Kind: kindGroup}
		go c.waitFor(ctx, m, kind, func() error { return c.haveGroups(m, to, kind) })
	}
}

func (c *Controller) waitFor(ctx context.Context, m ctrl.Manager, kind schema.GroupVersionKind, then func() error) {
	if err := c.WhenInstalled(ctx, m.GetRESTMapper(), kind, then); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Could not watch", "kind", kind.Kind)
	}
}

// haveGroups takes the first version that is there: they differ in nothing that is read here.
func (c *Controller) haveGroups(m ctrl.Manager, to controller.Controller, kind schema.GroupVersionKind) error {
	c.others.mu.Lock()
	defer c.others.mu.Unlock()
	if !c.others.groups.Empty() {
		return nil
	}
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(kind)
	if err := to.Watch(source.Kind[client.Object](m.GetCache(), o, c.later(c.policiesOfSnapshot))); err != nil {
		return fmt.Errorf("watch VolumeGroupSnapshots: %w", err)
	}
	c.others.groups = kind
	return c.wake(to)
}

// restoresIndex finds claims that are being made from a snapshot: while they are not bound, their snapshot is in use.
func restoresIndex(o client.Object) []string {
	claim := o.(*corev1.PersistentVolumeClaim)
	if claim.Spec.VolumeName == "" && claims.SnapshotOf(claim) != "" {
		return []string{restoring}
	}
	return nil
}

// uses says who needs a snapshot, by the snapshot's namespace and name.
func (ps *pass) uses(ctx context.Context) (map[string][]string, error) {
	uses := map[string][]string{}
	var unbound corev1.PersistentVolumeClaimList
	if err := ps.c.Client.List(ctx, &unbound, client.MatchingFields{fieldRestores: restoring}, noCopies); err != nil {
		return nil, fmt.Errorf("list unbound claims: %w", err)
	}
	for i := range unbound.Items {
		claim := &unbound.Items[i]
		at := claims.SnapshotOf(claim)
		uses[at] = append(uses[at], "PVC "+claim.Namespace+"/"+claim.Name)
	}
	for _, u := range ps.users {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(u.kind.GroupVersion().WithKind(u.kind.Kind + "List"))
		if err := ps.c.others.reader.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %ss: %w", u.kind.Kind, err)
		}
		for i := range list.Items {
			for _, at := range u.names(&list.Items[i]) {
				uses[at] = append(uses[at], u.kind.Kind+" "+list.Items[i].GetNamespace()+"/"+list.Items[i].GetName())
			}
		}
	}
	return uses, nil
}
