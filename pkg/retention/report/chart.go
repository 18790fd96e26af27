package report

import (
	"fmt"
	"math"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// The chart's measures, in its own units.
const (
	width, left, right = 1000, 150, 985
	laneHeight         = 24
	top                = 8
	tickSpace          = 52
)

// chart is a timeline: age to the left, growing by its logarithm, so that hours and years have room side by side.
type chart struct {
	Width, Height int
	Left, Right   int
	Ticks         []tick
	Lanes         []lane
	AxisY         int
}

type tick struct {
	X    float64
	Text string
}

type lane struct {
	Y     int
	Mid   int
	Name  string
	Dots  []dot
	Boxes []box
}

// dot is a snapshot.
type dot struct {
	X            float64
	Class, Title string
}

// box is a period, or a span, that a rule counts.
type box struct {
	X, W         float64
	Class, Title string
}

// scale turns ages into places.
type scale struct {
	now  time.Time
	unit time.Duration
	full float64
}

func newScale(now time.Time, oldest time.Duration) scale {
	s := scale{now: now, unit: min(time.Hour, max(time.Minute, oldest/20))}
	s.full = math.Log1p(float64(max(oldest, time.Minute)) / float64(s.unit))
	return s
}

func (s scale) x(t time.Time) float64 {
	a := max(0, s.now.Sub(t))
	at := right - (right-left)*math.Log1p(float64(a)/float64(s.unit))/s.full
	return math.Round(max(left, at)*10) / 10
}

func draw(list []retention.Decision, now time.Time, zone *time.Location) *chart {
	var oldest time.Duration
	for i := range list {
		if at := list[i].Snapshot.CreatedAt; !at.IsZero() {
			oldest = max(oldest, now.Sub(at))
		}
	}
	if oldest <= 0 {
		oldest = time.Hour
	}
	sc := newScale(now, oldest+oldest/20)
	c := &chart{Width: width, Left: left, Right: right}
	stay, going := lane{Name: "stays"}, lane{Name: "goes"}
	for i := range list {
		d := &list[i]
		if d.Snapshot.CreatedAt.IsZero() {
			continue
		}
		taken := d.Snapshot.CreatedAt.In(zone).Format(timeFormat)
		p := dot{X: sc.x(d.Snapshot.CreatedAt), Class: class(d), Title: fmt.Sprintf("%s\n%s\n%s: %s", d.Snapshot.Key, taken, verdict(d), d.Text())}
		if d.Action == retention.Prune || d.Action == retention.Wait {
			going.Dots = append(going.Dots, p)
		} else {
			stay.Dots = append(stay.Dots, p)
		}
	}
	c.Lanes = append([]lane{stay, going}, ruleLanes(list, sc)...)
	for i := range c.Lanes {
		c.Lanes[i].Y = top + i*laneHeight
		c.Lanes[i].Mid = c.Lanes[i].Y + laneHeight/2
	}
	c.AxisY = top + len(c.Lanes)*laneHeight + 4
	c.Height = c.AxisY + 22
	c.Ticks = ticks(sc, oldest)
	return c
}

// ruleLanes has a lane for each keep rule of each retention, in the policy's order.
func ruleLanes(list []retention.Decision, sc scale) []lane {
	type id struct {
		scope string
		rule  retention.RuleName
	}
	rules := []retention.RuleName{retention.RuleLast, retention.RuleWithin, retention.RuleHourly, retention.RuleDaily, retention.RuleWeekly,
		retention.RuleMonthly, retention.RuleYearly}
	marks, scopes := map[id][]*markAt{}, []string{}
	for i := range list {
		for j := range list[i].Marks {
			m := &list[i].Marks[j]
			if !known(scopes, m.Scope) {
				scopes = append(scopes, m.Scope)
			}
			at := id{m.Scope, m.Rule}
			marks[at] = append(marks[at], &markAt{m, list[i].Snapshot})
		}
	}
	var lanes []lane
	for _, scope := range scopes {
		for _, rule := range rules {
			if group := marks[id{scope, rule}]; group != nil {
				lanes = append(lanes, ruleLane(group, sc))
			}
		}
	}
	return lanes
}

func known(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// markAt is a mark and whose it is.
type markAt struct {
	m *retention.Mark
	s *retention.Snapshot
}

func ruleLane(group []*markAt, sc scale) lane {
	first := group[0].m
	l := lane{Name: string(first.Rule)}
	if first.Limit > 0 {
		l.Name = fmt.Sprintf("%s %d", first.Rule, first.Limit)
	}
	if first.Rule == retention.RuleWithin {
		l.Name = "within " + first.Within.String()
	}
	if first.Scope != "" {
		l.Name = first.Scope + ": " + l.Name
	}
	if r := []rune(l.Name); len(r) > 22 {
		l.Name = string(r[:21]) + "…"
	}
	var oldest time.Time
	for _, g := range group {
		if g.m.Keeps {
			oldest = g.s.CreatedAt // newest first
			l.Dots = append(l.Dots, dot{X: sc.x(g.s.CreatedAt), Class: "mark", Title: g.s.Key + "\n" + g.m.String()})
		}
		if !g.m.Newest {
			continue
		}
		start, end := g.m.Span()
		if start.IsZero() {
			continue
		}
		b := box{X: sc.x(start), Class: "spent", Title: g.m.Period() + "\nbeyond the last " + fmt.Sprint(g.m.Limit)}
		b.W = math.Round(max(1.5, sc.x(end)-b.X-1)*10) / 10
		if g.m.Keeps {
			b.Class, b.Title = "counts", g.m.Period()+"\nkeeps "+g.s.Key
		}
		l.Boxes = append(l.Boxes, b)
	}
	if (first.Rule == retention.RuleLast || first.Rule == retention.RuleWithin) && !oldest.IsZero() {
		x := sc.x(oldest)
		l.Boxes = append(l.Boxes, box{X: x - 4, W: right - x + 4, Class: "counts", Title: "down to " + l.Dots[len(l.Dots)-1].Title})
	}
	return l
}

func ticks(sc scale, oldest time.Duration) []tick {
	const day = 24 * time.Hour
	list := []tick{{X: right, Text: "now"}}
	for _, t := range []struct {
		age  time.Duration
		text string
	}{{10 * time.Minute, "10 min"}, {time.Hour, "1 h"}, {6 * time.Hour, "6 h"}, {day, "1 d"}, {3 * day, "3 d"}, {7 * day, "1 wk"}, {14 * day, "2 wk"},
		{30 * day, "1 mo"}, {91 * day, "3 mo"}, {182 * day, "6 mo"}, {365 * day, "1 y"}, {2 * 365 * day, "2 y"}, {5 * 365 * day, "5 y"},
		{10 * 365 * day, "10 y"}, {25 * 365 * day, "25 y"}, {100 * 365 * day, "100 y"}} {
		x := sc.x(sc.now.Add(-t.age))
		if t.age <= oldest && list[len(list)-1].X-x >= tickSpace {
			list = append(list, tick{X: x, Text: t.text})
		}
	}
	return list
}
