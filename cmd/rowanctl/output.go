package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rowan-csi/rowan/pkg/bytesize"
)

// view is something printable: as JSON by its fields, for people by its table.
type view interface{ table(w io.Writer) error }

// print writes v as the user asked.
func (a *app) print(v view) error {
	if a.output == "json" {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("print as json: %w", err)
		}
		_, err = a.out.Write(append(data, '\n'))
		return err
	}
	return v.table(a.out)
}

// say prints a sentence for people, and v for programs.
func (a *app) say(v view, format string, args ...any) error {
	if a.output == "json" {
		return a.print(v)
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}

// writeRows aligns the columns of a table; columns of numbers, named by a leading '>', to the right.
func writeRows(w io.Writer, header []string, rows [][]string) error {
	right := make([]bool, len(header))
	all := append([][]string{slices.Clone(header)}, rows...)
	for i := range header {
		all[0][i], right[i] = strings.CutPrefix(header[i], ">")
	}
	width := make([]int, len(header))
	for _, row := range all {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			line.WriteString(cell + "  ")
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// field is a line of a show.
type field struct{ name, value string }

// writeFields prints one line for each field that has a value.
func writeFields(w io.Writer, fields ...field) error {
	var rows [][]string
	for _, f := range fields {
		if f.value != "" {
			rows = append(rows, []string{f.name + ":", f.value})
		}
	}
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(r[0] + strings.Repeat(" ", width-utf8.RuneCountInString(r[0])+2) + r[1] + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// exact is a size for a show: short, and to the byte.
func exact(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%s (%d bytes)", bytesize.Format(n), n)
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func labelsText(labels map[string]string) string {
	var l []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		l = append(l, k+"="+labels[k])
	}
	return strings.Join(l, ", ")
}

// parseLabels reads key=value, and with remove also key- .
func parseLabels(texts []string, remove bool) (map[string]string, error) {
	labels := map[string]string{}
	for _, t := range texts {
		k, v, ok := strings.Cut(t, "=")
		if !ok && remove {
			k, ok = strings.CutSuffix(t, "-")
		} else if v == "" {
			ok = false
		}
		if _, twice := labels[k]; !ok || k == "" || twice {
			want := "key=value"
			if remove {
				want += ", or key- to remove it"
			}
			return nil, usagef("label %q: want %s, each key once", t, want)
		}
		labels[k] = v
	}
	return labels, nil
}

// sizeFlag is a flag of bytes.
type sizeFlag int64

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return bytesize.Format(int64(*s))
}
func (s *sizeFlag) Type() string { return "size" }
func (s *sizeFlag) Set(text string) error {
	n, err := bytesize.Parse(text)
	*s = sizeFlag(n)
	return err
}
