package local_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

var (
	_ local.Engine = (*fakeEngine)(nil)
	_ local.Engine = (*rpc.Client)(nil)
)

// key is an object's pool and name.
type key [2]string

// fakeEngine is an engine without data. Its knobs: pools may be changed at will, fail makes a call fail, before runs ahead of one.
type fakeEngine struct {
	before func(call string)

	mu        sync.Mutex
	pools     []engine.PoolInfo // guarded by mu, as all below
	volumes   map[key]engine.VolumeInfo
	snapshots map[key]engine.SnapshotInfo
	attached  map[key]host.Attachment
	fail      map[string]error
}

func newFake(pools ...engine.PoolInfo) *fakeEngine {
	return &fakeEngine{
		pools: pools, volumes: map[key]engine.VolumeInfo{}, snapshots: map[key]engine.SnapshotInfo{}, attached: map[key]host.Attachment{},
		fail: map[string]error{},
	}
}

// call does a call's work under the lock, in a pool that is open ("": in none).
func call[T any](ctx context.Context, f *fakeEngine, name, pool string, do func() (T, error)) (v T, err error) {
	if err := ctx.Err(); err != nil {
		return v, err
	}
	if f.before != nil {
		f.before(name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail[name]; err != nil {
		return v, err
	}
	if pool == "" {
		return do()
	}
	for _, p := range f.pools {
		switch {
		case p.Name != pool:
		case p.State == "Unavailable":
			return v, fmt.Errorf("pool %q: %w", pool, host.ErrNotOpen)
		default:
			return do()
		}
	}
	return v, fmt.Errorf("pool %q: %w", pool, engine.ErrNotFound)
}

func must[T any](m map[key]T, kind string, k key) (T, error) {
	v, ok := m[k]
	if !ok {
		return v, fmt.Errorf("%s %q: %w", kind, k, engine.ErrNotFound)
	}
	return v, nil
}

func (f *fakeEngine) Pools(ctx context.Context) ([]engine.PoolInfo, error) {
	return call(ctx, f, "Pools", "", func() ([]engine.PoolInfo, error) {
		pools := slices.Clone(f.pools)
		for i := range pools {
			for k, v := range f.volumes {
				if k[0] == pools[i].Name {
					pools[i].Provisioned += v.Size
				}
			}
		}
		return pools, nil
	})
}

func (f *fakeEngine) CreateVolume(ctx context.Context, pool string, s engine.VolumeSpec) (engine.VolumeInfo, error) {
	return call(ctx, f, "CreateVolume", pool, func() (v engine.VolumeInfo, err error) {
		k := key{pool, s.Name}
		if _, taken := f.volumes[k]; taken {
			return v, fmt.Errorf("volume %q: %w", s.Name, engine.ErrExists)
		}
		v = engine.VolumeInfo{
			Name: s.Name, Size: s.Size, FromSnapshot: s.FromSnapshot, FromVolume: s.FromVolume, HasParent: s.FromSnapshot+s.FromVolume != "",
			CreatedAt: time.Now(), Labels: maps.Clone(s.Labels),
		}
		if s.FromSnapshot != "" {
			_, err = must(f.snapshots, "snapshot", key{pool, s.FromSnapshot})
		}
		if s.FromVolume != "" {
			_, err = must(f.volumes, "volume", key{pool, s.FromVolume})
		}
		if err == nil {
			f.volumes[k] = v
		}
		return v, err
	})
}

func (f *fakeEngine) Volume(ctx context.Context, pool, name string) (engine.VolumeInfo, error) {
	return call(ctx, f, "Volume", pool, func() (engine.VolumeInfo, error) { return must(f.volumes, "volume", key{pool, name}) })
}

func (f *fakeEngine) Volumes(ctx context.Context, pool string) ([]engine.VolumeInfo, error) {
	return call(ctx, f, "Volumes", pool, func() (list []engine.VolumeInfo, err error) {
		for k, v := range f.volumes {
			if k[0] == pool {
				list = append(list, v)
			}
		}
		return list, nil
	})
}

func (f *fakeEngine) GrowVolume(ctx context.Context, pool, name string, size int64) (engine.VolumeInfo, error) {
	return f.change(ctx, "GrowVolume", pool, name, func(v *engine.VolumeInfo) error {
		if size < v.Size {
			return engine.ErrShrink
		}
		v.Size = size
		return nil
	})
}

func (f *fakeEngine) ChangeVolume(ctx context.Context, pool, name string, c engine.VolumeChange) (engine.VolumeInfo, error) {
	return f.change(ctx, "ChangeVolume", pool, name, func(v *engine.VolumeInfo) error {
		if c.Mode != nil {
			v.Mode = *c.Mode
		}
		if c.Tidy != nil {
			v.Tidy = *c.Tidy
		}
		return nil
	})
}

func (f *fakeEngine) SetVolumeLabels(ctx context.Context, pool, name string, set map[string]string) (engine.VolumeInfo, error) {
	return f.change(ctx, "SetVolumeLabels", pool, name, func(v *engine.VolumeInfo) error {
		v.Labels = maps.Clone(v.Labels)
		maps.Copy(v.Labels, set)
		maps.DeleteFunc(v.Labels, func(_, value string) bool { return value == "" })
		return nil
	})
}

func (f *fakeEngine) change(ctx context.Context, name, pool, volume string, do func(*engine.VolumeInfo) error) (engine.VolumeInfo, error) {
	return call(ctx, f, name, pool, func() (engine.VolumeInfo, error) {
		v, err := must(f.volumes, "volume", key{pool, volume})
		if err == nil {
			err = do(&v)
		}
		if err == nil {
			f.volumes[key{pool, volume}] = v
		}
		return v, err
	})
}

func (f *fakeEngine) DeleteVolume(ctx context.Context, pool, name string) error {
	_, err := call(ctx, f, "DeleteVolume", pool, func() (v engine.VolumeInfo, err error) {
		k := key{pool, name}
		if _, used := f.attached[k]; used {
			return v, fmt.Errorf("volume %q: %w", name, engine.ErrInUse)
		}
		v, err = must(f.volumes, "volume", k)
		delete(f.volumes, k)
		return v, err
	})
	return err
}

func (f *fakeEngine) Attach(ctx context.Context, pool, volume string, readOnly bool) (string, error) {
	return call(ctx, f, "Attach", pool, func() (string, error) {
		k := key{pool, volume}
		a, attached := f.attached[k]
		if attached && a.ReadOnly != readOnly {
			return "", fmt.Errorf("volume %q: %w", volume, engine.ErrInUse)
		}
		if _, err := must(f.volumes, "volume", k); err != nil {
			return "", err
		}
		f.attached[k] = host.Attachment{Pool: pool, Volume: volume, Device: "/dev/fake/" + volume, ReadOnly: readOnly}
		return f.attached[k].Device, nil
	})
}

func (f *fakeEngine) Detach(ctx context.Context, pool, volume string) error {
	_, err := call(ctx, f, "Detach", pool, func() (engine.VolumeInfo, error) {
		delete(f.attached, key{pool, volume})
		return must(f.volumes, "volume", key{pool, volume})
	})
	return err
}

func (f *fakeEngine) Attachments(ctx context.Context, pool string) ([]host.Attachment, error) {
	return call(ctx, f, "Attachments", pool, func() (list []host.Attachment, err error) {
		for k, a := range f.attached {
			if pool == "" || k[0] == pool {
				list = append(list, a)
			}
		}
		return list, nil
	})
}

func (f *fakeEngine) CreateSnapshot(ctx context.Context, pool string, s engine.SnapshotSpec) (engine.SnapshotInfo, error) {
	return call(ctx, f, "CreateSnapshot", pool, func() (snap engine.SnapshotInfo, err error) {
		k := key{pool, s.Name}
		if _, taken := f.snapshots[k]; taken {
			return snap, fmt.Errorf("snapshot %q: %w", s.Name, engine.ErrExists)
		}
		v, err := must(f.volumes, "volume", key{pool, s.Volume})
		if err != nil {
			return snap, err
		}
		snap = engine.SnapshotInfo{Name: s.Name, Volume: s.Volume, Size: v.Size, CreatedAt: time.Now(), Labels: maps.Clone(s.Labels)}
		f.snapshots[k] = snap
		return snap, nil
	})
}

func (f *fakeEngine) CreateSnapshotGroup(ctx context.Context, pool string, g engine.SnapshotGroupSpec) ([]engine.SnapshotInfo, error) {
	return call(ctx, f, "CreateSnapshotGroup", pool, func() (infos []engine.SnapshotInfo, err error) {
		now := time.Now()
		for _, s := range f.snapshots {
			if s.Group == g.Name {
				return nil, fmt.Errorf("group %q: %w", g.Name, engine.ErrExists)
			}
		}
		for _, s := range g.Snapshots {
			if _, taken := f.snapshots[key{pool, s.Name}]; taken {
				return nil, fmt.Errorf("snapshot %q: %w", s.Name, engine.ErrExists)
			}
			v, err := must(f.volumes, "volume", key{pool, s.Volume})
			if err != nil {
				return nil, err
			}
			infos = append(infos, engine.SnapshotInfo{
				Name: s.Name, Volume: s.Volume, Group: g.Name, Size: v.Size, CreatedAt: now, Labels: maps.Clone(s.Labels),
			})
		}
		for _, i := range infos {
			f.snapshots[key{pool, i.Name}] = i
		}
		return infos, nil
	})
}

func (f *fakeEngine) Snapshot(ctx context.Context, pool, name string) (engine.SnapshotInfo, error) {
	return call(ctx, f, "Snapshot", pool, func() (engine.SnapshotInfo, error) { return must(f.snapshots, "snapshot", key{pool, name}) })
}

func (f *fakeEngine) Snapshots(ctx context.Context, pool, volume string) ([]engine.SnapshotInfo, error) {
	return call(ctx, f, "Snapshots", pool, func() (list []engine.SnapshotInfo, err error) {
		for k, s := range f.snapshots {
			if k[0] == pool && (volume == "" || s.Volume == volume) {
				list = append(list, s)
			}
		}
		return list, nil
	})
}

func (f *fakeEngine) DeleteSnapshot(ctx context.Context, pool, name string) error {
	_, err := call(ctx, f, "DeleteSnapshot", pool, func() (engine.SnapshotInfo, error) {
		s, err := must(f.snapshots, "snapshot", key{pool, name})
		delete(f.snapshots, key{pool, name})
		return s, err
	})
	return err
}
