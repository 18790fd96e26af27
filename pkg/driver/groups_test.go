package driver_test

import (
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/rowan-csi/rowan/pkg/volume"
)

func (h *harness) cutGroup(req *csi.CreateVolumeGroupSnapshotRequest) *csi.VolumeGroupSnapshot {
	h.t.Helper()
	resp, err := h.CreateVolumeGroupSnapshot(h.t.Context(), req)
	ok(h.t, err)
	return resp.GetGroupSnapshot()
}

func TestGroupSnapshots(t *testing.T) {
	h := newHarness(t)
	a, b := h.create(createReq("a", gi)).GetVolumeId(), h.create(createReq("b", 2*gi)).GetVolumeId()
	req := &csi.CreateVolumeGroupSnapshotRequest{
		Name: "groupsnapshot-1", SourceVolumeIds: []string{a, b},
		Parameters: map[string]string{"csi.storage.k8s.io/volumegroupsnapshot/name": "nightly", "deletionPolicy": "Retain"},
	}
	g := h.cutGroup(req)
	if g.GetGroupSnapshotId() != volume.GroupIDOf("groupsnapshot-1").String() || !g.GetReadyToUse() || len(g.GetSnapshots()) != 2 {
		t.Fatalf("cut %v", g)
	}
	sources := map[string]int64{a: gi, b: 2 * gi}
	var ids []string
	for _, s := range g.GetSnapshots() {
		if s.GetGroupSnapshotId() != g.GetGroupSnapshotId() || !proto.Equal(s.GetCreationTime(), g.GetCreationTime()) || !s.GetReadyToUse() ||
			s.GetSizeBytes() != sources[s.GetSourceVolumeId()] {
			t.Errorf("snapshot %v", s)
		}
		delete(sources, s.GetSourceVolumeId())
		ids = append(ids, s.GetSnapshotId())
		got, err := h.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()})
		ok(t, err)
		if !proto.Equal(got.GetSnapshot(), s) {
			t.Errorf("by itself %v, in its group %v", got.GetSnapshot(), s)
		}
		_, err = h.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()})
		refused(t, "delete one of a group's", err, codes.InvalidArgument, g.GetGroupSnapshotId(), "VolumeGroupSnapshot")
	}
	req.SourceVolumeIds = []string{b, a} // the order means nothing
	if again := h.cutGroup(req); !proto.Equal(again, g) {
		t.Errorf("again %v, want %v", again, g)
	}
	for _, said := range [][]string{ids, {ids[1], ids[0]}, nil} {
		got, err := h.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GetGroupSnapshotId(), SnapshotIds: said})
		ok(t, err)
		if !proto.Equal(got.GetGroupSnapshot(), g) {
			t.Errorf("got %v, want %v", got.GetGroupSnapshot(), g)
		}
	}
	restored := h.create(&csi.CreateVolumeRequest{
		Name: "restored", VolumeCapabilities: []*csi.VolumeCapability{mountCap("ext4")}, VolumeContentSource: fromSnapshot(ids[0]),
	})
	if restored.GetContentSource().GetSnapshot().GetSnapshotId() != ids[0] {
		t.Errorf("restored %v", restored)
	}
	for range 2 {
		_, err := h.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{
			GroupSnapshotId: g.GetGroupSnapshotId(), SnapshotIds: ids,
		})
		ok(t, err)
	}
	_, err := h.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GetGroupSnapshotId(), SnapshotIds: ids})
	refused(t, "get what is gone", err, codes.NotFound)
}

func TestGroupRefusals(t *testing.T) {
	h := newHarness(t)
	a, b := h.create(createReq("a", gi)).GetVolumeId(), h.create(createReq("b", gi)).GetVolumeId()
	g := h.cutGroup(&csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{a, b}})
	alone := h.cut("alone", a).GetSnapshotId()
	var many []string
	for i := range volume.MaxGroup + 1 {
		many = append(many, volume.VolumeIDOf(fmt.Sprint(i)).String())
	}
	for what, c := range map[string]struct {
		req   *csi.CreateVolumeGroupSnapshotRequest
		code  codes.Code
		words []string
	}{
		"no name":       {&csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: []string{a}}, codes.InvalidArgument, []string{"name"}},
		"no volumes":    {&csi.CreateVolumeGroupSnapshotRequest{Name: "x"}, codes.InvalidArgument, []string{"source volume IDs"}},
		"one twice":     {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a, a}}, codes.InvalidArgument, []string{a, "twice"}},
		"too many":      {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: many}, codes.InvalidArgument, []string{"257", "256"}},
		"an empty ID":   {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a, ""}}, codes.InvalidArgument, []string{"volume ID"}},
		"no such ID":    {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a, "nonsense"}}, codes.NotFound, []string{"nonsense"}},
		"no such one":   {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: many[:2]}, codes.NotFound, []string{"source"}},
		"other volumes": {&csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{a}}, codes.AlreadyExists, []string{b, `"g"`}},
		"no policy": {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a}, Parameters: map[string]string{"deletionPolicy": "Keep"}},
			codes.InvalidArgument, []string{"deletionPolicy"}},
		"parameter": {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a}, Parameters: map[string]string{"speed": "high"}},
			codes.InvalidArgument, []string{"speed", "VolumeGroupSnapshotClass", "consistency"}},
		"consistency": {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{a}, Parameters: map[string]string{"consistency": "Full"}},
			codes.InvalidArgument, []string{"Full", "FilesystemFreeze"}},
	} {
		_, err := h.CreateVolumeGroupSnapshot(t.Context(), c.req)
		refused(t, what, err, c.code, c.words...)
	}
	ids := []string{g.GetSnapshots()[0].GetSnapshotId(), g.GetSnapshots()[1].GetSnapshotId()}
	for what, c := range map[string]struct {
		id    string
		said  []string
		code  codes.Code // of Get
		words []string
	}{
		"no ID":            {"", ids, codes.InvalidArgument, []string{"group snapshot ID"}},
		"one is missing":   {g.GetGroupSnapshotId(), ids[:1], codes.InvalidArgument, []string{ids[1]}},
		"one too many":     {g.GetGroupSnapshotId(), append([]string{alone}, ids...), codes.InvalidArgument, []string{alone}},
		"one is no handle": {g.GetGroupSnapshotId(), []string{ids[0], "nonsense"}, codes.InvalidArgument, []string{"nonsense"}},
		"no such group":    {volume.GroupIDOf("x").String(), ids, codes.NotFound, nil},
		"no handle":        {"nonsense", ids, codes.NotFound, nil},
	} {
		_, err := h.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: c.id, SnapshotIds: c.said})
		refused(t, "get: "+what, err, c.code, c.words...)
		_, err = h.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: c.id, SnapshotIds: c.said})
		if c.code == codes.NotFound {
			ok(t, err)
		} else {
			refused(t, "delete: "+what, err, c.code, c.words...)
		}
	}
	if got, err := h.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GetGroupSnapshotId()}); err != nil ||
		!proto.Equal(got.GetGroupSnapshot(), g) {
		t.Errorf("after all that: %v, %v", got, err)
	}
}
