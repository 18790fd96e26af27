package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

func (a *app) poolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "pool", Short: "Make, open, look at and check pools"}
	cmd.AddCommand(a.poolCreate(), a.poolList(), a.poolShow(), a.poolOpen(), a.poolImport(), a.poolGrow(), a.poolAddMember(), a.poolGrowMember(),
		a.poolDrainMember(), a.poolRemoveMember(), a.poolClose(), a.poolCheck(), a.poolScrub())
	return cmd
}

func (a *app) poolCreate() *cobra.Command {
	var spec engine.PoolSpec
	var place placeFlags
	cmd := &cobra.Command{
		Use:   "create NAME {--dir FOLDER | --device DEVICE}...",
		Short: "Make a pool in folders on XFS or ext4, or on blank block devices",
		Long: "Make a pool of one member or several, each a folder on XFS or ext4, or a blank block device. The first one has the metadata; folders come before\n" +
			"devices.",
		Example: "  rowanctl pool create fast --dir /var/lib/rowan/fast --size 100Gi\n" +
			"  rowanctl pool create fast --device /dev/nvme1n1 --device /dev/nvme2n1",
		Args: names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := place.members()
			if err != nil {
				return err
			}
			spec.Name, spec.More = args[0], list[1:]
			spec.Directory, spec.Device, spec.Wipe, spec.Size = list[0].Directory, list[0].Device, list[0].Wipe, list[0].Size
			return a.with(cmd, func(ctx context.Context, s *session) error {
				var p engine.PoolInfo
				err := s.wait("making pool "+spec.Name, func() (err error) {
					p, err = s.CreatePool(ctx, spec)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewPool(p), "pool %s created: %s in %s", p.Name, bytesize.Format(p.Size), p.Member)
			})
		},
	}
	place.add(cmd)
	cmd.Flags().StringVar(&spec.Allocation, "allocation", engine.AllocationStriped, "how several members are filled: striped or filled, one after the other")
	return cmd
}

// absolute makes paths mean for the engine what they mean here.
func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("find %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List pools, open or not",
		Args:  names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s *session) error {
				var pools []engine.PoolInfo
				err := s.wait("listing pools", func() (err error) {
					pools, err = s.Pools(ctx)
					return err
				})
				list := poolList{}
				for _, p := range pools {
					list = append(list, viewPool(p))
				}
				if err != nil {
					return err
				}
				return a.print(list)
			})
		},
	}
}

func firstOf(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) poolShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show a pool, and what its metadata wrote since it was opened",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, firstOf(args), func(ctx context.Context, s *session, pool string) error {
				var view poolView
				err := s.wait("looking at pool "+pool, func() (err error) {
					view, err = s.showPool(ctx, pool)
					return err
				})
				if err != nil {
					return err
				}
				return a.print(view)
			})
		},
	}
}

func (s *session) showPool(ctx context.Context, name string) (poolView, error) {
	p, err := s.Pool(ctx, name)
	if err != nil {
		return poolView{}, err
	}
	view := viewPool(p)
	if p.State == host.StateOpening || p.State == host.StateUnavailable {
		return view, nil
	}
	m, err := s.metadata(ctx, name)
	view.Metadata = &m
	return view, err
}

func (a *app) poolOpen() *cobra.Command {
	var spec host.OpenSpec
	cmd := &cobra.Command{
		Use:     "open {NAME | --member PATH}",
		Short:   "Open a pool that is not open, or take in one made elsewhere",
		Example: "  rowanctl pool open fast\n  rowanctl pool open --member /mnt/moved/fast",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name = firstOf(args)
			if (spec.Name == "") == (spec.Member == "") {
				return usagef("say which: the NAME of a pool in the list, or --member, one of the two")
			}
			if err := absolute(&spec.Member); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s *session) error {
				var p engine.PoolInfo
				err := s.wait("opening pool "+spec.Name+spec.Member, func() (err error) {
					p, err = s.OpenPool(ctx, spec)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewPool(p), "pool %s is open: %s", p.Name, p.State)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&spec.Member, "member", "", "the pool's folder, or the block device it was made on")
	f.BoolVar(&spec.AcceptLoss, "accept-loss", false, "go on without acknowledged writes that may be lost")
	f.BoolVar(&spec.ReadOnly, "read-only", false, "for looking only, until the engine starts again")
	return cmd
}

func (a *app) poolClose() *cobra.Command {
	return &cobra.Command{
		Use:   "close NAME",
		Short: "Close a pool and forget it; it stays whole, and pool open --member takes it in again",
		Args:  names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, s *session) error {
				err := s.wait("closing pool "+args[0], func() error { return s.ClosePool(ctx, args[0]) })
				if err != nil {
					return err
				}
				return a.say(closedView{args[0]}, "pool %s closed", args[0])
			})
		},
	}
}

type closedView struct {
	Closed string `json:"closed"`
}

func (closedView) table(io.Writer) error { return nil }
