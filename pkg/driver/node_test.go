package driver_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
)

func (h *harness) calls(want ...string) {
	h.t.Helper()
	if got := h.machine.Calls(); !slices.Equal(got, want) {
		h.t.Errorf("did %q, want %q", got, want)
	}
}

func (h *harness) restore(name, snapshot string, c *csi.VolumeCapability) *csi.Volume {
	h.t.Helper()
	req := createReq(name, 0, c)
	req.VolumeContentSource = fromSnapshot(snapshot)
	return h.create(req)
}

func TestNodeRefusals(t *testing.T) {
	h := newHarness(t)
	v := h.create(createReq("v", gi)).GetVolumeId()
	ctx, fs := t.Context(), mountCap("ext4")
	call := func(_ any, err error) error { return err }
	for _, c := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"stage without ID", call(h.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{StagingTargetPath: "/x", VolumeCapability: fs})),
			codes.InvalidArgument},
		{"stage without path", call(h.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: v, VolumeCapability: fs})), codes.InvalidArgument},
		{"stage without capability", h.stage(v, "s", nil), codes.InvalidArgument},
		{"stage on many nodes", h.stage(v, "s", withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.InvalidArgument},
		{"stage with ntfs", h.stage(v, "s", mountCap("ntfs")), codes.InvalidArgument},
		{"stage nothing", h.stage(noVolume, "s", fs), codes.NotFound},
		{"stage a malformed ID", h.stage("x", "s", fs), codes.NotFound},
		{"unstage without ID", call(h.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{StagingTargetPath: "/x"})), codes.InvalidArgument},
		{"unstage without path", call(h.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v})), codes.InvalidArgument},
		{"unstage nothing", h.unstage(noVolume, "s"), codes.OK},
		{"unstage a malformed ID", h.unstage("x", "s"), codes.OK},
		{"unstage what is not staged", h.unstage(v, "s"), codes.OK},
		{"publish without ID", call(h.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{TargetPath: "/x"})), codes.InvalidArgument},
		{"publish without target", call(h.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: v})), codes.InvalidArgument},
		{"publish without capability", h.publish(v, "s", "t", false, nil), codes.InvalidArgument},
		{"publish without staging path", call(h.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: v, TargetPath: "/x", VolumeCapability: fs})),
			codes.InvalidArgument},
		{"publish what is not staged", h.publish(v, "s", "t", false, fs), codes.FailedPrecondition},
		{"publish nothing", h.publish(noVolume, "s", "t", false, fs), codes.NotFound},
		{"unpublish without ID", call(h.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{TargetPath: "/x"})), codes.InvalidArgument},
		{"unpublish without target", call(h.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v})), codes.InvalidArgument},
		{"unpublish nothing", h.unpublish(noVolume, "t"), codes.OK},
		{"stats without ID", call(h.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumePath: "/x"})), codes.InvalidArgument},
		{"stats without path", call(h.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v})), codes.InvalidArgument},
		{"stats of nothing", call(h.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: noVolume, VolumePath: "/x"})), codes.NotFound},
		{"stats of what is not attached", call(h.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v, VolumePath: "/x"})), codes.NotFound},
		{"expand without path", call(h.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: v})), codes.InvalidArgument},
		{"expand nothing", call(h.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: noVolume, VolumePath: "/x"})), codes.NotFound},
		{"expand what is not there", call(h.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: v, VolumePath: "/x"})), codes.NotFound},
	} {
		refused(t, c.name, c.err, c.code)
	}
	if h.machine.Mounts() != 0 {
		t.Error("refused calls left mounts")
	}
}

