package retention

import (
	"fmt"
	"time"
)

// RuleName names a keep rule as the policy does.
type RuleName string

// The keep rules.
const (
	RuleLast    RuleName = "keepLast"
	RuleHourly  RuleName = "hourly"
	RuleDaily   RuleName = "daily"
	RuleWeekly  RuleName = "weekly"
	RuleMonthly RuleName = "monthly"
	RuleYearly  RuleName = "yearly"
	RuleWithin  RuleName = "within"
)

// Mark is what a keep rule said of a snapshot.
type Mark struct {
	Rule  RuleName
	Scope string // the schedule whose retention it is of; "" is the policy's
	Limit int    // how many the rule keeps
	// Rank is the snapshot's place for keepLast, its period's place among those that have snapshots for the calendar rules; 1 is the newest.
	Rank int
	// Newest says that it is the newest of its period.
	Newest bool
	// Keeps says that the rule keeps it.
	Keeps bool

	// Within is the span of the rule of that name.
	Within Duration

	zone *time.Location
	at   time.Time
}

// Period names the calendar rule's period that the snapshot lies in; "" for keepLast and within.
func (m *Mark) Period() string {
	t := m.at.In(m.zone)
	switch m.Rule {
	case RuleHourly:
		return t.Format("2006-01-02 15h -07:00")
	case RuleDaily:
		return t.Format("2006-01-02")
	case RuleWeekly:
		y, w := t.ISOWeek()
		return fmt.Sprintf("%d-W%02d", y, w)
	case RuleMonthly:
		return t.Format("2006-01")
	case RuleYearly:
		return t.Format("2006")
	}
	return ""
}

// Span is the calendar rule's period in real time; zeros for keepLast and within.
func (m *Mark) Span() (start, end time.Time) {
	if m.zone == nil {
		return
	}
	t := m.at.In(m.zone)
	y, month, d := t.Date()
	day := func(y int, month time.Month, d int) time.Time { return time.Date(y, month, d, 0, 0, 0, 0, m.zone) }
	switch m.Rule {
	case RuleHourly:
		_, offset := t.Zone()
		start = t.Add(-time.Duration(floorMod(int(t.Unix())+offset, 3600)) * time.Second).Truncate(time.Second)
		return start, start.Add(time.Hour)
	case RuleDaily:
		return day(y, month, d), day(y, month, d+1)
	case RuleWeekly:
		d -= int(t.Weekday()+6) % 7
		return day(y, month, d), day(y, month, d+7)
	case RuleMonthly:
		return day(y, month, 1), day(y, month+1, 1)
	}
	return day(y, 1, 1), day(y+1, 1, 1)
}

// String says it in words.
func (m *Mark) String() string {
	if m.Scope != "" {
		return "schedule " + m.Scope + ": " + m.words()
	}
	return m.words()
}

func (m *Mark) words() string {
	switch {
	case m.Rule == RuleWithin && m.Keeps:
		return fmt.Sprintf("within %s", m.Within)
	case m.Rule == RuleWithin:
		return fmt.Sprintf("not within %s", m.Within)
	case m.Rank > m.Limit:
		return fmt.Sprintf("past %s %d", m.Rule, m.Limit)
	case m.Rule == RuleLast:
		return fmt.Sprintf("keepLast %d of %d", m.Rank, m.Limit)
	case !m.Newest:
		return fmt.Sprintf("%s: not the newest of %s", m.Rule, m.Period())
	}
	return fmt.Sprintf("%s %d of %d (%s)", m.Rule, m.Rank, m.Limit, m.Period())
}

// bucket is a period. Periods of one rule are the same if they are equal.
type bucket struct {
	n      int
	offset int
}

// bucketOf is the period of a moment. An hour that the zone repeats is two, told apart by the offset from UTC. That offset is left out of the longer
// periods: with it a day, week or month with a change of the offset would be two of them, and every year three.
func bucketOf(rule RuleName, at time.Time, zone *time.Location) bucket {
	t := at.In(zone)
	_, offset := t.Zone()
	seconds := int(t.Unix()) + offset
	day := floorDiv(seconds, 24*3600)
	switch rule {
	case RuleHourly:
		return bucket{floorDiv(seconds, 3600), offset}
	case RuleDaily:
		return bucket{n: day}
	case RuleWeekly:
		return bucket{n: floorDiv(day+3, 7)} // day 0 was a Thursday; weeks begin on Monday
	case RuleMonthly:
		return bucket{n: t.Year()*12 + int(t.Month())}
	}
	return bucket{n: t.Year()}
}

func floorMod(a, b int) int { return a - floorDiv(a, b)*b }

func floorDiv(a, b int) int {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

type countRule struct {
	name  RuleName
	limit int
}

func (r *Retention) countRules() []countRule {
	return []countRule{{RuleHourly, r.Hourly}, {RuleDaily, r.Daily}, {RuleWeekly, r.Weekly}, {RuleMonthly, r.Monthly}, {RuleYearly, r.Yearly}}
}

// marks applies the keep rules to snapshots that take slots, newest first.
func (s *scope) marks(list []*Snapshot) [][]Mark {
	const rules = 7 // of which each snapshot has one mark at most
	marks, room := make([][]Mark, len(list)), make([]Mark, len(list)*rules)
	for i := range marks {
		marks[i] = room[i*rules : i*rules : (i+1)*rules]
	}
	if s.r.KeepLast > 0 {
		for i := range list {
			marks[i] = append(marks[i], Mark{Rule: RuleLast, Scope: s.name, Limit: s.r.KeepLast, Rank: i + 1, Newest: true, Keeps: i < s.r.KeepLast})
		}
	}
	for _, rule := range s.r.countRules() {
		if rule.limit > 0 {
			s.markPeriods(rule, list, marks)
		}
	}
	if s.r.Within > 0 && len(list) > 0 {
		from := list[0].CreatedAt.Add(-time.Duration(s.r.Within))
		for i, snap := range list {
			marks[i] = append(marks[i], Mark{Rule: RuleWithin, Scope: s.name, Within: s.r.Within, Keeps: snap.CreatedAt.After(from)})
		}
	}
	return marks
}

// markPeriods applies a calendar rule. Where the clock goes back over midnight, a day comes twice with another in between, so all that were seen are
// known.
func (s *scope) markPeriods(rule countRule, list []*Snapshot, marks [][]Mark) {
	ranks := map[bucket]int{}
	for i, snap := range list {
		b := bucketOf(rule.name, snap.CreatedAt, s.zone)
		rank, seen := ranks[b]
		if !seen {
			rank = len(ranks) + 1
			ranks[b] = rank
		}
		marks[i] = append(marks[i], Mark{Rule: rule.name, Scope: s.name, Limit: rule.limit, Rank: rank, Newest: !seen,
			Keeps: !seen && rank <= rule.limit, zone: s.zone, at: snap.CreatedAt})
	}
}
