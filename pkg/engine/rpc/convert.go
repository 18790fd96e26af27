package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
	pb "github.com/rowan-csi/rowan/pkg/engine/rpc/enginev1"
)

// Each pair below turns one of the engine's types into its message and back; a test fills every field and compares, so that none is forgotten.

func poolToWire(p engine.PoolInfo) *pb.Pool {
	return &pb.Pool{
		Name: p.Name, Id: p.ID, Node: p.Node, Member: p.Member, Device: p.Device, State: p.State, Reason: p.Reason,
		Size: p.Size, Used: p.Used, Free: p.Free, Provisioned: p.Provisioned, MetadataBytes: p.MetadataBytes,
		Volumes: int64(p.Volumes), Snapshots: int64(p.Snapshots), Jobs: int64(p.Jobs),
		Available: p.Available, Level: string(p.Level), WarnAt: p.WarnAt, RefuseAt: p.RefuseAt,
		Reserved: p.Reserved, Thick: p.Thick,
		ChecksumBytes: p.ChecksumBytes, Unsummed: int64(p.Unsummed), Allocation: p.Allocation, Members: each(p.Members, memberToWire),
	}
}

func memberToWire(m engine.MemberInfo) *pb.Member {
	return &pb.Member{
		Index: int64(m.Index), Id: m.ID, Path: m.Path, Directory: m.Directory, Device: m.Device, State: m.State, Reason: m.Reason, Metadata: m.Metadata,
		Size: m.Size, Used: m.Used, GrowthStopped: m.GrowthStopped,
	}
}

func memberFromWire(m *pb.Member) engine.MemberInfo {
	return engine.MemberInfo{
		Index: int(m.GetIndex()), ID: m.GetId(), Path: m.GetPath(), Directory: m.GetDirectory(), Device: m.GetDevice(), State: m.GetState(),
		Reason: m.GetReason(), Metadata: m.GetMetadata(), Size: m.GetSize(), Used: m.GetUsed(),
		GrowthStopped: m.GetGrowthStopped(),
	}
}

func memberSpecToWire(m engine.MemberSpec) *pb.MemberSpec {
	return &pb.MemberSpec{Directory: m.Directory, Device: m.Device, Wipe: m.Wipe, Size: m.Size, Share: shareToWire(m.Share)}
}

func memberSpecFromWire(m *pb.MemberSpec) engine.MemberSpec {
	return engine.MemberSpec{Directory: m.GetDirectory(), Device: m.GetDevice(), Wipe: m.GetWipe(), Size: m.GetSize(),
		Share: shareFromWire(m.GetShare())}
}

func shareToWire(s engine.Share) *pb.Share {
	return &pb.Share{OfFree: int64(s.OfFree), FullAt: int64(s.FullAt), StopAt: int64(s.StopAt)}
}

func shareFromWire(s *pb.Share) engine.Share {
	return engine.Share{OfFree: int(s.GetOfFree()), FullAt: int(s.GetFullAt()), StopAt: int(s.GetStopAt())}
}

// each turns a list; an empty one is nil.
func each[A, B any](list []A, turn func(A) B) (out []B) {
	for _, v := range list {
		out = append(out, turn(v))
	}
	return out
}

func poolFromWire(p *pb.Pool) engine.PoolInfo {
	return engine.PoolInfo{
		Name: p.GetName(), ID: p.GetId(), Node: p.GetNode(), Member: p.GetMember(), Device: p.GetDevice(), State: p.GetState(), Reason: p.GetReason(),
		Size: p.GetSize(), Used: p.GetUsed(), Free: p.GetFree(), Provisioned: p.GetProvisioned(), MetadataBytes: p.GetMetadataBytes(),
		Volumes: int(p.GetVolumes()), Snapshots: int(p.GetSnapshots()), Jobs: int(p.GetJobs()),
		Available: p.GetAvailable(), Level: engine.SpaceLevel(p.GetLevel()), WarnAt: p.GetWarnAt(), RefuseAt: p.GetRefuseAt(),
		Reserved: p.GetReserved(), Thick: p.GetThick(),
		ChecksumBytes: p.GetChecksumBytes(), Unsummed: int(p.GetUnsummed()), Allocation: p.GetAllocation(), Members: each(p.GetMembers(), memberFromWire),
	}
}

