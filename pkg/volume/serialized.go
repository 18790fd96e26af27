package volume

import (
	"context"
	"fmt"
	"sync"
)

// Locks holds one lock per key. A lock is taken at once or not at all: the caller of a call that waits here would repeat it, and the copies would
// pile up. The zero value is ready.
type Locks struct {
	mu   sync.Mutex
	held map[string]struct{} // guarded by mu
}

// Lock takes the key's lock, or answers ErrPending. The caller calls release once.
func (l *Locks) Lock(key string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.held[key]; taken {
		return nil, fmt.Errorf("%s: %w", key, ErrPending)
	}
	if l.held == nil {
		l.held = make(map[string]struct{})
	}
	l.held[key] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
	}, nil
}

// Serialized refuses, with ErrPending, to change an object while a change of it is under way. Reading is always possible. A snapshot locks its own
// name, not its source, so that several can be cut of one volume at a time.
func Serialized(s Service) Service {
	locks := &Locks{}
	return Join(&serialized{Controller: s, locks: locks}, &serializedNode{Node: s, locks: locks})
}

type serialized struct {
	Controller
	locks *Locks
}

type serializedNode struct {
	Node
	locks *Locks // the same
}

var (
	_ Controller = (*serialized)(nil)
	_ Node       = (*serializedNode)(nil)
)

func (s *serialized) Create(ctx context.Context, r CreateRequest) (Volume, error) {
	return exclusive(s.locks, r.ID().String(), func() (Volume, error) { return s.Controller.Create(ctx, r) })
}

func (s *serialized) Delete(ctx context.Context, id VolumeID) error {
	return exclusively(s.locks, id.String(), func() error { return s.Controller.Delete(ctx, id) })
}

func (s *serialized) Expand(ctx context.Context, id VolumeID, r Range) (Volume, error) {
	return exclusive(s.locks, id.String(), func() (Volume, error) { return s.Controller.Expand(ctx, id, r) })
}

func (s *serialized) Modify(ctx context.Context, id VolumeID, m Mutable) (Volume, error) {
	return exclusive(s.locks, id.String(), func() (Volume, error) { return s.Controller.Modify(ctx, id, m) })
}

func (s *serialized) CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	return exclusive(s.locks, r.ID().String(), func() (Snapshot, error) { return s.Controller.CreateSnapshot(ctx, r) })
}

func (s *serialized) DeleteSnapshot(ctx context.Context, id SnapshotID) error {
	return exclusively(s.locks, id.String(), func() error { return s.Controller.DeleteSnapshot(ctx, id) })
}

// CreateGroup locks the group's name, not its sources; its snapshots are locked by nobody else, for they are not deleted by themselves.
func (s *serialized) CreateGroup(ctx context.Context, r GroupRequest) (Group, error) {
	return exclusive(s.locks, r.ID().String(), func() (Group, error) { return s.Controller.CreateGroup(ctx, r) })
}

func (s *serialized) DeleteGroup(ctx context.Context, id GroupID, said []SnapshotID) error {
	return exclusively(s.locks, id.String(), func() error { return s.Controller.DeleteGroup(ctx, id, said) })
}

func (s *serializedNode) Attach(ctx context.Context, id VolumeID, readOnly bool) (string, error) {
	return exclusive(s.locks, id.String(), func() (string, error) { return s.Node.Attach(ctx, id, readOnly) })
}

func (s *serializedNode) Detach(ctx context.Context, id VolumeID) error {
	return exclusively(s.locks, id.String(), func() error { return s.Node.Detach(ctx, id) })
}

func (s *serializedNode) MarkFormat(ctx context.Context, id VolumeID, state FormatState) error {
	return exclusively(s.locks, id.String(), func() error { return s.Node.MarkFormat(ctx, id, state) })
}

func exclusively(locks *Locks, key string, do func() error) error {
	_, err := exclusive(locks, key, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

func exclusive[T any](locks *Locks, key string, do func() (T, error)) (T, error) {
	release, err := locks.Lock(key)
	if err != nil {
		var zero T
		return zero, err
	}
	defer release()
	return do()
}
