package bench

import (
	"fmt"
	"io"
	"slices"
	"strconv"
)

// Report is what a run found.
type Report struct {
	Machine string   `json:"machine"`
	Method  string   `json:"method"`
	Figures []Figure `json:"figures"`
}

// Figure is one measured value. A bar is what it must reach, or must not pass; both nil: it is told only.
type Figure struct {
	Name    string    `json:"name"`
	Value   float64   `json:"value"`
	Unit    string    `json:"unit,omitempty"`
	AtLeast *float64  `json:"atLeast,omitempty"`
	AtMost  *float64  `json:"atMost,omitempty"`
	Samples []float64 `json:"samples,omitempty"` // of the rounds, in their order
}

// Met tells whether the figure holds its bar; one without a bar does.
func (f Figure) Met() bool {
	return (f.AtLeast == nil || f.Value >= *f.AtLeast) && (f.AtMost == nil || f.Value <= *f.AtMost)
}

// String is the figure as a line: name, value, unit, bar.
func (f Figure) String() string {
	s := f.Name + " " + number(f.Value)
	if f.Unit != "" {
		s += " " + f.Unit
	}
	switch {
	case f.AtLeast != nil:
		s += " (bar at least " + number(*f.AtLeast) + ")"
	case f.AtMost != nil:
		s += " (bar at most " + number(*f.AtMost) + ")"
	}
	if !f.Met() {
		s += " MISSED"
	}
	return s
}

func bar(v float64) *float64 { return &v }

func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// Missed lists the figures below their bars.
func (r *Report) Missed() (missed []Figure) {
	for _, f := range r.Figures {
		if !f.Met() {
			missed = append(missed, f)
		}
	}
	return missed
}

// Print writes the report as text: the machine, then what is told only, then the figures with bars, each a line.
func (r *Report) Print(w io.Writer) error {
	lines := []string{"machine: " + r.Machine, "method: " + r.Method}
	for _, bars := range []bool{false, true} {
		for _, f := range r.Figures {
			if (f.AtLeast != nil || f.AtMost != nil) == bars {
				lines = append(lines, f.String())
			}
		}
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, l); err != nil {
			return fmt.Errorf("print report: %w", err)
		}
	}
	return nil
}

func (r *Report) add(f ...Figure) { r.Figures = append(r.Figures, f...) }

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}
