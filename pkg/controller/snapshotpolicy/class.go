package snapshotpolicy

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// defaultClass and defaultGroupClass are the annotations of a driver's default classes.
const (
	defaultClass      = "snapshot.storage.kubernetes.io/is-default-class"
	defaultGroupClass = "groupsnapshot.storage.kubernetes.io/is-default-class"
)

// class of snapshots, of either kind.
type class struct {
	name, driver string
	retains      bool
	isDefault    bool
}

// readClasses of the policy's kind of snapshots.
func (ps *pass) readClasses(ctx context.Context) error {
	if ps.p.grouped() {
		if ps.groupKind.Empty() {
			return nil
		}
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(ps.groupKind.GroupVersion().WithKind("VolumeGroupSnapshotClassList"))
		if err := ps.c.others.reader.List(ctx, list); err != nil {
			return fmt.Errorf("list VolumeGroupSnapshotClasses: %w", err)
		}
		for i := range list.Items {
			o := &list.Items[i]
			driver, _, _ := unstructured.NestedString(o.Object, "driver")
			policy, _, _ := unstructured.NestedString(o.Object, "deletionPolicy")
			ps.classes = append(ps.classes, class{o.GetName(), driver, policy == string(snapshotv1.VolumeSnapshotContentRetain),
				o.GetAnnotations()[defaultGroupClass] == "true"})
		}
		return nil
	}
	var list snapshotv1.VolumeSnapshotClassList
	if err := ps.c.Client.List(ctx, &list); err != nil {
		return fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	for i := range list.Items {
		o := &list.Items[i]
		ps.classes = append(ps.classes, class{o.Name, o.Driver, o.DeletionPolicy == snapshotv1.VolumeSnapshotContentRetain,
			o.Annotations[defaultClass] == "true"})
	}
	return nil
}

func (ps *pass) classKind() string {
	if ps.p.grouped() {
		return "VolumeGroupSnapshotClass"
	}
	return "VolumeSnapshotClass"
}

// ownClass says what is wrong with the class that the policy names; "" if nothing.
func (ps *pass) ownClass() string {
	name := ps.p.spec.Template.VolumeSnapshotClassName
	if name == "" {
		return ""
	}
	for _, cl := range ps.classes {
		if cl.name == name {
			if cl.retains {
				return fmt.Sprintf("spec.template.volumeSnapshotClassName: %s %s has deletionPolicy Retain: what is pruned would stay in the storage for ever; "+
					"name a class with deletionPolicy Delete", ps.classKind(), name)
			}
			return ""
		}
	}
	return fmt.Sprintf("spec.template.volumeSnapshotClassName: there is no %s %s; make it, or name another", ps.classKind(), name)
}

// classTrouble is why a source's snapshots have no class that may be used.
func (ps *pass) classTrouble(s *src) *trouble {
	name := ps.p.spec.Template.VolumeSnapshotClassName
	var found []class
	for _, cl := range ps.classes {
		if name != "" && cl.name == name || name == "" && cl.isDefault && cl.driver == s.driver {
			found = append(found, cl)
		}
	}
	switch {
	case len(found) == 0 && name != "":
		return &trouble{v1alpha1.ReasonWrongClass, fmt.Sprintf("there is no %s %s", ps.classKind(), name)}
	case len(found) == 0:
		return &trouble{"NoClass", fmt.Sprintf("driver %s has no default %s; mark one, or name one in template.volumeSnapshotClassName", s.driver,
			ps.classKind())}
	case len(found) > 1:
		return &trouble{"ManyClasses", fmt.Sprintf("driver %s has several default %ses, %s and %s among them: mark one only", s.driver, ps.classKind(),
			found[0].name, found[1].name)}
	case found[0].driver != s.driver:
		return &trouble{"OtherDriver", fmt.Sprintf("its driver is %s, and %s %s is of driver %s", s.driver, ps.classKind(), name, found[0].driver)}
	case found[0].retains:
		return &trouble{v1alpha1.ReasonWrongClass, fmt.Sprintf("%s %s has deletionPolicy Retain: what is pruned would stay in the storage for ever",
			ps.classKind(), found[0].name)}
	}
	return nil
}
