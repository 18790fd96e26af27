// Command demo shows Rowan at work on this machine, through its CSI socket: a volume is filled with files, a snapshot taken, the files wrecked; the
// snapshot is restored to a second volume, the first one rolled back in place, and everything deleted. Files are compared by their hashes at every step.
//
// It needs root, works in a temporary folder ($TMPDIR, else /var/tmp), and leaves nothing behind, whatever happens; what it cannot take away it names.
// The last lines are `name value (bar …)`. It exits with 1 if a file differs, a byte of the pool stays in use, or something is left; seconds are told and
// not judged, because disks differ.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rowan-csi/rowan/hack/stack"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of rowan-engine, rowan-driver and rowanctl")
	flag.StringVar(&o.files, "files", "", "folder whose files are copied into the volume (default: Go's own sources)")
	flag.Int64Var(&o.limit, "limit", 160, "MiB of files to copy at most")
	flag.Parse()
	o.temp = os.Getenv("TMPDIR")
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, files, temp string
	limit            int64 // MiB
}

// poolSize is half of what the two volumes of 10 GiB promise: what a pool takes. Only what is written takes space on the disk.
const poolSize = 10 << 30

func run(o options) (err error) {
	// Signals do not end the process before it has cleaned up.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	if err := stack.Check(); err != nil {
		return fmt.Errorf("%w (sudo make demo)", err)
	}
	if o.files == "" {
		root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("find Go's sources (or give a folder with -files): %w", err)
		}
		o.files = filepath.Join(strings.TrimSpace(string(root)), "src")
	}
	d := newDemo(o)
	d.began("start", "a pool of 10 GiB in a file, rowan-engine, rowan-driver")
	s, err := stack.Start(ctx, stack.Config{Bin: bin, Name: "demo", Size: poolSize, Driver: true, Temp: o.temp})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	d.done("in %s", s.Dir)
	if err = d.play(ctx, s, filepath.Join(bin, "rowanctl")); err != nil {
		d.failed()
	}
	d.began("stop", "driver, engine; unmount, remove files")
	closing := s.Close()
	d.done("")
	switch {
	case ctx.Err() != nil:
		return errors.Join(errors.New("interrupted"), closing)
	case err != nil:
		return errors.Join(err, closing)
	}
	d.report(!errors.Is(closing, stack.ErrLeft))
	if closing != nil {
		return closing
	}
	return d.verdict()
}
