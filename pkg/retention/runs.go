package retention

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// OnTime is how late a snapshot that is not to be caught up may be begun.
const OnTime = time.Minute

// Source is what is snapshotted: a PVC, or a group of them.
type Source struct {
	// Key tells it from every other: a PVC's UID; for a group, its namespace and label value.
	Key string `json:"key"`
	// Name is for people, such as shop/db.
	Name string `json:"name,omitempty"`
	// Pool is where its snapshots lie; "" where that is not known, and then there is no pressure.
	Pool string `json:"pool,omitempty"`
	// Gone is when the source was found to be gone; nil while it is there.
	Gone *time.Time `json:"gone,omitempty"`
	// Awaiting says why a snapshot of it that is due is not there (its creation was refused, say). The keep rules prune nothing of it meanwhile.
	Awaiting string `json:"awaiting,omitempty"`
}

// History is what is known of a schedule's snapshots of one source.
type History struct {
	// Since is when the schedule began to apply to the source: what was due before is not missed. The later of both creations, or of the schedule's
	// change.
	Since time.Time
	// Done is the last nominal time that a snapshot was begun for; zero for none. LatestRun finds it.
	Done time.Time
	// Making says that a snapshot of this schedule is in the making.
	Making bool
}

// Run is a snapshot of a source to be begun now.
type Run struct {
	// Name is the snapshot's, the same whenever this is worked out again: a retry makes the same object.
	Name string
	// Nominal is the time it is for: the latest of its schedules'.
	Nominal time.Time
	// Schedules are all it serves, by name, each with its own nominal time.
	Schedules map[string]time.Time
	// CaughtUp says that it is begun over OnTime late.
	CaughtUp bool
}

// Next says when the first of the schedules is due for a source after now; zero for none. Jitter is in it.
func (ru *Rules) Next(source string, now time.Time) time.Time {
	var first time.Time
	for i := range ru.schedules {
		s := &ru.schedules[i]
		if s.cron == nil {
			continue
		}
		j := s.jitter(source)
		if at := s.cron.Next(now.Add(-j)); !at.IsZero() && (first.IsZero() || at.Add(j).Before(first)) {
			first = at.Add(j)
		}
	}
	return first
}

// Tick is a schedule's calendar, whatever the source: jitter is not in it.
type Tick struct {
	Name string
	When string    // the expression and its zone: the same as long as the calendar is
	Next time.Time // zero: none, or the schedule is wrong
}

// Ticks of all schedules, in the policy's order.
func (ru *Rules) Ticks(now time.Time) []Tick {
	ticks := make([]Tick, len(ru.schedules))
	for i := range ru.schedules {
		s := &ru.schedules[i]
		zone := s.TimeZone
		if zone == "" {
			zone = ru.policy.TimeZone
		}
		if zone == "" {
			zone = "UTC"
		}
		ticks[i] = Tick{Name: s.Name, When: s.Cron + " " + zone}
		if s.cron != nil {
			ticks[i].Next = s.cron.Next(now)
		}
	}
	return ticks
}

// Run says what is to be begun for a source now, nil if nothing. All that is due is one snapshot: two of one moment would be equal.
// history has an entry for each schedule that has snapshots; one without counts from the zero time and is caught up.
func (ru *Rules) Run(policyUID, source string, history map[string]History, now time.Time) *Run {
	if ru.policy.Suspend {
		return nil
	}
	run := &Run{Schedules: map[string]time.Time{}, CaughtUp: true}
	for i := range ru.schedules {
		s := &ru.schedules[i]
		nominal, late := s.due(source, history[s.Name], now)
		if nominal.IsZero() {
			continue
		}
		run.Schedules[s.Name] = nominal
		run.CaughtUp = run.CaughtUp && late
		if nominal.After(run.Nominal) {
			run.Nominal = nominal
		}
	}
	if len(run.Schedules) == 0 {
		return nil
	}
	ru.join(run, history, now)
	// The first of the schedules that fire then, due by their jitter or not: it is the same at every retry.
	first := ""
	for i := range ru.schedules {
		s := &ru.schedules[i]
		if s.cron != nil && s.cron.Fires(run.Nominal) && (first == "" || s.Name < first) {
			first = s.Name
		}
	}
	run.Name = SnapshotName(policyUID, source, first, run.Nominal)
	return run
}

