package cluster

import (
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// newVolume is the object of a volume that was asked for, in its pool.
func newVolume(r volume.CreateRequest, z volume.Sizing, p *v1alpha1.Pool) *v1alpha1.LocalVolume {
	params := r.Parameters.Normal()
	v := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: r.ID().String(), Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.LocalVolumeSpec{
			Location: location(p), CSIName: r.Name, Size: bytes(z.Size), Requested: bytes(z.Requested), FSType: r.FSType,
			Mode: string(params.Mode), Provisioning: string(params.Provisioning), Tidy: params.Tidy, PoolSet: params.Pool,
			DesiredState: v1alpha1.Present,
		},
	}
	if !r.Source.IsZero() {
		v.Spec.Source = &v1alpha1.VolumeSource{Snapshot: r.Source.Snapshot.String(), Volume: r.Source.Volume.String()}
	}
	return v
}

// newSnapshot is the object of a snapshot that was asked for, beside its source.
func newSnapshot(r volume.SnapshotRequest, source *v1alpha1.LocalVolume, notAfter time.Time) *v1alpha1.LocalSnapshot {
	return &v1alpha1.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: r.ID().String(), Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.LocalSnapshotSpec{
			Location: source.Spec.Location, CSIName: r.Name, Volume: source.Name, NotAfter: metav1.NewMicroTime(notAfter), DesiredState: v1alpha1.Present,
			Consistency: string(r.Consistency),
		},
	}
}

// newGroup is the object of a group that was asked for, where its sources are.
func newGroup(r volume.GroupRequest, at v1alpha1.Location, notAfter time.Time) *v1alpha1.LocalSnapshotGroup {
	g := &v1alpha1.LocalSnapshotGroup{
		ObjectMeta: metav1.ObjectMeta{Name: r.ID().String(), Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.LocalSnapshotGroupSpec{
			Location: at, CSIName: r.Name, NotAfter: metav1.NewMicroTime(notAfter), DesiredState: v1alpha1.Present,
			Consistency: string(r.Consistency),
		},
	}
	for _, m := range r.Members() {
		g.Spec.Members = append(g.Spec.Members, v1alpha1.GroupMember{Volume: m.Source.String(), Snapshot: m.ID().String(), CSIName: m.Name})
	}
	return g
}

// newMember is the object of one of a group's snapshots. The group's time counts: nothing is cut for it.
func newMember(g *v1alpha1.LocalSnapshotGroup, m v1alpha1.GroupMember) *v1alpha1.LocalSnapshot {
	return &v1alpha1.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: m.Snapshot, Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.LocalSnapshotSpec{
			Location: g.Spec.Location, CSIName: m.CSIName, Volume: m.Volume, Group: g.Name, NotAfter: g.Spec.NotAfter, DesiredState: v1alpha1.Present,
		},
	}
}

func location(p *v1alpha1.Pool) v1alpha1.Location {
	return v1alpha1.Location{NodeName: p.Spec.NodeName, Pool: p.Name, PoolUUID: p.Status.UUID}
}

func bytes(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

// asVolume is what an object says. A volume that is not made yet is what it will be.
func asVolume(o *v1alpha1.LocalVolume, node volume.NodeID) volume.Volume {
	v := volume.Volume{
		Name: o.Spec.CSIName, Sizing: sizing(o), FSType: o.Spec.FSType,
		Parameters: volume.Parameters{
			Pool: o.Spec.PoolSet, Mode: volume.Mode(o.Spec.Mode), Tidy: o.Spec.Tidy, Provisioning: volume.Provisioning(o.Spec.Provisioning),
		}.Normal(),
		Node: node, Pool: o.Spec.Pool, CreatedAt: o.CreationTimestamp.Time, HasParent: o.Spec.Source != nil, Attached: stateOf(o).is(v1alpha1.Attached),
	}
	if o.Status.CreationTime != nil {
		v.CreatedAt = o.Status.CreationTime.Time
	}
	// Names that are no handles are those of objects that people made; the zero ID stands for them.
	v.ID, _ = volume.ParseVolumeID(o.Name)
	if o.Spec.Source != nil {
		v.Source.Snapshot, _ = volume.ParseSnapshotID(o.Spec.Source.Snapshot)
		v.Source.Volume, _ = volume.ParseVolumeID(o.Spec.Source.Volume)
	}
	return v
}

// sizing is the volume's size as it is, not as it is to become. A request that belongs to a growth which is not done yet gives way to it.
func sizing(o *v1alpha1.LocalVolume) volume.Sizing {
	size, requested := o.Spec.Size.Value(), o.Spec.Requested.Value()
	if o.Status.Size != nil {
		size = o.Status.Size.Value()
	}
	if requested <= 0 || volume.Round(requested, o.Spec.FSType) > size {
		requested = size
	}
	return volume.Sizing{Size: size, Requested: requested}
}

// asSnapshot is what an object says. A snapshot that is not cut yet has no size and no time.
func asSnapshot(o *v1alpha1.LocalSnapshot, node volume.NodeID) volume.Snapshot {
	s := volume.Snapshot{Name: o.Spec.CSIName, Node: node, Pool: o.Spec.Pool}
	s.ID, _ = volume.ParseSnapshotID(o.Name)
	s.Source, _ = volume.ParseVolumeID(o.Spec.Volume)
	s.Group, _ = volume.ParseGroupID(o.Spec.Group)
	if c := o.Status.Cut; c != nil {
		s.Sizing = volume.Sizing{Size: c.Size.Value(), Requested: c.Requested.Value()}
		s.FSType, s.CreatedAt = c.FSType, c.CreationTime.Time
	}
	return s
}
