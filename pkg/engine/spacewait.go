package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/member"
)

// spacePatience is how long a write waits for space before it gets ENOSPC, once nothing is under way that would free any.
const spacePatience = 10 * time.Second

// spaceWait is one write's wait for space.
type spaceWait struct {
	freed    <-chan struct{}
	deadline time.Time
}

// wait returns nil when it is worth trying again: at once the first time, so that nothing that becomes free between the attempts is missed. It holds no
// lock, pin or gate.
func (w *spaceWait) wait(p *Pool) error {
	p.preparing.kick()
	freed := w.freed
	w.freed = p.alloc.Freed()
	if freed == nil {
		return nil
	}
	if w.deadline.IsZero() {
		w.deadline = time.Now().Add(cmp.Or(p.options.patience, spacePatience))
	}
	// Blocks freed by discards are held until a round has made that durable.
	if p.pages.pending.Load() > 0 {
		if err := p.flush(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	if p.hopeless() {
		return p.noSpace()
	}
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return p.noSpace()
	case <-p.stop:
		return ErrClosed
	}
}

// hopeless tells that nothing is under way that could free a block.
func (p *Pool) hopeless() bool {
	free, held, _ := p.alloc.Free()
	if free > 0 || held > 0 {
		return false
	}
	p.catalogue.mu.RLock()
	jobs := len(p.catalogue.jobs)
	p.catalogue.mu.RUnlock()
	_, _, _, more := p.nextUnreserved(1)
	return jobs == 0 && !more
}

func (p *Pool) noSpace() error {
	if e := p.preparing.stuck.Load(); e != nil && errors.Is(*e, member.ErrNoSpace) {
		return fmt.Errorf("%w: the file system under pool %q is full: %w", ErrNoSpace, p.name(), *e)
	}
	return fmt.Errorf("%w: pool %q is full; delete snapshots or volumes, or grow it", ErrNoSpace, p.name())
}
