package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type testKey struct{ pkg, test string }

// report prints failures and package results as they come and collects the skips.
type report struct {
	out            io.Writer
	pending        map[testKey]*strings.Builder // output of tests that have not ended
	order          []testKey                    // the keys of pending, oldest first
	passed, failed int
	broken         map[string]bool     // packages with a failed test
	skips          map[string][]string // reason -> tests
}

func newReport(out io.Writer) *report {
	return &report{out: out, pending: map[testKey]*strings.Builder{}, broken: map[string]bool{}, skips: map[string][]string{}}
}

func (r *report) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		fmt.Fprintf(r.out, "%s", line) // not an event: something that go itself printed
		return
	}
	if e.Test == "" {
		r.packageEvent(e)
		return
	}
	key := testKey{e.Package, e.Test}
	switch e.Action {
	case "output":
		b := r.pending[key]
		if b == nil {
			b = &strings.Builder{}
			r.pending[key] = b
			r.order = append(r.order, key)
		}
		b.WriteString(e.Output)
	case "pass":
		r.take(key)
		r.passed++
	case "fail":
		fmt.Fprint(r.out, r.take(key))
		r.failed++
		r.broken[e.Package] = true
	case "skip":
		reason := skipReason(r.take(key))
		r.skips[reason] = append(r.skips[reason], strings.TrimPrefix(e.Package, "github.com/rowan-csi/rowan/")+"."+e.Test)
	}
}

func (r *report) packageEvent(e event) {
	switch e.Action {
	case "output", "build-output":
		if e.Output != "PASS\n" && !strings.HasPrefix(e.Output, "testing: warning: no tests to run") {
			fmt.Fprint(r.out, e.Output)
		}
	case "fail":
		// A panic or a timeout ends the process: its tests have no result of their own, and their output says what happened.
		r.flush(func(k testKey) bool { return k.pkg == e.Package })
		if !r.broken[e.Package] {
			r.failed++ // it did not build, or died outside a test
		}
	}
}

// take removes and gives the output of a test that has ended.
func (r *report) take(key testKey) string {
	b := r.pending[key]
	if b == nil {
		return ""
	}
	delete(r.pending, key)
	for i, k := range r.order {
		if k == key {
			r.order = append(r.order[:i], r.order[i+1:]...)
			break
		}
	}
	return b.String()
}

func (r *report) flush(which func(testKey) bool) {
	for _, k := range append([]testKey(nil), r.order...) {
		if which(k) {
			fmt.Fprint(r.out, r.take(k))
		}
	}
}

// close prints what is left, what was left out and the count.
func (r *report) close() {
	r.flush(func(testKey) bool { return true })
	skipped := 0
	reasons := make([]string, 0, len(r.skips))
	for reason, tests := range r.skips {
		skipped += len(tests)
		reasons = append(reasons, reason)
	}
	sort.Strings(reasons)
	if skipped > 0 {
		fmt.Fprintf(r.out, "\nLeft out:\n")
		for _, reason := range reasons {
			fmt.Fprintf(r.out, "  %s\n", reason)
			for _, test := range r.skips[reason] {
				fmt.Fprintf(r.out, "      %s\n", test)
			}
		}
		fmt.Fprintln(r.out)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, skipped)
}

// skipReason finds the text of t.Skip in a test's output: the last line that starts with "file.go:123: ".
func skipReason(output string) string {
	reason := "no reason given"
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if i := strings.Index(line, ".go:"); i >= 0 {
			if _, text, ok := strings.Cut(line[i+4:], ": "); ok {
				reason = text
			}
		}
	}
	return reason
}
