package rpc

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
	pb "github.com/rowan-csi/rowan/pkg/engine/rpc/enginev1"
)

// Limits of the protocol.
const (
	MaxMessage     = 4 << 20             // bytes of one message, either way
	DefaultTimeout = 2 * time.Minute     // for calls that came without a deadline
	LongTimeout    = 2 * time.Hour       // the same, for making, opening, closing and checking a pool
	ScrubTimeout   = 30 * 24 * time.Hour // the same, for a scrub
	maxCalls       = 1024                // under way at once on one connection
)

// Host is what the server puts on the wire; package host has it.
type Host interface {
	CreatePool(ctx context.Context, spec engine.PoolSpec) (engine.PoolInfo, error)
	Pools() []engine.PoolInfo
	Pool(name string) (engine.PoolInfo, error)
	OpenPool(ctx context.Context, spec host.OpenSpec) (engine.PoolInfo, error)
	GrowPool(ctx context.Context, name string, size int64) (engine.PoolInfo, error)
	AddMember(ctx context.Context, pool string, spec engine.MemberSpec) (engine.PoolInfo, error)
	GrowMember(ctx context.Context, pool, member string, size int64) (engine.PoolInfo, error)
	DrainMember(ctx context.Context, pool, member string, cancel bool) (engine.PoolInfo, error)
	RemoveMember(ctx context.Context, pool, member string) (engine.PoolInfo, error)
	ClosePool(ctx context.Context, name string) error
	Metadata(ctx context.Context, pool string) (metafs.Counts, error)
	Check(ctx context.Context, pool string) (engine.CheckReport, error)
	Scrub(ctx context.Context, pool string, spec engine.ScrubSpec) (engine.ScrubReport, error)

	CreateVolume(ctx context.Context, pool string, spec engine.VolumeSpec) (engine.VolumeInfo, error)
	Volume(ctx context.Context, pool, name string) (engine.VolumeInfo, error)
	Volumes(ctx context.Context, pool string) ([]engine.VolumeInfo, error)
	GrowVolume(ctx context.Context, pool, name string, size int64) (engine.VolumeInfo, error)
	DeleteVolume(ctx context.Context, pool, name string) error
	SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (engine.VolumeInfo, error)
	ChangeVolume(ctx context.Context, pool, name string, change engine.VolumeChange) (engine.VolumeInfo, error)
	Tidy(ctx context.Context, pool string, spec engine.TidySpec) (engine.TidyStep, error)
	RollbackVolume(ctx context.Context, pool, volume, snapshot, holder string) (engine.VolumeInfo, error)
	HoldVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error)
	ReleaseVolume(ctx context.Context, pool, volume, holder string) (engine.VolumeInfo, error)

	Attach(ctx context.Context, pool, volume string, readOnly bool) (host.Attachment, error)
	Detach(ctx context.Context, pool, volume string) error
	Attachments(pool string) []host.Attachment

	CreateSnapshot(ctx context.Context, pool string, spec engine.SnapshotSpec) (engine.SnapshotInfo, error)
	CreateSnapshotGroup(ctx context.Context, pool string, spec engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error)
	Snapshot(ctx context.Context, pool, name string) (engine.SnapshotInfo, error)
	Snapshots(ctx context.Context, pool, volume string) ([]engine.SnapshotInfo, error)
	SnapshotUsage(ctx context.Context, pool, name string) (freedIfDeletedNow int64, err error)
	Diff(ctx context.Context, pool string, spec engine.DiffSpec) (engine.DiffPage, error)
	DeleteSnapshot(ctx context.Context, pool, name string) error
}

var _ Host = (*host.Host)(nil)

// Server answers calls for a Host.
type Server struct {
	pb.UnimplementedEngineServer
	host    Host
	version string
	grpc    *grpc.Server
	ending  context.Context // until Stop
	end     context.CancelFunc
}

// NewServer makes a server; version is what it says of itself.
func NewServer(h Host, version string) *Server {
	s := &Server{host: h, version: version}
	s.ending, s.end = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.UnaryInterceptor(unary),
		grpc.StreamInterceptor(stream),
	)
	pb.RegisterEngineServer(s.grpc, s)
	return s
}

// Serve answers until Stop, which makes it return nil.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// Stop takes no new calls, ends scrubs and waits for other calls under way; when ctx ends first, it cuts them off.
func (s *Server) Stop(ctx context.Context) {
	s.end()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

// timeouts are the calls that may take longer than DefaultTimeout when nobody says otherwise.
var timeouts = map[string]time.Duration{
	pb.Engine_CreatePool_FullMethodName: LongTimeout,
	pb.Engine_OpenPool_FullMethodName:   LongTimeout,
	pb.Engine_AddMember_FullMethodName:  LongTimeout,
	pb.Engine_ClosePool_FullMethodName:  LongTimeout,
	pb.Engine_CheckPool_FullMethodName:  LongTimeout,
	pb.Engine_ScrubPool_FullMethodName:  ScrubTimeout,
}

func bounded(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	d, ok := timeouts[method]
	if !ok {
		d = DefaultTimeout
	}
	return context.WithTimeout(ctx, d)
}

func unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, cancel := bounded(ctx, info.FullMethod)
	defer cancel()
	resp, err := handle(ctx, req)
	return resp, toStatus(err)
}

type boundedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s boundedStream) Context() context.Context { return s.ctx }

func stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := bounded(ss.Context(), info.FullMethod)
	defer cancel()
	return toStatus(handle(srv, boundedStream{ss, ctx}))
}
