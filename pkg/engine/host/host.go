package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/engine"
)

// States of a pool that is registered and not open, beside those of engine.PoolInfo.
const (
	StateOpening     = "Opening"
	StateUnavailable = "Unavailable"
)

// Config says what a host works with. All but Options must be set; without an Attacher volumes cannot be attached.
type Config struct {
	Engine   Engine
	Attacher attach.Attacher // closed by Stop
	StateDir string          // absolute; pools.json and a lock live there
	Options  engine.Options  // for every pool
}

// Host owns the open pools and the attachments of one engine process.
type Host struct {
	cfg   Config
	state *stateDir
	locks locks
	life  context.Context // until Stop
	stop  context.CancelFunc
	wg    sync.WaitGroup // pools being opened by Start

	watchers sync.WaitGroup // one for each device

	registry sync.Mutex   // around reading the list of pools and saving it; before mu
	asking   sync.RWMutex // held shared while a pool is asked for its info, so that it is not closed meanwhile; before mu

	mu       sync.Mutex
	stopping bool
	pools    map[string]*poolEntry
	attached map[string]*attachment // by ID
}

// poolEntry is a registered pool. Its fields change under the pool's exclusive lock and Host.mu.
type poolEntry struct {
	registered
	pool   Pool
	state  string // while pool is nil
	reason error  // of StateUnavailable
}

// New takes the state folder's lock, waiting for a predecessor until ctx ends, and reads the list of pools. Start opens them.
func New(ctx context.Context, cfg Config) (*Host, error) {
	state, err := openState(ctx, cfg.StateDir)
	if err != nil {
		return nil, err
	}
	list, err := state.load()
	if err != nil {
		state.close()
		return nil, err
	}
	h := &Host{cfg: cfg, state: state, pools: map[string]*poolEntry{}, attached: map[string]*attachment{}}
	h.life, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, r := range list {
		h.pools[r.Name] = &poolEntry{registered: r, state: StateOpening}
	}
	return h, nil
}

// Start opens all registered pools and resumes their attachments, each pool by itself in the background: one that takes long or fails holds up
// nobody. It returns when the attacher has told what is attached. Operations on a pool wait for its opening.
func (h *Host) Start(ctx context.Context) error {
	if err := h.recall(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	names := slices.Collect(maps.Keys(h.pools))
	h.mu.Unlock()
	for _, name := range names {
		release, err := h.locks.exclusive(ctx, poolKey(name))
		if err != nil {
			return err
		}
		h.wg.Go(func() {
			defer release()
			h.openEntry(h.life, name, h.cfg.Options)
		})
	}
	return nil
}

// openEntry opens a registered pool and resumes its attachments, under the pool's exclusive lock.
func (h *Host) openEntry(ctx context.Context, name string, o engine.Options) error {
	h.mu.Lock()
	e := h.pools[name]
	e.state, e.reason = StateOpening, nil
	member := e.Member
	o.Members = append(slices.Clone(o.Members), e.Members...)
	h.mu.Unlock()

	p, err := h.cfg.Engine.OpenPool(ctx, member, o)
	if err == nil {
		err = e.matches(p.Info())
		if err != nil {
			err = errors.Join(err, p.Close(context.WithoutCancel(ctx)))
		}
	}
	h.mu.Lock()
	if err != nil {
		e.state, e.reason = StateUnavailable, err
	} else {
		e.pool = p
	}
	h.mu.Unlock()
	if err != nil {
		h.event(name, "pool does not open", "member", member, "err", err)
		return err
	}
	h.event(name, "pool is open", "member", member, "state", p.Info().State)
	h.remember(name, p)
	h.resumePool(ctx, name, p)
	return nil
}

// matches refuses a folder that holds another pool than the one registered there.
func (r registered) matches(i engine.PoolInfo) error {
	if i.Name == r.Name && (r.ID == "" || i.ID == r.ID) {
		return nil
	}
	return fmt.Errorf("open pool %q: %s holds pool %q (%s), not %s: %w", r.Name, r.Member, i.Name, i.ID, r.ID, engine.ErrForeign)
}

// Stop ends service without detaching anything: devices' requests are held back for the next engine, volumes and pools are closed. The caller has
// ended its own requests to the host before, and exits after. When ctx ends first, what is left is closed the hard way, by the process's end.
func (h *Host) Stop(ctx context.Context) error {
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	h.stop()
	h.wg.Wait()
	h.watchers.Wait()

	var errs []error
	if h.cfg.Attacher != nil {
		// First, so that no request meets a volume that is being closed.
		if err := h.cfg.Attacher.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("end serving devices: %w", err))
		}
	}
	h.mu.Lock()
	pools := slices.Collect(maps.Values(h.pools))
	h.mu.Unlock()
	var wg sync.WaitGroup
	results := make([]error, len(pools))
	for i, e := range pools {
		wg.Go(func() { results[i] = h.stopPool(ctx, e) })
	}
	wg.Wait()
	errs = append(errs, results...)
	errs = append(errs, h.state.close())
	return errors.Join(errs...)
}

