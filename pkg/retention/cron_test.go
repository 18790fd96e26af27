package retention_test

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/retention"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestCronAroundClockChanges has every firing of an expression in the day or so around a change, as the wall clock and the offset from UTC show it.
func TestCronAroundClockChanges(t *testing.T) {
	for _, c := range []struct{ zone, from, until, cron, want string }{
		// Berlin, 2026: 29 March 02:00 becomes 03:00; 25 October 03:00 becomes 02:00.
		{"Europe/Berlin", "2026-03-28T12:00", "2026-03-30T12:00", "30 2 * * *", "29T03:00+02 30T02:30+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-30T01:00", "0,30 2 * * *", "29T03:00+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-30T01:00", "0 2,3 * * *", "29T03:00+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-29T06:00", "15 1-4 * * *", "29T01:15+01 29T03:00+02 29T03:15+02 29T04:15+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-29T06:00", "0 * * * *", "29T01:00+01 29T03:00+02 29T04:00+02 29T05:00+02 29T06:00+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-29T06:00", "0 */2 * * *", "29T04:00+02 29T06:00+02"},
		{"Europe/Berlin", "2026-03-29T00:00", "2026-03-30T01:00", "@daily", "30T00:00+02"},
		{"Europe/Berlin", "2026-10-25T00:00", "2026-10-26T12:00", "30 2 * * *", "25T02:30+02 26T02:30+01"},
		{"Europe/Berlin", "2026-10-25T00:00", "2026-10-25T05:00", "0 1-4 * * *", "25T01:00+02 25T02:00+02 25T03:00+01 25T04:00+01"},
		{"Europe/Berlin", "2026-10-25T00:00", "2026-10-25T04:00", "0 * * * *", "25T01:00+02 25T02:00+02 25T02:00+01 25T03:00+01 25T04:00+01"},
		{"Europe/Berlin", "2026-10-25T01:59", "2026-10-25T03:00", "*/20 2 * * *", "25T02:00+02 25T02:20+02 25T02:40+02"},
		{"Europe/Berlin", "2026-10-25T01:59", "2026-10-25T03:00", "*/30 * * * *", "25T02:00+02 25T02:30+02 25T02:00+01 25T02:30+01 25T03:00+01"},
		// New York, 2026: 8 March 02:00 becomes 03:00; 1 November 02:00 becomes 01:00.
		{"America/New_York", "2026-03-07T12:00", "2026-03-09T12:00", "0 2 * * *", "08T03:00-04 09T02:00-04"},
		{"America/New_York", "2026-03-08T00:30", "2026-03-08T05:00", "0 * * * *", "08T01:00-05 08T03:00-04 08T04:00-04 08T05:00-04"},
		{"America/New_York", "2026-03-07T12:00", "2026-03-16T12:00", "30 2 * * sun", "08T03:00-04 15T02:30-04"},
		{"America/New_York", "2026-11-01T00:00", "2026-11-02T12:00", "30 1 * * *", "01T01:30-04 02T01:30-05"},
		{"America/New_York", "2026-11-01T00:00", "2026-11-01T03:00", "0 * * * *", "01T01:00-04 01T01:00-05 01T02:00-05 01T03:00-05"},
		// Lord Howe moves by half an hour, 2026: 5 April 02:00 becomes 01:30; 4 October 02:00 becomes 02:30.
		{"Australia/Lord_Howe", "2026-04-05T00:00", "2026-04-06T12:00", "45 1 * * *", "05T01:45+11 06T01:45+10:30"},
		{"Australia/Lord_Howe", "2026-04-05T00:59", "2026-04-05T03:00", "*/30 * * * *",
			"05T01:00+11 05T01:30+11 05T01:30+10:30 05T02:00+10:30 05T02:30+10:30 05T03:00+10:30"},
		{"Australia/Lord_Howe", "2026-04-05T00:59", "2026-04-05T03:00", "*/30 1,2 * * *", "05T01:00+11 05T01:30+11 05T02:00+10:30 05T02:30+10:30"},
		{"Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-05T12:00", "15 2 * * *", "04T02:30+11 05T02:15+11"},
		{"Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-05T12:00", "45 2 * * *", "04T02:45+11 05T02:45+11"},
		{"Australia/Lord_Howe", "2026-10-04T01:00", "2026-10-04T04:00", "0 * * * *", "04T03:00+11 04T04:00+11"},
		// Kathmandu has no summer time, and three quarters of an hour; on 1 January 1986 00:00 became 00:15.
		{"Asia/Kathmandu", "2026-03-28T12:00", "2026-03-30T12:00", "30 2 * * *", "29T02:30+05:45 30T02:30+05:45"},
		{"Asia/Kathmandu", "2026-03-29T00:00", "2026-03-29T02:00", "0 * * * *", "29T01:00+05:45 29T02:00+05:45"},
		{"Asia/Kathmandu", "1985-12-31T12:00", "1986-01-02T12:00", "5 0 * * *", "01T00:15+05:45 02T00:05+05:45"},
		// A day that was not: Samoa went from 29 to 31 December 2011.
		{"Pacific/Apia", "2011-12-29T00:30", "2012-01-01T01:00", "0 12 * * *", "29T12:00-10 31T00:00+14 31T12:00+14"},
	} {
		z := zone(t, c.zone)
		cr, err := retention.ParseCron(c.cron, z)
		if err != nil {
			t.Fatal(err)
		}
		at := func(text string) time.Time {
			v, err := time.ParseInLocation("2006-01-02T15:04", text, z)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		var got []string
		for f := cr.Next(at(c.from)); !f.After(at(c.until)); f = cr.Next(f) {
			got = append(got, strings.TrimSuffix(f.In(z).Format("02T15:04-07:00"), ":00"))
			if last := cr.Last(f.Add(time.Second)); !last.Equal(f) {
				t.Errorf("%s in %s: the last time after %s is %s", c.cron, c.zone, f, last)
			}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%q in %s:\n got %s\nwant %s", c.cron, c.zone, text, c.want)
		}
	}
}

// TestLibraryAlone shows why the library's own Next is not used: it loses and repeats fixed hours. Should this test fail, it got better.
func TestLibraryAlone(t *testing.T) {
	z := zone(t, "Europe/Berlin")
	s, err := cron.ParseStandard("CRON_TZ=Europe/Berlin 30 2 * * *")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Next(time.Date(2026, 3, 28, 12, 0, 0, 0, z)); got.Day() != 30 {
		t.Errorf("the lost hour: fires on %s", got)
	}
	first := s.Next(time.Date(2026, 10, 25, 0, 0, 0, 0, z))
	if second := s.Next(first); second.Sub(first) != time.Hour {
		t.Errorf("the repeated hour: fires at %s and %s", first, second)
	}
}

func TestWrongCron(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "is empty",
		"* * * *":                      "expected exactly 5 fields",
		"61 * * * *":                   "above maximum",
		"0 0 31 2 *":                   "never fires",
		"0 , * * *":                    "never fires",
		"TZ=UTC 0 0 * * *":             "use timeZone",
		"CRON_TZ=":                     "use timeZone",
		"@every 5m":                    "use a step",
		"@sometimes":                   "unrecognized descriptor",
		strings.Repeat("1,", 90) + "1": "longer than",
		"0 0 * * */0":                  "positive number",
	} {
		if _, err := retention.ParseCron(text, time.UTC); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

var zones = []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo", "Pacific/Apia",
	"Africa/Casablanca", "Antarctica/Troll", "America/Havana"}

// wallClock goes through real time minute by minute, as a person with a watch would, and says when an expression fires: invariant 12 in other words.
type wallClock struct {
	spec  *cron.SpecSchedule
	fixed bool
	zone  *time.Location
}

func (w *wallClock) wall(t time.Time) time.Time {
	_, offset := t.In(w.zone).Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

func (w *wallClock) matches(wall time.Time) bool {
	return w.spec.Next(wall.Add(-time.Second)).Equal(wall)
}

func (w *wallClock) fires(t time.Time) bool {
	now, before := w.wall(t), w.wall(t.Add(-time.Minute))
	if !w.fixed {
		return w.matches(now)
	}
	for skipped := before.Add(time.Minute); skipped.Before(now); skipped = skipped.Add(time.Minute) {
		if w.matches(skipped) {
			return true
		}
	}
	if !w.matches(now) {
		return false
	}
	for back := time.Minute; back <= 3*time.Hour; back += time.Minute {
		if w.wall(t.Add(-back)).Equal(now) {
			return false // shown before
		}
	}
	return true
}

// TestInvariant12FixedHours compares with a walk through the minutes around changes of offset.
func TestInvariant12FixedHours(t *testing.T) {
	hours := rapid.SampledFrom([]string{"0", "1", "2", "3", "1,2", "0-4", "23", "0-23", "*", "*/2", "1-23/2", "?"})
	minutes := rapid.SampledFrom([]string{"0", "30", "15", "*/15", "59", "0,45", "20-40/10"})
	days := rapid.SampledFrom([]string{"* * *", "* * sun", "29 3 *", "1-7 * *", "*/2 * *", "25 10 sat"})
	check(t, 300, func(r *rapid.T) {
		z := zone(t, rapid.SampledFrom(zones).Draw(r, "zone"))
		hour := hours.Draw(r, "hour")
		text := minutes.Draw(r, "minute") + " " + hour + " " + days.Draw(r, "day")
		c, err := retention.ParseCron(text, z)
		if err != nil {
			r.Fatal(err)
		}
		spec, err := cron.ParseStandard("CRON_TZ=UTC " + text)
		if err != nil {
			r.Fatal(err)
		}
		w := &wallClock{spec.(*cron.SpecSchedule), !strings.ContainsAny(hour, "*?/"), z}
		change := time.Unix(rapid.Int64Range(1293840000, 1893456000).Draw(r, "time")/60*60, 0)
		if _, end := change.In(z).ZoneBounds(); !end.IsZero() && rapid.Bool().Draw(r, "near a change") {
			change = end
		}
		from := change.Add(-time.Duration(rapid.IntRange(0, 200).Draw(r, "before")) * time.Minute)
		until := from.Add(6 * time.Hour)
		next, last := c.Next(from), c.Last(from)
		for at := from.Add(time.Minute); !at.After(until); at = at.Add(time.Minute) {
			fires := w.fires(at)
			if fires != next.Equal(at) {
				r.Fatalf("%q in %s at %s: fires %v, want %v (next is %s)", text, z, at.In(z), next.Equal(at), fires, next)
			}
			if fires {
				if !c.Fires(at) || !c.Last(at).Equal(at) || !c.Last(at.Add(-time.Second)).Equal(last) {
					r.Fatalf("%q in %s at %s: Fires or Last disagrees with Next", text, z, at.In(z))
				}
				next, last = c.Next(at), at
			}
		}
	})
}
