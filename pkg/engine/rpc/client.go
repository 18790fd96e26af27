package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
	pb "github.com/rowan-csi/rowan/pkg/engine/rpc/enginev1"
)

// redial bounds how long a client goes on failing after the engine came back.
const redial = 500 * time.Millisecond

// Client speaks to an engine. It may be used from many goroutines, outlives the engine's restarts, and fails a call with ErrUnreachable while
// there is no engine.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	engine pb.EngineClient
}

// Dial makes a client for a socket. It does not connect: the first call does.
func Dial(socket string) (*Client, error) {
	if socket == "" {
		return nil, fmt.Errorf("dial the engine: %w: the socket's path is empty", engine.ErrInvalid)
	}
	conn, err := grpc.NewClient("passthrough:///rowan-engine",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redial / 5, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redial},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("dial the engine on %s: %w", socket, err)
	}
	return &Client{socket: socket, conn: conn, engine: pb.NewEngineClient(conn)}, nil
}

// Close ends the client; calls under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// result turns a call's answer into the engine's types.
func result[M, T any](c *Client, m *M, err error, fromWire func(*M) T) (T, error) {
	if err != nil {
		var zero T
		return zero, fromStatus(c.socket, err)
	}
	return fromWire(m), nil
}

// collect reads a streamed list to its end.
func collect[M, T any](c *Client, stream grpc.ServerStreamingClient[M], err error, fromWire func(*M) T) ([]T, error) {
	if err != nil {
		return nil, fromStatus(c.socket, err)
	}
	var list []T
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fromStatus(c.socket, err)
		}
		list = append(list, fromWire(m))
	}
}

// Version is the engine's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	m, err := c.engine.Version(ctx, &pb.VersionRequest{})
	return result(c, m, err, (*pb.VersionResponse).GetVersion)
}

// CreatePool makes a pool, opens it and registers it to be opened at every start. Paths are the engine's, absolute.
func (c *Client) CreatePool(ctx context.Context, s engine.PoolSpec) (engine.PoolInfo, error) {
	m, err := c.engine.CreatePool(ctx, &pb.CreatePoolRequest{Name: s.Name, Directory: s.Directory, Device: s.Device, Wipe: s.Wipe, Size: s.Size,
		Allocation: s.Allocation, More: each(s.More, memberSpecToWire), Node: s.Node, Share: shareToWire(s.Share)})
	return result(c, m, err, poolFromWire)
}

// Pools tells of all pools, open or not.
func (c *Client) Pools(ctx context.Context) ([]engine.PoolInfo, error) {
	s, err := c.engine.ListPools(ctx, &pb.ListPoolsRequest{})
	return collect(c, s, err, poolFromWire)
}

// Pool tells of one pool, open or not.
func (c *Client) Pool(ctx context.Context, name string) (engine.PoolInfo, error) {
	m, err := c.engine.GetPool(ctx, &pb.GetPoolRequest{Name: name})
	return result(c, m, err, poolFromWire)
}

// OpenPool opens a pool that is not open, or registers and opens one made elsewhere.
func (c *Client) OpenPool(ctx context.Context, s host.OpenSpec) (engine.PoolInfo, error) {
	m, err := c.engine.OpenPool(ctx, &pb.OpenPoolRequest{Name: s.Name, Member: s.Member, Members: s.Members, AcceptLoss: s.AcceptLoss, ReadOnly: s.ReadOnly})
	return result(c, m, err, poolFromWire)
}

// AddMember makes a member and takes it into a pool in use.
func (c *Client) AddMember(ctx context.Context, pool string, s engine.MemberSpec) (engine.PoolInfo, error) {
	m, err := c.engine.AddMember(ctx, &pb.AddMemberRequest{Pool: pool, Member: memberSpecToWire(s)})
	return result(c, m, err, poolFromWire)
}

// GrowMember lets a member, named by its index, id or path, hold size bytes.
func (c *Client) GrowMember(ctx context.Context, pool, member string, size int64) (engine.PoolInfo, error) {
	m, err := c.engine.GrowMember(ctx, &pb.GrowMemberRequest{Pool: pool, Member: member, Size: size})
	return result(c, m, err, poolFromWire)
}

// DrainMember begins to move everything off a member, or with cancel ends that.
func (c *Client) DrainMember(ctx context.Context, pool, member string, cancel bool) (engine.PoolInfo, error) {
	m, err := c.engine.DrainMember(ctx, &pb.DrainMemberRequest{Pool: pool, Member: member, Cancel: cancel})
	return result(c, m, err, poolFromWire)
}

// RemoveMember takes a drained member out of the pool.
func (c *Client) RemoveMember(ctx context.Context, pool, member string) (engine.PoolInfo, error) {
	m, err := c.engine.RemoveMember(ctx, &pb.RemoveMemberRequest{Pool: pool, Member: member})
	return result(c, m, err, poolFromWire)
}

// GrowPool lets a pool hold size bytes.
func (c *Client) GrowPool(ctx context.Context, name string, size int64) (engine.PoolInfo, error) {
	m, err := c.engine.GrowPool(ctx, &pb.GrowPoolRequest{Name: name, Size: size})
	return result(c, m, err, poolFromWire)
}

