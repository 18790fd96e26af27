// Package consistency lets a VolumeSnapshot say what it is to be of: its annotation rowan.storage/consistency (Crash or FilesystemFreeze) comes before the
// parameter consistency of its class.
//
// Contract: the VolumeSnapshot is the one that csi-snapshotter names (--extra-create-metadata), read from the API server. One that cannot be read, or is gone,
// fails the call, which is made again: a snapshot is never cut with less than was asked for. A request that names none is passed on as it is.
package consistency

import (
	"context"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// The parameters in which csi-snapshotter names the snapshot.
const (
	snapshotName      = "csi.storage.k8s.io/volumesnapshot/name"
	snapshotNamespace = "csi.storage.k8s.io/volumesnapshot/namespace"
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
	key := client.ObjectKey{Namespace: req.GetParameters()[snapshotNamespace], Name: req.GetParameters()[snapshotName]}
	if key.Name == "" {
		return r.ControllerServer.CreateSnapshot(ctx, req)
	}
	var s snapshotv1.VolumeSnapshot
	err := r.live.Get(ctx, key, &s)
	switch {
	case apierrors.IsNotFound(err): // it was deleted meanwhile, and what is made now is deleted next
		return nil, fmt.Errorf("%w: VolumeSnapshot %s is gone", volume.ErrPending, key)
	case err != nil:
		return nil, fmt.Errorf("%w: read annotation %s of VolumeSnapshot %s: %w", volume.ErrUnavailable, v1alpha1.ConsistencyAnnotation, key, err)
	}
	value, said := s.Annotations[v1alpha1.ConsistencyAnnotation]
	if !said {
		return r.ControllerServer.CreateSnapshot(ctx, req)
	}
	if _, err := volume.ParseConsistency(value); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", v1alpha1.ConsistencyAnnotation, err)
	}
	req = proto.CloneOf(req)
	req.Parameters = maps.Clone(req.Parameters)
	req.Parameters[driver.ParamConsistency] = value
	return r.ControllerServer.CreateSnapshot(ctx, req)
}
