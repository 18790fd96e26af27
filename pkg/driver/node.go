package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Mounter is what the node service needs of its machine; package mount says what the methods do.
type Mounter interface {
	Detect(ctx context.Context, device string) (string, error)
	Format(ctx context.Context, device, fsType string, fresh bool) error
	Check(ctx context.Context, device, fsType string) error
	Mount(ctx context.Context, device, dir, fsType string, options []string) error
	Grow(ctx context.Context, device, dir, fsType string) error
	GrowUnmounted(ctx context.Context, device, fsType string) error
	BindDirectory(ctx context.Context, source, target string, readOnly bool) error
	BindDevice(ctx context.Context, device, target string, readOnly bool) error
	Unmount(ctx context.Context, path string) error
	Remove(path string) error
	Lookup(path, device string) (mount.Point, error)
	Targets(device string) ([]string, error)
	DeviceSize(device string) (int64, error)
	Usage(path string) (mount.Usage, error)
}

var _ Mounter = (*mount.Mounter)(nil)

// Node is the CSI node service.
type Node struct {
	csi.UnimplementedNodeServer
	volumes volume.Node
	mounter Mounter
	options NodeOptions
	locks   volume.Locks // by volume_id: the steps of a call must not mix with another's
}

var _ csi.NodeServer = (*Node)(nil)

// NodeOptions are what the orchestrator is told of the node.
type NodeOptions struct {
	Name       string // its node ID; "": its identity. The identity goes where the disks go, and an orchestrator may know the node by another name
	MaxVolumes int64  // how many volumes may be in use there; 0: no limit
}

// NewNode makes it.
func NewNode(volumes volume.Node, mounter Mounter, o NodeOptions) *Node {
	return &Node{volumes: volumes, mounter: mounter, options: o}
}

// NodeGetCapabilities lists what works.
func (s *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo names the node. It answers without the engine, so that the plugin can be registered while that is away.
func (s *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	id := s.volumes.NodeID()
	if id == "" {
		return nil, fmt.Errorf("%w: the node's identity is not known yet", volume.ErrUnavailable)
	}
	return &csi.NodeGetInfoResponse{
		NodeId: cmp.Or(s.options.Name, string(id)), MaxVolumesPerNode: s.options.MaxVolumes, AccessibleTopology: topology(id),
	}, nil
}

// NodePublishVolume shows a staged volume at the target path: its file system in a directory, or its device as a file.
func (s *Node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume ID")
	}
	if req.GetTargetPath() == "" {
		return nil, missing("target path")
	}
	u, err := parseCapability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, missing("staging target path")
	}
	u.readOnly = u.readOnly || req.GetReadonly()
	release, err := s.locks.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	device, err := s.device(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	done, err := s.published(req, u, device)
	if err != nil || done {
		return &csi.NodePublishVolumeResponse{}, err
	}
	if u.block {
		err = s.mounter.BindDevice(ctx, device, req.GetTargetPath(), u.readOnly)
	} else {
		err = s.mounter.BindDirectory(ctx, req.GetStagingTargetPath(), req.GetTargetPath(), u.readOnly)
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// published says whether the target shows the volume in the way asked for already, and refuses what must not be done.
func (s *Node) published(req *csi.NodePublishVolumeRequest, u use, device string) (bool, error) {
	id, target, staging := req.GetVolumeId(), req.GetTargetPath(), req.GetStagingTargetPath()
	if !u.block {
		p, err := s.mounter.Lookup(staging, device)
		if err != nil {
			return false, err
		}
		if !p.Mounted || !p.Same {
			return false, fmt.Errorf("publish volume %s: %w at %s: stage it first", id, volume.ErrNotStaged, staging)
		}
		u.readOnly = u.readOnly || p.ReadOnly // so will be what is bound to it
	}
	p, err := s.mounter.Lookup(target, device)
	if err != nil {
		return false, err
	}
	if p.Mounted {
		if !p.Same || p.ReadOnly != u.readOnly || (p.FSType == "") != u.block {
			return false, fmt.Errorf("publish volume %s: %w: %s shows this volume: %t, read-only: %t, file system: %q; unpublish it first",
				id, volume.ErrMismatch, target, p.Same, p.ReadOnly, p.FSType)
		}
		return true, nil
	}
	if !u.singleWriter {
		return false, nil
	}
	targets, err := s.mounter.Targets(device)
	if err != nil {
		return false, err
	}
	for _, t := range targets {
		if t != staging {
			return false, fmt.Errorf("publish volume %s: %w: at %s, and its access mode is SINGLE_NODE_SINGLE_WRITER", id, volume.ErrPublished, t)
		}
	}
	return false, nil
}

// NodeUnpublishVolume undoes NodePublishVolume, whatever has become of the volume.
func (s *Node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume ID")
	}
	if req.GetTargetPath() == "" {
		return nil, missing("target path")
	}
	release, err := s.locks.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	if err := s.mounter.Unmount(ctx, req.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("unpublish volume %s: %w", req.GetVolumeId(), err)
	}
	if err := s.mounter.Remove(req.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("unpublish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats answers how full the file system is, or what a raw block volume maps.
func (s *Node) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumePath() == "" {
		return nil, missing("volume path")
	}
	id, err := volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	p, _, err := s.lookup(ctx, id, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if p.FSType == "" {
		st, err := s.volumes.Stats(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("statistics of volume %s: %w", id, err)
		}
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: st.Size, Used: st.Mapped, Available: st.Size - st.Mapped},
		}}, nil
	}
	u, err := s.mounter.Usage(req.GetVolumePath())
	if err != nil {
		return nil, fmt.Errorf("statistics of volume %s: %w", id, err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: u.Bytes, Used: u.BytesUsed, Available: u.BytesFree},
		{Unit: csi.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed, Available: u.InodesFree},
	}}, nil
}

