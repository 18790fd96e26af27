package driver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
)

const noVolume, noSnapshot = "vol-0000000000000000000000000000000000000000", "snap-0000000000000000000000000000000000000000"

func TestIdentity(t *testing.T) {
	h := newHarness(t)
	info, err := h.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.rowan.storage" || info.GetVendorVersion() != "1.2.3" {
		t.Errorf("info: %v, %v", info, err)
	}
	for _, want := range []bool{true, false} {
		if !want {
			h.volumes.SetHealth(errors.New("the engine is away"))
		}
		p, err := h.Probe(t.Context(), &csi.ProbeRequest{})
		if err != nil || p.GetReady().GetValue() != want {
			t.Errorf("probe: %v, %v, want %t", p, err, want)
		}
	}
	n, err := h.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}) // although the engine is away
	if err != nil || n.GetNodeId() != node || n.GetAccessibleTopology().GetSegments()["topology.rowan.storage/node"] != node {
		t.Errorf("node: %v, %v", n, err)
	}
}

func TestCreateVolumeRefusals(t *testing.T) {
	h := newHarness(t)
	multi := withMode(mountCap("ext4"), csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
	group := mountCap("ext4")
	group.GetMount().VolumeMountGroup = "1000"
	elsewhere := &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{driver.TopologyKey: "node-b"}}}}
	h.create(createReq("taken", gi))
	xfs := h.create(createReq("xfs", gi, mountCap("xfs")))
	for _, c := range []struct {
		name   string
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		word   string
	}{
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name"},
		{"long name", func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("x", 129) }, codes.InvalidArgument, "128"},
		{"no capabilities", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "capabilities"},
		{"nil capability", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{{}} }, codes.InvalidArgument, "access mode"},
		{"many nodes", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = multi }, codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		{"mount group", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = group }, codes.InvalidArgument, "volume_mount_group"},
		{"file system", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mountCap("btrfs") }, codes.InvalidArgument, "ext4, xfs"},
		{"file system by parameter", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = mountCap("")
			r.Parameters = map[string]string{"csi.storage.k8s.io/fstype": "zfs"}
		}, codes.InvalidArgument, "zfs"},
		{"two file systems", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = append(r.VolumeCapabilities, mountCap("xfs")) },
			codes.InvalidArgument, "ext4 and for xfs"},
		{"unknown parameter", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"replicas": "3"} }, codes.InvalidArgument, `"replicas"`},
		{"mode", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"mode": "fast"} }, codes.InvalidArgument, "row"},
		{"tidy", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"tidy": "yes"} }, codes.InvalidArgument, "true"},
		{"pool", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"pool": "nowhere"} }, codes.InvalidArgument, "nowhere"},
		{"mutable parameter", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"pool": "x"} },
			codes.InvalidArgument, "VolumeAttributesClass"},
		{"mutable mode", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"mode": "cowboy"} },
			codes.InvalidArgument, "cowboy"},
		{"limit below rounding", func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: mi + 1, LimitBytes: mi + 2}
		},
			codes.OutOfRange, "1 MiB"},
		{"limit below XFS", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = mountCap("xfs")
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 10 * mi, LimitBytes: 20 * mi}
		}, codes.OutOfRange, "300 MiB"},
		{"too large", func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 65 << 40 }, codes.OutOfRange, "64 TiB"},
		{"no space", func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 1 << 40 }, codes.ResourceExhausted, "pool"},
		{"other node", func(r *csi.CreateVolumeRequest) { r.AccessibilityRequirements = elsewhere }, codes.FailedPrecondition, node},
		{"no snapshot", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromSnapshot(noSnapshot) }, codes.NotFound, noSnapshot},
		{"malformed snapshot", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromSnapshot("x") }, codes.NotFound, `"x"`},
		{"no volume", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromVolume(noVolume) }, codes.NotFound, noVolume},
		{"empty source", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, codes.InvalidArgument, "source"},
		{"source's file system", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromVolume(xfs.GetVolumeId()) }, codes.InvalidArgument, "xfs"},
		{"taken, larger", func(r *csi.CreateVolumeRequest) { r.Name, r.CapacityRange.RequiredBytes = "taken", 2*gi }, codes.AlreadyExists, "size"},
		{"taken, raw block", func(r *csi.CreateVolumeRequest) { r.Name, r.VolumeCapabilities[0] = "taken", blockCap() },
			codes.AlreadyExists, "file system"},
		{"taken, other source", func(r *csi.CreateVolumeRequest) {
			r.Name, r.VolumeContentSource = "taken", fromVolume(xfs.GetVolumeId())
		},
			codes.AlreadyExists, "source"},
	} {
		r := createReq("new "+c.name, gi)
		c.change(r)
		_, err := h.CreateVolume(t.Context(), r)
		refused(t, c.name, err, c.code, c.word)
	}
	if l, err := h.ListVolumes(t.Context(), &csi.ListVolumesRequest{}); err != nil || len(l.GetEntries()) != 2 {
		t.Errorf("refused requests left volumes: %v, %v", l, err)
	}
}

