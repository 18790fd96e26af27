package rpc

import (
	"context"

	"google.golang.org/grpc"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	pb "github.com/rowan-csi/rowan/pkg/engine/rpc/enginev1"
)

// answer turns a result into its message unless there is an error.
func answer[T, M any](v T, err error, toWire func(T) *M) (*M, error) {
	if err != nil {
		return nil, err
	}
	return toWire(v), nil
}

// send streams a list.
func send[T, M any](stream grpc.ServerStreamingServer[M], list []T, err error, toWire func(T) *M) error {
	if err != nil {
		return err
	}
	for _, v := range list {
		if err := stream.Send(toWire(v)); err != nil {
			return err
		}
	}
	return nil
}

// Version implements the call.
func (s *Server) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{Version: s.version}, nil
}

// CreatePool implements the call.
func (s *Server) CreatePool(ctx context.Context, r *pb.CreatePoolRequest) (*pb.Pool, error) {
	p, err := s.host.CreatePool(ctx, engine.PoolSpec{Name: r.Name, Directory: r.Directory, Device: r.Device, Wipe: r.Wipe, Size: r.Size,
		Allocation: r.Allocation, More: each(r.More, memberSpecFromWire), Node: r.Node, Share: shareFromWire(r.Share)})
	return answer(p, err, poolToWire)
}

// ListPools implements the call.
func (s *Server) ListPools(_ *pb.ListPoolsRequest, stream grpc.ServerStreamingServer[pb.Pool]) error {
	return send(stream, s.host.Pools(), nil, poolToWire)
}

// GetPool implements the call.
func (s *Server) GetPool(_ context.Context, r *pb.GetPoolRequest) (*pb.Pool, error) {
	p, err := s.host.Pool(r.Name)
	return answer(p, err, poolToWire)
}

// OpenPool implements the call.
func (s *Server) OpenPool(ctx context.Context, r *pb.OpenPoolRequest) (*pb.Pool, error) {
	p, err := s.host.OpenPool(ctx, host.OpenSpec{Name: r.Name, Member: r.Member, Members: r.Members, AcceptLoss: r.AcceptLoss, ReadOnly: r.ReadOnly})
	return answer(p, err, poolToWire)
}

// GrowPool implements the call.
func (s *Server) GrowPool(ctx context.Context, r *pb.GrowPoolRequest) (*pb.Pool, error) {
	p, err := s.host.GrowPool(ctx, r.Name, r.Size)
	return answer(p, err, poolToWire)
}

// AddMember implements the call.
func (s *Server) AddMember(ctx context.Context, r *pb.AddMemberRequest) (*pb.Pool, error) {
	p, err := s.host.AddMember(ctx, r.Pool, memberSpecFromWire(r.Member))
	return answer(p, err, poolToWire)
}

// GrowMember implements the call.
func (s *Server) GrowMember(ctx context.Context, r *pb.GrowMemberRequest) (*pb.Pool, error) {
	p, err := s.host.GrowMember(ctx, r.Pool, r.Member, r.Size)
	return answer(p, err, poolToWire)
}

// DrainMember implements the call.
func (s *Server) DrainMember(ctx context.Context, r *pb.DrainMemberRequest) (*pb.Pool, error) {
	p, err := s.host.DrainMember(ctx, r.Pool, r.Member, r.Cancel)
	return answer(p, err, poolToWire)
}

// RemoveMember implements the call.
func (s *Server) RemoveMember(ctx context.Context, r *pb.RemoveMemberRequest) (*pb.Pool, error) {
	p, err := s.host.RemoveMember(ctx, r.Pool, r.Member)
	return answer(p, err, poolToWire)
}

// ClosePool implements the call.
func (s *Server) ClosePool(ctx context.Context, r *pb.ClosePoolRequest) (*pb.ClosePoolResponse, error) {
	return &pb.ClosePoolResponse{}, s.host.ClosePool(ctx, r.Name)
}

// GetPoolMetadata implements the call.
func (s *Server) GetPoolMetadata(ctx context.Context, r *pb.GetPoolMetadataRequest) (*pb.PoolMetadata, error) {
	c, err := s.host.Metadata(ctx, r.Name)
	return answer(c, err, metadataToWire)
}

