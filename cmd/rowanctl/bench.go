package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine/bench"
)

// benchFlags are bench's flags.
type benchFlags struct {
	dir, ringDir, size, output, profiles string
	seconds                              float64
	rounds, depth, samples               int
	blocks                               int64
	only                                 []string
	inProcess                            bool
}

// newBenchCommand measures the engine in this process; it needs no daemon.
func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the engine on this machine, and fail where it misses a bar",
		Long: `Measure the engine on this machine beside a plain file, in a folder that is removed afterwards, and fail where a figure misses its bar.

Needs fio. Progress goes to standard error; the figures come last, a line each: name, value, bar.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return b.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.dir, "dir", ".", "where to make the folder to measure in, on XFS or ext4")
	f.StringVar(&b.ringDir, "ring-dir", "/dev/shm", "where to make the ring's folder, on a tmpfs")
	f.StringVar(&b.size, "size", "4Gi", "size of the volume and of the plain file")
	f.Float64Var(&b.seconds, "seconds", 3, "length of one measurement")
	f.IntVar(&b.rounds, "rounds", 5, "rounds, of each side in turn; medians are told")
	f.IntVar(&b.depth, "depth", 32, "requests under way")
	f.StringSliceVar(&b.only, "only", bench.Parts, "parts to run")
	f.IntVar(&b.samples, "samples", 200, "snapshots and restores timed for each case of the latency part")
	f.Int64Var(&b.blocks, "blocks", 4_000_000, "4 KiB blocks that the memory part writes")
	f.StringVarP(&b.output, "output", "o", "text", "text or json")
	f.StringVar(&b.profiles, "profiles", "", "folder to write CPU profiles of the engine to")
	f.BoolVar(&b.inProcess, "in-process", false, "run the memory part in this process")
	_ = f.MarkHidden("in-process")
	return cmd
}

func (b *benchFlags) run(ctx context.Context, out, progress io.Writer) error {
	size, err := bytesize.Parse(b.size)
	if err != nil {
		return fmt.Errorf("--size: %w", err)
	}
	if b.output != "text" && b.output != "json" {
		return fmt.Errorf("--output %q: want text or json", b.output)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// As the daemon has it: a goroutine in a blocking read keeps its processor for a while.
		runtime.GOMAXPROCS(max(32, runtime.NumCPU()))
	}
	if err := raisePriority(); err != nil {
		fmt.Fprintf(progress, "other programs on this machine will show in the figures: %v\n", err)
	}
	started := time.Now()
	report, err := bench.Run(ctx, bench.Config{
		Dir: b.dir, RingDir: b.ringDir, Size: size, Round: time.Duration(b.seconds * float64(time.Second)), Rounds: b.rounds, Depth: b.depth, Parts: b.only,
		Samples: b.samples, Blocks: b.blocks, Profiles: b.profiles,
		Progress: func(format string, args ...any) {
			fmt.Fprintf(progress, "%6.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
		},
	})
	if b.output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return joinBench(err, e.Encode(report), report)
	}
	return joinBench(err, report.Print(out), report)
}

// joinBench makes the command's outcome: what went wrong, or else the bars that were missed.
func joinBench(runErr, printErr error, report *bench.Report) error {
	if err := errors.Join(runErr, printErr); err != nil {
		return err
	}
	var names []string
	for _, f := range report.Missed() {
		names = append(names, f.Name)
	}
	if len(names) > 0 {
		return fmt.Errorf("bars missed: %s", strings.Join(names, ", "))
	}
	return nil
}

// raisePriority puts this process and the fio it runs above whatever else the machine does. Among equals, 32 threads of the engine would get more of a busy
// processor than the one of fio, and the comparison would flatter the engine.
func raisePriority() error {
	// Linux keeps the priority with each thread, and hands it on to those a thread makes: the second pass finds threads made during the first.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return fmt.Errorf("list threads: %w", err)
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, -20); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("raise the priority of this process (needs CAP_SYS_NICE): %w", err)
			}
		}
	}
	return nil
}
