package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine/bench"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// What rowan-engine sets up for itself: figures of memory are of an engine as it runs.
const (
	engineProcs       = 32
	engineMemoryLimit = 1 << 30
	engineGCPercent   = 400
)

// benchFlags are bench's flags.
type benchFlags struct {
	out, err                     io.Writer
	output                       string // the root's flag
	dir, ringDir, size, profiles string
	ioUring                      string
	seconds                      float64
	rounds, depth, samples       int
	blocks, foldBlocks           int64
	only                         []string
	inProcess, report            bool
}

// newBenchCommand measures the engine in this process; it needs no daemon.
func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the engine on this machine, and fail where it misses a bar",
		Long: `Measure the engine on this machine, in this process, beside fio on a plain file. Fail where a figure misses its bar.

It needs fio and 30 GiB of space, and takes about eight minutes. Progress goes to standard error. The figures come last, a line each: name, value, bar.
What it makes is removed when it ends.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.report {
				b.only = []string{bench.PartModes}
			}
			b.out, b.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if b.output, err = cmd.Flags().GetString("output"); err != nil {
				return err
			}
			return b.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.dir, "dir", ".", "where to make the folder to measure in, on XFS or ext4")
	f.StringVar(&b.ringDir, "ring-dir", "/dev/shm", "where to make the ring's folder, on a tmpfs")
	f.StringVar(&b.size, "size", "4Gi", "size of the volume and of the plain file")
	f.Float64Var(&b.seconds, "seconds", 2, "length of one measurement")
	f.IntVar(&b.rounds, "rounds", 5, "rounds, of each side in turn; medians are told")
	f.IntVar(&b.depth, "depth", 32, "requests under way; depth 1 is measured as well")
	f.StringSliceVar(&b.only, "only", bench.DefaultParts, "parts to run: of "+strings.Join(bench.Parts, ", "))
	f.IntVar(&b.samples, "samples", 100, "snapshots and restores timed for each case of the latency part")
	f.Int64Var(&b.blocks, "blocks", 4_000_000, "4 KiB blocks that the memory part writes")
	f.Int64Var(&b.foldBlocks, "fold-blocks", 10_000_000, "4 KiB blocks that the volume of the fold part maps")
	f.StringVar(&b.ioUring, "io-uring", uring.Auto.String(), "read and write data through io_uring: auto (while processors are short), always or never")
	f.StringVar(&b.profiles, "profiles", "", "folder for CPU profiles of the engine's rounds")
	f.BoolVar(&b.report, "report", false, "measure copy-on-write against redirect-on-write only: the part modes")
	f.BoolVar(&b.inProcess, "in-process", false, "")
	if err := f.MarkHidden("in-process"); err != nil {
		panic(err) // the flag is made above
	}
	return cmd
}

func (b *benchFlags) run(ctx context.Context) error {
	size, err := bytesize.Parse(b.size)
	if err != nil {
		return usagef("--size: %v", err)
	}
	mode, err := uring.ParseMode(b.ioUring)
	if err != nil {
		return usagef("--io-uring: %v", err)
	}
	// The root lets a second signal end the process at once; timeout(1) and impatient people send two, and what the run made would stay.
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	b.setUpProcess()
	started := time.Now()
	c := bench.Config{
		Dir: b.dir, RingDir: b.ringDir, Size: size, Round: time.Duration(b.seconds * float64(time.Second)), Rounds: b.rounds, Depth: b.depth, Parts: b.only,
		Samples: b.samples, Blocks: b.blocks, FoldBlocks: b.foldBlocks, IO: mode, Profiles: b.profiles,
		Progress: func(format string, args ...any) {
			fmt.Fprintf(b.err, "%7.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
		},
	}
	if !b.inProcess {
		c.Memory = b.memoryCommand
	}
	report, err := bench.Run(ctx, c)
	if errors.Is(err, bench.ErrConfig) {
		return usageError{err}
	}
	if err = errors.Join(err, b.print(report)); err != nil {
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

func (b *benchFlags) print(report *bench.Report) error {
	if b.output != "json" {
		return report.Print(b.out)
	}
	e := json.NewEncoder(b.out)
	e.SetIndent("", "  ")
	return e.Encode(report)
}

// memoryCommand is this program again, for the memory part alone.
func (b *benchFlags) memoryCommand(ctx context.Context, dir, ringDir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "bench", "--in-process", "--only", bench.PartMemory, "--output", "json", "--dir", dir,
		"--ring-dir", ringDir, "--size", b.size, "--seconds", strconv.FormatFloat(b.seconds, 'f', -1, 64), "--rounds", strconv.Itoa(b.rounds),
		"--depth", strconv.Itoa(b.depth), "--blocks", strconv.FormatInt(b.blocks, 10),
		"--io-uring", b.ioUring)
	cmd.Stderr = b.err
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second // it closes its pool
	return cmd
}

// setUpProcess makes this process what rowan-engine is, and puts it above others.
func (b *benchFlags) setUpProcess() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(engineProcs, runtime.NumCPU()))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(engineGCPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(engineMemoryLimit)
	}
	if err := raisePriority(); err != nil {
		fmt.Fprintf(b.err, "other programs on this machine will show in the figures: %v\n", err)
	}
}

// benchNice is above other programs (0), and below what the engine gives its committer's threads.
const benchNice = -5

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
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, benchNice); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("raise the priority of this process (needs CAP_SYS_NICE): %w", err)
			}
		}
	}
	return nil
}