func volumeToWire(v engine.VolumeInfo) *pb.Volume {
	return &pb.Volume{
		Name: v.Name, Id: v.ID, Size: v.Size, Mapped: v.Mapped, Owned: v.Owned, Written: v.Written, HasParent: v.HasParent,
		FromSnapshot: v.FromSnapshot, FromVolume: v.FromVolume, Open: v.Open, CreatedAt: timeToWire(v.CreatedAt), Labels: v.Labels,
		Counters: countersToWire(v.Counters), Mode: pb.VolumeMode(v.Mode), Tidy: v.Tidy,
		Provisioning: string(v.Provisioning), Reserved: v.Reserved,
	}
}

func volumeFromWire(v *pb.Volume) engine.VolumeInfo {
	return engine.VolumeInfo{
		Name: v.GetName(), ID: v.GetId(), Size: v.GetSize(), Mapped: v.GetMapped(), Owned: v.GetOwned(), Written: v.GetWritten(),
		HasParent: v.GetHasParent(), FromSnapshot: v.GetFromSnapshot(), FromVolume: v.GetFromVolume(), Open: v.GetOpen(),
		CreatedAt: timeFromWire(v.GetCreatedAt()), Labels: v.GetLabels(), Counters: countersFromWire(v.GetCounters()),
		Mode: engine.Mode(v.GetMode()), Tidy: v.GetTidy(),
		Provisioning: engine.Provisioning(v.GetProvisioning()), Reserved: v.GetReserved(),
	}
}

func countersToWire(c *engine.Counters) *pb.Counters {
	if c == nil {
		return nil
	}
	return &pb.Counters{
		Reads: c.Reads, ReadBytes: c.ReadBytes, Writes: c.Writes, WriteBytes: c.WriteBytes, Discards: c.Discards, Flushes: c.Flushes,
		DataReads: c.DataReads, DataReadBytes: c.DataReadBytes, DataWrites: c.DataWrites, DataWriteBytes: c.DataWriteBytes,
		FirstWrites: c.FirstWrites, FirstWriteBytes: c.FirstWriteBytes, Copies: c.Copies, CopyBytes: c.CopyBytes,
	}
}

func countersFromWire(c *pb.Counters) *engine.Counters {
	if c == nil {
		return nil
	}
	return &engine.Counters{
		Reads: c.GetReads(), ReadBytes: c.GetReadBytes(), Writes: c.GetWrites(), WriteBytes: c.GetWriteBytes(),
		Discards: c.GetDiscards(), Flushes: c.GetFlushes(), DataReads: c.GetDataReads(), DataReadBytes: c.GetDataReadBytes(),
		DataWrites: c.GetDataWrites(), DataWriteBytes: c.GetDataWriteBytes(),
		FirstWrites: c.GetFirstWrites(), FirstWriteBytes: c.GetFirstWriteBytes(),
		Copies: c.GetCopies(), CopyBytes: c.GetCopyBytes(),
	}
}

func snapshotToWire(s engine.SnapshotInfo) *pb.Snapshot {
	return &pb.Snapshot{
		Name: s.Name, Id: s.ID, Volume: s.Volume, VolumeId: s.VolumeID, Size: s.Size, Owned: s.Owned,
		CreatedAt: timeToWire(s.CreatedAt), Labels: s.Labels, Group: s.Group, Provisioning: string(s.Provisioning),
	}
}

func snapshotFromWire(s *pb.Snapshot) engine.SnapshotInfo {
	return engine.SnapshotInfo{
		Name: s.GetName(), ID: s.GetId(), Volume: s.GetVolume(), VolumeID: s.GetVolumeId(), Size: s.GetSize(), Owned: s.GetOwned(),
		CreatedAt: timeFromWire(s.GetCreatedAt()), Labels: s.GetLabels(), Group: s.GetGroup(),
		Provisioning: engine.Provisioning(s.GetProvisioning()),
	}
}

func tidyToWire(t engine.TidyStep) *pb.TidyStep {
	return &pb.TidyStep{Size: t.Size, Next: t.Next, Pages: t.Pages, Moved: t.Moved, Skipped: t.Skipped}
}

func tidyFromWire(t *pb.TidyStep) engine.TidyStep {
	return engine.TidyStep{Size: t.GetSize(), Next: t.GetNext(), Pages: t.GetPages(), Moved: t.GetMoved(), Skipped: t.GetSkipped()}
}