// join lets the run serve the schedules of its nominal time whose jitter would have them wait a little longer: one instant, one snapshot.
func (ru *Rules) join(run *Run, history map[string]History, now time.Time) {
	for i := range ru.schedules {
		s := &ru.schedules[i]
		h := history[s.Name]
		if _, in := run.Schedules[s.Name]; in || s.cron == nil || s.waits(h) {
			continue
		}
		if done := LatestRun([]time.Time{h.Done}, now); !done.Before(run.Nominal) || run.Nominal.Before(h.Since) {
			continue
		}
		if s.cron.Fires(run.Nominal) {
			run.Schedules[s.Name] = run.Nominal
		}
	}
}

// waits says that a snapshot in the making keeps the schedule from beginning another.
func (s *schedule) waits(h History) bool { return h.Making && s.Concurrency != ConcurrencyAllow }

// due is the nominal time that the schedule has to begin a snapshot for, zero for none, and whether it is late.
func (s *schedule) due(source string, h History, now time.Time) (time.Time, bool) {
	if s.cron == nil || s.waits(h) {
		return time.Time{}, false
	}
	j := s.jitter(source)
	nominal := s.cron.Last(now.Add(-j))
	if nominal.IsZero() || !nominal.After(LatestRun([]time.Time{h.Done}, now)) || nominal.Before(h.Since) {
		return time.Time{}, false
	}
	after := now.Sub(nominal.Add(j))
	if s.StartingDeadlineSeconds != nil && after > time.Duration(*s.StartingDeadlineSeconds)*time.Second {
		return time.Time{}, false
	}
	late := after > OnTime
	if late && s.CatchUp == CatchUpNone {
		return time.Time{}, false
	}
	return nominal, late
}

// LatestRun is the last of nominal times that snapshots were begun for. Those ahead of now are left out: after a clock was set back, snapshots are
// taken again. (A nominal time that had one before gives the same name, and so the same object.)
func LatestRun(nominal []time.Time, now time.Time) time.Time {
	var last time.Time
	for _, t := range nominal {
		if t.After(last) && !t.After(now.Add(SkewLimit)) {
			last = t
		}
	}
	return last
}

// jitter is the source's share of the schedule's: a hash of its key, so that it is the same each time and for each of its schedules alike.
func (s *schedule) jitter(source string) time.Duration {
	if s.Jitter == 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(source))
	n := time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(time.Duration(s.Jitter)/time.Second+1))
	return n * time.Second
}

// SnapshotName is the name of the snapshot that a policy takes of a source for a schedule's nominal time.
func SnapshotName(policyUID, source, schedule string, nominal time.Time) string {
	h := sha256.New()
	for _, part := range []string{policyUID, source, schedule, nominal.UTC().Format(time.RFC3339)} {
		fmt.Fprintf(h, "%d:%s", len(part), part) // lengths, so that no two lists of parts are one text
	}
	return "rowan-" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:20]))
}

// RunsText writes a run's schedules as an annotation has them; ParseRuns reads it.
func RunsText(schedules map[string]time.Time) string {
	parts := make([]string, 0, len(schedules))
	for name, at := range schedules {
		parts = append(parts, name+"="+at.UTC().Format(time.RFC3339))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// ParseRuns reads RunsText.
func ParseRuns(text string) (map[string]time.Time, error) {
	runs := map[string]time.Time{}
	if text == "" {
		return runs, nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > MaxSchedules {
		return nil, fmt.Errorf("read schedules of a snapshot: %d of them, %d at most", len(parts), MaxSchedules)
	}
	for _, part := range parts {
		name, at, _ := strings.Cut(part, "=")
		t, err := time.Parse(time.RFC3339, at)
		if err != nil || len(name) > MaxName || !dnsLabel.MatchString(name) {
			return nil, fmt.Errorf("read schedules of a snapshot: %q is not NAME=TIME", short(part))
		}
		runs[name] = t
	}
	return runs, nil
}