// NodeExpandVolume grows the file system of a volume in use to its device, which ControllerExpandVolume has grown.
func (s *Node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if req.GetVolumePath() == "" {
		return nil, missing("volume path")
	}
	id, err := volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if c := req.GetVolumeCapability(); c != nil {
		if _, err := parseCapability(c); err != nil {
			return nil, err
		}
	}
	release, err := s.locks.Lock(id.String())
	if err != nil {
		return nil, err
	}
	defer release()
	p, device, err := s.lookup(ctx, id, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	v, err := s.volumes.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if required := req.GetCapacityRange().GetRequiredBytes(); required > v.Sizing.Size {
		return nil, fmt.Errorf("expand volume %s: %w: it has %d bytes, %d are required: expand it in the controller first",
			id, volume.ErrOutOfRange, v.Sizing.Size, required)
	}
	path := req.GetVolumePath()
	if st, err := s.staged(req.GetStagingTargetPath(), device); err == nil && st.Mounted {
		p, path = st, req.GetStagingTargetPath() // writable even where the target is read-only
	}
	if p.FSType != "" && !p.ReadOnly {
		if err := s.grow(ctx, v, device, path, p.FSType); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.Sizing.Size}, nil
}

// grow grows a mounted file system. The device has to show the volume's size first, or the growth would end too early and nobody would ask again.
func (s *Node) grow(ctx context.Context, v volume.Volume, device, dir, fsType string) error {
	size, err := s.mounter.DeviceSize(device)
	if err != nil {
		return fmt.Errorf("expand volume %s: %w", v.ID, err)
	}
	if size < v.Sizing.Size {
		return fmt.Errorf("expand volume %s: %w: device %s still shows %d of %d bytes", v.ID, volume.ErrUnavailable, device, size, v.Sizing.Size)
	}
	if err := s.mounter.Grow(ctx, device, dir, fsType); err != nil {
		return fmt.Errorf("expand volume %s: %w", v.ID, err)
	}
	return nil
}

// staged is what is mounted at the staging path; nothing if there is no path or it shows something else.
func (s *Node) staged(path, device string) (mount.Point, error) {
	if path == "" {
		return mount.Point{}, nil
	}
	p, err := s.mounter.Lookup(path, device)
	if err != nil || !p.Same {
		return mount.Point{}, err
	}
	return p, nil
}

// lookup finds the volume at a path where it must be: ErrNotPublished if it is not.
func (s *Node) lookup(ctx context.Context, id volume.VolumeID, path string) (mount.Point, string, error) {
	device, err := s.volumes.Device(ctx, id)
	if errors.Is(err, volume.ErrNotAttached) {
		return mount.Point{}, "", fmt.Errorf("volume %s at %s: %w (%w)", id, path, volume.ErrNotPublished, err)
	}
	if err != nil {
		return mount.Point{}, "", err
	}
	p, err := s.mounter.Lookup(path, device)
	if err != nil {
		return mount.Point{}, "", err
	}
	if !p.Mounted || !p.Same {
		return mount.Point{}, "", fmt.Errorf("volume %s at %s: %w", id, path, volume.ErrNotPublished)
	}
	return p, device, nil
}

// device is the device of a volume that must be staged.
func (s *Node) device(ctx context.Context, volumeID string) (string, error) {
	id, err := volume.ParseVolumeID(volumeID)
	if err != nil {
		return "", err
	}
	device, err := s.volumes.Device(ctx, id)
	if errors.Is(err, volume.ErrNotAttached) {
		return "", fmt.Errorf("publish volume %s: %w: stage it first (%w)", id, volume.ErrNotStaged, err)
	}
	return device, err
}
