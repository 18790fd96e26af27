package group

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// plugin is the driver's CSI services, as a container orchestrator calls them.
type plugin struct {
	controller csi.ControllerClient
	group      csi.GroupControllerClient
	node       csi.NodeClient
	dir        string
}

func newPlugin(s *stack.Stack) plugin {
	return plugin{csi.NewControllerClient(s.CSI), csi.NewGroupControllerClient(s.CSI), csi.NewNodeClient(s.CSI), s.Dir}
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// disk is a volume whose device is open.
type disk struct {
	*blocktest.File
	id, name string
	plugin   plugin
}

// open makes a raw block volume, blank or of a snapshot, and opens its device as a pod would find it.
func (p plugin) open(ctx context.Context, name, snapshot, mode string, size int64) (d *disk, err error) {
	req := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: []*csi.VolumeCapability{capability()},
		Parameters: map[string]string{"mode": mode},
	}
	if snapshot != "" {
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
		}}
	}
	resp, err := p.controller.CreateVolume(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", name, err)
	}
	d = &disk{id: resp.GetVolume().GetVolumeId(), name: name, plugin: p}
	if _, err := p.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: d.id, StagingTargetPath: d.staging(), VolumeCapability: capability(),
	}); err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", name, err)
	}
	if _, err := p.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: d.id, StagingTargetPath: d.staging(), TargetPath: d.target(), VolumeCapability: capability(),
	}); err != nil {
		return nil, fmt.Errorf("publish volume %s: %w", name, err)
	}
	if d.File, err = blocktest.OpenFile(d.target(), os.O_RDWR|syscall.O_DIRECT, block.SectorSize); err != nil {
		return nil, fmt.Errorf("open the device of volume %s: %w", name, err)
	}
	return d, nil
}

func (d *disk) staging() string { return filepath.Join(d.plugin.dir, d.name+"-staging") }
func (d *disk) target() string  { return filepath.Join(d.plugin.dir, d.name+"-target") }

// remove takes the volume from its node and deletes it.
func (d *disk) remove(ctx context.Context) error {
	err := d.Close()
	_, e := d.plugin.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: d.id, TargetPath: d.target()})
	err = errors.Join(err, e)
	_, e = d.plugin.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: d.id, StagingTargetPath: d.staging()})
	err = errors.Join(err, e)
	_, e = d.plugin.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: d.id})
	if err = errors.Join(err, e); err != nil {
		return fmt.Errorf("remove volume %s: %w", d.name, err)
	}
	return nil
}
