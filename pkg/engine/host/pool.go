package host

import (
	"context"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// Engine makes and opens pools; Real is the engine's own.
type Engine interface {
	CreatePool(ctx context.Context, spec engine.PoolSpec, o engine.Options) (Pool, error)
	// OpenPool takes the member's folder, or the block device that it was made on.
	OpenPool(ctx context.Context, member string, o engine.Options) (Pool, error)
}

// Pool is what the host needs of an *engine.Pool.
type Pool interface {
	Close(ctx context.Context) error
	Info() engine.PoolInfo // not after Close
	FindMembers(ctx context.Context, paths []string) (engine.PoolInfo, error)
	AddMember(ctx context.Context, spec engine.MemberSpec) (engine.PoolInfo, error)
	GrowMember(ctx context.Context, member string, size int64) (engine.PoolInfo, error)
	DrainMember(ctx context.Context, member string, cancel bool) (engine.PoolInfo, error)
	RemoveMember(ctx context.Context, member string) (engine.PoolInfo, error)
	Grow(ctx context.Context, size int64) (engine.PoolInfo, error)
	Check(ctx context.Context) (engine.CheckReport, error)
	// Scrub ends with ErrClosed when the pool is closed meanwhile.
	Scrub(ctx context.Context, spec engine.ScrubSpec) (engine.ScrubReport, error)
	MetadataCounts() metafs.Counts

	CreateVolume(ctx context.Context, spec engine.VolumeSpec) (engine.VolumeInfo, error)
	Volume(name string) (engine.VolumeInfo, error)
	Volumes() []engine.VolumeInfo
	SetVolumeLabels(ctx context.Context, name string, set map[string]string) (engine.VolumeInfo, error)
	ChangeVolume(ctx context.Context, name string, change engine.VolumeChange) (engine.VolumeInfo, error)
	Tidy(ctx context.Context, spec engine.TidySpec) (engine.TidyStep, error)
	GrowVolume(ctx context.Context, name string, size int64) (engine.VolumeInfo, error)
	DeleteVolume(ctx context.Context, name string) error
	OpenVolume(ctx context.Context, name string) (Volume, error)
	RollbackVolume(ctx context.Context, volume, snapshot, holder string) (engine.VolumeInfo, error)
	HoldVolume(ctx context.Context, volume, holder string) (engine.VolumeInfo, error)
	ReleaseVolume(ctx context.Context, volume, holder string) (engine.VolumeInfo, error)

	CreateSnapshot(ctx context.Context, spec engine.SnapshotSpec) (engine.SnapshotInfo, error)
	CreateSnapshotGroup(ctx context.Context, spec engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error)
	Snapshot(name string) (engine.SnapshotInfo, error)
	Snapshots(volume string) []engine.SnapshotInfo
	SnapshotUsage(ctx context.Context, name string) (freedIfDeletedNow int64, err error)
	Diff(ctx context.Context, spec engine.DiffSpec) (engine.DiffPage, error)
	DeleteSnapshot(ctx context.Context, name string) error
}

// Volume is an open volume.
type Volume interface {
	block.Device
	Close(ctx context.Context) error
}
