// Package snapshotusers knows who needs a VolumeSnapshot beside claims: objects of VolumeRollbacks, CDI and KubeVirt that name it. What deletes snapshots by
// itself asks first.
//
// Contract: objects are read without their types, so that their definitions need not be there, nor be known when this is built.
//
// Limits: a field that is not where the kind's version has it names nothing.
package snapshotusers

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Kind is one whose objects may name snapshots that they need.
type Kind struct {
	schema.GroupVersionKind
	names func(u *unstructured.Unstructured) []string // namespace/name
}

// Kinds that may be installed. What is over (a DataVolume that succeeded, a restore that is complete) needs its snapshot no more.
var Kinds = []Kind{
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

// Each tells of every snapshot (namespace/name) that an object of the kind needs, and of the object. The kind must be installed.
func (k Kind) Each(ctx context.Context, reader client.Reader, tell func(by, snapshot string)) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(k.GroupVersion().WithKind(k.Kind + "List"))
	if err := reader.List(ctx, list); err != nil {
		return fmt.Errorf("list %ss: %w", k.Kind, err)
	}
	for i := range list.Items {
		u := &list.Items[i]
		for _, at := range k.names(u) {
			tell(k.Kind+" "+u.GetNamespace()+"/"+u.GetName(), at)
		}
	}
	return nil
}
