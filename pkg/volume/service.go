package volume

import "context"

// Page asks for a part of a list: at most Max entries (0: all) behind After.
type Page[ID any] struct {
	After ID
	Max   int
}

// SnapshotFilter chooses snapshots. Zero fields choose all.
type SnapshotFilter struct {
	ID     SnapshotID
	Source VolumeID
}

// CapacityRequest asks for the space left for volumes of that kind. Node "" means every node.
type CapacityRequest struct {
	Node       NodeID
	FSType     string
	Parameters Parameters
}

// Controller makes and removes volumes, snapshots and groups of these, wherever they are.
//
// Errors are this package's, and the context's where it ended first; what the call did is unknown then. Lists are ordered by handle, and hold,
// whatever is made or deleted between two pages, every object that existed throughout exactly once. more says that the list goes on.
type Controller interface {
	// Create makes a volume. ErrExists if its name is taken.
	Create(ctx context.Context, r CreateRequest) (Volume, error)
	// Delete removes a volume; its snapshots and copies stay. ErrNotFound if it is gone, ErrInUse while it is attached.
	Delete(ctx context.Context, id VolumeID) error
	Get(ctx context.Context, id VolumeID) (Volume, error)
	List(ctx context.Context, p Page[VolumeID]) (volumes []Volume, more bool, err error)
	// Expand grows a volume, attached or not, until it satisfies r; one that does stays as it is. Attached in its answer is of after the growth: a
	// volume attached later shows its new size.
	Expand(ctx context.Context, id VolumeID, r Range) (Volume, error)

	// Modify gives a volume, attached or not, the parameters that m names; writes under way end as they began. ErrNotFound if it is gone.
	Modify(ctx context.Context, id VolumeID, m Mutable) (Volume, error)

	// CreateSnapshot cuts a snapshot. ErrExists if its name is taken.
	CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error)
	// DeleteSnapshot removes a snapshot; copies of it stay. ErrNotFound if it is gone, ErrGrouped if it goes with its group alone.
	DeleteSnapshot(ctx context.Context, id SnapshotID) error
	GetSnapshot(ctx context.Context, id SnapshotID) (Snapshot, error)
	ListSnapshots(ctx context.Context, f SnapshotFilter, p Page[SnapshotID]) (snapshots []Snapshot, more bool, err error)

	// CreateGroup cuts snapshots of several volumes at the same moment, all or none. They are as any other, but for their deletion. ErrExists if the
	// group's name is taken, ErrApart if the volumes are not in one pool.
	CreateGroup(ctx context.Context, r GroupRequest) (Group, error)
	// DeleteGroup removes a group's snapshots; copies of them stay. said are those that the caller takes for the group's, none if it does not say:
	// ErrInvalid, and nothing is removed, if it has others. ErrNotFound if the group is gone.
	DeleteGroup(ctx context.Context, id GroupID, said []SnapshotID) error
	GetGroup(ctx context.Context, id GroupID) (Group, error)

	// Capacity answers zeroes for a node that is not ours, and ErrInvalid for parameters that name no pool.
	Capacity(ctx context.Context, r CapacityRequest) (Capacity, error)
	// Health is nil while the service can answer.
	Health(ctx context.Context) error
}

// Peeker is a Controller that can look whether something is there at less cost than Get. It may miss what was made a moment ago; such a controller's
// Create, CreateSnapshot and CreateGroup refuse that with ErrExists whatever else is wrong with the request.
type Peeker interface {
	Peek(ctx context.Context, id VolumeID) (Volume, error)
	PeekSnapshot(ctx context.Context, id SnapshotID) (Snapshot, error)
	PeekGroup(ctx context.Context, id GroupID) (Group, error)
}

// Stats is what is known of a volume's space without looking into its file system, in bytes.
type Stats struct {
	Size   int64
	Mapped int64 // of Size, what was written and not discarded since
}

// Node shows this node's volumes as devices.
type Node interface {
	// NodeID names this node. It answers without anything else running.
	NodeID() NodeID
	Get(ctx context.Context, id VolumeID) (Volume, error)
	// Attach shows a volume as a block device. Asking again answers the same device; ErrInUse if it is attached the other way (readOnly).
	Attach(ctx context.Context, id VolumeID, readOnly bool) (device string, err error)
	// Detach takes the device away. It is no error if there is none; ErrInUse while something has it open, ErrNotFound if the volume is gone.
	Detach(ctx context.Context, id VolumeID) error
	// Device is the attached volume's device. ErrNotAttached if it has none.
	Device(ctx context.Context, id VolumeID) (string, error)
	// MarkFormat records, durably, how far making the volume's file system has come.
	MarkFormat(ctx context.Context, id VolumeID, state FormatState) error
	Stats(ctx context.Context, id VolumeID) (Stats, error)
	// Health is nil while the service can answer.
	Health(ctx context.Context) error
}

// Service is both, on one node.
type Service interface {
	Controller
	Node
}

// Join makes a service of its halves. What both can answer (Get, Health) the controller does.
func Join(c Controller, n Node) Service { return joined{Controller: c, nodeHalf: nodeHalf{n}} }

// nodeHalf puts the node's methods one level deeper than the controller's, which win.
type nodeHalf struct{ Node }

type joined struct {
	Controller
	nodeHalf
}

// Paginate cuts a page out of a list that is ordered by id. cmp compares an entry with an ID.
func Paginate[T, ID any](all []T, p Page[ID], cmp func(T, ID) int) (page []T, more bool) {
	for len(all) > 0 && cmp(all[0], p.After) <= 0 {
		all = all[1:]
	}
	if p.Max > 0 && len(all) > p.Max {
		return all[:p.Max], true
	}
	return all, false
}