// ClosePool closes a pool without attached volumes and forgets it.
func (c *Client) ClosePool(ctx context.Context, name string) error {
	_, err := c.engine.ClosePool(ctx, &pb.ClosePoolRequest{Name: name})
	return fromStatus(c.socket, err)
}

// Metadata tells what a pool's metadata wrote since it was opened.
func (c *Client) Metadata(ctx context.Context, pool string) (metafs.Counts, error) {
	m, err := c.engine.GetPoolMetadata(ctx, &pb.GetPoolMetadataRequest{Name: pool})
	return result(c, m, err, metadataFromWire)
}

// Check verifies a pool's metadata while it is in use.
func (c *Client) Check(ctx context.Context, pool string) (engine.CheckReport, error) {
	m, err := c.engine.CheckPool(ctx, &pb.CheckPoolRequest{Name: pool})
	return result(c, m, err, checkFromWire)
}

// Scrub compares all frozen blocks of a pool with their checksums. When it ends early, the report is of how far it came.
func (c *Client) Scrub(ctx context.Context, pool string, spec engine.ScrubSpec) (r engine.ScrubReport, err error) {
	stream, err := c.engine.ScrubPool(ctx, &pb.ScrubPoolRequest{Name: pool, Rate: spec.Rate})
	if err != nil {
		return r, fromStatus(c.socket, err)
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return r, fromStatus(c.socket, err)
		}
		if p := e.GetProblem(); p != nil {
			if spec.Found != nil {
				spec.Found(problemFromWire(p))
			}
			continue
		}
		r = scrubFromWire(e.GetProgress())
		if spec.Progress != nil {
			spec.Progress(r)
		}
	}
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, pool string, s engine.VolumeSpec) (engine.VolumeInfo, error) {
	m, err := c.engine.CreateVolume(ctx, &pb.CreateVolumeRequest{
		Pool: pool, Name: s.Name, Size: s.Size, FromSnapshot: s.FromSnapshot, FromVolume: s.FromVolume, Labels: s.Labels,
		Mode: pb.VolumeMode(s.Mode), Tidy: s.Tidy,
		Provisioning: string(s.Provisioning),
	})
	return result(c, m, err, volumeFromWire)
}

// Volume tells of one volume.
func (c *Client) Volume(ctx context.Context, pool, name string) (engine.VolumeInfo, error) {
	m, err := c.engine.GetVolume(ctx, &pb.GetVolumeRequest{Pool: pool, Name: name})
	return result(c, m, err, volumeFromWire)
}

// Volumes tells of all volumes of a pool.
func (c *Client) Volumes(ctx context.Context, pool string) ([]engine.VolumeInfo, error) {
	s, err := c.engine.ListVolumes(ctx, &pb.ListVolumesRequest{Pool: pool})
	return collect(c, s, err, volumeFromWire)
}

// GrowVolume grows a volume, and its device if it is attached.
func (c *Client) GrowVolume(ctx context.Context, pool, name string, size int64) (engine.VolumeInfo, error) {
	m, err := c.engine.GrowVolume(ctx, &pb.GrowVolumeRequest{Pool: pool, Name: name, Size: size})
	return result(c, m, err, volumeFromWire)
}

// DeleteVolume deletes a volume that is not attached.
func (c *Client) DeleteVolume(ctx context.Context, pool, name string) error {
	_, err := c.engine.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Pool: pool, Name: name})
	return fromStatus(c.socket, err)
}

// SetVolumeLabels sets labels; an empty value removes its key.
func (c *Client) SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (engine.VolumeInfo, error) {
	m, err := c.engine.SetVolumeLabels(ctx, &pb.SetVolumeLabelsRequest{Pool: pool, Name: name, Set: set})
	return result(c, m, err, volumeFromWire)
}

// ChangeVolume sets a volume's options, attached or not.
func (c *Client) ChangeVolume(ctx context.Context, pool, name string, change engine.VolumeChange) (engine.VolumeInfo, error) {
	r := &pb.ChangeVolumeRequest{Pool: pool, Name: name, Tidy: change.Tidy}
	if change.Mode != nil {
		r.Mode = pb.VolumeMode(*change.Mode).Enum()
	}
	m, err := c.engine.ChangeVolume(ctx, r)
	return result(c, m, err, volumeFromWire)
}

// Tidy moves a volume's scattered blocks back into sequence, for about a second; go on with Next.
func (c *Client) Tidy(ctx context.Context, pool string, s engine.TidySpec) (engine.TidyStep, error) {
	m, err := c.engine.TidyVolume(ctx, &pb.TidyVolumeRequest{Pool: pool, Name: s.Volume, Start: s.Start, Rate: s.Rate})
	return result(c, m, err, tidyFromWire)
}

// RollbackVolume puts a volume that is not attached back to a snapshot of its own; holder is who holds it, "" for nobody.
func (c *Client) RollbackVolume(ctx context.Context, pool, volume, snapshot, holder string) (engine.VolumeInfo, error) {
	m, err := c.engine.RollbackVolume(ctx, &pb.RollbackVolumeRequest{Pool: pool, Volume: volume, Snapshot: snapshot, Holder: holder})
	return result(c, m, err, volumeFromWire)
}

