package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/alloc"
	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// crashDirs are the folders that members may be in, each on a device of its own.
var crashDirs = []string{"/pool", "/second/pool", "/third/pool"}

// changeMembers adds, drains and removes members, and calls drains off, as long as the writers work: whichever has the metadata, too.
func (g *guests) changeMembers(ctx context.Context, r *rand.Rand) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := g.changeMember(ctx, r, tick.C); err != nil && ctx.Err() == nil {
			return fmt.Errorf("change members: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func (g *guests) changeMember(ctx context.Context, r *rand.Rand, tick <-chan time.Time) error {
	infos := g.Info().Members
	unused := slices.DeleteFunc(slices.Clone(crashDirs), func(dir string) bool {
		return slices.ContainsFunc(infos, func(m MemberInfo) bool { return m.Directory == dir })
	})
	// A run that takes long on a busy machine may have had as many members as one opening allows.
	if len(unused) > 0 && g.alloc.Lanes() < alloc.MaxLanes && (len(infos) == 1 || r.IntN(2) == 0) {
		spec := MemberSpec{Directory: unused[r.IntN(len(unused))], Size: alloc.ChunkBlocks * BlockSize, Share: Share{StopAt: stopAt(g.seed)}}
		_, err := g.AddMember(ctx, spec)
		return err
	}
	which := fmt.Sprint(infos[r.IntN(len(infos))].Index)
	if _, err := g.DrainMember(ctx, which, false); err != nil {
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrInvalid) {
			return nil
		}
		return err
	}
	for looks := 20 + r.IntN(400); looks > 0; looks-- {
		if r.IntN(2) == 0 {
			if _, err := g.RemoveMember(ctx, which); !errors.Is(err, ErrBusy) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
	if r.IntN(3) == 0 {
		return nil // it goes on
	}
	_, err := g.DrainMember(ctx, which, true)
	return err
}

// openCrashed opens a pool wherever its members are. A folder that an interrupted add has left is refused by name, and left out.
func openCrashed(o Options) (*Pool, string, error) {
	dirs := slices.Clone(crashDirs)
	for {
		o.Members = dirs[1:]
		p, err := OpenPool(context.Background(), dirs[0], o)
		at := slices.IndexFunc(dirs, func(dir string) bool { return err != nil && strings.Contains(err.Error(), ": "+dir+": ") })
		if at < 0 || len(dirs) == 1 || !errors.Is(err, ErrForeign) {
			return p, dirs[0], err
		}
		dirs = slices.Delete(dirs, at, at+1)
	}
}

// verifyMetadata looks whether a member alone would be taken for the pool's though another one has the newer metadata.
func (st *state) verifyMetadata(o Options) error {
	supers := map[string]format.Superblock{}
	newest, several := uint64(0), 0
	for _, dir := range crashDirs {
		sb, ok := readCrashed(st.disk, dir)
		if !ok || sb.Metadata == 0 {
			continue
		}
		supers[dir] = sb
		newest = max(newest, sb.Metadata)
		if several++; !sb.MovingTo.IsZero() {
			several++
		}
	}
	if several < 2 {
		return nil
	}
	o.ReadOnly = true
	for dir, sb := range supers {
		if sb.Metadata == newest {
			continue
		}
		if err := st.alone(dir, o); err != nil {
			return err
		}
	}
	return nil
}

// alone opens a pool by one member, the others being away. It must not open.
func (st *state) alone(dir string, o Options) (err error) {
	for _, other := range crashDirs {
		if _, serr := st.disk.Stat(other); other == dir || serr != nil {
			continue
		}
		if err := st.disk.Rename(other, other+"-away"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, st.disk.Rename(other+"-away", other)) }()
	}
	p, err := OpenPool(context.Background(), dir, o)
	if err == nil {
		return errors.Join(fmt.Errorf("%w: %s alone was opened, with metadata that is not the newest", errWrong, dir), p.Close(context.Background()))
	}
	if !errors.Is(err, ErrMemberMissing) {
		return fmt.Errorf("%s alone, without the newest metadata: %w", dir, err)
	}
	return nil
}

func readCrashed(disk fsys.FS, dir string) (sb format.Superblock, ok bool) {
	f, err := disk.Open(filepath.Join(dir, "rowan.pool"), 0)
	if err != nil {
		return sb, false
	}
	defer f.Close()
	b := make([]byte, format.SuperblockSize)
	n, _ := f.ReadAt(b, 0)
	sb, err = format.DecodeSuperblock(b[:n])
	return sb, err == nil
}
