package engine

import (
	"context"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
)

// Grow lets the pool hold more data, in use or not: size is in bytes, a multiple of SizeUnit. Writes that wait for space go on. Where the pool was made on
// a device that has grown since, the file system on it is grown first.
func (p *Pool) Grow(ctx context.Context, size int64) (PoolInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	if err := p.refusal(); err != nil {
		return PoolInfo{}, err
	}
	if err := p.grow(size); err != nil {
		return PoolInfo{}, fmt.Errorf("grow pool %q to %d MiB: %w", p.name(), size>>20, err)
	}
	return p.Info(), nil
}

func (p *Pool) grow(size int64) error {
	now := p.member.Superblock().Size
	switch {
	case size <= 0 || size%SizeUnit != 0:
		return fmt.Errorf("%w: size of %d bytes: want a multiple of 1 MiB", ErrInvalid, size)
	case size < now:
		return fmt.Errorf("%w: it has %d MiB", ErrShrink, now>>20)
	case size == now:
		return nil
	}
	// What is promised must be there when it is promised, as when the pool was made.
	unspaced := size - p.alloc.Space()*alloc.ChunkBlocks*BlockSize
	if err := p.member.Grow(size, unspaced); err != nil {
		return memberError(err)
	}
	p.preparing.kick()
	return nil
}
