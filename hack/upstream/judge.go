package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// verdict is what the outcomes come to.
type verdict struct {
	passed, failed, flaky, notRun, skips, leftOut int
	badSkips                                      []outcome // skipped for a reason that is not on the list
	unused                                        rules     // on the list for nothing; judged when whole
	whole                                         bool      // every spec of the suite was run or left out
	least                                         int       // passes recorded; judged when whole
}

// judge looks at the outcomes of names, which are a shard's or all.
func judge(p plan, names []string, results map[string]history, list rules, least int) verdict {
	v := verdict{leftOut: p.leftOut, least: least, whole: len(names)+p.leftOut == len(p.all)}
	for _, name := range names {
		h, ran := results[name]
		switch {
		case !ran || h.last.State == interruptedState:
			v.notRun++
		case h.last.State == skippedState:
			v.skips++
			if list.find(skipped, h.last.Reason) == nil {
				v.badSkips = append(v.badSkips, h.last)
			}
		case h.last.failed():
			v.failed++
		case h.failed > 0:
			v.flaky++
			v.passed++
		default:
			v.passed++
		}
	}
	if v.whole {
		v.unused = list.unused()
	}
	return v
}

// missed says whether a bar was missed.
func (v verdict) missed() bool {
	return v.failed+v.flaky+v.notRun+len(v.badSkips)+len(v.unused) > 0 || v.whole && v.passed < v.least
}

// print tells what there is to look at, then the figures.
func (v verdict) print(out io.Writer, results map[string]history, names []string) {
	for _, name := range names {
		h, ran := results[name]
		switch {
		case !ran:
			fmt.Fprintf(out, "not run: %s\n", name)
		case h.last.State == interruptedState:
			fmt.Fprintf(out, "interrupted: %s\n", name)
		case h.last.failed():
			fmt.Fprintf(out, "%s: %s\n    %s\n    %s\n", h.last.State, name, firstLine(h.last.Reason), h.last.Output)
		case h.failed > 0:
			fmt.Fprintf(out, "passed only when repeated: %s\n", name)
		}
	}
	for _, o := range v.badSkips {
		fmt.Fprintf(out, "skipped, and no rule of skips.txt says that this is right: %s\n    %s\n", o.Name, firstLine(o.Reason))
	}
	for _, r := range v.unused {
		fmt.Fprintf(out, "skips.txt, line %d, applies to nothing: remove it (%s)\n", r.line, r.pattern)
	}
	if v.whole {
		fmt.Fprintf(out, "upstream_passed %d (bar %d)\n", v.passed, v.least)
	} else {
		fmt.Fprintf(out, "upstream_passed %d (of a part; the bar %d is for all)\n", v.passed, v.least)
	}
	fmt.Fprintf(out, "upstream_failed %d (bar 0)\n", v.failed)
	fmt.Fprintf(out, "upstream_flaky %d (bar 0)\n", v.flaky)
	fmt.Fprintf(out, "upstream_not_run %d (bar 0)\n", v.notRun)
	fmt.Fprintf(out, "upstream_skips_not_listed %d (bar 0)\n", len(v.badSkips))
	fmt.Fprintf(out, "upstream_rules_unused %d (bar 0)\n", len(v.unused))
	fmt.Fprintf(out, "upstream_skipped %d (each by a rule)\n", v.skips-len(v.badSkips))
	fmt.Fprintf(out, "upstream_left_out %d (each by a rule)\n", v.leftOut)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

// readPasses reads passes.txt: comments, and one number.
func readPasses(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read the recorded passes: %w", err)
	}
	lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool { return l == "" || strings.HasPrefix(l, "#") })
	if len(lines) != 1 {
		return 0, fmt.Errorf("%s has %d lines that are no comments; one number was expected", file, len(lines))
	}
	n, err := strconv.Atoi(lines[0])
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: %q is no number of passes", file, lines[0])
	}
	return n, nil
}

// recordPasses writes a new number below the file's comments.
func recordPasses(file string, n int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("record passes: %w", err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			kept.WriteString(line)
		}
	}
	fmt.Fprintln(&kept, n)
	if err := os.WriteFile(file, []byte(kept.String()), 0o644); err != nil {
		return fmt.Errorf("record passes: %w", err)
	}
	return nil
}
