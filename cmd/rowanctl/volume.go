package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

func (a *app) volumeCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{Use: "volume", Aliases: []string{"vol"}, Short: "Make, attach, look at, grow and delete volumes"}
	cmd.PersistentFlags().StringVarP(&pool, "pool", "p", "", "the pool (may be left out where there is one)")
	cmd.AddCommand(a.volumeCreate(&pool), a.volumeList(&pool), a.volumeShow(&pool), a.volumeLabel(&pool),
		a.volumeSetMode(&pool), a.volumeSetTidy(&pool), a.volumeTidy(&pool),
		a.volumeAttach(&pool), a.volumeDetach(&pool), a.volumeGrow(&pool), a.volumeDelete(&pool))
	return cmd
}

func (a *app) volumeCreate(pool *string) *cobra.Command {
	var spec engine.VolumeSpec
	var size sizeFlag
	var labels []string
	var mode string
	var thick, thin bool
	cmd := &cobra.Command{
		Use:   "create NAME {--size SIZE | --from-snapshot SNAPSHOT | --from-volume VOLUME}",
		Short: "Make a volume: empty, or from a snapshot or volume",
		Example: "  rowanctl volume create db --size 10Gi\n" +
			"  rowanctl volume create db-copy --from-volume db",
		Args: names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if spec.FromSnapshot != "" && spec.FromVolume != "" {
				return usagef("--from-snapshot and --from-volume: one of the two at most")
			}
			if size == 0 && spec.FromSnapshot == "" && spec.FromVolume == "" {
				return usagef("say how large: --size, or what to make it from")
			}
			switch {
			case thick && thin:
				return usagef("--thick and --thin: one of the two at most")
			case thick:
				spec.Provisioning = engine.ProvisionThick
			case thin:
				spec.Provisioning = engine.ProvisionThin
			}
			if spec.Labels, err = parseLabels(labels, false); err != nil {
				return err
			}
			if spec.Mode, err = engine.ParseMode(mode); err != nil {
				return usageError{err}
			}
			spec.Name, spec.Size = args[0], bytesize.RoundUp(int64(size), engine.SizeUnit)
			return a.createVolume(cmd, *pool, spec)
		},
	}
	f := cmd.Flags()
	f.Var(&size, "size", "the volume's size, rounded up to 1 MiB (default the source's)")
	f.StringVar(&spec.FromSnapshot, "from-snapshot", "", "start with this snapshot's content")
	f.StringVar(&spec.FromVolume, "from-volume", "", "start with this volume's present content")
	f.StringVar(&mode, "mode", "row", "who moves when a block is written that a snapshot keeps: row (the new data) or cow (the old data)")
	f.BoolVar(&spec.Tidy, "tidy", false, "move its scattered blocks back into sequence in the background")
	f.BoolVar(&thick, "thick", false, "set all of its size aside, so that writes to it never lack space (default as the source, or not)")
	f.BoolVar(&thin, "thin", false, "take space as it is written")
	f.StringArrayVarP(&labels, "label", "l", nil, "key=value, any number of times")
	return cmd
}

func (a *app) createVolume(cmd *cobra.Command, pool string, spec engine.VolumeSpec) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		var v engine.VolumeInfo
		err := s.wait("making volume "+spec.Name, func() (err error) {
			v, err = s.CreateVolume(ctx, pool, spec)
			return err
		})
		if err != nil {
			return err
		}
		return a.say(viewVolume(pool, v, nil), "volume %s created: %s", v.Name, bytesize.Format(v.Size))
	})
}

func (a *app) volumeList(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List a pool's volumes",
		Args:  names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var volumes []engine.VolumeInfo
				var attached []host.Attachment
				err := s.wait("listing volumes", func() (err error) {
					if volumes, err = s.Volumes(ctx, pool); err == nil {
						attached, err = s.Attachments(ctx, pool)
					}
					return err
				})
				if err != nil {
					return err
				}
				list := volumeList{}
				for _, v := range volumes {
					list = append(list, viewVolume(pool, v, attached))
				}
				return a.print(list)
			})
		},
	}
}

func (a *app) volumeShow(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a volume, and while it is attached what it made the pool do",
		Args:  names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var view volumeView
				err := s.wait("looking at volume "+args[0], func() (err error) {
					view, err = s.showVolume(ctx, pool, args[0])
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

func (s *session) showVolume(ctx context.Context, pool, name string) (volumeView, error) {
	v, err := s.Volume(ctx, pool, name)
	if err != nil {
		return volumeView{}, err
	}
	attached, err := s.Attachments(ctx, pool)
	if err != nil {
		return volumeView{}, err
	}
	view := viewVolume(pool, v, attached)
	if v.Counters != nil {
		m, err := s.metadata(ctx, pool)
		if err != nil {
			return volumeView{}, err
		}
		view.Metadata = &m
	}
	return view, nil
}

// metadata is what an open pool's metadata wrote, set against its volumes' work.
func (s *session) metadata(ctx context.Context, pool string) (metadataView, error) {
	counts, err := s.Metadata(ctx, pool)
	if err != nil {
		return metadataView{}, err
	}
	volumes, err := s.Volumes(ctx, pool)
	return viewMetadata(counts, volumes), err
}

func (a *app) volumeLabel(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:     "label NAME {KEY=VALUE | KEY-}...",
		Short:   "Set and remove a volume's labels",
		Example: "  rowanctl volume label db tier=gold old-",
		Args:    names("NAME", "LABEL..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseLabels(args[1:], true)
			if err != nil {
				return err
			}
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				var v engine.VolumeInfo
				err := s.wait("labelling volume "+args[0], func() (err error) {
					v, err = s.SetVolumeLabels(ctx, pool, args[0], set)
					return err
				})
				if err != nil {
					return err
				}
				return a.say(viewVolume(pool, v, nil), "volume %s labelled: %s", v.Name, labelsText(v.Labels))
			})
		},
	}
}
