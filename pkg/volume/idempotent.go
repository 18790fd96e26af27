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
	get := s.Get
	if p, ok := s.Controller.(Peeker); ok {
		get = p.Peek
	}
	v, err := get(ctx, r.ID())
	if errors.Is(err, ErrNotFound) {
		if v, err = s.Controller.Create(ctx, r); err == nil {
			return v, nil
		}
		if errors.Is(err, ErrExists) { // made by somebody else meanwhile
			v, err = existing(err, func() (Volume, error) { return s.Get(ctx, r.ID()) })
		}
	}
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
	get := s.GetSnapshot
	if p, ok := s.Controller.(Peeker); ok {
		get = p.PeekSnapshot
	}
	snap, err := get(ctx, r.ID())
	if errors.Is(err, ErrNotFound) {
		if snap, err = s.Controller.CreateSnapshot(ctx, r); err == nil {
			return snap, nil
		}
		if errors.Is(err, ErrExists) {
			snap, err = existing(err, func() (Snapshot, error) { return s.GetSnapshot(ctx, r.ID()) })
		}
	}
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

// existing reads what is in the way. What is begun but not made yet cannot be read, and then the refusal stands: it says what differs.
func existing[T any](refusal error, read func() (T, error)) (T, error) {
	v, err := read()
	if errors.Is(err, ErrNotFound) {
		return v, refusal
	}
	return v, err
}