func (h *Host) stopPool(ctx context.Context, e *poolEntry) error {
	release, err := h.locks.exclusive(ctx, poolKey(e.Name))
	if err != nil {
		return fmt.Errorf("close pool %q: %w", e.Name, err)
	}
	defer release()
	h.mu.Lock()
	p := e.pool
	h.mu.Unlock()
	if p == nil {
		return nil
	}
	errs := h.holdPool(ctx, e.Name)
	h.setUnavailable(e.Name, ErrStopping)
	if err := p.Close(ctx); err != nil {
		errs = append(errs, fmt.Errorf("close pool %q: %w", e.Name, err))
	}
	return errors.Join(errs...)
}

// open answers an open pool, or why it is not.
func (h *Host) open(name string) (Pool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return nil, fmt.Errorf("pool %q: %w", name, ErrStopping)
	}
	e := h.pools[name]
	switch {
	case e == nil:
		return nil, h.unknownLocked(name)
	case e.pool != nil:
		return e.pool, nil
	case e.reason != nil:
		return nil, fmt.Errorf("pool %q: %w: %w", name, ErrNotOpen, e.reason)
	}
	return nil, fmt.Errorf("pool %q is being opened: %w", name, engine.ErrBusy)
}

func (h *Host) unknownLocked(name string) error {
	if len(h.pools) == 0 {
		return fmt.Errorf("pool %q: %w: this engine has no pools yet", name, engine.ErrNotFound)
	}
	names := slices.Sorted(maps.Keys(h.pools))
	if len(names) > 8 {
		names = append(names[:8], "…")
	}
	return fmt.Errorf("pool %q: %w: this engine has %s", name, engine.ErrNotFound, strings.Join(names, ", "))
}

// with runs f on an open pool that cannot be closed meanwhile.
func (h *Host) with(ctx context.Context, pool string, f func(Pool) error) error {
	if err := CheckName("pool", pool); err != nil {
		return err
	}
	release, err := h.locks.shared(ctx, poolKey(pool))
	if err != nil {
		return err
	}
	defer release()
	p, err := h.open(pool)
	if err != nil {
		return err
	}
	return f(p)
}

// withVolume is with, and nothing else of the kind happens to that volume meanwhile.
func (h *Host) withVolume(ctx context.Context, pool, volume string, f func(Pool) error) error {
	if err := CheckName("volume", volume); err != nil {
		return err
	}
	return h.with(ctx, pool, func(p Pool) error {
		release, err := h.locks.exclusive(ctx, volumeKey(pool, volume))
		if err != nil {
			return err
		}
		defer release()
		return f(p)
	})
}

func (h *Host) event(pool, message string, keysAndValues ...any) {
	if o := h.cfg.Options.Observer; o != nil {
		o.Event(pool, message, keysAndValues...)
	}
}
