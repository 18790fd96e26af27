package stack

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// started runs a stack with one volume of ext4 that is mounted.
func started(t *testing.T) *Stack {
	t.Helper()
	if err := Check(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	bin := t.TempDir()
	if err := Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	s, err := Start(ctx, Config{Bin: bin, Name: "stack", Size: 256 << 20, Driver: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	capability := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	}
	v, err := csi.NewControllerClient(s.CSI).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "one", CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20}, VolumeCapabilities: []*csi.VolumeCapability{capability},
	})
	if err != nil {
		t.Fatal(err)
	}
	staging := filepath.Join(s.Dir, "staging")
	if _, err := csi.NewNodeClient(s.CSI).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.GetVolume().GetVolumeId(), StagingTargetPath: staging, VolumeCapability: capability,
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(staging, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := len(s.devices()); n != 2 {
		t.Errorf("%d loop devices are found; want the disk's and the volume's", n)
	}
	return s
}

func TestCloseInOrder(t *testing.T) {
	s := started(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := s.look(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCloseByForce closes a stack whose engine has died with a dirty file system mounted.
func TestCloseByForce(t *testing.T) {
	s := started(t)
	if err := s.KillEngine(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "the engine had ended") {
		t.Errorf("close after the engine died: %v; want to be told", err)
	}
	if left := s.look(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestEngineRestarts kills the engine with a volume mounted; the next one takes over.
func TestEngineRestarts(t *testing.T) {
	s := started(t)
	if err := s.KillEngine(); err != nil {
		t.Fatal(err)
	}
	if err := s.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(s.Dir, "staging", "file")); err != nil || string(got) != "content" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
