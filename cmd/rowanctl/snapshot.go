package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) snapshotCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{Use: "snapshot", Aliases: []string{"snap"}, Short: "Take, look at, compare, restore, roll back to and delete snapshots"}
	cmd.PersistentFlags().StringVarP(&pool, "pool", "p", "", "the pool (may be left out where there is one)")
	cmd.AddCommand(a.snapshotCreate(&pool), a.snapshotList(&pool), a.snapshotShow(&pool), a.snapshotRestore(&pool), a.snapshotRollback(&pool),
		a.snapshotDiff(&pool), a.snapshotAllocated(&pool), a.snapshotDelete(&pool))
	return cmd
}

func (a *app) snapshotCreate(pool *string) *cobra.Command {
	var group string
	var labels []string
	cmd := &cobra.Command{
		Use:   "create {NAME VOLUME | --group GROUP VOLUME...}",
		Short: "Take a snapshot of a volume, or of several at one moment",
		Long: "Take a snapshot of a volume, in use or not. With --group, take snapshots of several volumes at one moment, all of them or none: they\n" +
			"hold no write without those, to any of the volumes, that had returned before it was sent. They are named GROUP-VOLUME.",
		Example: "  rowanctl snapshot create before-upgrade db\n" +
			"  rowanctl snapshot create --group before-upgrade db db-log",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("group") {
				return names("VOLUME...")(cmd, args)
			}
			return names("NAME", "VOLUME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := parseLabels(labels, false)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("group") {
				return a.createGroup(cmd, *pool, group, args, l)
			}
			return a.createSnapshot(cmd, *pool, engine.SnapshotSpec{Name: args[0], Volume: args[1], Labels: l})
		},
	}
	cmd.Flags().StringVar(&group, "group", "", "take the volumes' snapshots at one moment, and give them this group")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "key=value, any number of times")
	return cmd
}

func (a *app) createSnapshot(cmd *cobra.Command, pool string, spec engine.SnapshotSpec) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		var i engine.SnapshotInfo
		err := s.wait("taking snapshot "+spec.Name, func() (err error) {
			i, err = s.CreateSnapshot(ctx, pool, spec)
			return err
		})
		if err != nil {
			return err
		}
		return a.say(viewSnapshot(pool, i), "snapshot %s of volume %s taken at %s", i.Name, i.Volume, timeText(i.CreatedAt))
	})
}

func (a *app) createGroup(cmd *cobra.Command, pool, group string, volumes []string, labels map[string]string) error {
	spec := engine.SnapshotGroupSpec{Name: group}
	for _, v := range volumes {
		spec.Snapshots = append(spec.Snapshots, engine.SnapshotSpec{Name: group + "-" + v, Volume: v, Labels: labels})
	}
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		var infos []engine.SnapshotInfo
		err := s.wait("taking snapshot group "+group, func() (err error) {
			infos, err = s.CreateSnapshotGroup(ctx, pool, spec)
			return err
		})
		if err != nil {
			return err
		}
		list, taken := snapshotList{}, []string{}
		for _, i := range infos {
			list, taken = append(list, viewSnapshot(pool, i)), append(taken, i.Name)
		}
		return a.say(list, "snapshot group %s taken at %s: %s", group, timeText(infos[0].CreatedAt), strings.Join(taken, ", "))
	})
}

func (a *app) snapshotList(pool *string) *cobra.Command {
	var volume, group string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List a pool's snapshots, or one volume's or group's",
		Args:  names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var snapshots []engine.SnapshotInfo
				err := s.wait("listing snapshots", func() (err error) {
					snapshots, err = s.Snapshots(ctx, pool, volume)
					return err
				})
				if err != nil {
					return err
				}
				list := snapshotList{}
				for _, i := range snapshots {
					if group == "" || i.Group == group {
						list = append(list, viewSnapshot(pool, i))
					}
				}
				return a.print(list)
			})
		},
	}
	cmd.Flags().StringVar(&volume, "volume", "", "only this volume's")
	cmd.Flags().StringVar(&group, "group", "", "only this group's")
	return cmd
}

func (a *app) snapshotShow(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a snapshot, and what deleting it would free",
		Args:  names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var i engine.SnapshotInfo
				var freed int64
				err := s.wait("looking at snapshot "+args[0], func() (err error) {
					if i, err = s.Snapshot(ctx, pool, args[0]); err == nil {
						freed, err = s.SnapshotUsage(ctx, pool, args[0])
					}
					return err
				})
				if err != nil {
					return err
				}
				v := viewSnapshot(pool, i)
				v.Freed = &freed
				return a.print(v)
			})
		},
	}
}

func (a *app) snapshotRestore(pool *string) *cobra.Command {
	var size sizeFlag
	var labels []string
	cmd := &cobra.Command{
		Use:     "restore SNAPSHOT VOLUME",
		Short:   "Make a new volume with a snapshot's content",
		Example: "  rowanctl snapshot restore before-upgrade db-old",
		Args:    names("SNAPSHOT", "VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := parseLabels(labels, false)
			if err != nil {
				return err
			}
			return a.createVolume(cmd, *pool, engine.VolumeSpec{
				Name: args[1], FromSnapshot: args[0], Size: bytesize.RoundUp(int64(size), engine.SizeUnit), Labels: l,
			})
		},
	}
	cmd.Flags().Var(&size, "size", "the volume's size, rounded up to 1 MiB (default the snapshot's)")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "key=value, any number of times")
	return cmd
}

func (a *app) snapshotRollback(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback SNAPSHOT",
		Short: "Put the snapshot's volume back to it",
		Long: "Put the snapshot's volume back to it. The volume must not be attached. What was written since is gone, unless a newer snapshot\n" +
			"has it; newer snapshots stay.",
		Example: "  rowanctl volume detach db && rowanctl snapshot rollback before-upgrade",
		Args:    names("SNAPSHOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var v engine.VolumeInfo
				err := s.wait("rolling back to "+args[0], func() error {
					i, err := s.Snapshot(ctx, pool, args[0])
					if err == nil {
						v, err = s.RollbackVolume(ctx, pool, i.Volume, args[0], "")
					}
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewVolume(pool, v, nil), "volume %s rolled back to snapshot %s", v.Name, args[0])
			})
		},
	}
}

func (a *app) snapshotDelete(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME...",
		Short: "Delete snapshots; volumes made from them stay",
		Args:  names("NAME..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.deleteAll(cmd, *pool, "snapshot", args, (*session).DeleteSnapshot)
		},
	}
}
