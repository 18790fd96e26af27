package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// OpenSpec names a pool to open: a registered one by Name, or one made elsewhere by Member (the folder of one of its members, or the block device that was
// made on).
type OpenSpec struct {
	Name       string
	Member     string
	Members    []string // where its other members may be
	AcceptLoss bool     // although acknowledged writes may be lost
	ReadOnly   bool     // for looking only, until the next start
}

// CreatePool makes a pool, opens it and registers it.
func (h *Host) CreatePool(ctx context.Context, spec engine.PoolSpec) (engine.PoolInfo, error) {
	if err := checkPoolSpec(spec); err != nil {
		return engine.PoolInfo{}, err
	}
	release, err := h.locks.exclusive(ctx, poolKey(spec.Name))
	if err != nil {
		return engine.PoolInfo{}, err
	}
	defer release()
	if err := h.free(spec.Name); err != nil {
		return engine.PoolInfo{}, err
	}
	p, err := h.cfg.Engine.CreatePool(ctx, spec, h.cfg.Options)
	if err != nil {
		return engine.PoolInfo{}, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	member := spec.Directory
	if spec.Device != "" {
		member = spec.Device // its folder is only there once the engine has mounted it
	}
	return h.adopt(ctx, p, member)
}

// adopt registers a pool that was just opened; on failure the pool is closed again, and stays on its disk.
func (h *Host) adopt(ctx context.Context, p Pool, member string) (engine.PoolInfo, error) {
	info := p.Info()
	r := registrationOf(info, member)
	if err := h.register(r, p); err != nil {
		cerr := p.Close(context.WithoutCancel(ctx))
		return engine.PoolInfo{}, fmt.Errorf("register pool %q (it is whole, at %s: open it from there once this is mended): %w",
			info.Name, member, errors.Join(err, cerr))
	}
	h.resumePool(ctx, r.Name, p)
	return info, nil
}

// free answers nil if the name may be given to a pool.
func (h *Host) free(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return fmt.Errorf("pool %q: %w", name, ErrStopping)
	}
	if e := h.pools[name]; e != nil {
		return fmt.Errorf("pool %q, at %s: %w: choose another name, or close that pool first", name, e.Member, engine.ErrExists)
	}
	return nil
}