// HoldVolume keeps a volume that is not attached from being attached until its holder rolled it back or let it go.
func (c *Client) HoldVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error) {
	m, err := c.engine.HoldVolume(ctx, &pb.HoldVolumeRequest{Pool: pool, Volume: volume, Holder: holder})
	return result(c, m, err, volumeFromWire)
}

// ReleaseVolume lets a volume be attached again.
func (c *Client) ReleaseVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error) {
	m, err := c.engine.ReleaseVolume(ctx, &pb.ReleaseVolumeRequest{Pool: pool, Volume: volume, Holder: holder})
	return result(c, m, err, volumeFromWire)
}

// Attach shows a volume as a block device. Asking again answers the same device.
func (c *Client) Attach(ctx context.Context, pool, volume string, readOnly bool) (device string, err error) {
	m, err := c.engine.AttachVolume(ctx, &pb.AttachVolumeRequest{Pool: pool, Volume: volume, ReadOnly: readOnly})
	return result(c, m, err, (*pb.Attachment).GetDevice)
}

// Detach takes a volume's device away; a volume that is not attached is no error.
func (c *Client) Detach(ctx context.Context, pool, volume string) error {
	_, err := c.engine.DetachVolume(ctx, &pb.DetachVolumeRequest{Pool: pool, Volume: volume})
	return fromStatus(c.socket, err)
}

// Attachments tells of the attached volumes of one pool, or of all ("").
func (c *Client) Attachments(ctx context.Context, pool string) ([]host.Attachment, error) {
	s, err := c.engine.ListAttachments(ctx, &pb.ListAttachmentsRequest{Pool: pool})
	return collect(c, s, err, attachmentFromWire)
}

// CreateSnapshot takes a snapshot of a volume, attached or not.
func (c *Client) CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error) {
	m, err := c.engine.CreateSnapshot(ctx, &pb.CreateSnapshotRequest{Pool: pool, Name: s.Name, Volume: s.Volume, Labels: s.Labels})
	return result(c, m, err, snapshotFromWire)
}

// CreateSnapshotGroup takes snapshots of several volumes in one cut, all of them or none.
func (c *Client) CreateSnapshotGroup(ctx context.Context, pool string, s engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error) {
	r := &pb.CreateSnapshotGroupRequest{Pool: pool, Name: s.Name}
	for _, one := range s.Snapshots {
		r.Snapshots = append(r.Snapshots, &pb.SnapshotOfGroup{Name: one.Name, Volume: one.Volume, Labels: one.Labels})
	}
	m, err := c.engine.CreateSnapshotGroup(ctx, r)
	return result(c, m, err, func(m *pb.CreateSnapshotGroupResponse) (infos []engine.SnapshotInfo) {
		for _, i := range m.GetSnapshots() {
			infos = append(infos, snapshotFromWire(i))
		}
		return infos
	})
}

// Snapshot tells of one snapshot.
func (c *Client) Snapshot(ctx context.Context, pool, name string) (engine.SnapshotInfo, error) {
	m, err := c.engine.GetSnapshot(ctx, &pb.GetSnapshotRequest{Pool: pool, Name: name})
	return result(c, m.GetSnapshot(), err, snapshotFromWire)
}

// Snapshots tells of all snapshots of a pool, or of one volume.
func (c *Client) Snapshots(ctx context.Context, pool, volume string) ([]engine.SnapshotInfo, error) {
	s, err := c.engine.ListSnapshots(ctx, &pb.ListSnapshotsRequest{Pool: pool, Volume: volume})
	return collect(c, s, err, snapshotFromWire)
}

// SnapshotUsage works out how many bytes deleting the snapshot would free now.
func (c *Client) SnapshotUsage(ctx context.Context, pool, name string) (freedIfDeletedNow int64, err error) {
	m, err := c.engine.GetSnapshot(ctx, &pb.GetSnapshotRequest{Pool: pool, Name: name, WithUsage: true})
	return result(c, m, err, (*pb.GetSnapshotResponse).GetFreedIfDeletedNow)
}

// Diff lists ranges that are allocated, or changed since a snapshot, a page at a time.
func (c *Client) Diff(ctx context.Context, pool string, s engine.DiffSpec) (engine.DiffPage, error) {
	m, err := c.engine.ListRanges(ctx, &pb.ListRangesRequest{
		Pool: pool, From: s.From, Snapshot: s.Snapshot, Volume: s.Volume, Start: s.Start, Max: int64(s.Max),
	})
	return result(c, m, err, rangesFromWire)
}

// DeleteSnapshot deletes a snapshot; volumes made from it stay.
func (c *Client) DeleteSnapshot(ctx context.Context, pool, name string) error {
	_, err := c.engine.DeleteSnapshot(ctx, &pb.DeleteSnapshotRequest{Pool: pool, Name: name})
	return fromStatus(c.socket, err)
}