func rangesToWire(p engine.DiffPage) *pb.RangesPage {
	m := &pb.RangesPage{Size: p.Size, Next: p.Next}
	for _, r := range p.Ranges {
		m.Offsets, m.Lengths = append(m.Offsets, r.Offset), append(m.Lengths, r.Length)
	}
	return m
}

func rangesFromWire(m *pb.RangesPage) engine.DiffPage {
	p := engine.DiffPage{Size: m.GetSize(), Next: m.GetNext()}
	lengths := m.GetLengths()
	for i, off := range m.GetOffsets()[:min(len(m.GetOffsets()), len(lengths))] {
		p.Ranges = append(p.Ranges, engine.Range{Offset: off, Length: lengths[i]})
	}
	return p
}

func checkToWire(r engine.CheckReport) *pb.CheckReport {
	return &pb.CheckReport{
		Problems: r.Problems, Volumes: int64(r.Volumes), Layers: int64(r.Layers), Runs: r.Runs, Blocks: r.Blocks, Hidden: r.Hidden,
		Checksums: r.Checksums,
	}
}

func checkFromWire(r *pb.CheckReport) engine.CheckReport {
	return engine.CheckReport{
		Problems: r.GetProblems(), Volumes: int(r.GetVolumes()), Layers: int(r.GetLayers()),
		Runs: r.GetRuns(), Blocks: r.GetBlocks(), Hidden: r.GetHidden(), Checksums: r.GetChecksums(),
	}
}

func scrubToWire(r engine.ScrubReport) *pb.ScrubReport {
	return &pb.ScrubReport{Total: r.Total, Verified: r.Verified, Unverified: r.Unverified, Damaged: r.Damaged, Problems: r.Problems}
}

func scrubFromWire(r *pb.ScrubReport) engine.ScrubReport {
	return engine.ScrubReport{
		Total: r.GetTotal(), Verified: r.GetVerified(), Unverified: r.GetUnverified(), Damaged: r.GetDamaged(), Problems: r.GetProblems(),
	}
}

func problemToWire(p engine.ScrubProblem) *pb.ScrubProblem {
	m := &pb.ScrubProblem{
		Pool: p.Pool, Volumes: p.Volumes, Offset: p.Offset, Length: p.Length, Member: p.Member, File: p.File, FileOffset: p.FileOffset, Reason: p.Reason,
	}
	for _, s := range p.Snapshots {
		m.Snapshots = append(m.Snapshots, &pb.ScrubSnapshot{Name: s.Name, Volume: s.Volume})
	}
	return m
}

func problemFromWire(m *pb.ScrubProblem) engine.ScrubProblem {
	p := engine.ScrubProblem{
		Pool: m.GetPool(), Volumes: m.GetVolumes(), Offset: m.GetOffset(), Length: m.GetLength(), Member: m.GetMember(), File: m.GetFile(),
		FileOffset: m.GetFileOffset(), Reason: m.GetReason(),
	}
	for _, s := range m.GetSnapshots() {
		p.Snapshots = append(p.Snapshots, engine.ScrubSnapshot{Name: s.GetName(), Volume: s.GetVolume()})
	}
	return p
}

func metadataToWire(c metafs.Counts) *pb.PoolMetadata {
	return &pb.PoolMetadata{
		LogPayload: c.LogPayload, LogPadding: c.LogPadding, LogPrewrite: c.LogPrewrite, LogWrites: c.LogWrites,
		Flush: c.Flush, Compaction: c.Compaction, Manifest: c.Manifest, Other: c.Other,
	}
}

func metadataFromWire(c *pb.PoolMetadata) metafs.Counts {
	return metafs.Counts{
		LogPayload: c.GetLogPayload(), LogPadding: c.GetLogPadding(), LogPrewrite: c.GetLogPrewrite(), LogWrites: c.GetLogWrites(),
		Flush: c.GetFlush(), Compaction: c.GetCompaction(), Manifest: c.GetManifest(), Other: c.GetOther(),
	}
}

func attachmentToWire(a host.Attachment) *pb.Attachment {
	return &pb.Attachment{Pool: a.Pool, Volume: a.Volume, Device: a.Device, ReadOnly: a.ReadOnly, Stalled: a.Stalled}
}

func attachmentFromWire(a *pb.Attachment) host.Attachment {
	return host.Attachment{Pool: a.GetPool(), Volume: a.GetVolume(), Device: a.GetDevice(), ReadOnly: a.GetReadOnly(), Stalled: a.GetStalled()}
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromWire(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
