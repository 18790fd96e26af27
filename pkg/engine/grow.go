package engine

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
)

// Grow lets a pool of one member hold more data, in use or not: size is in bytes, a multiple of SizeUnit. Writes that wait for space go on. Where the member
// was made on a device that has grown since, the file system on it is grown first.
func (p *Pool) Grow(ctx context.Context, size int64) (PoolInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return PoolInfo{}, err
	}
	list := p.members.table.Load().list
	if len(list) > 1 {
		return PoolInfo{}, fmt.Errorf("grow pool %q: %w: it has %d members; grow one of them (rowanctl pool grow-member), or add another", p.name(), ErrInvalid,
			len(list))
	}
	if err := p.growMember(list[0], size); err != nil {
		return PoolInfo{}, fmt.Errorf("grow pool %q to %d MiB: %w", p.name(), size>>20, err)
	}
	return p.Info(), nil
}

// GrowMember is Grow for one of a pool's members.
func (p *Pool) GrowMember(ctx context.Context, which string, size int64) (PoolInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return PoolInfo{}, err
	}
	m, err := p.members.table.Load().member(which)
	if err != nil {
		return PoolInfo{}, err
	}
	if m.dev == nil {
		return PoolInfo{}, m.missingError()
	}
	if err := p.growMember(m, size); err != nil {
		return PoolInfo{}, fmt.Errorf("grow member %v to %d MiB: %w", m, size>>20, err)
	}
	return p.Info(), nil
}

// growMember records the new size in the member, then in the catalogue, and only then uses it: a power cut in between leaves sizes that allow all that is
// in use. Called with ops held.
func (p *Pool) growMember(m *poolMember, size int64) error {
	now := int64(m.rec.Size)
	switch {
	case size <= 0 || size%SizeUnit != 0:
		return fmt.Errorf("%w: size of %d bytes: want a multiple of 1 MiB", ErrInvalid, size)
	case size < now:
		return fmt.Errorf("%w: it has %d MiB", ErrShrink, now>>20)
	case size == now:
		return nil
	}
	// What is promised must be there when it is promised, as when the pool was made.
	unspaced := size - p.alloc.SpaceIn(m.lane)*alloc.ChunkBlocks*BlockSize
	if err := m.dev.Grow(size, unspaced); err != nil {
		return memberError(err)
	}
	grown := *m
	grown.rec.Size = uint64(size)
	if err := p.putMember(&grown); err != nil {
		return err
	}
	p.preparing.size(p)
	p.preparing.kick()
	return nil
}
