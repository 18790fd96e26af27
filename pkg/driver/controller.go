package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// Controller is the CSI controller service.
type Controller struct {
	csi.UnimplementedControllerServer
	volumes volume.Controller
	pool    PoolParam
}

var _ csi.ControllerServer = (*Controller)(nil)

// NewController makes it. volumes is idempotent and serialized (volume.Open). pool is the parameter of a storage class that chooses a pool.
func NewController(volumes volume.Controller, pool PoolParam) *Controller {
	return &Controller{volumes: volumes, pool: pool}
}

// ControllerGetCapabilities lists what works.
func (s *Controller) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// CreateVolume makes a volume: blank, from a snapshot or from a volume.
func (s *Controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, missing("volume name")
	}
	params, classFS, err := s.parseParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	mutable, err := parseMutable(req.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	params = params.With(mutable)
	fsType, err := fileSystem(req.GetVolumeCapabilities(), classFS)
	if err != nil {
		return nil, err
	}
	source, err := parseSource(req.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	v, err := s.volumes.Create(ctx, volume.CreateRequest{
		Name: req.GetName(), Capacity: parseRange(req.GetCapacityRange()), FSType: fsType, Parameters: params, Source: source,
		Placement: parsePlacement(req.GetAccessibilityRequirements()),
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: toVolume(v)}, nil
}

// DeleteVolume deletes a volume. Its snapshots and copies stay.
func (s *Controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id, err := volumeID(req.GetVolumeId())
	if errors.Is(err, volume.ErrMalformedID) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, s.volumes.Delete(ctx, id)
}

// ValidateVolumeCapabilities confirms what CreateVolume would accept for the volume.
func (s *Controller) ValidateVolumeCapabilities(
	ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume ID")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, missing("volume capabilities")
	}
	v, err := s.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if _, err := fileSystem(req.GetVolumeCapabilities(), v.FSType); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	if _, _, err := s.parseParameters(req.GetParameters()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
	}}, nil
}

// ControllerGetVolume answers one volume.
func (s *Controller) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	v, err := s.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: toVolume(v), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// ListVolumes answers a page of all volumes, in the order of their handles.
func (s *Controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	page, err := parsePage(req.GetStartingToken(), req.GetMaxEntries(), volume.ParseVolumeID)
	if err != nil {
		return nil, err
	}
	volumes, more, err := s.volumes.List(ctx, page)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	resp := &csi.ListVolumesResponse{}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{Volume: toVolume(v)})
		if more {
			resp.NextToken = v.ID.String()
		}
	}
	return resp, nil
}

// ControllerExpandVolume grows the device. The file system follows in NodeExpandVolume where the volume is in use, and else when it is staged.
func (s *Controller) ControllerExpandVolume(
	ctx context.Context, req *csi.ControllerExpandVolumeRequest,
) (*csi.ControllerExpandVolumeResponse, error) {
	id, err := volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if req.GetCapacityRange() == nil {
		return nil, missing("capacity range")
	}
	block := false
	if c := req.GetVolumeCapability(); c != nil {
		u, err := parseCapability(c)
		if err != nil {
			return nil, err
		}
		block = u.block
	}
	v, err := s.volumes.Expand(ctx, id, parseRange(req.GetCapacityRange()))
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", id, err)
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         v.Sizing.Size,
		NodeExpansionRequired: v.Attached && !block && v.FSType != "",
	}, nil
}

// ControllerModifyVolume changes what a VolumeAttributesClass may choose of a volume, in use or not.
func (s *Controller) ControllerModifyVolume(
	ctx context.Context, req *csi.ControllerModifyVolumeRequest,
) (*csi.ControllerModifyVolumeResponse, error) {
	id, err := volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	mutable, err := parseMutable(req.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	if _, err := s.volumes.Modify(ctx, id, mutable); err != nil {
		return nil, fmt.Errorf("modify volume %s: %w", id, err)
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}

// GetCapacity answers what CreateVolume would admit; for a class that it would refuse, what it would admit without its parameters. An error would leave
// a waiting pod with the scheduler's word that there is no space, where CreateVolume's error says on the claim what is wrong with the class.
func (s *Controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	params, fsType, err := s.parseParameters(req.GetParameters())
	if err == nil && len(req.GetVolumeCapabilities()) > 0 {
		fsType, err = fileSystem(req.GetVolumeCapabilities(), fsType)
	} else if err == nil {
		err = volume.CheckFS(fsType)
	}
	if err != nil {
		params, fsType = volume.Parameters{}, ""
	}
	r := volume.CapacityRequest{FSType: fsType, Parameters: params}
	if t := req.GetAccessibleTopology(); t != nil {
		node, ok := t.GetSegments()[TopologyKey]
		if !ok {
			return &csi.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}, nil // a place without our driver
		}
		r.Node = volume.NodeID(node)
	}
	c, err := s.volumes.Capacity(ctx, r)
	if errors.Is(err, volume.ErrInvalid) {
		r.Parameters = volume.Parameters{}
		c, err = s.volumes.Capacity(ctx, r)
	}
	if err != nil {
		return nil, fmt.Errorf("capacity: %w", err)
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: c.Available, MaximumVolumeSize: wrapperspb.Int64(c.MaxVolume), MinimumVolumeSize: wrapperspb.Int64(c.MinVolume),
	}, nil
}

func (s *Controller) get(ctx context.Context, id string) (volume.Volume, error) {
	parsed, err := volumeID(id)
	if err != nil {
		return volume.Volume{}, err
	}
	return s.volumes.Get(ctx, parsed)
}

func toVolume(v volume.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID.String(), CapacityBytes: v.Sizing.Size, AccessibleTopology: []*csi.Topology{topology(v.Node)}}
	switch {
	case !v.Source.Snapshot.IsZero():
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Source.Snapshot.String()},
		}}
	case !v.Source.Volume.IsZero():
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Source.Volume.String()},
		}}
	}
	return out
}
