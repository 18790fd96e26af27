package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) volumeSetMode(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:   "set-mode NAME {row | cow}",
		Short: "Say who moves when a volume writes what a snapshot keeps",
		Long: "Say who moves when a volume writes what a snapshot keeps. row: the new data is redirected to new blocks, best for writes. cow: the old data is " +
			"copied away and the volume keeps its layout, best for reads. It may be changed at any time, while the volume is in use too.",
		Example: "  rowanctl volume set-mode db cow",
		Args:    names("NAME", "MODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, err := engine.ParseMode(args[1])
			if err != nil {
				return usageError{err}
			}
			return a.changeVolume(cmd, *pool, args[0], engine.VolumeChange{Mode: &mode}, "mode "+mode.String())
		},
	}
}

func (a *app) volumeSetTidy(pool *string) *cobra.Command {
	return &cobra.Command{
		Use:     "set-tidy NAME {on | off}",
		Short:   "Say whether a volume's scattered blocks are moved back into sequence in the background",
		Example: "  rowanctl volume set-tidy db on",
		Args:    names("NAME", "on|off"),
		RunE: func(cmd *cobra.Command, args []string) error {
			on := args[1] == "on"
			if !on && args[1] != "off" {
				return usagef("%q: say on or off", args[1])
			}
			return a.changeVolume(cmd, *pool, args[0], engine.VolumeChange{Tidy: &on}, "tidying "+args[1])
		},
	}
}

func (a *app) changeVolume(cmd *cobra.Command, pool, name string, change engine.VolumeChange, what string) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		var v engine.VolumeInfo
		err := s.wait("changing volume "+name, func() (err error) {
			v, err = s.ChangeVolume(ctx, pool, name, change)
			return err
		})
		if err != nil {
			return err
		}
		return a.say(viewVolume(pool, v, nil), "volume %s: %s", v.Name, what)
	})
}

type tidyView struct {
	Pool    string `json:"pool"`
	Volume  string `json:"volume"`
	Pages   int64  `json:"pages"`
	Moved   int64  `json:"moved"`
	Skipped int64  `json:"skipped"`
}

func (v tidyView) table(w io.Writer) error {
	_, err := fmt.Fprintf(w, "volume %s tidied: %s moved, %d of %d pages skipped for want of free space in one piece\n", v.Volume,
		bytesize.Format(v.Moved), v.Skipped, v.Pages)
	return err
}

func (a *app) volumeTidy(pool *string) *cobra.Command {
	var rate sizeFlag
	cmd := &cobra.Command{
		Use:   "tidy NAME",
		Short: "Move a volume's scattered blocks back into sequence",
		Long: "Move a volume's scattered blocks back into sequence, whether it is in use or not. What row mode redirected lies where there was room; afterwards " +
			"the volume reads as it did when it was written in order. Snapshots keep what they show. It can be interrupted at any time.",
		Example: "  rowanctl volume tidy db --rate 200Mi",
		Args:    names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, *pool, func(ctx context.Context, s *session, pool string) error {
				v, err := a.tidy(ctx, s, pool, engine.TidySpec{Volume: args[0], Rate: int64(rate)})
				if err != nil {
					return err
				}
				return a.print(v)
			})
		},
	}
	cmd.Flags().Var(&rate, "rate", "bytes copied a second at most (default "+bytesize.Format(engine.DefaultTidyRate)+")")
	return cmd
}

// tidy goes through a volume step by step, and says how far it is when that changes by a tenth.
func (a *app) tidy(ctx context.Context, s *session, pool string, spec engine.TidySpec) (tidyView, error) {
	v := tidyView{Pool: pool, Volume: spec.Volume}
	for said := int64(0); ; {
		var step engine.TidyStep
		err := s.wait("tidying volume "+spec.Volume, func() (err error) {
			step, err = s.Tidy(ctx, pool, spec)
			return err
		})
		if err != nil {
			return v, err
		}
		v.Pages, v.Moved, v.Skipped = v.Pages+step.Pages, v.Moved+step.Moved, v.Skipped+step.Skipped
		if spec.Start = step.Next; spec.Start == 0 {
			return v, nil
		}
		if tenth := spec.Start * 10 / step.Size; tenth > said && a.output == "table" {
			said = tenth
			if _, err := fmt.Fprintf(a.err, "%d %%, %s moved\n", spec.Start*100/step.Size, bytesize.Format(v.Moved)); err != nil {
				return v, err
			}
		}
	}
}
