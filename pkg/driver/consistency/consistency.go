// Package consistency lets a VolumeSnapshot, or a VolumeGroupSnapshot, say what it is to be of: its annotation rowan.storage/consistency (Crash or
// FilesystemFreeze) comes before the parameter consistency of its class.
//
// Contract: the object is the one that csi-snapshotter names (--extra-create-metadata), read from the API server. One that cannot be read, or is gone,
// fails the call, which is made again: a snapshot is never cut with less than was asked for. A request that names none is passed on as it is.
package consistency

import (
	"context"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// kind is of objects that are asked for snapshots with.
type kind struct {
	metav1.TypeMeta
	name, namespace string // the parameters in which csi-snapshotter names the object
}

var (
	single = kind{
		metav1.TypeMeta{APIVersion: "snapshot.storage.k8s.io/v1", Kind: "VolumeSnapshot"},
		"csi.storage.k8s.io/volumesnapshot/name", "csi.storage.k8s.io/volumesnapshot/namespace",
	}
	group = kind{
		metav1.TypeMeta{APIVersion: "groupsnapshot.storage.k8s.io/v1", Kind: "VolumeGroupSnapshot"},
		"csi.storage.k8s.io/volumegroupsnapshot/name", "csi.storage.k8s.io/volumegroupsnapshot/namespace",
	}
)

// Reader is a controller service that looks at the snapshots' annotations.
type Reader struct {
	csi.ControllerServer
	live client.Reader
}

// New reader before a controller service. live reads from the API server.
func New(next csi.ControllerServer, live client.Reader) *Reader {
	return &Reader{ControllerServer: next, live: live}
}

// CreateSnapshot passes on what the snapshot's annotation says.
func (r *Reader) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	params, err := single.parameters(ctx, r.live, req.GetParameters())
	if err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	req.Parameters = params
	return r.ControllerServer.CreateSnapshot(ctx, req)
}

// GroupReader is a group controller service that looks at the groups' annotations.
type GroupReader struct {
	csi.GroupControllerServer
	live client.Reader
}

// NewGroup reader before a group controller service. live reads from the API server.
func NewGroup(next csi.GroupControllerServer, live client.Reader) *GroupReader {
	return &GroupReader{GroupControllerServer: next, live: live}
}

// CreateVolumeGroupSnapshot passes on what the group's annotation says.
func (r *GroupReader) CreateVolumeGroupSnapshot(
	ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest,
) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	params, err := group.parameters(ctx, r.live, req.GetParameters())
	if err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	req.Parameters = params
	return r.GroupControllerServer.CreateVolumeGroupSnapshot(ctx, req)
}

// parameters are the class's, with what the object says that they name.
func (k kind) parameters(ctx context.Context, live client.Reader, params map[string]string) (map[string]string, error) {
	key := client.ObjectKey{Namespace: params[k.namespace], Name: params[k.name]}
	if key.Name == "" {
		return params, nil
	}
	o := metav1.PartialObjectMetadata{TypeMeta: k.TypeMeta}
	err := live.Get(ctx, key, &o)
	switch {
	case apierrors.IsNotFound(err): // it was deleted meanwhile, and what is made now is deleted next
		return nil, fmt.Errorf("%w: %s %s is gone", volume.ErrPending, k.Kind, key)
	case err != nil:
		return nil, fmt.Errorf("%w: read annotation %s of %s %s: %w", volume.ErrUnavailable, v1alpha1.ConsistencyAnnotation, k.Kind, key, err)
	}
	value, said := o.Annotations[v1alpha1.ConsistencyAnnotation]
	if !said {
		return params, nil
	}
	if _, err := volume.ParseConsistency(value); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", v1alpha1.ConsistencyAnnotation, err)
	}
	params = maps.Clone(params)
	params[driver.ParamConsistency] = value
	return params, nil
}
