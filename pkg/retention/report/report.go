// Package report draws a plan as one web page: for each source a timeline of its snapshots and of the periods that the keep rules count, and a table
// with the reason of every decision.
//
// The page needs nothing beside itself: no script, no font, no image from elsewhere. It is readable in light and dark, and on paper. At most
// MaxSources sources are drawn, those with something to prune first; the page says how many are left out.
package report

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// MaxSources is how many sources a page draws.
const MaxSources = 200

const timeFormat = "2006-01-02 15:04:05 -07:00"

// Input is what a page shows.
type Input struct {
	Title  string
	Policy string // as text, for the reader
	Now    time.Time
	Zone   *time.Location // of the times that are shown
	// Names are the sources' names by their keys.
	Names map[string]string
	Plan  *retention.Plan
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

type view struct {
	Title, Policy, Now, Zone  string
	Stay, Go, Wait, Unmanaged int
	Limit, LeftOut            int
	Notices                   []retention.Notice
	Counts                    []retention.Count
	Sources                   []sourceView
}

type sourceView struct {
	Name           string
	Stay, Go, Wait int
	Chart          *chart
	Rows           []row
	Open           bool
}

type row struct{ Name, Taken, Age, Class, Verdict, Why string }

// Render writes the page.
func Render(w io.Writer, in Input) error {
	if in.Zone == nil {
		in.Zone = time.UTC
	}
	v := view{Title: in.Title, Policy: in.Policy, Now: in.Now.In(in.Zone).Format(timeFormat), Zone: in.Zone.String(), Limit: in.Plan.Limit,
		Unmanaged: in.Plan.Unmanaged, Notices: in.Plan.Notices, Counts: in.Plan.Counts()}
	for _, part := range bySource(in.Plan.Decisions) {
		s := in.source(part)
		v.Stay, v.Go, v.Wait = v.Stay+s.Stay, v.Go+s.Go, v.Wait+s.Wait
		v.Sources = append(v.Sources, s)
	}
	slices.SortStableFunc(v.Sources, func(a, b sourceView) int { return cmp.Compare(min(b.Go+b.Wait, 1), min(a.Go+a.Wait, 1)) })
	if len(v.Sources) > MaxSources {
		v.LeftOut = len(v.Sources) - MaxSources
		v.Sources = v.Sources[:MaxSources]
	}
	for i := range v.Sources {
		v.Sources[i].Open = len(v.Sources) == 1
	}
	if err := page.Execute(w, v); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// bySource cuts the decisions where the source changes.
func bySource(list []retention.Decision) [][]retention.Decision {
	var parts [][]retention.Decision
	for start, i := 0, 1; i <= len(list); i++ {
		if i == len(list) || list[i].Snapshot.Source != list[start].Snapshot.Source {
			parts = append(parts, list[start:i])
			start = i
		}
	}
	return parts
}

func (in *Input) source(list []retention.Decision) sourceView {
	key := list[0].Snapshot.Source
	s := sourceView{Name: cmp.Or(in.Names[key], key)}
	for i := range list {
		d := &list[i]
		r := row{Name: d.Snapshot.Key, Why: d.Text(), Class: class(d), Verdict: verdict(d)}
		switch d.Action {
		case retention.Prune:
			s.Go++
		case retention.Wait:
			s.Wait++
		case retention.Keep:
			s.Stay++
		}
		if at := d.Snapshot.CreatedAt; !at.IsZero() {
			r.Taken, r.Age = at.In(in.Zone).Format("2006-01-02 15:04 -07"), age(in.Now.Sub(at))
		}
		s.Rows = append(s.Rows, r)
	}
	s.Chart = draw(list, in.Now, in.Zone)
	return s
}

// class is how a decision looks.
func class(d *retention.Decision) string {
	switch {
	case d.Action == retention.Prune:
		return "go"
	case d.Action == retention.Wait:
		return "wait"
	case d.Action == retention.Ignore:
		return "other"
	case d.Reason == retention.Held || d.Reason == retention.InUse:
		return "held"
	case d.Reason == retention.Rule:
		return "rule"
	}
	return "stay"
}

func verdict(d *retention.Decision) string {
	switch d.Action {
	case retention.Prune:
		return "goes now"
	case retention.Wait:
		return "goes later"
	case retention.Ignore:
		return "not decided"
	}
	return "stays"
}

// age is a duration in the largest two units that say something.
func age(d time.Duration) string {
	if d < 0 {
		return "ahead"
	}
	units := []struct {
		size time.Duration
		name string
	}{{365 * 24 * time.Hour, "y"}, {24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0 min"
}