// TestLifeOfFileSystem is every node call, each twice.
func TestLifeOfFileSystem(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		h := newHarness(t)
		c := mountCap(fs, "noatime", "nosuid")
		v := h.create(createReq("v", gi, c)).GetVolumeId()
		ok(t, h.stage(v, "s", c))
		h.calls("Format "+fs+" fresh=true", "Check "+fs, "Mount "+fs+" noatime,nosuid", "Grow "+fs)
		ok(t, h.stage(v, "s", c))
		h.calls("Grow " + fs)
		refused(t, "stage read-only over it", h.stage(v, "s", mountCap(fs, "ro")), codes.AlreadyExists)

		for range 2 {
			ok(t, h.publish(v, "s", "t", false, c))
			ok(t, h.publish(v, "s", "ro", true, c))
		}
		h.calls("BindDirectory ro=false", "BindDirectory ro=true")
		refused(t, "publish the other way", h.publish(v, "s", "t", true, c), codes.AlreadyExists)
		refused(t, "publish as block", h.publish(v, "s", "t", false, blockCap()), codes.AlreadyExists)
		refused(t, "unstage while published", h.unstage(v, "elsewhere"), codes.FailedPrecondition)

		st, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: v, VolumePath: h.path("t")})
		if err != nil || len(st.GetUsage()) != 2 || st.GetUsage()[1].GetUnit() != csi.VolumeUsage_INODES {
			t.Errorf("stats: %v, %v", st, err)
		}
		h.machine.Calls()
		for range 2 {
			ok(t, h.unpublish(v, "t"))
			ok(t, h.unpublish(v, "ro"))
		}
		if _, err := os.Stat(h.path("t")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target is still there: %v", err)
		}
		_, err = h.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v})
		refused(t, "delete while staged", err, codes.FailedPrecondition)
		for range 2 {
			ok(t, h.unstage(v, "s"))
		}
		ok(t, h.stage(v, "s", c)) // again, later: it has its file system
		if calls := h.machine.Calls(); slices.Contains(calls, "Format "+fs+" fresh=true") {
			t.Errorf("formatted again: %q", calls)
		}
		ok(t, h.unstage(v, "s"))
		if h.machine.Mounts() != 0 {
			t.Error("mounts are left")
		}
		_, err = h.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v})
		ok(t, err)
	}
}

func TestLifeOfBlock(t *testing.T) {
	h := newHarness(t)
	c := blockCap()
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	for range 2 {
		ok(t, h.stage(v, "s", c))
		ok(t, h.publish(v, "s", "t", false, c))
		ok(t, h.publish(v, "s", "t2", false, withMode(blockCap(), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)))
	}
	h.calls("BindDevice ro=false", "BindDevice ro=false")
	h.volumes.SetWritten(domain(t, v), 5*mi)
	st, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: v, VolumePath: h.path("t")})
	if err != nil || len(st.GetUsage()) != 1 || st.GetUsage()[0].GetTotal() != gi || st.GetUsage()[0].GetUsed() != 5*mi {
		t.Errorf("stats: %v, %v", st, err)
	}
	if _, err := h.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: v, VolumePath: h.path("t"), VolumeCapability: c}); err != nil {
		t.Errorf("expand: %v", err)
	}
	h.calls()
	for range 2 {
		ok(t, h.unpublish(v, "t"))
		ok(t, h.unpublish(v, "t2"))
		ok(t, h.unstage(v, "s"))
	}

	// Read-only is a property of the device: another way needs another staging.
	reader := withMode(blockCap(), csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	ok(t, h.stage(v, "s", reader))
	refused(t, "stage for writing", h.stage(v, "s", c), codes.FailedPrecondition)
	ok(t, h.publish(v, "s", "t", false, reader))
	ok(t, h.unpublish(v, "t"))
	ok(t, h.unstage(v, "s"))
}

