package bench

import (
	"context"
	"errors"
	"fmt"
)

// busyElsewhere names the figure of what others did to the machine meanwhile.
const busyElsewhere = "processors-busy-elsewhere"

// Run measures. With an error the report holds what was measured before it.
func Run(ctx context.Context, c Config) (r *Report, err error) {
	r = &Report{}
	if err := c.check(); err != nil {
		return r, err
	}
	r.Machine = Machine()
	r.Method = fmt.Sprintf("medians of %d rounds of %v, in turn: "+
		"fio (io_uring, direct) on a plain file, and the engine's block device in this process; %d MiB each", c.Rounds, c.Round, c.Size>>20)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	g, err := newGround(&c, end)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	run := &runner{Config: &c, ground: g, report: r}
	usage := readUsage()
	for _, part := range []struct {
		run   func(context.Context) error
		names []string
	}{
		{run.throughput, []string{PartReads, PartWrites, PartFirst}},
		{run.latency, []string{PartLatency}},
		{run.amplification, []string{PartAmplification}},
		{run.memory, []string{PartMemory}},
		{run.modes, []string{PartModes}},
		{run.space, []string{PartSpace}},
		{run.fold, []string{PartFold}},
	} {
		for _, name := range part.names {
			if !c.has(name) {
				continue
			}
			if err := errors.Join(part.run(ctx), context.Cause(ctx)); err != nil {
				return r, fmt.Errorf("measure %s: %w", name, err)
			}
			break
		}
	}
	r.add(Figure{Name: busyElsewhere, Value: usage.elsewhere(readUsage()) * 100, Unit: "%"})
	return r, nil
}

// runner is one run.
type runner struct {
	*Config
	ground *ground
	report *Report
}
