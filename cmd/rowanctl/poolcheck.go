package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/engine"
)

func (a *app) poolCheck() *cobra.Command {
	var dir string
	var offline offlineCheck
	cmd := &cobra.Command{
		Use:   "check [NAME | --dir FOLDER]",
		Short: "Verify a pool's metadata while it is in use; exits with 1 if it is damaged",
		Long: "Verify a pool's metadata, and exit with 1 if it is damaged: of a pool that is open through the engine, while it is in use; with --dir\n" +
			"of one that no engine has open, by its folder, without an engine. Nothing is changed but with --repair, which writes anew what the rest\n" +
			"of the metadata tells: bitmaps, counts, the index of touched pages, background work, checksums that belong to nothing. Two owners of one\n" +
			"block are named with what they show, and left.",
		Example: "  rowanctl pool check fast\n  rowanctl pool check --dir /var/lib/rowan/fast --repair",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("dir") {
				return names()(cmd, args)
			}
			if offline.repair || cmd.Flags().Changed("wait") {
				return usagef("--repair and --wait are for a pool that no engine has open: say where it is with --dir")
			}
			return cobra.MaximumNArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("dir") {
				return a.checkOffline(cmd, dir, offline)
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
	cmd.Flags().BoolVar(&offline.repair, "repair", false, "with --dir: write anew what can be derived")
	cmd.Flags().DurationVar(&offline.wait, "wait", 0, "with --dir: how long to wait for an engine that has the pool to end")
	return cmd
}

type offlineCheck struct {
	repair bool
	wait   time.Duration
}

// checkOffline needs no engine, and refuses to be in one's way.
func (a *app) checkOffline(cmd *cobra.Command, dir string, c offlineCheck) error {
	if err := absolute(&dir); err != nil {
		return err
	}
	o, check := engine.Options{LockWait: c.wait}, engine.CheckOffline
	if c.wait <= 0 {
		o.LockWait = -1
	}
	if c.repair {
		check = engine.RepairOffline
	}
	var r engine.OfflineReport
	err := (&session{app: a}).wait("checking "+dir, func() (err error) {
		r, err = check(cmd.Context(), dir, o)
		return err
	})
	if err != nil {
		return err
	}
	v := viewCheck(r.Pool, r.CheckReport)
	v.Clean = &r.Clean
	if c.repair {
		v.Repaired, v.Found = &r.Repaired, r.Found
	}
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

	// With --repair: records written anew or removed, and the problems before; Problems are those it has left.
	Repaired *int     `json:"repaired,omitempty"`
	Found    []string `json:"found,omitempty"`
}

func viewCheck(pool string, r engine.CheckReport) checkView {
	return checkView{
		Pool: pool, Problems: append([]string{}, r.Problems...), Volumes: r.Volumes, Layers: r.Layers, Runs: r.Runs, Blocks: r.Blocks, Hidden: r.Hidden,
		Sums: r.Checksums,
	}
}

func (c checkView) table(w io.Writer) error {
	for _, p := range c.Found {
		if _, err := fmt.Fprintln(w, "found: "+p); err != nil {
			return err
		}
	}
	for _, p := range c.Problems {
		if _, err := fmt.Fprintln(w, "problem: "+p); err != nil {
			return err
		}
	}
	closed := ""
	if c.Clean != nil {
		closed = "yes"
		if !*c.Clean {
			closed = "no: what was written since the last commit may be in the engine's ring or the flush log alone, and was not looked at"
		}
	}
	repaired := ""
	if c.Repaired != nil {
		repaired = fmt.Sprintf("%d records", *c.Repaired)
	}
	return writeFields(w,
		field{"Repaired", repaired}, field{"Problems", strconv.Itoa(len(c.Problems))}, field{"Volumes", strconv.Itoa(c.Volumes)}, field{"Layers", strconv.Itoa(c.Layers)},
		field{"Runs", strconv.FormatInt(c.Runs, 10)}, field{"Blocks in use", strconv.FormatInt(c.Blocks, 10)},
		field{"Blocks to be freed", strconv.FormatInt(c.Hidden, 10)}, field{"Blocks with checksums", strconv.FormatInt(c.Sums, 10)},
		field{"Closed in order", closed})
}
