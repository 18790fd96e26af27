package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) volumeAttach(pool *string) *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:     "attach NAME",
		Short:   "Show a volume as a block device, and print the device",
		Long:    "Show a volume as a block device, and print the device. It stays until it is detached, over restarts of the engine too.",
		Example: "  mount $(rowanctl volume attach db) /mnt",
		Args:    names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				v := attachmentView{Pool: pool, Volume: args[0], ReadOnly: readOnly}
				err := s.wait("attaching volume "+args[0], func() (err error) {
					v.Device, err = s.Attach(ctx, pool, args[0], readOnly)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(v, "%s", v.Device)
			})
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "the device takes no writes")
	return cmd
}

func (a *app) volumeDetach(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "detach NAME",
		Short: "Take a volume's device away; it must not be mounted",
		Args:  names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				err := s.wait("detaching volume "+args[0], func() error { return s.Detach(ctx, pool, args[0]) })
				if err != nil {
					return err
				}
				return a.say(attachmentView{Pool: pool, Volume: args[0]}, "volume %s detached", args[0])
			})
		},
	}
}

func (a *app) volumeGrow(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:     "grow NAME SIZE",
		Short:   "Grow a volume, and its device; what is on it is grown with its own tools",
		Example: "  rowanctl volume grow db 20Gi && xfs_growfs /mnt",
		Args:    names("NAME", "SIZE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := bytesize.Parse(args[1])
			if err != nil {
				return usageError{err}
			}
			size = bytesize.RoundUp(size, engine.SizeUnit)
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var v engine.VolumeInfo
				err := s.wait("growing volume "+args[0], func() (err error) {
					v, err = s.GrowVolume(ctx, pool, args[0], size)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewVolume(pool, v, nil), "volume %s has %s now", v.Name, bytesize.Format(v.Size))
			})
		},
	}
}

func (a *app) volumeDelete(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME...",
		Short: "Delete volumes that are not attached; their snapshots stay",
		Args:  names("NAME..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.deleteAll(cmd, *pool, "volume", args, (*session).DeleteVolume)
		},
	}
}

// deleteAll deletes one after the other, and stops at the first that cannot be.
func (a *app) deleteAll(cmd *cobra.Command, pool, what string, names []string, del func(*session, context.Context, string, string) error) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		gone := deletedView{Pool: pool, Deleted: []string{}}
		for _, name := range names {
			err := s.wait("deleting "+what+" "+name, func() error { return del(s, ctx, pool, name) })
			if err != nil {
				return err
			}
			gone.Deleted = append(gone.Deleted, name)
			if a.output == "table" {
				if err := a.say(nil, "%s %s deleted", what, name); err != nil {
					return err
				}
			}
		}
		return a.print(gone)
	})
}
