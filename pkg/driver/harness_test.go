package driver_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2/ktesting"

	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/driver/mount/mounttest"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
)

const (
	mi   = int64(1) << 20
	gi   = int64(1) << 30
	node = "node-a"
)

// harness is a plugin on a socket, over a service and a machine in memory.
type harness struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.GroupControllerClient
	csi.NodeClient
	t       *testing.T
	dir     string
	volumes *memory.Service
	machine *mounttest.Fake
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, dir: t.TempDir(), volumes: memory.New(memory.Config{Node: node}), machine: &mounttest.Fake{}}
	conn, err := grpc.NewClient(serve(t, h.volumes, h.machine), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	h.IdentityClient, h.ControllerClient, h.NodeClient = csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	h.GroupControllerClient = csi.NewGroupControllerClient(conn)
	return h
}

// serve runs a plugin until the test ends, and answers its endpoint.
func serve(t *testing.T, service volume.Service, machine driver.Mounter) string {
	t.Helper()
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	l, err := driver.Listen(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	service = volume.Open(service)
	server := driver.NewServer(ktesting.NewLogger(t, ktesting.NewConfig()), driver.Services{
		Identity:   driver.NewIdentity("1.2.3", true, service.Health),
		Controller: driver.NewController(service, driver.ParamPool),
		Group:      driver.NewGroupController(service),
		Node:       driver.NewNode(service, machine, driver.NodeOptions{}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- driver.Serve(ctx, l, server, 10*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return endpoint
}

func (h *harness) path(name string) string { return filepath.Join(h.dir, name) }

func mountCap(fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func blockCap() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func withMode(c *csi.VolumeCapability, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	c.AccessMode.Mode = mode
	return c
}

func createReq(name string, required int64, caps ...*csi.VolumeCapability) *csi.CreateVolumeRequest {
	if len(caps) == 0 {
		caps = []*csi.VolumeCapability{mountCap("ext4")}
	}
	return &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: required}, VolumeCapabilities: caps}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func (h *harness) create(req *csi.CreateVolumeRequest) *csi.Volume {
	h.t.Helper()
	resp, err := h.CreateVolume(h.t.Context(), req)
	ok(h.t, err)
	return resp.GetVolume()
}

func (h *harness) cut(name, source string) *csi.Snapshot {
	h.t.Helper()
	resp, err := h.CreateSnapshot(h.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source})
	ok(h.t, err)
	return resp.GetSnapshot()
}

func (h *harness) stage(id, path string, c *csi.VolumeCapability) error {
	_, err := h.NodeStageVolume(h.t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: h.path(path), VolumeCapability: c})
	return err
}

func (h *harness) unstage(id, path string) error {
	_, err := h.NodeUnstageVolume(h.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: h.path(path)})
	return err
}

func (h *harness) publish(id, staging, target string, readOnly bool, c *csi.VolumeCapability) error {
	_, err := h.NodePublishVolume(h.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: h.path(staging), TargetPath: h.path(target), Readonly: readOnly, VolumeCapability: c,
	})
	return err
}

func (h *harness) unpublish(id, target string) error {
	_, err := h.NodeUnpublishVolume(h.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: h.path(target)})
	return err
}

// domain is the handle as the services have it.
func domain(t *testing.T, id string) volume.VolumeID {
	t.Helper()
	v, err := volume.ParseVolumeID(id)
	ok(t, err)
	return v
}

// device is the path that the memory service shows an attached volume at.
func device(id string) string { return "/dev/memory/" + id }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks an error's code, and that its text says the words.
func refused(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v, want %v", what, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("%s: %q does not say %q", what, status.Convert(err).Message(), w)
		}
	}
}
