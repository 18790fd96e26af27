package host

import (
	"context"
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// registrationOf is what is kept of a pool: where its members are. path is what it was opened by.
func registrationOf(info engine.PoolInfo, path string) registered {
	r := registered{Name: info.Name, ID: info.ID, Member: path}
	for _, m := range info.Members {
		if m.Metadata {
			r.Member = m.Path
		}
	}
	for _, m := range info.Members {
		if m.Path != r.Member {
			r.Members = append(r.Members, m.Path)
		}
	}
	return r
}

// remember keeps where a pool's members are now. The pool's own record of that is what counts; this one finds it. So a failure is told and no more.
func (h *Host) remember(name string, p Pool) {
	h.registry.Lock()
	defer h.registry.Unlock()
	h.mu.Lock()
	e := h.pools[name]
	h.mu.Unlock()
	if e == nil {
		return
	}
	r := registrationOf(p.Info(), e.Member)
	if r.ID == e.ID && r.Member == e.Member && slices.Equal(r.Members, e.Members) {
		return
	}
	if err := h.state.save(append(h.list(name), r)); err != nil {
		h.event(name, "where the pool's members are could not be noted", "err", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	e.registered = r
}

// freeFor is free for a pool that may be registered already and not open: it was found elsewhere.
func (h *Host) freeFor(info engine.PoolInfo) error {
	h.mu.Lock()
	e := h.pools[info.Name]
	known := e != nil && e.pool == nil && e.ID == info.ID
	h.mu.Unlock()
	if known {
		return nil
	}
	return h.free(info.Name)
}

// findMembers looks for the members that an open pool misses, and resumes what waited for them.
func (h *Host) findMembers(ctx context.Context, name string, p Pool, paths []string) (engine.PoolInfo, error) {
	info, err := p.FindMembers(ctx, paths)
	if err != nil {
		return engine.PoolInfo{}, err
	}
	h.remember(name, p)
	h.resumePool(ctx, name, p)
	return info, nil
}

// findMissing looks whether one of the paths is a member that an open pool misses.
func (h *Host) findMissing(ctx context.Context, paths []string) (info engine.PoolInfo, ok bool) {
	for _, i := range h.Pools() {
		if i.State != "Degraded" {
			continue
		}
		release, err := h.locks.exclusive(ctx, poolKey(i.Name))
		if err != nil {
			return info, false
		}
		p, err := h.open(i.Name)
		if err == nil {
			info, err = h.findMembers(ctx, i.Name, p, paths)
		}
		release()
		if err == nil {
			return info, true
		}
	}
	return info, false
}

// changeMembers runs a change of a pool's members and keeps where they are then.
func (h *Host) changeMembers(ctx context.Context, pool string, change func(Pool) (engine.PoolInfo, error)) (info engine.PoolInfo, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		info, err = change(p)
		h.remember(pool, p)
		return err
	})
	return info, err
}

// AddMember makes a member and takes it into a pool.
func (h *Host) AddMember(ctx context.Context, pool string, spec engine.MemberSpec) (engine.PoolInfo, error) {
	if err := checkMemberSpec(pool, spec); err != nil {
		return engine.PoolInfo{}, err
	}
	return h.changeMembers(ctx, pool, func(p Pool) (engine.PoolInfo, error) { return p.AddMember(ctx, spec) })
}

// GrowMember lets a member hold size bytes.
func (h *Host) GrowMember(ctx context.Context, pool, member string, size int64) (engine.PoolInfo, error) {
	return h.changeMembers(ctx, pool, func(p Pool) (engine.PoolInfo, error) { return p.GrowMember(ctx, member, size) })
}

// DrainMember begins to move everything off a member, or ends that.
func (h *Host) DrainMember(ctx context.Context, pool, member string, cancel bool) (engine.PoolInfo, error) {
	return h.changeMembers(ctx, pool, func(p Pool) (engine.PoolInfo, error) { return p.DrainMember(ctx, member, cancel) })
}

// RemoveMember takes a drained member out of a pool.
func (h *Host) RemoveMember(ctx context.Context, pool, member string) (engine.PoolInfo, error) {
	return h.changeMembers(ctx, pool, func(p Pool) (engine.PoolInfo, error) { return p.RemoveMember(ctx, member) })
}

func checkMemberSpec(pool string, s engine.MemberSpec) error {
	if err := checkPlace(s.Directory, s.Device, s.Wipe, s.Size); err != nil {
		return fmt.Errorf("member of pool %q: %w", pool, err)
	}
	return nil
}