func TestSingleWriter(t *testing.T) {
	h := newHarness(t)
	for _, c := range []*csi.VolumeCapability{mountCap(""), blockCap()} {
		c = withMode(c, csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
		v := h.create(createReq(c.String(), gi, c)).GetVolumeId()
		ok(t, h.stage(v, "s", c))
		for range 2 {
			ok(t, h.publish(v, "s", "t", false, c))
		}
		refused(t, "second target", h.publish(v, "s", "t2", false, c), codes.FailedPrecondition, h.path("t"))
		ok(t, h.unpublish(v, "t"))
		ok(t, h.publish(v, "s", "t2", false, c))
		ok(t, h.unpublish(v, "t2"))
		ok(t, h.unstage(v, "s"))
	}
}

// TestRestored is that a copy is never formatted, and that an XFS copy mounts beside its source.
func TestRestored(t *testing.T) {
	h := newHarness(t)
	c := mountCap("xfs")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	ok(t, h.stage(v, "v", c))
	h.volumes.SetWritten(domain(t, v), mi)
	snap := h.cut("s", v).GetSnapshotId()

	r := h.restore("r", snap, c).GetVolumeId()
	h.machine.SetContent(device(r), "xfs") // as the engine would show it
	h.machine.Calls()
	ok(t, h.stage(r, "r", c))
	h.calls("Check xfs", "Mount xfs nouuid", "Grow xfs")
	if o := h.machine.Options(h.path("v")); slices.Contains(o, "nouuid") {
		t.Errorf("the source has options %q", o)
	}
	ok(t, h.unstage(r, "r"))
	ok(t, h.stage(r, "r", mountCap(""))) // who does not say which file system gets what is there
	ok(t, h.unstage(r, "r"))
	refused(t, "as ext4", h.stage(r, "r", mountCap("ext4")), codes.FailedPrecondition, `"xfs"`, "ext4")

	empty := h.restore("empty", snap, c).GetVolumeId()
	h.machine.Calls()
	refused(t, "a copy that shows nothing", h.stage(empty, "e", c), codes.FailedPrecondition, "copy of snapshot "+snap)
	h.calls()
}

// TestNeverFormat is the promise that what was written is never formatted over, whatever blkid finds.
func TestNeverFormat(t *testing.T) {
	h := newHarness(t)
	c := mountCap("ext4")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	h.volumes.SetWritten(domain(t, v), mi)
	refused(t, "written, nothing found", h.stage(v, "s", c), codes.FailedPrecondition, "written to", v)
	h.machine.SetContent(device(v), "unknown data, probably partitions")
	refused(t, "partitions", h.stage(v, "s", c), codes.FailedPrecondition, "partitions")
	refused(t, "partitions, any file system", h.stage(v, "s", mountCap("")), codes.FailedPrecondition, "partitions")
	h.calls()
	if got, err := h.volumes.Get(t.Context(), domain(t, v)); err != nil || got.Attached {
		t.Errorf("it stays attached after a failed stage: %+v, %v", got, err)
	}
	_, err := h.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v})
	ok(t, err)
}

// TestMakerDied is mkfs cut off, and a death before it was noted that it had ended: both times it is made again, and the third time mounted.
func TestMakerDied(t *testing.T) {
	h := newHarness(t)
	c := mountCap("ext4")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	h.machine.Fail("Format", errors.New("killed"))
	refused(t, "cut off", h.stage(v, "s", c), codes.Internal, "killed")
	h.calls("Format ext4 fresh=true")
	h.machine.Fail("Format", nil)
	h.volumes.SetWritten(domain(t, v), mi)  // what mkfs wrote
	h.machine.SetContent(device(v), "vfat") // whatever that looks like
	ok(t, h.stage(v, "s", c))
	h.calls("Format ext4 fresh=false", "Check ext4", "Mount ext4", "Grow ext4")
	ok(t, h.unstage(v, "s"))
	ok(t, h.stage(v, "s", c))
	h.calls("Unmount", "Check ext4", "Mount ext4", "Grow ext4")
	ok(t, h.unstage(v, "s"))

	// The mark is forgotten where the volume became a raw block volume between the two.
	w := h.create(createReq("w", gi, c)).GetVolumeId()
	h.machine.Fail("Format", errors.New("killed"))
	refused(t, "cut off", h.stage(w, "w", c), codes.Internal)
	h.machine.Fail("Format", nil)
	ok(t, h.stage(w, "w", blockCap()))
	ok(t, h.unstage(w, "w"))
	h.volumes.SetWritten(domain(t, w), mi)
	refused(t, "used as raw block since", h.stage(w, "w", c), codes.FailedPrecondition, "raw block")
}

// TestRestartBetweenSteps is a stage that died after any of its steps: the retry finishes, and makes no second file system.
func TestRestartBetweenSteps(t *testing.T) {
	for _, step := range []string{"Targets", "Check", "Mount", "Grow"} {
		h := newHarness(t)
		c := mountCap("ext4")
		v := h.create(createReq("v", gi, c)).GetVolumeId()
		h.machine.Fail(step, errors.New("died"))
		refused(t, step, h.stage(v, "s", c), codes.Internal, "died")
		h.machine.Fail(step, nil)
		h.machine.Calls()
		ok(t, h.stage(v, "s", c))
		if calls := h.machine.Calls(); slices.Contains(calls, "Format ext4 fresh=true") || calls[len(calls)-1] != "Grow ext4" {
			t.Errorf("after %s: %q", step, calls)
		}
		ok(t, h.unstage(v, "s"))
	}
}

