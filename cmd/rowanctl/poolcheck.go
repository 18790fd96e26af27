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
	var dir string
	cmd := &cobra.Command{
		Use:   "check [NAME | --dir FOLDER]",
		Short: "Verify a pool's metadata while it is in use; exits with 1 if it is damaged",
		Long: "Verify a pool's metadata, and exit with 1 if it is damaged: of a pool that is open through the engine, while it is in use; with --dir\n" +
			"of one that no engine has open, by its folder, without an engine. Either way nothing is changed.",
		Example: "  rowanctl pool check fast\n  rowanctl pool check --dir /var/lib/rowan/fast",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("dir") {
				return names()(cmd, args)
			}
			return cobra.MaximumNArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("dir") {
				return a.checkOffline(cmd, dir)
			}
			return a.inPool(cmd, firstOf(args), func(ctx context.Context, s *session, pool string) error {
				var r engine.CheckReport
				err := s.wait("checking pool "+pool, func() (err error) {
					r, err = s.Check(ctx, pool)
					return err
				})
				if err != nil {
					return err
				}
				return a.reportCheck(viewCheck(pool, r))
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "check the pool in this folder, which no engine may have open")
	return cmd
}

// checkOffline needs no engine, and refuses to be in one's way.
func (a *app) checkOffline(cmd *cobra.Command, dir string) error {
	if err := absolute(&dir); err != nil {
		return err
	}
	var r engine.OfflineReport
	err := (&session{app: a}).wait("checking "+dir, func() (err error) {
		r, err = engine.CheckOffline(cmd.Context(), dir, engine.Options{})
		return err
	})
	if err != nil {
		return err
	}
	v := viewCheck(r.Pool, r.CheckReport)
	v.Clean = &r.Clean
	return a.reportCheck(v)
}

// reportCheck prints what was found; problems are an error.
func (a *app) reportCheck(v checkView) error {
	if err := a.print(v); err != nil {
		return err
	}
	if n := len(v.Problems); n > 0 {
		return fmt.Errorf("check pool %q: %w: %d problems", v.Pool, engine.ErrCorrupt, n)
	}
	return nil
}

type checkView struct {
	Pool     string   `json:"pool"`
	Problems []string `json:"problems"`
	Volumes  int      `json:"volumes"`
	Layers   int      `json:"layers"`
	Runs     int64    `json:"runs"`
	Blocks   int64    `json:"blocks"`
	Hidden   int64    `json:"hidden"`
	Sums     int64    `json:"checksums"`

	Clean *bool `json:"closedInOrder,omitempty"` // with --dir
}

func viewCheck(pool string, r engine.CheckReport) checkView {
	return checkView{
		Pool: pool, Problems: append([]string{}, r.Problems...), Volumes: r.Volumes, Layers: r.Layers, Runs: r.Runs, Blocks: r.Blocks, Hidden: r.Hidden,
		Sums: r.Checksums,
	}
}

func (c checkView) table(w io.Writer) error {
	for _, p := range c.Problems {
		if _, err := fmt.Fprintln(w, "problem: "+p); err != nil {
			return err
		}
	}
	closed := ""
	if c.Clean != nil {
		closed = "yes"
		if !*c.Clean {
			closed = "no: what was written since the last commit may be in the engine's ring alone, and was not looked at"
		}
	}
	return writeFields(w,
		field{"Problems", strconv.Itoa(len(c.Problems))}, field{"Volumes", strconv.Itoa(c.Volumes)}, field{"Layers", strconv.Itoa(c.Layers)},
		field{"Runs", strconv.FormatInt(c.Runs, 10)}, field{"Blocks in use", strconv.FormatInt(c.Blocks, 10)},
		field{"Blocks to be freed", strconv.FormatInt(c.Hidden, 10)}, field{"Blocks with checksums", strconv.FormatInt(c.Sums, 10)},
		field{"Closed in order", closed})
}
