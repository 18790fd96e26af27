package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// GroupController is the CSI group controller service.
type GroupController struct {
	csi.UnimplementedGroupControllerServer
	volumes volume.Controller
}

var _ csi.GroupControllerServer = (*GroupController)(nil)

// NewGroupController makes it. volumes is idempotent and serialized (volume.Open).
func NewGroupController(volumes volume.Controller) *GroupController {
	return &GroupController{volumes: volumes}
}

// GroupControllerGetCapabilities lists what works.
func (s *GroupController) GroupControllerGetCapabilities(
	context.Context, *csi.GroupControllerGetCapabilitiesRequest,
) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// CreateVolumeGroupSnapshot cuts snapshots of several volumes at the same moment, and answers with its time at once; a repeated request is answered with
// the first cut.
func (s *GroupController) CreateVolumeGroupSnapshot(
	ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest,
) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, missing("group snapshot name")
	}
	if len(req.GetSourceVolumeIds()) == 0 {
		return nil, missing("list of source volume IDs")
	}
	consistency, err := parseGroupParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	r := volume.GroupRequest{Name: req.GetName(), Consistency: consistency}
	for _, id := range req.GetSourceVolumeIds() {
		source, err := volumeID(id)
		if err != nil {
			return nil, err
		}
		r.Sources = append(r.Sources, source)
	}
	g, err := s.volumes.CreateGroup(ctx, r)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: toGroup(g)}, nil
}

// DeleteVolumeGroupSnapshot deletes all snapshots of a group. Volumes made of them stay.
func (s *GroupController) DeleteVolumeGroupSnapshot(
	ctx context.Context, req *csi.DeleteVolumeGroupSnapshotRequest,
) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	id, err := groupID(req.GetGroupSnapshotId())
	if errors.Is(err, volume.ErrMalformedID) {
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	said, err := memberIDs(id, req.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, s.volumes.DeleteGroup(ctx, id, said)
}

// GetVolumeGroupSnapshot answers one group.
func (s *GroupController) GetVolumeGroupSnapshot(
	ctx context.Context, req *csi.GetVolumeGroupSnapshotRequest,
) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id, err := groupID(req.GetGroupSnapshotId())
	if err != nil {
		return nil, err
	}
	said, err := memberIDs(id, req.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	g, err := s.volumes.GetGroup(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := volume.MatchMembers(id, g.Handles(), said); err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: toGroup(g)}, nil
}

// groupID reads a required group_snapshot_id.
func groupID(s string) (volume.GroupID, error) {
	if s == "" {
		return volume.GroupID{}, missing("group snapshot ID")
	}
	return volume.ParseGroupID(s)
}

// memberIDs reads what a caller takes for a group's snapshots. What is no handle of ours is none of them.
func memberIDs(group volume.GroupID, ids []string) (said []volume.SnapshotID, err error) {
	for _, id := range ids {
		snap, err := volume.ParseSnapshotID(id)
		if err != nil {
			return nil, fmt.Errorf("%w: snapshot %q is not of group %s: no such handle", volume.ErrInvalid, id, group)
		}
		said = append(said, snap)
	}
	return said, nil
}

// paramDeletionPolicy is a field of the class, which Kubernetes' own tests write among its parameters, too. It is the side-cars' business.
const paramDeletionPolicy = "deletionPolicy"

// parseGroupParameters reads the parameters of a class of groups.
func parseGroupParameters(params map[string]string) (volume.Consistency, error) {
	if value, ok := params[paramDeletionPolicy]; ok && value != "Delete" && value != "Retain" {
		return "", fmt.Errorf("%w: parameter %s: %q: it is a field of the class, Delete or Retain, and not one of its parameters", volume.ErrInvalid,
			paramDeletionPolicy, value)
	}
	return parseSnapshotParameters("VolumeGroupSnapshotClass", params, paramDeletionPolicy)
}

func toGroup(g volume.Group) *csi.VolumeGroupSnapshot {
	out := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID.String(), CreationTime: timestamppb.New(g.CreatedAt), ReadyToUse: true}
	for _, snap := range g.Snapshots {
		out.Snapshots = append(out.Snapshots, toSnapshot(snap))
	}
	return out
}
