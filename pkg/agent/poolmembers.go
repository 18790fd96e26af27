package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// path is where a member is to be.
func path(m v1alpha1.Member) string {
	if m.Device != nil {
		return m.Device.Path
	}
	return filepath.Clean(m.Directory.Path)
}

func paths(p *v1alpha1.Pool) (list []string) {
	for _, m := range p.Spec.Members {
		list = append(list, path(m))
	}
	return list
}

func memberSpec(m v1alpha1.Member) engine.MemberSpec {
	if m.Device != nil {
		return engine.MemberSpec{Device: m.Device.Path, Wipe: m.Device.Wipe}
	}
	d := m.Directory
	s := engine.MemberSpec{
		Directory: path(m),
		Share:     engine.Share{OfFree: int(d.PercentOfFree), FullAt: int(d.MaxFilesystemPercent), StopAt: int(d.StopGrowthPercent)},
	}
	if d.Size != nil {
		s.Size = d.Size.Value() / engine.SizeUnit * engine.SizeUnit
	}
	return s
}

// poolSpec is what the engine is asked for to make a pool.
func poolSpec(p *v1alpha1.Pool, node string) engine.PoolSpec {
	s := engine.PoolSpec{Name: p.Name, Node: node, Allocation: strings.ToLower(string(p.Spec.Allocation))}
	for i, m := range p.Spec.Members {
		one := memberSpec(m)
		if i == 0 {
			s.Directory, s.Device, s.Wipe, s.Size, s.Share = one.Directory, one.Device, one.Wipe, one.Size, one.Share
		} else {
			s.More = append(s.More, one)
		}
	}
	return s
}

// members adds the members of a pool's spec that it lacks, and looks for those that are missing.
func (r pools) members(ctx context.Context, p *v1alpha1.Pool, info engine.PoolInfo) (engine.PoolInfo, error) {
	if info.State == stateDegraded {
		i, err := r.engine.OpenPool(ctx, host.OpenSpec{Name: p.Name, Members: paths(p)})
		if err != nil {
			return info, err
		}
		info = i
	}
	if info.State != stateReady {
		return info, nil
	}
	for _, m := range p.Spec.Members {
		if has(info, path(m)) {
			continue
		}
		i, err := r.engine.AddMember(ctx, p.Name, memberSpec(m))
		if err != nil {
			return info, fmt.Errorf("add member %s: %w", path(m), err)
		}
		info = i
	}
	return info, nil
}

// has says whether a pool has the member at a path. A device has several names: they are compared by what they lead to, so that none is wiped because it is
// called otherwise now.
func has(info engine.PoolInfo, path string) bool {
	for _, m := range info.Members {
		for _, known := range []string{m.Path, m.Directory, m.Device} {
			if known != "" && (known == path || resolved(known) == resolved(path)) {
				return true
			}
		}
	}
	return false
}

func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}
