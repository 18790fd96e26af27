package volume

import (
	"context"
	"errors"
	"fmt"
)

// Open is the service that a process uses: s with repeated calls answered as the first, one operation at a time per object.
func Open(s Service) Service { return Serialized(Idempotent(s)) }

// OpenController is Open for a process that has the one half only.
func OpenController(c Controller) Controller {
	return &serialized{Controller: &idempotent{c}, locks: &Locks{}}
}

// Idempotent validates requests and makes calls repeatable: making what is there answers it if it is what was asked for, deleting what is gone is
// done.
func Idempotent(s Service) Service { return Join(&idempotent{s}, s) }

type idempotent struct{ Controller }

var _ Controller = (*idempotent)(nil)

// Create looks first, so that a repeated request is answered although its source is gone by now, or the pool is full.
func (s *idempotent) Create(ctx context.Context, r CreateRequest) (Volume, error) {
	if err := r.Check(); err != nil {
		return Volume{}, err
	}
	look := s.Get
	if p, ok := s.Controller.(Peeker); ok {
		look = p.Peek
	}
	v, err := once(ctx, r.ID(), r, look, s.Get, s.Controller.Create)
	if err != nil {
		return Volume{}, fmt.Errorf("create volume %q: %w", r.Name, err)
	}
	return v, v.Satisfies(r)
}

func (s *idempotent) Delete(ctx context.Context, id VolumeID) error {
	if err := s.Controller.Delete(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return nil
}

// CreateSnapshot answers a repeated request with the first cut and its time, even when its source is gone by now.
func (s *idempotent) CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	if err := r.Check(); err != nil {
		return Snapshot{}, err
	}
	look := s.GetSnapshot
	if p, ok := s.Controller.(Peeker); ok {
		look = p.PeekSnapshot
	}
	snap, err := once(ctx, r.ID(), r, look, s.GetSnapshot, s.Controller.CreateSnapshot)
	if err != nil {
		return Snapshot{}, fmt.Errorf("create snapshot %q: %w", r.Name, err)
	}
	return snap, snap.Satisfies(r)
}

func (s *idempotent) DeleteSnapshot(ctx context.Context, id SnapshotID) error {
	if err := s.Controller.DeleteSnapshot(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}

// CreateGroup answers a repeated request with the first cut and its time, even when its sources are gone by now.
func (s *idempotent) CreateGroup(ctx context.Context, r GroupRequest) (Group, error) {
	if err := r.Check(); err != nil {
		return Group{}, err
	}
	look := s.GetGroup
	if p, ok := s.Controller.(Peeker); ok {
		look = p.PeekGroup
	}
	g, err := once(ctx, r.ID(), r, look, s.GetGroup, s.Controller.CreateGroup)
	if err != nil {
		return Group{}, fmt.Errorf("create snapshot group %q: %w", r.Name, err)
	}
	return g, g.Satisfies(r)
}

func (s *idempotent) DeleteGroup(ctx context.Context, id GroupID, said []SnapshotID) error {
	if err := s.Controller.DeleteGroup(ctx, id, said); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete snapshot group %s: %w", id, err)
	}
	return nil
}

// once makes what is not there yet. What somebody else made meanwhile is read; what is begun but not made yet cannot be, and then the refusal stands: it
// says what differs.
func once[T, R, ID any](
	ctx context.Context, id ID, r R, look, read func(context.Context, ID) (T, error), create func(context.Context, R) (T, error),
) (T, error) {
	v, err := look(ctx, id)
	if !errors.Is(err, ErrNotFound) {
		return v, err
	}
	v, refusal := create(ctx, r)
	if !errors.Is(refusal, ErrExists) {
		return v, refusal
	}
	v, err = read(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return v, refusal
	}
	return v, err
}
