package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

type cell struct{ process, flow string }

// state of a flow that has ended.
type state string

const (
	passed   state = "passed"
	failed   state = "FAILED"
	unkilled state = "passed, nothing was killed"
	outside  state = "draws no kill"
)

// flow is a top-level test of the suite that has ended, its parts with it.
type flow struct {
	name    string
	action  string // of go test: pass, fail, skip
	seconds float64
	drawn   bool
	killed  bool
	log     strings.Builder
}

func (f *flow) state() state {
	switch {
	case f.action == "fail":
		return failed
	case f.action != "pass" || !f.drawn:
		return outside
	case !f.killed:
		return unkilled
	}
	return passed
}

// read what `go test -json` prints, and tell each flow's end.
func read(r io.Reader, ended func(flow *flow) error) error {
	flows := map[string]*flow{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read go test's output: %w", err)
		}
		var e struct {
			Action, Test, Output, Key string
			Elapsed                   float64
		}
		if json.Unmarshal(line, &e) != nil || e.Test == "" {
			continue
		}
		name, _, part := strings.Cut(e.Test, "/")
		f := flows[name]
		if f == nil {
			f = &flow{name: name}
			flows[name] = f
		}
		switch e.Action {
		case "output":
			f.log.WriteString(e.Output)
		case "attr":
			f.drawn = f.drawn || e.Key == framework.AttrDrawn
			f.killed = f.killed || e.Key == framework.AttrKilled
		case "pass", "fail", "skip":
			if part {
				continue
			}
			f.action, f.seconds = e.Action, e.Elapsed
			if err := ended(f); err != nil {
				return err
			}
			delete(flows, name)
		}
	}
}

// matrix of flows and processes, with what this run has seen.
type matrix struct {
	processes, flows []string
	ran              map[cell]state // by its last time
	outside          map[string]bool
}

func newMatrix(flows, processes []string) *matrix {
	return &matrix{processes: processes, flows: flows, ran: map[cell]state{}, outside: map[string]bool{}}
}

// note what came of a flow that lost a process: here, and on disk.
func (m *matrix) note(process string, f *flow, done *results) error {
	c := cell{process, f.name}
	m.ran[c] = f.state()
	switch f.state() {
	case passed:
		return done.add(c)
	case failed:
		return done.keepLog(c, f.log.String())
	case outside:
		m.outside[f.name] = true
	}
	return nil
}

// todo is what has not passed with the process killed: what never ran, and what ran without a kill.
func (m *matrix) todo(process string, done *results) (flows []string) {
	for _, f := range m.flows {
		c := cell{process, f}
		if !m.outside[f] && !done.has(c) && m.ran[c] != failed {
			flows = append(flows, f)
		}
	}
	return flows
}

// print what became of all cells, and tell whether a bar was missed.
func (m *matrix) print(w io.Writer, done *results) (missed bool) {
	var bad, never []string
	good := 0
	for _, p := range m.processes {
		for _, f := range m.flows {
			c := cell{p, f}
			switch {
			case m.outside[f]:
			case done.has(c):
				good++
			case m.ran[c] == failed:
				bad = append(bad, p+" "+f)
			default:
				never = append(never, p+" "+f)
			}
		}
	}
	for _, kind := range []struct {
		what string
		list []string
	}{{"failed", bad}, {"never killed", never}} {
		slices.Sort(kind.list)
		for _, c := range kind.list {
			fmt.Fprintf(w, "%s: %s\n", kind.what, c)
		}
	}
	fmt.Fprintf(w, "kill-matrix-flows %d\n", len(m.flows)-len(m.outside))
	fmt.Fprintf(w, "kill-matrix-processes %d\n", len(m.processes))
	fmt.Fprintf(w, "kill-matrix-passed %d\n", good)
	fmt.Fprintf(w, "kill-matrix-failed %d (bar 0)\n", len(bad))
	fmt.Fprintf(w, "kill-matrix-never-killed %d (bar 0)\n", len(never))
	return len(bad)+len(never) > 0
}
