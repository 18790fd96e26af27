package framework

import (
	"errors"
	"fmt"
	"slices"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AskGroup makes a VolumeGroupSnapshot of the claims that have the labels, and does not wait.
func (f *Flow) AskGroup(name string, labels map[string]string) *groupsnapshotv1.VolumeGroupSnapshot {
	f.Helper()
	return f.AskGroupAs(name, labels, nil)
}

// AskGroupAs makes one with annotations.
func (f *Flow) AskGroupAs(name string, labels, annotations map[string]string) *groupsnapshotv1.VolumeGroupSnapshot {
	f.Helper()
	g := &groupsnapshotv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.Namespace, Annotations: annotations},
		Spec: groupsnapshotv1.VolumeGroupSnapshotSpec{Source: groupsnapshotv1.VolumeGroupSnapshotSource{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
		}},
	}
	must(f, f.Create(f.Context(), g))
	f.step()
	return g
}

// GroupReady waits until a VolumeGroupSnapshot and all its snapshots are ready, and gives these by their claims' names.
func (f *Flow) GroupReady(g *groupsnapshotv1.VolumeGroupSnapshot) map[string]*snapshotv1.VolumeSnapshot {
	f.Helper()
	Until(f, f.Cluster, g, Wait, func(g *groupsnapshotv1.VolumeGroupSnapshot) error {
		switch {
		case g.Status == nil:
			return errors.New("no status")
		case g.Status.ReadyToUse != nil && *g.Status.ReadyToUse:
			return nil
		case g.Status.Error != nil && g.Status.Error.Message != nil:
			return fmt.Errorf("not ready: %s", *g.Status.Error.Message)
		}
		return errors.New("not ready")
	})
	members := f.Members(g)
	for _, s := range members {
		f.SnapshotReady(s)
	}
	return members
}

// Members are a group's VolumeSnapshots, by their claims' names.
func (f *Flow) Members(g *groupsnapshotv1.VolumeGroupSnapshot) map[string]*snapshotv1.VolumeSnapshot {
	f.Helper()
	var list snapshotv1.VolumeSnapshotList
	must(f, f.List(f.Context(), &list, client.InNamespace(f.Namespace)))
	members := map[string]*snapshotv1.VolumeSnapshot{}
	for i, s := range list.Items {
		owned := slices.ContainsFunc(s.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == g.UID })
		if claim := s.Spec.Source.PersistentVolumeClaimName; owned && claim != nil {
			members[*claim] = &list.Items[i]
		}
	}
	return members
}
