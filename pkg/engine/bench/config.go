package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// The parts of a run, in the order they run.
const (
	PartReads         = "reads"
	PartWrites        = "writes"
	PartFirst         = "first"
	PartLatency       = "latency"
	PartAmplification = "amplification"
	PartMemory        = "memory"
	PartModes         = "modes" // COW against ROW: what rowanctl bench --report prints
	PartSpace         = "space"
	PartFold          = "fold"
)

// Parts are all of them.
var Parts = []string{PartReads, PartWrites, PartFirst, PartLatency, PartAmplification, PartMemory, PartModes, PartSpace, PartFold}

// ErrConfig: a setting is out of its bounds. The text says which and what is allowed.
var ErrConfig = errors.New("invalid setting")

// DefaultParts are those that need no more than 30 GiB of space.
var DefaultParts = slices.DeleteFunc(slices.Clone(Parts), func(p string) bool { return p == PartFold })

// Config says what to measure and where.
type Config struct {
	Dir     string        // where to make the run's folder; on XFS or ext4
	RingDir string        // where to make the ring's folder; on a tmpfs
	Size    int64         // bytes of the volume and the plain file of the throughput parts
	Round   time.Duration // length of one measurement
	Rounds  int
	Depth   int      // requests under way; depth 1 is measured as well
	Parts   []string // some of Parts
	Blocks  int64    // blocks the memory part maps
	// FoldBlocks is how many blocks the fold part's volume maps.
	FoldBlocks int64
	IO         uring.Mode
	Samples    int // snapshots and restores timed for each case of the latency part

	// Memory makes the command that runs the memory part in a process of its own, so that its memory is the engine's alone: it calls Run with the same
	// settings but for Dir, RingDir, Parts and this, and writes the report to its standard output as JSON. nil: run it in this process.
	Memory func(ctx context.Context, dir, ringDir string) *exec.Cmd

	Profiles string                           // a folder for CPU profiles of the engine's rounds; empty: none
	Progress func(format string, args ...any) // is told what is done now
}

func (c *Config) check() error {
	switch {
	case c.Dir == "" || c.RingDir == "":
		return fmt.Errorf("%w: a folder for the pool and one for the ring are needed", ErrConfig)
	case c.Size < 64<<20 || c.Size%(1<<20) != 0:
		return fmt.Errorf("%w: size of %d bytes: want a multiple of 1 MiB, at least 64 MiB", ErrConfig, c.Size)
	case c.Round < 100*time.Millisecond:
		return fmt.Errorf("%w: rounds of %v: want 100 ms at least", ErrConfig, c.Round)
	case c.Rounds < 1 || c.Depth < 1 || c.Depth > 1024 || c.Samples < 1 || c.Blocks < 1 || c.Blocks > teraBlocks/4:
		return fmt.Errorf("%w: %d rounds, depth %d, %d samples, %d blocks: want 1 or more of each, a depth of at most 1024 and at most %d blocks",
			ErrConfig, c.Rounds, c.Depth, c.Samples, c.Blocks, teraBlocks/4)
	}
	if c.FoldBlocks < minFoldBlocks {
		return fmt.Errorf("%w: %d blocks for the fold part: want %d or more", ErrConfig, c.FoldBlocks, minFoldBlocks)
	}
	for _, p := range c.Parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("%w: no part %q; there are %s", ErrConfig, p, strings.Join(Parts, ", "))
		}
	}
	if len(c.Parts) == 0 {
		return fmt.Errorf("%w: no part is chosen; there are %s", ErrConfig, strings.Join(Parts, ", "))
	}
	u, err := fsys.OS().Usage(c.Dir)
	if err != nil {
		return fmt.Errorf("%w: folder %s: %w", ErrConfig, c.Dir, err)
	}
	if need := c.space(); u.Available < need {
		return fmt.Errorf("%w: %s has %d GiB free and the run needs %d; choose another folder, a smaller size, fewer blocks or fewer parts",
			ErrConfig, c.Dir, u.Available/gib, need/gib)
	}
	return nil
}

// space is how many bytes the run needs at once: every part removes what it made but for the plain file.
func (c *Config) space() (bytes int64) {
	if c.has(PartReads) || c.has(PartWrites) || c.has(PartFirst) {
		bytes = max(bytes, c.Size+c.throughputPool())
	}
	if c.has(PartLatency) {
		bytes = max(bytes, c.Size+latencyPool)
	}
	if c.has(PartAmplification) {
		bytes = max(bytes, c.Size+c.amplificationPool())
	}
	if c.has(PartModes) {
		bytes = max(bytes, c.modesPool())
	}
	if c.has(PartMemory) { // in a process of its own, with a plain file of its own
		bytes = max(bytes, 2*c.Size+c.memoryPool())
	}
	if c.has(PartSpace) {
		bytes = max(bytes, c.Size+c.spacePool())
	}
	if c.has(PartFold) {
		bytes = max(bytes, c.Size+c.foldPool())
	}
	if !c.has(PartReads) && !c.has(PartWrites) && !c.has(PartFirst) && !c.has(PartMemory) {
		bytes -= c.Size // no plain file
	}
	return bytes + gib // metadata, and the pool's reserve
}

// throughputPool is the volume, what a round redirects, and that of the round before until it is freed.
func (c *Config) throughputPool() int64    { return 3*c.Size + gib }
func (c *Config) amplificationPool() int64 { return 2*c.Size + gib }
func (c *Config) memoryPool() int64        { return (c.Blocks*blockSize + 2*gib) / gib * gib }

func (c *Config) has(part string) bool { return slices.Contains(c.Parts, part) }

func (c *Config) say(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(format, args...)
	}
}