// CheckPool implements the call.
func (s *Server) CheckPool(ctx context.Context, r *pb.CheckPoolRequest) (*pb.CheckReport, error) {
	c, err := s.host.Check(ctx, r.Name)
	return answer(c, err, checkToWire)
}

// ScrubPool implements the call.
func (s *Server) ScrubPool(r *pb.ScrubPoolRequest, stream grpc.ServerStreamingServer[pb.ScrubEvent]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// It may take days: a server that ends does not wait for it.
	defer context.AfterFunc(s.ending, func() { cancel(host.ErrStopping) })()
	send := func(e *pb.ScrubEvent) {
		if err := stream.Send(e); err != nil {
			cancel(err)
		}
	}
	progress := func(r engine.ScrubReport) {
		send(&pb.ScrubEvent{Event: &pb.ScrubEvent_Progress{Progress: scrubToWire(r)}})
	}
	report, err := s.host.Scrub(ctx, r.Name, engine.ScrubSpec{
		Rate: r.Rate, Progress: progress,
		Found: func(p engine.ScrubProblem) {
			send(&pb.ScrubEvent{Event: &pb.ScrubEvent_Problem{Problem: problemToWire(p)}})
		},
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err == nil {
		progress(report)
	}
	return err
}

// CreateVolume implements the call.
func (s *Server) CreateVolume(ctx context.Context, r *pb.CreateVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.CreateVolume(ctx, r.Pool, engine.VolumeSpec{
		Name: r.Name, Size: r.Size, FromSnapshot: r.FromSnapshot, FromVolume: r.FromVolume, Labels: r.Labels,
		Mode: engine.Mode(r.Mode), Tidy: r.Tidy,
		Provisioning: engine.Provisioning(r.Provisioning),
	})
	return answer(v, err, volumeToWire)
}

// ListVolumes implements the call.
func (s *Server) ListVolumes(r *pb.ListVolumesRequest, stream grpc.ServerStreamingServer[pb.Volume]) error {
	l, err := s.host.Volumes(stream.Context(), r.Pool)
	return send(stream, l, err, volumeToWire)
}

// GetVolume implements the call.
func (s *Server) GetVolume(ctx context.Context, r *pb.GetVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.Volume(ctx, r.Pool, r.Name)
	return answer(v, err, volumeToWire)
}

// GrowVolume implements the call.
func (s *Server) GrowVolume(ctx context.Context, r *pb.GrowVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.GrowVolume(ctx, r.Pool, r.Name, r.Size)
	return answer(v, err, volumeToWire)
}

// DeleteVolume implements the call.
func (s *Server) DeleteVolume(ctx context.Context, r *pb.DeleteVolumeRequest) (*pb.DeleteVolumeResponse, error) {
	return &pb.DeleteVolumeResponse{}, s.host.DeleteVolume(ctx, r.Pool, r.Name)
}

// SetVolumeLabels implements the call.
func (s *Server) SetVolumeLabels(ctx context.Context, r *pb.SetVolumeLabelsRequest) (*pb.Volume, error) {
	v, err := s.host.SetVolumeLabels(ctx, r.Pool, r.Name, r.Set)
	return answer(v, err, volumeToWire)
}

// ChangeVolume implements the call.
func (s *Server) ChangeVolume(ctx context.Context, r *pb.ChangeVolumeRequest) (*pb.Volume, error) {
	c := engine.VolumeChange{Tidy: r.Tidy}
	if r.Mode != nil {
		mode := engine.Mode(*r.Mode)
		c.Mode = &mode
	}
	v, err := s.host.ChangeVolume(ctx, r.Pool, r.Name, c)
	return answer(v, err, volumeToWire)
}

// TidyVolume implements the call.
func (s *Server) TidyVolume(ctx context.Context, r *pb.TidyVolumeRequest) (*pb.TidyStep, error) {
	t, err := s.host.Tidy(ctx, r.Pool, engine.TidySpec{Volume: r.Name, Start: r.Start, Rate: r.Rate})
	return answer(t, err, tidyToWire)
}

// RollbackVolume implements the call.
func (s *Server) RollbackVolume(ctx context.Context, r *pb.RollbackVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.RollbackVolume(ctx, r.Pool, r.Volume, r.Snapshot, r.Holder)
	return answer(v, err, volumeToWire)
}

// HoldVolume implements the call.
func (s *Server) HoldVolume(ctx context.Context, r *pb.HoldVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.HoldVolume(ctx, r.Pool, r.Volume, r.Holder)
	return answer(v, err, volumeToWire)
}

// ReleaseVolume implements the call.
func (s *Server) ReleaseVolume(ctx context.Context, r *pb.ReleaseVolumeRequest) (*pb.Volume, error) {
	v, err := s.host.ReleaseVolume(ctx, r.Pool, r.Volume, r.Holder)
	return answer(v, err, volumeToWire)
}

// AttachVolume implements the call.
func (s *Server) AttachVolume(ctx context.Context, r *pb.AttachVolumeRequest) (*pb.Attachment, error) {
	a, err := s.host.Attach(ctx, r.Pool, r.Volume, r.ReadOnly)
	return answer(a, err, attachmentToWire)
}

// DetachVolume implements the call.
func (s *Server) DetachVolume(ctx context.Context, r *pb.DetachVolumeRequest) (*pb.DetachVolumeResponse, error) {
	return &pb.DetachVolumeResponse{}, s.host.Detach(ctx, r.Pool, r.Volume)
}

// ListAttachments implements the call.
func (s *Server) ListAttachments(r *pb.ListAttachmentsRequest, stream grpc.ServerStreamingServer[pb.Attachment]) error {
	return send(stream, s.host.Attachments(r.Pool), nil, attachmentToWire)
}

// CreateSnapshot implements the call.
func (s *Server) CreateSnapshot(ctx context.Context, r *pb.CreateSnapshotRequest) (*pb.Snapshot, error) {
	i, err := s.host.CreateSnapshot(ctx, r.Pool, engine.SnapshotSpec{Name: r.Name, Volume: r.Volume, Labels: r.Labels})
	return answer(i, err, snapshotToWire)
}

// CreateSnapshotGroup implements the call.
func (s *Server) CreateSnapshotGroup(ctx context.Context, r *pb.CreateSnapshotGroupRequest) (*pb.CreateSnapshotGroupResponse, error) {
	spec := engine.SnapshotGroupSpec{Name: r.Name}
	for _, one := range r.Snapshots {
		spec.Snapshots = append(spec.Snapshots, engine.SnapshotSpec{Name: one.GetName(), Volume: one.GetVolume(), Labels: one.GetLabels()})
	}
	infos, err := s.host.CreateSnapshotGroup(ctx, r.Pool, spec)
	return answer(infos, err, func(infos []engine.SnapshotInfo) *pb.CreateSnapshotGroupResponse {
		resp := &pb.CreateSnapshotGroupResponse{}
		for _, i := range infos {
			resp.Snapshots = append(resp.Snapshots, snapshotToWire(i))
		}
		return resp
	})
}

// ListSnapshots implements the call.
func (s *Server) ListSnapshots(r *pb.ListSnapshotsRequest, stream grpc.ServerStreamingServer[pb.Snapshot]) error {
	l, err := s.host.Snapshots(stream.Context(), r.Pool, r.Volume)
	return send(stream, l, err, snapshotToWire)
}

// GetSnapshot implements the call.
func (s *Server) GetSnapshot(ctx context.Context, r *pb.GetSnapshotRequest) (*pb.GetSnapshotResponse, error) {
	i, err := s.host.Snapshot(ctx, r.Pool, r.Name)
	if err != nil {
		return nil, err
	}
	resp := &pb.GetSnapshotResponse{Snapshot: snapshotToWire(i)}
	if r.WithUsage {
		resp.FreedIfDeletedNow, err = s.host.SnapshotUsage(ctx, r.Pool, r.Name)
	}
	return resp, err
}

// ListRanges implements the call.
func (s *Server) ListRanges(ctx context.Context, r *pb.ListRangesRequest) (*pb.RangesPage, error) {
	page, err := s.host.Diff(ctx, r.Pool, engine.DiffSpec{From: r.From, Snapshot: r.Snapshot, Volume: r.Volume, Start: r.Start, Max: int(r.Max)})
	return answer(page, err, rangesToWire)
}

// DeleteSnapshot implements the call.
func (s *Server) DeleteSnapshot(ctx context.Context, r *pb.DeleteSnapshotRequest) (*pb.DeleteSnapshotResponse, error) {
	return &pb.DeleteSnapshotResponse{}, s.host.DeleteSnapshot(ctx, r.Pool, r.Name)
}
