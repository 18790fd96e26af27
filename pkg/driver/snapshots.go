package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// CreateSnapshot cuts a snapshot and answers with the time of the cut at once; a repeated request is answered with the first cut.
func (s *Controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, missing("snapshot name")
	}
	if req.GetSourceVolumeId() == "" {
		return nil, missing("source volume ID")
	}
	consistency, err := parseSnapshotParameters("VolumeSnapshotClass", req.GetParameters())
	if err != nil {
		return nil, err
	}
	source, err := volume.ParseVolumeID(req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	snap, err := s.volumes.CreateSnapshot(ctx, volume.SnapshotRequest{Name: req.GetName(), Source: source, Consistency: consistency})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

// DeleteSnapshot deletes a snapshot. Volumes made of it stay.
func (s *Controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, missing("snapshot ID")
	}
	id, err := volume.ParseSnapshotID(req.GetSnapshotId())
	if errors.Is(err, volume.ErrMalformedID) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, s.volumes.DeleteSnapshot(ctx, id)
}

// GetSnapshot answers one snapshot.
func (s *Controller) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, missing("snapshot ID")
	}
	id, err := volume.ParseSnapshotID(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	snap, err := s.volumes.GetSnapshot(ctx, id)
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

// ListSnapshots answers a page of the snapshots that the request chooses, in the order of their handles. None is no error.
func (s *Controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	page, err := parsePage(req.GetStartingToken(), req.GetMaxEntries(), volume.ParseSnapshotID)
	if err != nil {
		return nil, err
	}
	var filter volume.SnapshotFilter
	if id := req.GetSnapshotId(); id != "" {
		if filter.ID, err = volume.ParseSnapshotID(id); err != nil {
			return &csi.ListSnapshotsResponse{}, nil
		}
	}
	if id := req.GetSourceVolumeId(); id != "" {
		if filter.Source, err = volume.ParseVolumeID(id); err != nil {
			return &csi.ListSnapshotsResponse{}, nil
		}
	}
	snaps, more, err := s.volumes.ListSnapshots(ctx, filter, page)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	resp := &csi.ListSnapshotsResponse{}
	for _, snap := range snaps {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: toSnapshot(snap)})
		if more {
			resp.NextToken = snap.ID.String()
		}
	}
	return resp, nil
}

// toSnapshot leaves the topology out: to answer it asks for SNAPSHOT_ACCESSIBILITY_CONSTRAINTS, which is not advertised.
func toSnapshot(s volume.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: s.ID.String(), SourceVolumeId: s.Source.String(), SizeBytes: s.Sizing.Requested, CreationTime: timestamppb.New(s.CreatedAt),
		ReadyToUse: true, GroupSnapshotId: s.Group.String(),
	}
}
