package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) poolGrow() *cobra.Command {
	return &cobra.Command{
		Use:   "grow NAME SIZE",
		Short: "Let a pool hold more, in use or not; writes that wait for space go on",
		Long: `Let a pool hold SIZE, in use or not; writes that wait for space go on. The file system under the pool must have the space. That of a pool
on a device is grown first, where the device has grown.`,
		Example: "  rowanctl pool grow fast 200Gi",
		Args:    names("NAME", "SIZE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := bytesize.Parse(args[1])
			if err != nil {
				return usageError{err}
			}
			size = bytesize.RoundUp(size, engine.SizeUnit)
			return a.with(cmd, func(ctx context.Context, s *session) error {
				var p engine.PoolInfo
				err := s.wait("growing pool "+args[0], func() (err error) {
					p, err = s.GrowPool(ctx, args[0], size)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewPool(p), "pool %s has %s now", p.Name, bytesize.Format(p.Size))
			})
		},
	}
}
