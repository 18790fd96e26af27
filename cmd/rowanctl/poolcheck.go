package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) poolCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check [NAME]",
		Short: "Verify a pool's metadata while it is in use; exits with 1 if it is damaged",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, firstOf(args), func(ctx context.Context, s *session, pool string) error {
				var r engine.CheckReport
				err := s.wait("checking pool "+pool, func() (err error) {
					r, err = s.Check(ctx, pool)
					return err
				})
				if err != nil {
					return err
				}
				v := checkView{
					Pool: pool, Problems: append([]string{}, r.Problems...), Volumes: r.Volumes, Layers: r.Layers, Runs: r.Runs, Blocks: r.Blocks,
					Hidden: r.Hidden,
				}
				if err := a.print(v); err != nil {
					return err
				}
				if n := len(r.Problems); n > 0 {
					return fmt.Errorf("check pool %q: %w: %d problems", pool, engine.ErrCorrupt, n)
				}
				return nil
			})
		},
	}
}

type checkView struct {
	Pool     string   `json:"pool"`
	Problems []string `json:"problems"`
	Volumes  int      `json:"volumes"`
	Layers   int      `json:"layers"`
	Runs     int64    `json:"runs"`
	Blocks   int64    `json:"blocks"`
	Hidden   int64    `json:"hidden"`
}

func (c checkView) table(w io.Writer) error {
	for _, p := range c.Problems {
		if _, err := fmt.Fprintln(w, "problem: "+p); err != nil {
			return err
		}
	}
	return writeFields(w,
		field{"Problems", strconv.Itoa(len(c.Problems))}, field{"Volumes", strconv.Itoa(c.Volumes)}, field{"Layers", strconv.Itoa(c.Layers)},
		field{"Runs", strconv.FormatInt(c.Runs, 10)}, field{"Blocks in use", strconv.FormatInt(c.Blocks, 10)},
		field{"Blocks to be freed", strconv.FormatInt(c.Hidden, 10)})
}
