package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) snapshotDiff(pool *string) *cobra.Command {
	var spec engine.DiffSpec
	cmd := &cobra.Command{
		Use:   "diff FROM {SNAPSHOT | --volume VOLUME}",
		Short: "List what may differ between two snapshots of a family, or a snapshot and a volume",
		Long: "List what may differ between two snapshots of a family, or a snapshot and a volume as it is now: blocks of 4 KiB that were written or\n" +
			"discarded on the way from one to the other, and what lies beyond the end of the smaller one. All else is the same in both.",
		Example: "  rowanctl snapshot diff monday tuesday -o json\n  rowanctl snapshot diff tuesday --volume db",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("volume") {
				return names("FROM")(cmd, args)
			}
			return names("FROM", "SNAPSHOT")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.From, spec.Snapshot = args[0], firstOf(args[1:])
			return a.printRanges(cmd, *pool, spec)
		},
	}
	cmd.Flags().StringVar(&spec.Volume, "volume", "", "compare with this volume as it is now")
	return cmd
}

func (a *app) snapshotAllocated(pool *string) *cobra.Command {
	var spec engine.DiffSpec
	cmd := &cobra.Command{
		Use:     "allocated {SNAPSHOT | --volume VOLUME}",
		Short:   "List the ranges that a snapshot, or a volume as it is now, has data in; all others are zeroes",
		Example: "  rowanctl snapshot allocated monday -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("volume") {
				return names()(cmd, args)
			}
			return names("SNAPSHOT")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Snapshot = firstOf(args)
			return a.printRanges(cmd, *pool, spec)
		},
	}
	cmd.Flags().StringVar(&spec.Volume, "volume", "", "list this volume's as it is now")
	return cmd
}

func (a *app) printRanges(cmd *cobra.Command, pool string, spec engine.DiffSpec) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		v := rangesView{Pool: pool, From: spec.From, Snapshot: spec.Snapshot, Volume: spec.Volume, Ranges: []rangeView{}}
		err := s.wait("listing ranges of "+spec.Snapshot+spec.Volume, func() error {
			for {
				page, err := s.Diff(ctx, pool, spec)
				if err != nil {
					return err
				}
				v.Size = page.Size
				for _, r := range page.Ranges {
					v.Ranges = append(v.Ranges, rangeView(r))
					v.Bytes += r.Length
				}
				if spec.Start = page.Next; page.Next == 0 {
					return nil
				}
			}
		})
		if err != nil {
			return err
		}
		return a.print(v)
	})
}

type rangesView struct {
	Pool     string      `json:"pool"`
	From     string      `json:"from,omitempty"`
	Snapshot string      `json:"snapshot,omitempty"`
	Volume   string      `json:"volume,omitempty"`
	Size     int64       `json:"size"`
	Bytes    int64       `json:"bytes"` // of all ranges
	Ranges   []rangeView `json:"ranges"`
}

type rangeView struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (r rangesView) table(w io.Writer) error {
	var rows [][]string
	for _, x := range r.Ranges {
		rows = append(rows, []string{strconv.FormatInt(x.Offset, 10), strconv.FormatInt(x.Length, 10)})
	}
	if err := writeRows(w, []string{">OFFSET", ">LENGTH"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d ranges, %s of %s\n", len(r.Ranges), bytesize.Format(r.Bytes), bytesize.Format(r.Size))
	return err
}
