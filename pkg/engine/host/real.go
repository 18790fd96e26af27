package host

import (
	"context"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// Real is the engine itself.
type Real struct{}

var _ Engine = Real{}

// CreatePool is engine.CreatePool.
func (Real) CreatePool(ctx context.Context, spec engine.PoolSpec, o engine.Options) (Pool, error) {
	p, err := engine.CreatePool(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	return realPool{p}, nil
}

// OpenPool is engine.OpenPool.
func (Real) OpenPool(ctx context.Context, member string, o engine.Options) (Pool, error) {
	p, err := engine.OpenPool(ctx, member, o)
	if err != nil {
		return nil, err
	}
	return realPool{p}, nil
}

// realPool is an *engine.Pool but for the type that OpenVolume returns.
type realPool struct{ *engine.Pool }

func (p realPool) OpenVolume(ctx context.Context, name string) (Volume, error) {
	v, err := p.Pool.OpenVolume(ctx, name)
	if err != nil {
		return nil, err // not a Volume that holds a nil *engine.Volume
	}
	return v, nil
}
