package retention

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Cron is a cron expression in a zone.
//
// The expression is read by the parser that Kubernetes' CronJob uses, so that both mean the same by it. That library skips a fixed hour where the
// clock jumps over it, and repeats one where the clock goes back, so it is asked here about wall-clock times only (as if they were UTC, where it is
// right), and the changes of the zone's offset are dealt with around it, one stretch of constant offset after the other:
//
//   - fixed hours (numbers, lists, ranges) fire once where an hour is repeated, the first time, and at the next valid instant where it is skipped;
//   - hours that are * or have a step fire whenever the clock on the wall shows a matching time: twice in a repeated hour, not at all in a skipped one.
type Cron struct {
	wall  *cron.SpecSchedule // in UTC
	fixed bool
	zone  *time.Location
}

// ParseCron reads five fields (minute, hour, day of month, month, day of week) or @hourly, @daily, @weekly, @monthly, @yearly.
func ParseCron(text string, zone *time.Location) (*Cron, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return nil, errors.New("is empty")
	case len(text) > MaxCron:
		return nil, fmt.Errorf("is longer than %d characters", MaxCron)
	case strings.Contains(text, "TZ="):
		return nil, errors.New("names a time zone; use timeZone")
	case strings.HasPrefix(text, "@every"):
		return nil, errors.New("@every has no calendar; use a step, such as */15 * * * *")
	}
	parsed, err := cron.ParseStandard(text)
	if err != nil {
		return nil, fmt.Errorf("is not a cron expression: %w", err)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("is a %T, which has no calendar", parsed)
	}
	spec.Location = time.UTC
	c := &Cron{wall: spec, fixed: fixedHours(text), zone: zone}
	// The day is any: an expression that fires within the library's five years fires within them from every day of the coming decades.
	if spec.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("never fires: no such day is in the calendar")
	}
	return c, nil
}

func fixedHours(text string) bool {
	if strings.HasPrefix(text, "@") {
		return text != "@hourly"
	}
	return !strings.ContainsAny(strings.Fields(text)[1], "*?/")
}

// Next is the first time after t at which the expression fires; zero if there is none within five years.
func (c *Cron) Next(t time.Time) time.Time {
	t = t.Truncate(time.Second)
	limit := t.AddDate(5, 0, 0)
	for s := c.stretchAt(t); s.start.Before(limit); s = c.stretchAt(s.end) {
		if at := c.nextIn(s, t); !at.IsZero() {
			return at
		}
		if s.end.IsZero() {
			break
		}
	}
	return time.Time{}
}

// Last is the last time not after t at which the expression fired; zero if there is none within five years before t.
func (c *Cron) Last(t time.Time) time.Time {
	for back := time.Hour; ; back *= 2 {
		if limit := 5 * 366 * 24 * time.Hour; back > limit {
			return time.Time{}
		}
		var last time.Time
		for at := c.Next(t.Add(-back)); !at.IsZero() && !at.After(t); at = c.Next(at) {
			last = at
		}
		if !last.IsZero() {
			return last
		}
	}
}

// Fires says whether the expression fires at t.
func (c *Cron) Fires(t time.Time) bool { return c.Next(t.Add(-time.Second)).Equal(t) }

// stretch is a time of constant offset. Walls are wall-clock times, written as UTC. A zero start or end is the zone's first or last stretch.
type stretch struct {
	start, end time.Time
	offset     time.Duration
	seen       time.Time // the wall clock showed all before this until the stretch began; zero if there was no stretch before
}

func (c *Cron) stretchAt(t time.Time) stretch {
	local := t.In(c.zone)
	start, end := local.ZoneBounds()
	s := stretch{start: start, end: end, offset: offsetOf(local)}
	if !start.IsZero() {
		s.seen = wallOf(start, offsetOf(start.Add(-1)))
	}
	return s
}

// nextIn is the first time after t in the stretch, zero if there is none.
func (c *Cron) nextIn(s stretch, t time.Time) time.Time {
	from := wallOf(t, s.offset)
	if begin := wallOf(s.start, s.offset); !s.start.IsZero() && t.Before(s.start) {
		from = begin.Add(-time.Second)
		if c.fixed && s.seen.Before(begin) {
			// The wall clock never showed [seen, begin). What would have fired there fires now, once.
			if missed := c.wall.Next(s.seen.Add(-time.Second)); !missed.IsZero() && missed.Before(begin) {
				return s.start.In(c.zone)
			}
		}
	}
	if c.fixed && from.Before(s.seen) {
		from = s.seen.Add(-time.Second) // shown before, and fired then
	}
	at := c.wall.Next(from)
	if at.IsZero() {
		return time.Time{}
	}
	at = at.Add(-s.offset)
	if !s.end.IsZero() && !at.Before(s.end) {
		return time.Time{}
	}
	return at.In(c.zone)
}

func offsetOf(t time.Time) time.Duration {
	_, seconds := t.Zone()
	return time.Duration(seconds) * time.Second
}

func wallOf(t time.Time, offset time.Duration) time.Time { return t.UTC().Add(offset) }
