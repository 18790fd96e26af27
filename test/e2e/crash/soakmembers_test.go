package crash

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// memberDirs are the folders that a pool's members may be in, of which one at a time is unused at least.
func memberDirs(root, pool string) (dirs []string) {
	for i := range 3 {
		dirs = append(dirs, filepath.Join(root, fmt.Sprintf("%s-%d", pool, i)))
	}
	return dirs
}

// drainTime is how long a drain is waited for before it is left to itself, or called off.
const drainTime = 5 * time.Second

// changeMembers adds a member, or drains one, whichever has the metadata, and then takes it out, calls the drain off, or leaves it to go on. The engine may
// be killed at any moment of it.
func (p *soaked) changeMembers(ctx context.Context) error {
	var info engine.PoolInfo
	err := p.call(ctx, "look at the pool", func(ctx context.Context) (err error) {
		if info, err = p.Engine.Pool(ctx, p.Pool); err == nil && info.State == host.StateOpening { // nothing is known of its members yet
			err = host.ErrNotOpen
		}
		return err
	})
	if err != nil {
		return err
	}
	unused := slices.DeleteFunc(slices.Clone(p.dirs), func(dir string) bool {
		return slices.ContainsFunc(info.Members, func(m engine.MemberInfo) bool { return m.Directory == dir })
	})
	if len(info.Members) == 1 || len(unused) > 0 && p.rng.IntN(2) == 0 {
		p.added++
		return p.call(ctx, "add a member", func(ctx context.Context) error {
			_, err := p.Engine.AddMember(ctx, p.Pool, engine.MemberSpec{Directory: unused[0], Size: 2 * poolSize})
			return err
		}, engine.ErrForeign) // it was added, and the answer was lost
	}
	m := info.Members[p.rng.IntN(len(info.Members))]
	cancel := p.rng.IntN(4) == 0
	if drains, err := p.drain(ctx, m.ID, false); err != nil || !drains {
		return err
	}
	if cancel {
		_, err := p.drain(ctx, m.ID, true)
		return err
	}
	return p.takeOut(ctx, m)
}

// drain tells whether it was begun: not where the other members have no room, or there are none.
func (p *soaked) drain(ctx context.Context, member string, cancel bool) (drains bool, err error) {
	err = p.call(ctx, "drain a member", func(ctx context.Context) error {
		_, err := p.Engine.DrainMember(ctx, p.Pool, member, cancel)
		drains = err == nil
		if errors.Is(err, engine.ErrInvalid) || errors.Is(err, engine.ErrNoSpace) {
			return nil
		}
		return err
	})
	return drains, err
}

// takeOut waits for a drain and takes the member out. A drain that does not come to its end in time goes on, or is found done by the next chore.
func (p *soaked) takeOut(ctx context.Context, m engine.MemberInfo) error {
	deadline := time.Now().Add(drainTime)
	had := m.Metadata
	err := p.call(ctx, "take a member out", func(ctx context.Context) error {
		_, err := p.Engine.RemoveMember(ctx, p.Pool, m.ID)
		if errors.Is(err, engine.ErrBusy) && time.Now().After(deadline) {
			return nil
		}
		if err == nil {
			p.removed++
			if had {
				p.moved++
			}
		}
		return err
	}, engine.ErrNotFound) // it was taken out, and the answer was lost
	return err
}
