package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
)

// mechanism is the name in attach.Info.
const mechanism = "fuseloop"

// Config says how an Attacher works. Zero values take the defaults.
type Config struct {
	Keeper  string // the keeper's socket; "": none, and attachments fail when the process ends
	Dev     string // folder of device nodes; default /dev
	Memory  int64  // bytes of request payload under way; default 64 MiB
	Readers int    // requests of an attachment under way at once; default 64
	// Event is told what an operator should know and no call can return (the keeper is away). It returns at once; nil: nobody listens.
	Event func(message string, keysAndValues ...any)
}

// Attacher implements attach.Attacher.
type Attacher struct {
	config Config
	loops  loopdev.Folder
	mem    *memory
	keeper *keeper.Client // nil: none
	tap    func(uint32)   // see server
	ctx    context.Context
	cancel context.CancelFunc
	guards sync.WaitGroup

	// Order of locks: an id's turn, then mu.
	mu      sync.Mutex
	closed  bool
	served  map[string]*attachment
	turns   map[string]*turn
	guarded bool
}

// turn serializes the calls for one id.
type turn struct {
	token chan struct{}
	users int
}

var _ attach.Attacher = (*Attacher)(nil)

// New makes an Attacher. It touches nothing until it is used; Available says whether it can work here.
func New(c Config) *Attacher {
	if c.Dev == "" {
		c.Dev = "/dev"
	}
	if c.Memory <= 0 {
		c.Memory = 64 << 20
	}
	if c.Readers <= 0 {
		c.Readers = 64
	}
	if c.Event == nil {
		c.Event = func(string, ...any) {}
	}
	a := &Attacher{config: c, loops: loopdev.Folder(c.Dev), mem: newMemory(max(c.Memory, 4*maxIO)), served: make(map[string]*attachment),
		turns: make(map[string]*turn)}
	if c.Keeper != "" {
		a.keeper = keeper.NewClient(c.Keeper)
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// lock waits for the id's turn.
func (a *Attacher) lock(ctx context.Context, id string) (unlock func(), err error) {
	a.mu.Lock()
	t := a.turns[id]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		a.turns[id] = t
	}
	t.users++
	a.mu.Unlock()
	leave := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(a.turns, id)
		}
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another call for attachment %q: %w", id, ctx.Err())
	}
}

func (a *Attacher) lookup(id string) (*attachment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("attachment %q: %w", id, attach.ErrClosed)
	}
	return a.served[id], nil
}

// adopt makes an attachment known; from then on the keeper's death is noticed.
func (a *Attacher) adopt(t *attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("attachment %q: %w", t.id, attach.ErrClosed)
	}
	a.served[t.id] = t
	if a.keeper != nil && !a.guarded {
		a.guarded = true
		a.guards.Go(a.guard)
	}
	return nil
}

func (a *Attacher) forget(t *attachment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.served[t.id] == t {
		delete(a.served, t.id)
	}
}

func (a *Attacher) all() []*attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*attachment
	for _, t := range a.served {
		all = append(all, t)
	}
	return all
}

// List implements attach.Attacher. Records whose device is gone for good (aborted, or cleared by hand) are dropped.
func (a *Attacher) List(ctx context.Context) ([]attach.Info, error) {
	var infos []attach.Info
	if a.keeper == nil {
		for _, t := range a.all() {
			infos = append(infos, a.info(t.id, t.record(), true))
		}
		return infos, nil
	}
	records, err := a.keeper.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		t, err := a.lookup(r.ID)
		if err != nil {
			return nil, err
		}
		if t == nil {
			if live, err := a.prune(ctx, r.ID); err != nil && !errors.Is(err, attach.ErrInUse) {
				return nil, err
			} else if !live {
				continue
			}
		}
		rec, err := decodeRecord(r.Data)
		if err != nil {
			return nil, fmt.Errorf("attachment %q: %w", r.ID, err)
		}
		infos = append(infos, a.info(r.ID, rec, t != nil))
	}
	return infos, nil
}

func (a *Attacher) info(id string, r record, serving bool) attach.Info {
	i := attach.Info{ID: id, Mechanism: mechanism, Meta: r.Meta, ReadOnly: r.ReadOnly, SectorSize: r.Sector, Serving: serving}
	if n, err := a.loops.Find(r.Loop, r.Name); err == nil && n != loopdev.None {
		i.Path = a.loops.Path(n)
	}
	return i
}

// prune removes what is left of id if its connection is dead: the loop device, then the keeper's record. live tells whether there is one that is not
// dead. ErrInUse while somebody still has the dead device open.
func (a *Attacher) prune(ctx context.Context, id string) (live bool, err error) {
	r, files, err := a.keeper.Get(ctx, id)
	if errors.Is(err, keeper.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer closeFiles(files)
	if alive(files[0]) {
		return true, nil
	}
	rec, err := decodeRecord(r.Data)
	if err != nil {
		return false, fmt.Errorf("attachment %q: %w", id, err)
	}
	if err := a.clear(ctx, id, rec); err != nil {
		return false, fmt.Errorf("attachment %q was aborted: %w", id, err)
	}
	if err := a.keeper.Delete(ctx, id); err != nil && !errors.Is(err, keeper.ErrNotFound) {
		return false, err
	}
	return false, nil
}

// guard stores what this process serves with the keeper again, whenever there is a new one: it may be a fresh one that has nothing. Until then only
// this process holds the descriptors.
func (a *Attacher) guard() {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	first, reported := true, false
	for a.ctx.Err() == nil {
		err := a.keeper.Watch(a.ctx, func() {
			if !first || reported {
				a.config.Event("the keeper is back; storing all attachments with it again")
				a.storeAll()
			}
			first, reported = false, false
		})
		if err != nil && a.ctx.Err() == nil && !reported {
			reported = true
			a.config.Event("the keeper is away: attachments would not survive the end of this process", "error", err)
		}
		select {
		case <-tick.C:
		case <-a.ctx.Done():
		}
	}
}

func (a *Attacher) storeAll() {
	for _, t := range a.all() {
		if err := t.storeAgain(a.ctx); err != nil {
			a.config.Event("attachment is not stored with the keeper", "attachment", t.id, "error", err)
		}
	}
}

// Close implements attach.Attacher. Without a keeper the devices fail.
func (a *Attacher) Close(ctx context.Context) error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	a.guards.Wait()
	var errs []error
	for _, t := range a.all() {
		t.server.stop()
	}
	for _, t := range a.all() {
		errs = append(errs, t.leave(ctx))
	}
	return errors.Join(errs...)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