func TestControllerRefusals(t *testing.T) {
	h := newHarness(t)
	v := h.create(createReq("v", gi))
	h.cut("s", v.GetVolumeId())
	other := h.create(createReq("other", gi))
	ctx := t.Context()
	call := func(_ any, err error) error { return err }
	for _, c := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"delete without ID", call(h.DeleteVolume(ctx, &csi.DeleteVolumeRequest{})), codes.InvalidArgument},
		{"delete nothing", call(h.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: noVolume})), codes.OK},
		{"delete a malformed ID", call(h.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "x"})), codes.OK},
		{"get without ID", call(h.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{})), codes.InvalidArgument},
		{"get nothing", call(h.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: noVolume})), codes.NotFound},
		{"list, bad token", call(h.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "x"})), codes.Aborted},
		{"list, negative", call(h.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})), codes.InvalidArgument},
		{"expand without ID", call(h.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{})), codes.InvalidArgument},
		{"expand without range", call(h.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId()})), codes.InvalidArgument},
		{"expand nothing", call(h.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: noVolume, CapacityRange: &csi.CapacityRange{}})),
			codes.NotFound},
		{"expand over the limit", call(h.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: v.GetVolumeId(), CapacityRange: &csi.CapacityRange{LimitBytes: gi - 1}})), codes.OutOfRange},
		{"validate without ID", call(h.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{})), codes.InvalidArgument},
		{"validate nothing", call(h.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: noVolume, VolumeCapabilities: []*csi.VolumeCapability{blockCap()}})), codes.NotFound},
		{"validate no capabilities", call(h.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: v.GetVolumeId()})),
			codes.InvalidArgument},
		{"snapshot without name", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: v.GetVolumeId()})), codes.InvalidArgument},
		{"snapshot without source", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "x"})), codes.InvalidArgument},
		{"snapshot of nothing", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "x", SourceVolumeId: noVolume})), codes.NotFound},
		{"snapshot of another", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: other.GetVolumeId()})),
			codes.AlreadyExists},
		{"snapshot, unknown consistency", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
			Name: "x", SourceVolumeId: v.GetVolumeId(), Parameters: map[string]string{"consistency": "Application"}})), codes.InvalidArgument},
		{"snapshot, unknown parameter", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
			Name: "x", SourceVolumeId: v.GetVolumeId(), Parameters: map[string]string{"x": "y"}})), codes.InvalidArgument},
		{"snapshot, side-car's parameter", call(h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
			Name: "y", SourceVolumeId: v.GetVolumeId(), Parameters: map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "y"}})), codes.OK},
		{"delete snapshot without ID", call(h.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{})), codes.InvalidArgument},
		{"delete no snapshot", call(h.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: noSnapshot})), codes.OK},
		{"delete a malformed snapshot", call(h.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "x"})), codes.OK},
		{"get snapshot without ID", call(h.GetSnapshot(ctx, &csi.GetSnapshotRequest{})), codes.InvalidArgument},
		{"get no snapshot", call(h.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: noSnapshot})), codes.NotFound},
		{"list snapshots, bad token", call(h.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: "x"})), codes.Aborted},
		{"publish", call(h.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{})), codes.Unimplemented},
	} {
		refused(t, c.name, c.err, c.code)
	}
}