func TestReadOnlyStage(t *testing.T) {
	h := newHarness(t)
	c := withMode(mountCap("ext4"), csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	for range 2 {
		ok(t, h.stage(v, "s", c))
	}
	h.calls("Format ext4 fresh=true", "Check ext4", "Mount ext4 ro")
	for range 2 {
		ok(t, h.publish(v, "s", "t", false, c))
	}
}

func TestExpandNode(t *testing.T) {
	h := newHarness(t)
	c := mountCap("xfs")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	ok(t, h.stage(v, "s", c))
	ok(t, h.publish(v, "s", "t", true, c))
	expand := func(path, staging string, size int64) error {
		resp, err := h.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{
			VolumeId: v, VolumePath: h.path(path), StagingTargetPath: staging, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: c,
		})
		if err == nil && resp.GetCapacityBytes() != 2*gi {
			t.Errorf("capacity: %v", resp)
		}
		return err
	}
	refused(t, "before the controller", expand("s", "", 2*gi), codes.OutOfRange, "controller")
	req := &csi.ControllerExpandVolumeRequest{VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * gi}}
	_, err := h.ControllerExpandVolume(t.Context(), req)
	ok(t, err)
	h.machine.Calls()
	h.machine.Size = gi
	refused(t, "before the device shows it", expand("s", "", 2*gi), codes.Unavailable, "still shows")
	h.calls()
	h.machine.Size = 2 * gi
	for range 2 {
		ok(t, expand("s", "", 2*gi))
	}
	ok(t, expand("t", h.path("s"), 2*gi)) // the target is read-only, what was staged is not
	h.calls("Grow xfs", "Grow xfs", "Grow xfs")
	ok(t, expand("t", "", 2*gi)) // nothing here that could grow
	h.calls()
	refused(t, "at another path", expand("nowhere", "", 2*gi), codes.NotFound)
	h.machine.Fail("Grow", mount.ErrMounted)
	refused(t, "not while mounted", expand("s", "", 2*gi), codes.FailedPrecondition)
}

// TestGrowsAtStage is a volume that grew while it was not staged, also where the kernel lets only an unmounted file system grow.
func TestGrowsAtStage(t *testing.T) {
	h := newHarness(t)
	c := mountCap("ext4", "noatime")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	h.machine.Fail("Grow", mount.ErrMounted)
	ok(t, h.stage(v, "s", c))
	h.calls("Format ext4 fresh=true", "Check ext4", "Mount ext4 noatime", "Grow ext4",
		"Unmount", "GrowUnmounted ext4", "Check ext4", "Mount ext4 noatime")
	ok(t, h.publish(v, "s", "t", false, c))
	h.machine.Calls()
	ok(t, h.stage(v, "s", c)) // in use: it grows the next time
	h.calls("Grow ext4")
}

func TestSomethingElseAtThePath(t *testing.T) {
	h := newHarness(t)
	c := mountCap("")
	a, b := h.create(createReq("a", gi, c)).GetVolumeId(), h.create(createReq("b", gi, c)).GetVolumeId()
	ok(t, h.stage(a, "a", c))
	ok(t, h.stage(b, "b", c))
	ok(t, h.publish(a, "a", "t", false, c))
	refused(t, "staging path taken", h.stage(b, "a", c), codes.AlreadyExists)
	refused(t, "target taken", h.publish(b, "b", "t", false, c), codes.AlreadyExists)
	refused(t, "another's staging path", h.publish(b, "a", "t2", false, c), codes.FailedPrecondition)
	_, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: b, VolumePath: h.path("t")})
	refused(t, "another's target", err, codes.NotFound)
	if got, err := h.volumes.Get(t.Context(), domain(t, b)); err != nil || !got.Attached {
		t.Errorf("a refused call took the device away: %+v, %v", got, err)
	}
}

// TestUnstageOfTheLost is that what is left of a volume that is gone can be cleaned up.
func TestUnstageOfTheLost(t *testing.T) {
	h := newHarness(t)
	c := mountCap("")
	v := h.create(createReq("v", gi, c)).GetVolumeId()
	ok(t, h.stage(v, "s", c))
	ok(t, h.volumes.Detach(t.Context(), domain(t, v)))
	ok(t, h.volumes.Delete(t.Context(), domain(t, v)))
	ok(t, h.unstage(v, "s"))
	if h.machine.Mounts() != 0 {
		t.Error("still mounted")
	}
}
