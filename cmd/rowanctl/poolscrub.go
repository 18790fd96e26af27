package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
)

// errDamagedData is what a scrub ends with that found something.
var errDamagedData = errors.New("data of snapshots is damaged")

func (a *app) poolScrub() *cobra.Command {
	rate := sizeFlag(100 << 20)
	cmd := &cobra.Command{
		Use:   "scrub [NAME]",
		Short: "Compare all data of snapshots with their checksums; exits with 1 if some is damaged",
		Long: "Read all frozen data of a pool, what its snapshots and clones' origins hold, and compare it with the checksums that were made of it in the\n" +
			"background. The pool stays in use. Exits with 1 if something differs or cannot be read, and says whose it is and where it lies;\n" +
			"docs/damaged-data.md says what to do then. What has no checksum yet is counted and not read. Interrupted, it tells what it has found.",
		Example: "  rowanctl pool scrub fast --rate 500Mi\n  rowanctl pool scrub fast -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inPool(cmd, firstOf(args), func(ctx context.Context, s *session, pool string) error {
				return a.scrub(ctx, s, pool, int64(rate))
			})
		},
	}
	cmd.Flags().Var(&rate, "rate", "how much to read a second; 0: as fast as it goes")
	return cmd
}

func (a *app) scrub(ctx context.Context, s *session, pool string, rate int64) error {
	v := scrubView{Pool: pool, Problems: []problemView{}}
	var at atomic.Pointer[engine.ScrubReport]
	at.Store(&engine.ScrubReport{})
	err := s.waitTelling(func() string { return scrubText(pool, *at.Load()) }, func() (err error) {
		v.report, err = s.Scrub(ctx, pool, engine.ScrubSpec{
			Rate:     rate,
			Progress: func(r engine.ScrubReport) { at.Store(&r) },
			Found:    func(p engine.ScrubProblem) { v.Problems = append(v.Problems, viewProblem(p)) },
		})
		return err
	})
	v.Complete = err == nil
	v.Total, v.Verified, v.Unverified, v.Damaged, v.Found = v.report.Total, v.report.Verified, v.report.Unverified, v.report.Damaged, v.report.Problems
	if err != nil && v.report == (engine.ScrubReport{}) {
		return err
	}
	if perr := a.print(v); err == nil {
		err = perr
	}
	if len(v.Problems) > 0 {
		err = errors.Join(err, fmt.Errorf("scrub pool %q: %w: %d problems", pool, errDamagedData, max(v.Found, int64(len(v.Problems)))))
	}
	return err
}

func scrubText(pool string, r engine.ScrubReport) string {
	text := fmt.Sprintf("scrubbing pool %s: %s of %s", pool, bytesize.Format(r.Verified+r.Unverified+r.Damaged), bytesize.Format(r.Total))
	if r.Problems > 0 {
		text += fmt.Sprintf(", %d problems", r.Problems)
	}
	return text
}

type scrubView struct {
	Pool       string        `json:"pool"`
	Complete   bool          `json:"complete"`
	Total      int64         `json:"total"`
	Verified   int64         `json:"verified"`
	Unverified int64         `json:"unverified"`
	Damaged    int64         `json:"damaged"`
	Found      int64         `json:"found"`
	Problems   []problemView `json:"problems"` // the first engine.MaxScrubProblems of those found

	report engine.ScrubReport
}

type problemView struct {
	Snapshots  []snapshotRef `json:"snapshots"`
	Volumes    []string      `json:"volumes"` // that show it now
	Offset     int64         `json:"offset"`  // in the volume
	Length     int64         `json:"length"`
	Member     string        `json:"member"`
	File       string        `json:"file"`
	FileOffset int64         `json:"fileOffset"`
	Reason     string        `json:"reason"`
}

type snapshotRef struct {
	Name   string `json:"name"`
	Volume string `json:"volume"`
}

func viewProblem(p engine.ScrubProblem) problemView {
	v := problemView{
		Snapshots: []snapshotRef{}, Volumes: append([]string{}, p.Volumes...), Offset: p.Offset, Length: p.Length, Member: p.Member, File: p.File,
		FileOffset: p.FileOffset, Reason: p.Reason,
	}
	for _, s := range p.Snapshots {
		v.Snapshots = append(v.Snapshots, snapshotRef(s))
	}
	return v
}

// whose names what shows a damaged stretch.
func (p problemView) whose() string {
	var l []string
	for _, s := range p.Snapshots {
		l = append(l, fmt.Sprintf("snapshot %s of volume %s", s.Name, s.Volume))
	}
	for _, v := range p.Volumes {
		l = append(l, fmt.Sprintf("volume %s now", v))
	}
	if len(l) == 0 {
		return "no snapshot and no volume any more"
	}
	return strings.Join(l, ", ")
}

func (s scrubView) table(w io.Writer) error {
	for _, p := range s.Problems {
		_, err := fmt.Fprintf(w, "damaged: pool %s, %d bytes at %d of %s\n  %s; it lies in %s at %d, member %s\n",
			s.Pool, p.Length, p.Offset, p.whose(), p.Reason, p.File, p.FileOffset, p.Member)
		if err != nil {
			return err
		}
	}
	if more := s.Found - int64(len(s.Problems)); more > 0 {
		if _, err := fmt.Fprintf(w, "and %d more\n", more); err != nil {
			return err
		}
	}
	ended := ""
	if !s.Complete {
		ended = "early"
	}
	return writeFields(w,
		field{"Problems", strconv.FormatInt(s.Found, 10)}, field{"Verified", exact(s.Verified)}, field{"Damaged", exact(s.Damaged)},
		field{"Without checksum", exact(s.Unverified)}, field{"Frozen", exact(s.Total)}, field{"Ended", ended})
}