// TestRestoreSizes is that the request which made a source is large enough for its restore, and that a snapshot says so.
func TestRestoreSizes(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct {
		required, capacity int64
		fs                 string
	}{{1e9, 954 * mi, "ext4"}, {1.5e9, 1431 * mi, "ext4"}, {10 * mi, 300 * mi, "xfs"}, {10 * mi, 10 * mi, "ext4"}, {1, mi, "ext4"}} {
		name := fmt.Sprint(c.required, c.fs)
		req := createReq(name, c.required, mountCap(c.fs))
		v := h.create(req)
		snap := h.cut(name, v.GetVolumeId())
		if v.GetCapacityBytes() != c.capacity || snap.GetSizeBytes() != c.required || !snap.GetReadyToUse() {
			t.Errorf("%s: capacity %d, snapshot %v, want %d and %d", name, v.GetCapacityBytes(), snap, c.capacity, c.required)
		}
		for _, src := range []*csi.VolumeContentSource{fromSnapshot(snap.GetSnapshotId()), fromVolume(v.GetVolumeId())} {
			req := createReq(name+fmt.Sprint(src), snap.GetSizeBytes(), mountCap(c.fs))
			req.VolumeContentSource = src
			got := h.create(req)
			if got.GetCapacityBytes() != c.capacity || got.GetContentSource().String() != src.String() {
				t.Errorf("%s restored: %v, want capacity %d", name, got, c.capacity)
			}
		}
	}
}

func TestIdempotency(t *testing.T) {
	h := newHarness(t)
	req := createReq("v", gi)
	v := h.create(req)
	if again := h.create(req); again.String() != v.String() {
		t.Errorf("created %v, then %v", v, again)
	}
	snap := h.cut("s", v.GetVolumeId())
	for range 2 {
		if _, err := h.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()}); err != nil {
			t.Errorf("delete: %v", err)
		}
		// Also when the source is gone: a late retry must not take a later cut, nor fail.
		if again := h.cut("s", v.GetVolumeId()); again.String() != snap.String() {
			t.Errorf("cut %v, then %v", snap, again)
		}
	}
	restored := createReq("r", gi)
	restored.VolumeContentSource = fromSnapshot(snap.GetSnapshotId())
	r := h.create(restored)
	for range 2 {
		if _, err := h.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snap.GetSnapshotId()}); err != nil {
			t.Errorf("delete snapshot: %v", err)
		}
	}
	if again := h.create(restored); again.String() != r.String() {
		t.Errorf("restored %v, then %v", r, again)
	}
}

func TestListPaging(t *testing.T) {
	h := newHarness(t)
	want := map[string]bool{}
	var source string
	for i := range 11 {
		v := h.create(createReq(fmt.Sprint("v", i), mi))
		want[v.GetVolumeId()] = true
		source = v.GetVolumeId()
	}
	var got []string
	req := &csi.ListVolumesRequest{MaxEntries: 4}
	for pages := 1; ; pages++ {
		resp, err := h.ListVolumes(t.Context(), req)
		ok(t, err)
		for _, e := range resp.GetEntries() {
			got = append(got, e.GetVolume().GetVolumeId())
		}
		if req.StartingToken = resp.GetNextToken(); req.StartingToken == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	if len(got) != 11 || !slices.IsSorted(got) {
		t.Errorf("listed %v", got)
	}
	for _, id := range got {
		delete(want, id)
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}

	for i := range 5 {
		h.cut(fmt.Sprint("s", i), source)
	}
	first, err := h.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{MaxEntries: 3, SourceVolumeId: source})
	ok(t, err)
	rest, err := h.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{StartingToken: first.GetNextToken(), SourceVolumeId: source})
	ok(t, err)
	if len(first.GetEntries()) != 3 || len(rest.GetEntries()) != 2 || rest.GetNextToken() != "" {
		t.Errorf("pages of %d and %d, then %q", len(first.GetEntries()), len(rest.GetEntries()), rest.GetNextToken())
	}
	for _, r := range []*csi.ListSnapshotsRequest{{SnapshotId: "x"}, {SnapshotId: noSnapshot}, {SourceVolumeId: "x"}, {SourceVolumeId: noVolume}} {
		if l, err := h.ListSnapshots(t.Context(), r); err != nil || len(l.GetEntries()) != 0 {
			t.Errorf("%v: %v, %v", r, l, err)
		}
	}
}

