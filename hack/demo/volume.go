package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/stack"
)

// plugin is the driver's CSI services, as a container orchestrator calls them.
type plugin struct {
	controller csi.ControllerClient
	node       csi.NodeClient
	dir        string
}

func newPlugin(s *stack.Stack) plugin {
	return plugin{controller: csi.NewControllerClient(s.CSI), node: csi.NewNodeClient(s.CSI), dir: s.Dir}
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	}
}

// create makes a volume of 10 GiB, blank or from a snapshot.
func (p plugin) create(ctx context.Context, name, snapshot string) (id string, err error) {
	req := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 10 << 30}, VolumeCapabilities: []*csi.VolumeCapability{capability()},
	}
	if snapshot != "" {
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
		}}
	}
	resp, err := p.controller.CreateVolume(ctx, req)
	if err != nil {
		return "", fmt.Errorf("CreateVolume %s: %w", name, err)
	}
	return resp.GetVolume().GetVolumeId(), nil
}

func (p plugin) snapshot(ctx context.Context, name, source string) (id string, err error) {
	resp, err := p.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source})
	if err != nil {
		return "", fmt.Errorf("CreateSnapshot %s: %w", name, err)
	}
	return resp.GetSnapshot().GetSnapshotId(), nil
}

func (p plugin) deleteVolume(ctx context.Context, id string) error {
	if _, err := p.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		return fmt.Errorf("DeleteVolume: %w", err)
	}
	return nil
}

func (p plugin) deleteSnapshot(ctx context.Context, id string) error {
	if _, err := p.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		return fmt.Errorf("DeleteSnapshot: %w", err)
	}
	return nil
}

func (p plugin) paths(id string) (staging, target string) {
	return filepath.Join(p.dir, "staging", id), filepath.Join(p.dir, "pods", id)
}

// use stages and publishes a volume, and answers its folder.
func (p plugin) use(ctx context.Context, id string) (dir string, err error) {
	staging, target := p.paths(id)
	if _, err := p.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, VolumeCapability: capability(),
	}); err != nil {
		return "", fmt.Errorf("NodeStageVolume: %w", err)
	}
	if _, err := p.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability(),
	}); err != nil {
		return "", fmt.Errorf("NodePublishVolume: %w", err)
	}
	return target, nil
}

// unuse undoes use.
func (p plugin) unuse(ctx context.Context, id string) error {
	staging, target := p.paths(id)
	if _, err := p.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}); err != nil {
		return fmt.Errorf("NodeUnpublishVolume: %w", err)
	}
	if _, err := p.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging}); err != nil {
		return fmt.Errorf("NodeUnstageVolume: %w", err)
	}
	return nil
}

// sync brings a file system's writes to its device.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
