package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/pkg/bytesize"
)

// demo is one performance.
type demo struct {
	options
	start, step time.Time
	what        string

	differ   int                      // files that were not what they should be
	compared int                      // files looked at
	unfreed  int64                    // bytes of the pool
	took     map[string]time.Duration // of the steps that a figure is printed of
}

func newDemo(o options) *demo {
	return &demo{options: o, start: time.Now(), took: map[string]time.Duration{}}
}

// began names a step, done says how long it took and what came of it.
func (d *demo) began(what, how string, args ...any) {
	d.what, d.step = what, time.Now()
	fmt.Printf("%-15s %-64s ", what, fmt.Sprintf(how, args...))
}

func (d *demo) done(result string, args ...any) time.Duration {
	took := time.Since(d.step)
	fmt.Println(strings.TrimRight(fmt.Sprintf("%8s  %s", short(took), fmt.Sprintf(result, args...)), " "))
	return took
}

// failed ends the line of a step that did not come to its end.
func (d *demo) failed() { fmt.Printf("%8s\n", "failed") }

func short(t time.Duration) string {
	if t < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(t)/1e6)
	}
	return fmt.Sprintf("%.2f s", t.Seconds())
}

func size(n int64) string {
	if n < 10<<20 {
		return bytesize.Format(n)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// report prints the figures.
func (d *demo) report(clean bool) {
	fmt.Println()
	for _, name := range []string{"snapshot", "restore", "rollback", "delete"} {
		if t, ok := d.took[name]; ok {
			fmt.Printf("%s_seconds %.3f (bar 1)\n", name, t.Seconds())
		}
	}
	left := 0
	if !clean {
		left = 1
	}
	fmt.Printf("demo_seconds %.1f (bar 60)\n", time.Since(d.start).Seconds())
	fmt.Printf("files_compared %d (bar over 0)\n", d.compared)
	fmt.Printf("files_that_differ %d (bar 0)\n", d.differ)
	fmt.Printf("pool_bytes_not_freed %d (bar 0)\n", d.unfreed)
	fmt.Printf("left_behind %d (bar 0)\n", left)
}

// verdict is the error that the figures mean.
func (d *demo) verdict() error {
	switch {
	case d.differ > 0:
		return fmt.Errorf("%d files differ from what they should be", d.differ)
	case d.unfreed != 0:
		return fmt.Errorf("%d bytes of the pool stay in use after everything was deleted", d.unfreed)
	case d.compared == 0:
		return errors.New("no file was compared")
	}
	return nil
}