// register writes the list of pools with r in it, and takes the pool in.
func (h *Host) register(r registered, p Pool) error {
	h.registry.Lock()
	defer h.registry.Unlock()
	if err := h.state.save(append(h.list(r.Name), r)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pools[r.Name] = &poolEntry{registered: r, pool: p}
	return nil
}

// list is the registered pools but one, under registry.
func (h *Host) list(without string) []registered {
	h.mu.Lock()
	defer h.mu.Unlock()
	var l []registered
	for name, e := range h.pools {
		if name != without {
			l = append(l, e.registered)
		}
	}
	return l
}

// Pools tells of all registered pools, by name.
func (h *Host) Pools() []engine.PoolInfo {
	h.asking.RLock()
	defer h.asking.RUnlock()
	h.mu.Lock()
	entries := make([]poolEntry, 0, len(h.pools))
	for _, e := range h.pools {
		entries = append(entries, *e)
	}
	h.mu.Unlock()
	infos := make([]engine.PoolInfo, 0, len(entries))
	for _, e := range entries {
		infos = append(infos, e.info())
	}
	slices.SortFunc(infos, func(a, b engine.PoolInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// Pool tells of one pool, open or not.
func (h *Host) Pool(name string) (engine.PoolInfo, error) {
	if err := CheckName("pool", name); err != nil {
		return engine.PoolInfo{}, err
	}
	h.asking.RLock()
	defer h.asking.RUnlock()
	h.mu.Lock()
	e := h.pools[name]
	if e == nil {
		defer h.mu.Unlock()
		return engine.PoolInfo{}, h.unknownLocked(name)
	}
	entry := *e
	h.mu.Unlock()
	return entry.info(), nil
}

func (e poolEntry) info() engine.PoolInfo {
	if e.pool != nil {
		return e.pool.Info()
	}
	i := engine.PoolInfo{Name: e.Name, ID: e.ID, Member: e.Member, State: e.state}
	if e.reason != nil {
		i.Reason = e.reason.Error()
	}
	return i
}

// OpenPool opens a registered pool that is not open, or registers and opens another. A pool that is open already is answered as it is.
func (h *Host) OpenPool(ctx context.Context, spec OpenSpec) (engine.PoolInfo, error) {
	o := h.cfg.Options
	o.AcceptLoss, o.ReadOnly, o.Members = spec.AcceptLoss, spec.ReadOnly, spec.Members
	for _, m := range spec.Members {
		if !filepath.IsAbs(m) {
			return engine.PoolInfo{}, fmt.Errorf("open pool at %q: %w: give an absolute path", m, engine.ErrInvalid)
		}
	}
	switch {
	case (spec.Name == "") == (spec.Member == ""):
		return engine.PoolInfo{}, fmt.Errorf("open pool: %w: give its name or its member, one of the two", engine.ErrInvalid)
	case spec.Name != "":
		return h.openNamed(ctx, spec.Name, o)
	case !filepath.IsAbs(spec.Member):
		return engine.PoolInfo{}, fmt.Errorf("open pool at %q: %w: give an absolute path", spec.Member, engine.ErrInvalid)
	}
	member := filepath.Clean(spec.Member)
	if name, ok := h.at(member); ok {
		return h.openNamed(ctx, name, o)
	}
	return h.openMember(ctx, member, o)
}

// at finds a registered pool by its member.
func (h *Host) at(member string) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, e := range h.pools {
		if e.Member == member {
			return name, true
		}
	}
	return "", false
}

func (h *Host) openNamed(ctx context.Context, name string, o engine.Options) (engine.PoolInfo, error) {
	if err := CheckName("pool", name); err != nil {
		return engine.PoolInfo{}, err
	}
	release, err := h.locks.exclusive(ctx, poolKey(name))
	if err != nil {
		return engine.PoolInfo{}, err
	}
	defer release()
	p, err := h.open(name)
	if err == nil {
		if i := p.Info(); i.State != "Degraded" {
			return i, nil
		}
		return h.findMembers(ctx, name, p, o.Members)
	}
	if !errors.Is(err, ErrNotOpen) {
		return engine.PoolInfo{}, err
	}
	if err := h.openEntry(ctx, name, o); err != nil {
		return engine.PoolInfo{}, err
	}
	return h.Pool(name)
}

func (h *Host) openMember(ctx context.Context, member string, o engine.Options) (engine.PoolInfo, error) {
	if i, ok := h.findMissing(ctx, append([]string{member}, o.Members...)); ok {
		return i, nil
	}
	p, err := h.cfg.Engine.OpenPool(ctx, member, o)
	if err != nil {
		return engine.PoolInfo{}, fmt.Errorf("open pool at %s: %w", member, err)
	}
	name := p.Info().Name
	release, err := h.locks.exclusive(ctx, poolKey(name))
	if err == nil {
		defer release()
		err = h.freeFor(p.Info())
	}
	if err != nil {
		return engine.PoolInfo{}, errors.Join(err, p.Close(context.WithoutCancel(ctx)))
	}
	return h.adopt(ctx, p, member)
}

// ClosePool closes a pool that has no attached volume, and forgets it.
func (h *Host) ClosePool(ctx context.Context, name string) error {
	if err := CheckName("pool", name); err != nil {
		return err
	}
	release, err := h.locks.exclusive(ctx, poolKey(name))
	if err != nil {
		return err
	}
	defer release()
	p, err := h.open(name)
	if err != nil && !errors.Is(err, ErrNotOpen) {
		return err
	}
	if ids := h.attachedOf(name); len(ids) > 0 {
		return fmt.Errorf("close pool %q: %w: detach %s first", name, engine.ErrInUse, strings.Join(ids, ", "))
	}
	if p != nil {
		h.setUnavailable(name, errors.New("it was closed on request"))
		if err := p.Close(ctx); err != nil {
			h.setUnavailable(name, fmt.Errorf("it was closed on request, with an error: %w", err))
			return fmt.Errorf("close pool %q: %w", name, err)
		}
	}
	h.registry.Lock()
	defer h.registry.Unlock()
	if err := h.state.save(h.list(name)); err != nil {
		return fmt.Errorf("forget pool %q (it is closed): %w", name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pools, name)
	return nil
}

// setUnavailable notes that a registered pool is not open any more, and why. When it returns, nobody is asking the pool anything.
func (h *Host) setUnavailable(name string, reason error) {
	h.asking.Lock()
	defer h.asking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.pools[name]
	e.pool, e.state, e.reason = nil, StateUnavailable, reason
}

// GrowPool lets a pool hold size bytes, in use or not.
func (h *Host) GrowPool(ctx context.Context, name string, size int64) (info engine.PoolInfo, err error) {
	err = h.with(ctx, name, func(p Pool) error {
		info, err = p.Grow(ctx, size)
		return err
	})
	return info, err
}

// Metadata tells what a pool's metadata wrote since it was opened.
func (h *Host) Metadata(ctx context.Context, pool string) (c metafs.Counts, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		c = p.MetadataCounts()
		return nil
	})
	return c, err
}

// Check verifies a pool's metadata while it is in use.
func (h *Host) Check(ctx context.Context, pool string) (r engine.CheckReport, err error) {
	err = h.with(ctx, pool, func(p Pool) error {
		r, err = p.Check(ctx)
		return err
	})
	return r, err
}

// Scrub compares all frozen blocks of a pool with their checksums. It may take days and keeps nobody from closing the pool, which ends it.
func (h *Host) Scrub(ctx context.Context, pool string, spec engine.ScrubSpec) (engine.ScrubReport, error) {
	var open Pool
	if err := h.with(ctx, pool, func(p Pool) error { open = p; return nil }); err != nil {
		return engine.ScrubReport{}, err
	}
	return open.Scrub(ctx, spec)
}