func TestExpandController(t *testing.T) {
	h := newHarness(t)
	fs, block := h.create(createReq("fs", gi)), h.create(createReq("block", gi, blockCap()))
	expand := func(v *csi.Volume, size int64, c *csi.VolumeCapability) *csi.ControllerExpandVolumeResponse {
		t.Helper()
		resp, err := h.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
			VolumeId: v.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: c,
		})
		ok(t, err)
		return resp
	}
	for _, c := range []struct {
		name   string
		resp   *csi.ControllerExpandVolumeResponse
		size   int64
		onNode bool
	}{
		{"not staged", expand(fs, 2*gi, mountCap("ext4")), 2 * gi, false},
		{"again", expand(fs, 2*gi, mountCap("ext4")), 2 * gi, false},
		{"rounded", expand(fs, 3_000_000_000, nil), 2862 * mi, false},
		{"smaller", expand(fs, gi, nil), 2862 * mi, false},
	} {
		if c.resp.GetCapacityBytes() != c.size || c.resp.GetNodeExpansionRequired() != c.onNode {
			t.Errorf("%s: %v", c.name, c.resp)
		}
	}
	ok(t, h.stage(fs.GetVolumeId(), "fs", mountCap("")))
	ok(t, h.stage(block.GetVolumeId(), "block", blockCap()))
	for name, c := range map[string]struct {
		resp   *csi.ControllerExpandVolumeResponse
		onNode bool
	}{
		"staged":                     {expand(fs, 4*gi, mountCap("ext4")), true},
		"staged, no capability said": {expand(fs, 4*gi, nil), true},
		"staged block":               {expand(block, 4*gi, blockCap()), false},
		"staged block, none said":    {expand(block, 4*gi, nil), false},
	} {
		if c.resp.GetNodeExpansionRequired() != c.onNode {
			t.Errorf("%s: %v", name, c.resp)
		}
	}
	if snap := h.cut("grown", fs.GetVolumeId()); snap.GetSizeBytes() != 4*gi {
		t.Errorf("snapshot of the grown volume: %v", snap)
	}
}

func TestCapacity(t *testing.T) {
	h := newHarness(t)
	c, err := h.GetCapacity(t.Context(), &csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{mountCap("xfs")}})
	ok(t, err)
	if c.GetAvailableCapacity() != 200*gi || c.GetMinimumVolumeSize().GetValue() != 300*mi || c.GetMaximumVolumeSize().GetValue() != 200*gi {
		t.Errorf("%v", c)
	}
	h.create(createReq("v", mi))
	for _, r := range []struct {
		topology *csi.Topology
		want     int64
	}{
		{nil, 199 * gi},
		{&csi.Topology{Segments: map[string]string{driver.TopologyKey: node}}, 199 * gi},
		{&csi.Topology{Segments: map[string]string{driver.TopologyKey: "node-b"}}, 0},
		{&csi.Topology{Segments: map[string]string{"zone": "a"}}, 0},
	} {
		c, err := h.GetCapacity(t.Context(), &csi.GetCapacityRequest{AccessibleTopology: r.topology})
		if err != nil || c.GetAvailableCapacity() != r.want {
			t.Errorf("%v: %v, %v, want %d", r.topology, c, err, r.want)
		}
	}
	// What is advertised as the largest volume is admitted, and nothing more.
	wrong, err := h.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: map[string]string{"x": "y"}})
	if err != nil || wrong.GetAvailableCapacity() == 0 {
		t.Errorf("a class that is refused has no capacity (%v, %v): its pods would wait for space instead of being told", wrong, err)
	}
	c, err = h.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	ok(t, err)
	_, err = h.CreateVolume(t.Context(), createReq("more", c.GetMaximumVolumeSize().GetValue()+1))
	refused(t, "a byte more", err, codes.ResourceExhausted)
	h.create(createReq("all", c.GetMaximumVolumeSize().GetValue()))
}

func TestValidate(t *testing.T) {
	h := newHarness(t)
	v := h.create(createReq("v", gi))
	for name, c := range map[string]struct {
		cap  *csi.VolumeCapability
		good bool
	}{
		"mount":        {mountCap("ext4"), true},
		"block":        {blockCap(), true},
		"multi writer": {withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), true},
		"many nodes":   {withMode(blockCap(), csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER), false},
		"file system":  {mountCap("vfat"), false},
	} {
		resp, err := h.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: v.GetVolumeId(), VolumeCapabilities: []*csi.VolumeCapability{c.cap},
		})
		if err != nil || (resp.GetConfirmed() != nil) != c.good || (resp.GetMessage() == "") != c.good {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}

