package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

// printRanges prints ranges as they come: there may be millions.
func (a *app) printRanges(cmd *cobra.Command, pool string, spec engine.DiffSpec) error {
	return a.inPool(cmd, pool, func(ctx context.Context, s *session, pool string) error {
		w := a.rangesWriter(pool, spec)
		for {
			var page engine.DiffPage
			err := s.wait("listing ranges of "+spec.Snapshot+spec.Volume, func() (err error) {
				page, err = s.Diff(ctx, pool, spec)
				return err
			})
			if err != nil {
				return err
			}
			if err := w.page(page); err != nil {
				return err
			}
			if spec.Start = page.Next; page.Next == 0 {
				return w.end()
			}
		}
	})
}

// rangesWriter prints pages of ranges: for people a table, whose width the volume's size tells, for programs one JSON object.
type rangesWriter struct {
	out    *bufio.Writer
	json   bool
	head   rangesHead
	width  int
	begun  bool
	n, sum int64
}

// rangesHead is how the object begins; "ranges" and "bytes", which is of all ranges, follow.
type rangesHead struct {
	Pool     string `json:"pool"`
	From     string `json:"from,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Volume   string `json:"volume,omitempty"`
	Size     int64  `json:"size"`
}

type rangeView struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (a *app) rangesWriter(pool string, spec engine.DiffSpec) *rangesWriter {
	return &rangesWriter{
		out: bufio.NewWriter(a.out), json: a.output == "json",
		head: rangesHead{Pool: pool, From: spec.From, Snapshot: spec.Snapshot, Volume: spec.Volume},
	}
}

func (w *rangesWriter) page(p engine.DiffPage) error {
	if !w.begun {
		w.head.Size = p.Size
		if err := w.begin(); err != nil {
			return err
		}
	}
	for _, r := range p.Ranges {
		switch {
		case !w.json:
			fmt.Fprintf(w.out, "%*d  %*d\n", w.width, r.Offset, w.width, r.Length)
		default:
			data, err := json.MarshalIndent(rangeView(r), "    ", "  ")
			if err != nil {
				return fmt.Errorf("print as json: %w", err)
			}
			separator := ",\n    "
			if w.n == 0 {
				separator = "\n    "
			}
			fmt.Fprintf(w.out, "%s%s", separator, data)
		}
		w.n++
		w.sum += r.Length
	}
	return w.out.Flush() // which tells of errors before, too
}

func (w *rangesWriter) begin() error {
	w.begun = true
	if !w.json {
		w.width = max(len(strconv.FormatInt(w.head.Size, 10)), len("OFFSET"))
		fmt.Fprintf(w.out, "%*s  %*s\n", w.width, "OFFSET", w.width, "LENGTH")
		return nil
	}
	data, err := json.MarshalIndent(w.head, "", "  ")
	if err != nil {
		return fmt.Errorf("print as json: %w", err)
	}
	fmt.Fprintf(w.out, "%s,\n  \"ranges\": [", bytes.TrimSuffix(data, []byte("\n}")))
	return nil
}

func (w *rangesWriter) end() error {
	switch {
	case !w.json:
		fmt.Fprintf(w.out, "%d ranges, %s of %s\n", w.n, bytesize.Format(w.sum), bytesize.Format(w.head.Size))
	case w.n == 0:
		fmt.Fprintf(w.out, "],\n  \"bytes\": 0\n}\n")
	default:
		fmt.Fprintf(w.out, "\n  ],\n  \"bytes\": %d\n}\n", w.sum)
	}
	return w.out.Flush()
}
