package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// placeFlags say where members are to be made.
type placeFlags struct {
	dirs, devices []string
	wipe          bool
	size          sizeFlag
}

func (p *placeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&p.dirs, "dir", nil, "folder for a member's files; made if missing")
	f.StringArrayVar(&p.devices, "device", nil, "block device for a member; XFS is made on it")
	f.BoolVar(&p.wipe, "wipe", false, "destroy what is on the devices")
	f.Var(&p.size, "size", "how much data each member may hold (default 90 % of what is free)")
}

// members are what the flags ask for: at least one.
func (p *placeFlags) members() (list []engine.MemberSpec, err error) {
	size := bytesize.RoundUp(int64(p.size), engine.SizeUnit)
	for _, dir := range p.dirs {
		list = append(list, engine.MemberSpec{Directory: dir, Size: size})
	}
	for _, device := range p.devices {
		list = append(list, engine.MemberSpec{Device: device, Wipe: p.wipe, Size: size})
	}
	if len(list) == 0 {
		return nil, usagef("say where: --dir or --device")
	}
	if p.wipe && len(p.devices) == 0 {
		return nil, usagef("--wipe is for --device")
	}
	for i := range list {
		if err := absolute(&list[i].Directory, &list[i].Device); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (a *app) poolImport() *cobra.Command {
	var spec host.OpenSpec
	var dirs, devices []string
	cmd := &cobra.Command{
		Use:   "import {--dir FOLDER | --device DEVICE}...",
		Short: "Take in a pool whose members were moved, from other paths or another machine",
		Long: "Take in a pool by its members, wherever they are now: their superblocks say who they are. Members that are not named are looked for where they\n" +
			"were last seen. Of a pool that is open and misses a member, the member is taken back.",
		Example: "  rowanctl pool import --dir /mnt/a/fast --dir /mnt/b/fast\n  rowanctl pool import --device /dev/sdc --device /dev/sdd",
		Args:    names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := append(dirs, devices...)
			if len(all) == 0 {
				return usagef("say where its members are: --dir or --device")
			}
			for i := range all {
				if err := absolute(&all[i]); err != nil {
					return err
				}
			}
			spec.Member, spec.Members = all[0], all[1:]
			return a.with(cmd, func(ctx context.Context, s *session) error {
				var p engine.PoolInfo
				err := s.wait("importing a pool", func() (err error) {
					p, err = s.OpenPool(ctx, spec)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewPool(p), "pool %s is open: %s, %d members", p.Name, p.State, len(p.Members))
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&dirs, "dir", nil, "folder of a member")
	f.StringArrayVar(&devices, "device", nil, "block device of a member")
	f.BoolVar(&spec.AcceptLoss, "accept-loss", false, "go on without acknowledged writes that may be lost")
	f.BoolVar(&spec.ReadOnly, "read-only", false, "for looking only, until the engine starts again")
	return cmd
}

func (a *app) poolAddMember() *cobra.Command {
	var place placeFlags
	cmd := &cobra.Command{
		Use:     "add-member NAME {--dir FOLDER | --device DEVICE}",
		Short:   "Add a member to a pool in use; writes that wait for space go on",
		Example: "  rowanctl pool add-member fast --device /dev/nvme2n1",
		Args:    names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := place.members()
			if err != nil {
				return err
			}
			if len(list) != 1 {
				return usagef("one member at a time")
			}
			return a.changeMember(cmd, "adding a member to pool "+args[0], func(ctx context.Context, s *session) (engine.PoolInfo, error) {
				return s.AddMember(ctx, args[0], list[0])
			}, "pool %s has %d members and %s now")
		},
	}
	place.add(cmd)
	return cmd
}

// changeMember runs a change and tells how the pool is then.
func (a *app) changeMember(cmd *cobra.Command, doing string, change func(context.Context, *session) (engine.PoolInfo, error), said string) error {
	return a.with(cmd, func(ctx context.Context, s *session) error {
		var p engine.PoolInfo
		err := s.wait(doing, func() (err error) {
			p, err = change(ctx, s)
			return err
		})
		if err != nil {
			return err
		}
		return a.say(viewPool(p), said, p.Name, len(p.Members), bytesize.Format(p.Size))
	})
}

func (a *app) poolGrowMember() *cobra.Command {
	return &cobra.Command{
		Use:     "grow-member NAME MEMBER SIZE",
		Short:   "Let one of a pool's members, by its index or path, hold more",
		Example: "  rowanctl pool grow-member fast 1 200Gi",
		Args:    names("NAME", "MEMBER", "SIZE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := bytesize.Parse(args[2])
			if err != nil {
				return usageError{err}
			}
			return a.changeMember(cmd, "growing member "+args[1], func(ctx context.Context, s *session) (engine.PoolInfo, error) {
				return s.GrowMember(ctx, args[0], args[1], bytesize.RoundUp(size, engine.SizeUnit))
			}, "pool %s has %d members and %s now")
		},
	}
}

func (a *app) poolDrainMember() *cobra.Command {
	var cancel, wait bool
	cmd := &cobra.Command{
		Use:   "drain-member NAME MEMBER",
		Short: "Move everything off a member, by its index or path, while the pool is in use",
		Long: "Begin to move everything off a member, in the background, and put nothing new there. pool show tells how much is left. It goes on when the engine\n" +
			"starts again.",
		Example: "  rowanctl pool drain-member fast 1 --wait\n  rowanctl pool remove-member fast 1",
		Args:    names("NAME", "MEMBER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			said := "pool %s, %d members, %s: the member is being drained"
			switch {
			case cancel:
				said = "pool %s, %d members, %s: the member is in use again"
			case wait:
				said = "pool %s, %d members, %s: the member holds nothing any more"
			}
			return a.changeMember(cmd, "draining member "+args[1], func(ctx context.Context, s *session) (engine.PoolInfo, error) {
				p, err := s.DrainMember(ctx, args[0], args[1], cancel)
				if err != nil || !wait || cancel {
					return p, err
				}
				return s.drained(ctx, args[0], args[1])
			}, said)
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "stop draining the member and use it again")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the member holds nothing")
	return cmd
}

// drainPoll is how often a drain is looked at.
const drainPoll = time.Second

// drained waits until a member holds no data and no metadata.
func (s *session) drained(ctx context.Context, pool, member string) (engine.PoolInfo, error) {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		p, err := s.Pool(ctx, pool)
		if err != nil {
			return p, err
		}
		left := false
		for _, m := range p.Members {
			if fmt.Sprint(m.Index) == member || m.Path == member || m.ID == member || m.Directory == member {
				left = m.Used > 0 || m.Metadata
			}
		}
		if !left {
			return p, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return p, fmt.Errorf("wait for the drain, which goes on: %w", ctx.Err())
		}
	}
}

func (a *app) poolRemoveMember() *cobra.Command {
	return &cobra.Command{
		Use:   "remove-member NAME MEMBER",
		Short: "Take a drained member out of a pool and remove its files",
		Args:  names("NAME", "MEMBER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeMember(cmd, "removing member "+args[1], func(ctx context.Context, s *session) (engine.PoolInfo, error) {
				return s.RemoveMember(ctx, args[0], args[1])
			}, "pool %s has %d members and %s now")
		},
	}
}