// TestConcurrent is many calls about a few names at once: every one is answered rightly or told to ask again.
func TestConcurrent(t *testing.T) {
	h := newHarness(t)
	retry := func(call func() error) error {
		for {
			if err := call(); status.Code(err) != codes.Aborted {
				return err
			}
		}
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 60 {
		wg.Go(func() {
			name := fmt.Sprint("v", i%4)
			var id string
			err := retry(func() error {
				resp, err := h.CreateVolume(ctx, createReq(name, mi))
				id = resp.GetVolume().GetVolumeId()
				return err
			})
			if err != nil || id != volume.VolumeIDOf(name).String() {
				t.Errorf("create: %s, %v", id, err)
			}
			var at string
			err = retry(func() error {
				resp, err := h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: id})
				at = resp.GetSnapshot().GetCreationTime().String()
				return err
			})
			if err != nil {
				t.Errorf("cut: %v", err)
			}
			err = retry(func() error {
				resp, err := h.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: volume.SnapshotIDOf(name).String()})
				if got := resp.GetSnapshot().GetCreationTime().String(); err == nil && got != at {
					return fmt.Errorf("cut at %s, then at %s", at, got)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := h.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(l.GetEntries()) != 4 {
		t.Errorf("%v, %v", l, err)
	}
}

// TestPoolParameter: what chooses a pool is called as the pools are chosen, and nothing else.
func TestPoolParameter(t *testing.T) {
	volumes := volume.OpenController(memory.New(memory.Config{Node: node, Pool: "fast"}))
	for _, c := range []struct {
		param driver.PoolParam
		key   string
		fails bool
	}{
		{driver.ParamPool, "pool", false}, {driver.ParamPool, "poolSet", true}, {driver.ParamPoolSet, "poolSet", false}, {driver.ParamPoolSet, "pool", true},
	} {
		r := createReq(string(c.param)+c.key, gi)
		r.Parameters = map[string]string{c.key: "fast"}
		_, err := driver.NewController(volumes, c.param).CreateVolume(t.Context(), r)
		if c.fails && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "there are "+string(c.param)+",")) || !c.fails && err != nil {
			t.Errorf("%s as %s: %v", c.param, c.key, err)
		}
	}
}

// TestModify: a VolumeAttributesClass overrules the storage class when a volume is made, and changes it later.
func TestModify(t *testing.T) {
	h := newHarness(t)
	r := createReq("v", gi)
	r.Parameters, r.MutableParameters = map[string]string{"mode": "row"}, map[string]string{"mode": "cow", "tidy": "true"}
	id := h.create(r).GetVolumeId()
	is := func(mode volume.Mode, tidy bool) {
		t.Helper()
		v, err := h.volumes.Get(t.Context(), domain(t, id))
		ok(t, err)
		if v.Parameters.Mode != mode || v.Parameters.Tidy != tidy {
			t.Errorf("%+v, want %s, %t", v.Parameters, mode, tidy)
		}
	}
	is(volume.ModeCOW, true)
	modify := func(id string, params map[string]string) error {
		_, err := h.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: params})
		return err
	}
	for range 2 {
		ok(t, modify(id, map[string]string{"mode": "row"}))
		is(volume.ModeROW, true)
	}
	ok(t, modify(id, map[string]string{"tidy": "false"}))
	is(volume.ModeROW, false)
	refused(t, "unknown", modify(id, map[string]string{"provisioning": "thick"}), codes.InvalidArgument, "provisioning", "mode and tidy")
	refused(t, "empty mode", modify(id, map[string]string{"mode": ""}), codes.InvalidArgument, "row or cow")
	refused(t, "wrong", modify(id, map[string]string{"tidy": "very"}), codes.InvalidArgument, "very")
	refused(t, "nothing", modify(noVolume, map[string]string{"mode": "row"}), codes.NotFound)
	refused(t, "no ID", modify("", nil), codes.InvalidArgument)
}
